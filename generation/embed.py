"""Stage 3a: captions become text embeddings, row for row, in one safetensors shard for each shard of captions.

One thread encodes on each GPU. Threads and not processes: a batch keeps a GPU busy for far longer than Python needs to
start it, and nothing has to be passed between processes or stopped in them.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .encoders import load_encoder
from .errors import EmbeddingError, Interrupted, RunError
from .logs import Progress
from .rows import text_hash
from .stages import CAPTIONS, TEXT_EMBEDDINGS
from .store import Run
from .vectors import VectorShard, check_unit, write_vectors

if TYPE_CHECKING:
    from .encoders.base import Encoder

CUT_SHARE = 0.01  # of the captions: warn if more are cut

logger = logging.getLogger(__name__)


def make_text_embeddings(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the due shards of text embeddings, as task ``rank`` of ``world_size``; tasks on one machine take
    ``cluster.gpus`` GPUs each. Rows whose caption did not change keep their vector. A ``RunError`` says that there are
    no captions, or that the stage was begun with another encoder; an ``EmbeddingError``, that it is of no use."""
    if not run.shards(CAPTIONS):
        raise RunError(f"{run.path}: no captions yet. Run `python -m generation captions --run-dir {run.path}`")
    shards = [shard for shard in run.due(TEXT_EMBEDDINGS) if shard % world_size == rank]
    if not shards:
        return
    devices = _devices(run.recipe.cluster.gpus, rank, world_size)[: len(shards)]
    encoders = [load_encoder(run.recipe.embed, run.recipe.directory, device) for device in devices]
    _ = [encoder.model for encoder in encoders]  # so that a model that cannot be loaded leaves no stage.json
    run.begin(TEXT_EMBEDDINGS, encoders[0].identity)
    records, figures, start = run.records(CAPTIONS), Counter[str](), time.monotonic()
    lock, stopping = threading.Lock(), threading.Event()

    def on_rows(rows: int) -> None:
        if stopping.is_set():
            raise Interrupted
        with lock:
            bar.update(rows)

    total = sum(records[shard].rows for shard in shards)
    with Progress(TEXT_EMBEDDINGS.name, total, unit="caption") as bar, ThreadPoolExecutor(len(encoders)) as pool:
        try:
            work = [(encoders[number % len(encoders)], shard) for number, shard in enumerate(shards)]
            made = as_completed([pool.submit(_make_shard, run, *item, on_rows) for item in work])
            for number, future in enumerate(made, 1):
                figures.update(future.result())
                if number in (1, len(shards)):
                    _warn(run)  # first before hours are spent on the other shards
        finally:  # a signal, or an error
            stopping.set()
            pool.shutdown(cancel_futures=True)
    run.log_session(TEXT_EMBEDDINGS, {**figures, "seconds": round(time.monotonic() - start, 1)})


def _devices(per_task: int, rank: int, world_size: int) -> list[str]:
    if not (gpus := torch.cuda.device_count()):
        return ["cpu"]
    used = gpus if world_size == 1 else min(gpus, max(1, per_task))
    return [f"cuda:{(rank * used + number) % gpus}" for number in range(used)]


def _make_shard(run: Run, encoder: "Encoder", shard: int, on_rows: Callable[[int], object]) -> dict[str, int]:
    """Make one shard, unless another process makes it; return its figures."""
    with run.claim(TEXT_EMBEDDINGS, shard) as claimed:
        if not claimed or not run.is_due(TEXT_EMBEDDINGS, shard):
            return {}
        inputs, identity = run.inputs(TEXT_EMBEDDINGS, shard), run.facts(TEXT_EMBEDDINGS)["identity"]
        table = run.table(CAPTIONS, shard, ["id", "caption"])
        ids, captions = table["id"].to_pylist(), table["caption"].to_pylist()
        hashes = [text_hash(caption) for caption in captions]
        tokens, truncated = encoder.tokenise(captions)
        kept = _kept(run, shard, identity)
        new = [row for row, key in enumerate(zip(ids, hashes, strict=True)) if key not in kept]
        vectors = torch.empty(len(ids), encoder.dimension, dtype=torch.float16)
        for row in set(range(len(ids))).difference(new):
            vectors[row] = kept[ids[row], hashes[row]]
        on_rows(len(ids) - len(new))
        vectors[new] = encoder.encode_tokens([tokens[row] for row in new], on_rows).half()
        check_unit(vectors, f"vectors by {encoder.checkpoint.name} of {run.file(CAPTIONS, shard)}")
        if run.inputs(TEXT_EMBEDDINGS, shard) != inputs:
            logger.warning("shard %05d: its captions changed meanwhile; give the same command again", shard)
            return {}
        counts = {"tokens": sum(map(len, tokens)), "truncated": truncated, "encoded": len(new)}
        metadata = {"encoder": identity, "shard": shard}
        write = partial(write_vectors, vectors=vectors, ids=ids, input_hashes=hashes, metadata=metadata)
        run.commit(TEXT_EMBEDDINGS, shard, len(ids), write, counts=counts)
        return counts | {"rows": len(ids)}


def _kept(run: Run, shard: int, identity: dict[str, Any]) -> dict[tuple[str, int], Any]:
    """Return the vectors of an earlier version of a shard by id and hash of the caption, if they can be trusted."""
    if run.record(TEXT_EMBEDDINGS, shard) is None:
        return {}
    try:
        old = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
    except (RunError, EmbeddingError) as error:
        logger.warning("shard %05d: encoding all captions again: %s", shard, error)
        return {}
    keys = zip(old.ids, old.input_hashes, strict=True)
    return dict(zip(keys, old.vectors, strict=True)) if old.metadata.get("encoder") == identity else {}


def _warn(run: Run) -> None:
    """Warn of an encoder that knows no images, and of captions that are longer than the encoder takes."""
    encoder, records = run.facts(TEXT_EMBEDDINGS)["identity"], run.records(TEXT_EMBEDDINGS).values()
    model, limit = encoder["model"], encoder["max_tokens"]
    if not encoder["joint_with_images"]:
        advice = "To train a model that reads images, set embed.encoder to a dual encoder or LLM2CLIP"
        logger.warning("%s embeds text only: no image lives in the space of its vectors. %s", model, advice)
    rows, cut = sum(record.rows for record in records), sum(record.counts.get("truncated", 0) for record in records)
    if cut > CUT_SHARE * rows:
        logger.warning(
            f"{cut} of {rows} captions ({cut / rows:.1%}) are longer than the {limit} tokens that {model} takes, and "
            "were cut: the rest of their text is not in their vectors. Encoders that take more: LLM2CLIP (512), "
            "Long-CLIP (248)"
        )

"""Stage 3a: captions become text embeddings, row for row, in one safetensors shard for each shard of captions.

One thread encodes on each GPU. Threads and not processes: a batch keeps a GPU busy for far longer than Python needs to
start it, and nothing has to be passed between processes or stopped in them.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from .encoders import Encoder, load_encoder
from .errors import EmbeddingError, Interrupted, RunError
from .logs import Progress
from .rows import text_hash
from .stages import CAPTIONS, TEXT_EMBEDDINGS
from .store import Run
from .vectors import VectorShard, check_unit, write_vectors

CUT_SHARE = 0.01  # of the captions: warn if more are cut

logger = logging.getLogger(__name__)


def make_text_embeddings(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the due shards of text embeddings. Rows whose caption did not change keep their vector.

    Args:
        run: the run.
        rank: number of this task among ``world_size`` tasks that share the shards. Tasks on one machine take
            ``cluster.gpus`` GPUs each.
        world_size: how many tasks there are.

    Raises:
        RunError: no captions are finished, or the stage was begun with another encoder.
        EmbeddingError: the encoder cannot be loaded, or its vectors cannot be used.
    """
    if not run.shards(CAPTIONS):
        raise RunError(f"{run.path}: no captions yet. Run `python -m generation captions --run-dir {run.path}`")
    shards = [shard for shard in run.due(TEXT_EMBEDDINGS) if shard % world_size == rank]
    if not shards:
        return
    free = queue.SimpleQueue[Encoder]()
    devices = _devices(run.recipe.cluster.gpus, rank, world_size)[: len(shards)]
    for device in devices:
        encoder = load_encoder(run.recipe.embed, run.recipe.directory, device)
        _ = encoder.model  # so that a model that cannot be loaded leaves no stage.json
        run.begin(TEXT_EMBEDDINGS, encoder.identity)
        free.put(encoder)
    records, counts, start = run.records(CAPTIONS), Counter[str](), time.monotonic()
    lock, stopping = threading.Lock(), threading.Event()

    def on_rows(rows: int) -> None:
        if stopping.is_set():
            raise Interrupted
        with lock:
            bar.update(rows)

    def make(shard: int) -> dict[str, int]:
        encoder = free.get()
        try:
            return _make_shard(run, encoder, shard, on_rows)
        finally:
            free.put(encoder)

    with (
        Progress(TEXT_EMBEDDINGS.name, sum(records[shard].rows for shard in shards), unit="caption") as bar,
        ThreadPoolExecutor(len(devices)) as pool,
    ):
        try:
            for number, future in enumerate(as_completed([pool.submit(make, shard) for shard in shards]), 1):
                counts.update(future.result())
                if number in (1, len(shards)):
                    _warn(run)  # first before hours are spent on the other shards
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
    run.log_session(TEXT_EMBEDDINGS, {**counts, "seconds": round(time.monotonic() - start, 1)})


def _devices(per_task: int, rank: int, world_size: int) -> list[str]:
    """Return torch's names of the devices that a task uses."""
    import torch

    if not (gpus := torch.cuda.device_count()):
        return ["cpu"]
    used = gpus if world_size == 1 else min(gpus, max(1, per_task))
    return [f"cuda:{(rank * used + number) % gpus}" for number in range(used)]


def _make_shard(run: Run, encoder: Encoder, shard: int, on_rows: Callable[[int], object]) -> dict[str, int]:
    """Make one shard, unless another process makes it; return its figures."""
    import torch

    with run.claim(TEXT_EMBEDDINGS, shard) as claimed:
        if not claimed or not run.is_due(TEXT_EMBEDDINGS, shard):
            return {}
        inputs = run.inputs(TEXT_EMBEDDINGS, shard)
        table = run.table(CAPTIONS, shard, ["id", "caption"])
        ids, captions = table["id"].to_pylist(), table["caption"].to_pylist()
        hashes = [text_hash(caption) for caption in captions]
        tokens, truncated = encoder.tokenise(captions)
        kept = _kept(run, encoder, shard)
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
        figures = {"tokens": sum(map(len, tokens)), "truncated": truncated, "encoded": len(new)}
        metadata = {"encoder": encoder.identity, "shard": shard}
        run.commit(
            TEXT_EMBEDDINGS,
            shard,
            len(ids),
            lambda path: write_vectors(path, vectors, ids, hashes, metadata),
            counts=figures,
        )
        return figures | {"rows": len(ids)}


def _kept(run: Run, encoder: Encoder, shard: int) -> dict[tuple[str, int], Any]:
    """Return the vectors of an earlier version of a shard by id and hash of the caption, if they can be trusted."""
    if run.record(TEXT_EMBEDDINGS, shard) is None:
        return {}
    try:
        old = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
    except (RunError, EmbeddingError) as error:
        logger.warning("shard %05d: encoding all captions again: %s", shard, error)
        return {}
    if old.metadata.get("encoder") != encoder.identity:
        return {}
    return dict(zip(zip(old.ids, old.input_hashes, strict=True), old.vectors, strict=True))


def _warn(run: Run) -> None:
    """Warn of an encoder that knows no images, and of captions that are longer than the encoder takes."""
    encoder, records = run.facts(TEXT_EMBEDDINGS)["identity"], run.records(TEXT_EMBEDDINGS).values()
    if not encoder["joint_with_images"]:
        logger.warning(
            "%s embeds text only: no image lives in the space of its vectors. To train a model that reads images, set "
            "embed.encoder to a dual encoder or LLM2CLIP",
            encoder["model"],
        )
    rows, cut = sum(record.rows for record in records), sum(record.counts.get("truncated", 0) for record in records)
    if cut > CUT_SHARE * rows:
        logger.warning(
            "%d of %d captions (%.1f %%) are longer than the %d tokens that %s takes, and were cut: the rest of their "
            "text is not in their vectors. Encoders that take more: LLM2CLIP (512), Long-CLIP (248)",
            *(cut, rows, 100 * cut / rows, encoder["max_tokens"], encoder["model"]),
        )

"""Stage 3a: captions become text embeddings, row for row, in one safetensors shard for each shard of captions."""

import logging
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import torch

from .encoders import load_encoder
from .errors import EmbeddingError, RunError
from .logs import Progress
from .stages import CAPTIONS, TEXT_EMBEDDINGS, text_hash
from .store import Run
from .vectors import VectorShard, check_unit, write_vectors

if TYPE_CHECKING:
    from .encoders.base import Encoder

CUT_SHARE = 0.01  # of the captions: warn if more are cut
LONGER = "LLM2CLIP takes 512 tokens, Long-CLIP 248"

logger = logging.getLogger(__name__)


def make_text_embeddings(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the due shards of text embeddings, as task ``rank`` of ``world_size``, each on one GPU; captions that did
    not change keep their vector. A RunError says that there are no captions, or that the stage was begun with another
    encoder; an EmbeddingError, that it is of no use."""
    if not run.shards(CAPTIONS):
        raise RunError(f"{run.path}: no captions yet. Run `python -m generation captions --run-dir {run.path}`")
    shards = [shard for shard in run.due(TEXT_EMBEDDINGS) if shard % world_size == rank]
    if not shards:
        return
    if (gpus := torch.cuda.device_count()) > world_size:
        logger.warning("embed uses %d of %d GPUs; give --executor local --tasks %d to use all", world_size, gpus, gpus)
    device = f"cuda:{rank % gpus}" if gpus else "cpu"
    encoder = load_encoder(run.recipe.embed, run.recipe.directory, device)
    _ = encoder.model  # so that a model that cannot be loaded leaves no stage.json
    run.begin(TEXT_EMBEDDINGS, encoder.identity)
    records, figures, start = run.records(CAPTIONS), Counter[str](), time.monotonic()
    with Progress(TEXT_EMBEDDINGS.name, sum(records[shard].rows for shard in shards), unit="caption") as bar:
        for shard in shards:
            figures.update(_make_shard(run, encoder, shard, bar))
            if shard not in (shards[0], shards[-1]):
                continue  # warn at once, before hours are spent on the other shards, and at the end
            model, made = encoder.checkpoint.name, run.records(TEXT_EMBEDDINGS).values()
            if encoder.kind == "sentence":
                advice = "To train a model that reads images, set embed.encoder to a dual encoder or LLM2CLIP"
                logger.warning("%s embeds text only: no image lives in the space of its vectors. %s", model, advice)
            rows, cut = sum(each.rows for each in made), sum(each.counts.get("truncated", 0) for each in made)
            if cut > CUT_SHARE * rows:
                said = f"{cut} of {rows} captions ({cut / rows:.1%}) are longer than the {encoder.max_tokens} tokens"
                logger.warning(f"{said} that {model} takes: the rest is not in their vectors. {LONGER}")
    run.log_session(TEXT_EMBEDDINGS, {**figures, "seconds": round(time.monotonic() - start, 1)})


def _make_shard(run: Run, encoder: "Encoder", shard: int, bar: Progress) -> dict[str, int]:
    """Make one shard, unless another process makes it; return its figures."""
    with run.claim(TEXT_EMBEDDINGS, shard) as claimed:
        if not claimed or not run.is_due(TEXT_EMBEDDINGS, shard):
            return {}
        inputs, identity = run.inputs(TEXT_EMBEDDINGS, shard), run.facts(TEXT_EMBEDDINGS)["identity"]
        ids, captions = run.table(CAPTIONS, shard, ["id", "caption"]).to_pydict().values()
        hashes = list(map(text_hash, captions))
        keys, kept = list(zip(ids, hashes, strict=True)), dict[tuple[str, int], torch.Tensor]()
        try:
            if run.record(TEXT_EMBEDDINGS, shard):  # of other captions
                old = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
                if old.metadata.get("encoder") == identity:
                    kept = dict(zip(zip(old.ids, old.input_hashes, strict=True), old.vectors, strict=True))
        except (RunError, EmbeddingError) as error:
            logger.warning("shard %05d: encoding all captions again: %s", shard, error)
        tokens, truncated = encoder.tokenise(captions)
        vectors = torch.empty(len(ids), encoder.dimension, dtype=torch.float16)
        for row in (row for row, key in enumerate(keys) if key in kept):
            vectors[row] = kept[keys[row]]
        new = [row for row, key in enumerate(keys) if key not in kept]
        bar.update(len(ids) - len(new))
        vectors[new] = encoder.encode_tokens([tokens[row] for row in new], bar.update).half()
        check_unit(vectors, f"vectors by {encoder.checkpoint.name} of {run.file(CAPTIONS, shard)}")
        if run.inputs(TEXT_EMBEDDINGS, shard) != inputs:
            logger.warning("shard %05d: its captions changed meanwhile; give the same command again", shard)
            return {}
        counts = {"tokens": sum(map(len, tokens)), "truncated": truncated, "encoded": len(new)}
        facts = {"encoder": identity, "shard": shard}
        write = partial(write_vectors, vectors=vectors, ids=ids, input_hashes=hashes, metadata=facts)
        run.commit(TEXT_EMBEDDINGS, shard, len(ids), write, counts=counts)
        return counts | {"rows": len(ids)}

"""Stage 3a: captions become text embeddings, one safetensors shard beside each caption shard.

A shard holds, row for row as the captions: ``embeddings`` float16 [n, d] (unit rows), ``ids`` uint8 [n, 10] (ASCII)
and ``text_sha256`` uint8 [n, 32], so that a vector never meets another text.
"""

import logging
from contextlib import closing
from typing import Any

from .config import Recipe
from .encoders import Encoded, TextEncoder, load_encoder
from .encoders.workers import encode_shards
from .errors import EmbeddingError
from .progress import progress
from .rundir import RunDir
from .tensors import ID_BYTES, byte_rows, text_hashes

STAGE = "text_embeddings"
CUT_SHARE = 0.01  # of the captions: more that are cut are warned of

logger = logging.getLogger(__name__)


def embed(run: RunDir, recipe: Recipe) -> None:
    """Encodes the captions of all shards that have no embeddings yet, in one process a GPU.

    Raises:
        RunError: the captions are not complete, or the stage was begun with another encoder.
        EmbeddingError: the encoder cannot be loaded, or gives vectors that are not finite.
    """
    encoder = begin_embed(run, recipe)
    facts = encoder.provenance()
    shards = run.due(STAGE, "captions")
    if not shards:
        return
    if not facts["joint_with_images"]:
        logger.warning(
            "%s embeds text only: no image lives in the space of its vectors. To train with images, name a dual "
            "encoder or LLM2CLIP as embed.encoder",
            facts["model"],
        )

    def texts(shard: int) -> list[str]:
        captions: list[str] = run.table("captions", shard)["caption"].to_pylist()
        return captions

    warned = False
    with (
        progress(STAGE, sum(run.record("captions", shard)["rows"] for shard in shards), 0, "caption") as bar,
        closing(encode_shards(encoder, recipe.embed, recipe.directory, shards, texts, bar.update)) as encoding,
    ):
        for shard, encoded in encoding:
            _seal(run, shard, encoded, facts)
            warned = warned or warn_if_cut(run, facts)  # after the first shard, not after the last hour
    warn_if_cut(run, facts)


def begin_embed(run: RunDir, recipe: Recipe) -> TextEncoder:
    """Opens the stage; returns its encoder.

    Raises:
        RunError: the captions are not complete, or the stage was begun with another encoder.
        EmbeddingError: the encoder cannot be loaded.
    """
    run.finished("captions", "seeds")
    encoder = load_encoder(recipe.embed, recipe.directory)
    run.begin(STAGE, encoder.provenance())
    return encoder


def warn_if_cut(run: RunDir, facts: dict[str, Any]) -> bool:
    """Warns if the encoder took less than the whole of more than one caption in a hundred, of those embedded so far.

    Args:
        run: the run directory.
        facts: the encoder's provenance.

    Returns:
        Whether it warned.
    """
    records = [run.record(STAGE, shard) for shard in run.sealed(STAGE)]
    rows, cut = (sum(record[count] for record in records) for count in ("rows", "truncated"))
    if cut <= CUT_SHARE * rows:
        return False
    logger.warning(
        "%d of %d captions (%.1f %%) are longer than the %d tokens that %s takes, and were cut: what they say after "
        "that is not in their vectors. Encoders that take more: LLM2CLIP (512 tokens), CLIP with its positions "
        "extended, as Long-CLIP (248)",
        cut,
        rows,
        100 * cut / rows,
        facts["max_tokens"],
        facts["model"],
    )
    return True


def _seal(run: RunDir, shard: int, encoded: Encoded, facts: dict[str, Any]) -> None:
    table = run.table("captions", shard)
    ids: list[str] = table["id"].to_pylist()
    finite = encoded.vectors.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise EmbeddingError(f"captions shard {shard}, row {row} (id {ids[row]}): the encoder gave NaN or Inf")
    tensors = {
        "embeddings": encoded.vectors,
        "ids": byte_rows("".join(ids).encode("ascii"), ID_BYTES),
        "text_sha256": text_hashes(table["caption"].to_pylist()),
    }
    metadata = {"encoder": facts, "captions_sha256": run.record("captions", shard)["sha256"], "shard": shard}
    run.seal_tensors(
        STAGE, run.shard_path(STAGE, shard), tensors, metadata, rows=len(ids), truncated=encoded.truncated
    )

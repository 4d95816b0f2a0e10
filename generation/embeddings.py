"""Stage 3a: captions become text embeddings, one safetensors shard beside each caption shard.

A shard holds, row for row as the captions: ``embeddings`` float16 [n, d] (unit rows), ``ids`` uint8 [n, 10] (ASCII)
and ``text_sha256`` uint8 [n, 32], so that a vector never meets another text.
"""

from collections.abc import Callable

import torch

from .config import Recipe
from .encoders import TextEncoder, load_encoder
from .errors import EmbeddingError
from .progress import progress
from .rundir import RunDir
from .tensors import ID_BYTES, byte_rows, text_hashes

STAGE = "text_embeddings"


def embed(run: RunDir, recipe: Recipe) -> None:
    """Encodes the captions of all shards that have no embeddings yet.

    Raises:
        RunError: the captions are not complete, or the stage was begun with another encoder.
        EmbeddingError: the encoder cannot be loaded, or gives vectors that are not finite.
    """
    run.finished("captions", "seeds")
    encoder = load_encoder(recipe.embed)
    run.begin(STAGE, encoder.provenance())
    shards = run.due(STAGE, "captions")
    if not shards:
        return
    with progress(STAGE, sum(run.record("captions", shard)["rows"] for shard in shards), 0, "caption") as bar:
        for shard in shards:
            _embed_shard(run, shard, encoder, bar.update)


def _embed_shard(run: RunDir, shard: int, encoder: TextEncoder, on_batch: Callable[[int], object]) -> None:
    table = run.table("captions", shard)
    ids, texts = table["id"].to_pylist(), table["caption"].to_pylist()
    encoded = encoder.encode(texts, on_batch)
    if not bool(encoded.vectors.isfinite().all()):
        row = int((~encoded.vectors.isfinite().all(1)).nonzero()[0])
        raise EmbeddingError(f"captions shard {shard}, row {row} (id {ids[row]}): the encoder gave NaN or Inf")
    tensors = {
        "embeddings": encoded.vectors.to(torch.float16),
        "ids": byte_rows("".join(ids).encode("ascii"), ID_BYTES),
        "text_sha256": text_hashes(texts),
    }
    metadata = {
        "encoder": encoder.provenance(),
        "captions_sha256": run.record("captions", shard)["sha256"],
        "shard": shard,
    }
    path = run.shard_path(STAGE, shard)
    run.seal_tensors(STAGE, path, tensors, metadata, rows=len(ids), truncated=encoded.truncated)

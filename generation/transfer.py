"""Stage 3b: modality representation transfer, text embeddings -> synthetic image embeddings.

    none        v_i = u_i
    mean_shift  v_i = u_i - mean(U)          (paper v1 and the released code)
    unicorn     v_i = Norm(u_i - mean(U))    (paper v2, Eq. 3)

U is the whole set of caption embeddings; both data sets use the same mean. The vectors are shifted text embeddings,
not embeddings of images. The mean is a sum of the stored float16 rows in float64: such values are multiples of 2^-24,
so the sum is exact below 2^29 rows, and the mean does not depend on the order of rows, shards or threads.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .config import Recipe
from .errors import EmbeddingError, RunError
from .progress import progress
from .rundir import RunDir

VERSION = "1.0.0"
SOURCE = "text_embeddings"
CHUNK_ROWS = 1024  # small reused buffers are what makes this as fast as the disk
UNIT_TOLERANCE = 1e-2  # of a stored row's norm
SMALLEST_NORM = 1e-6  # of a centred row: below it, it has no direction
_OPS = {  # what is done to a text's and to a real image's embedding, in order
    "none": (["l2norm"], ["l2norm"]),
    "mean_shift": (["l2norm", "sub:mean_text"], ["l2norm", "sub:USER_IMAGE_MEAN"]),
    "unicorn": (["l2norm", "sub:mean_text", "l2norm"], ["l2norm", "sub:USER_IMAGE_MEAN"]),
}


def transfer(run: RunDir, recipe: Recipe) -> None:
    """Pools the statistics over all text-embedding shards, then transfers each shard.

    When shards were added since (an extended run), all are made again, since the mean has moved.

    Raises:
        RunError: the embeddings are not complete, or a shard is missing, changed, or of other captions or encoder.
        EmbeddingError: a row is not finite, not of unit norm, or equals the mean.
    """
    method = recipe.transfer.method
    stage = f"image_embeddings/{method}"
    shards = run.finished(SOURCE, "captions")
    run.begin(stage, {"method": method, "version": VERSION, "inputs": run.hashes(SOURCE)}, changed="discard")
    due = [shard for shard in shards if shard not in run.sealed(stage)]
    if not due:
        return
    paths = {shard: run.verified(SOURCE, run.shard_path(SOURCE, shard)) for shard in shards}
    for shard, path in paths.items():
        _check_source(run, shard, path)
    rows = sum(run.record(SOURCE, shard)["rows"] for shard in shards)
    with progress(stage, rows + sum(run.record(SOURCE, shard)["rows"] for shard in due), 0, "row") as bar:
        total, count = torch.zeros(0, dtype=torch.float64), 0
        for path in paths.values():
            for _, chunk in chunks(path):
                part = chunk.sum(0, dtype=torch.float64)
                total, count = total + part if count else part, count + len(chunk)
                bar.update(len(chunk))
        if not count:
            raise EmbeddingError(f"{run.path}: there is no caption to embed; every seed was rejected")
        mean = total / count
        facts = _facts(run, method, count)
        run.seal_tensors(
            stage, run.path / "transfer" / f"{method}.safetensors", {"mean_text": mean}, facts, rows=count
        )
        for shard in due:
            _transfer_shard(run, stage, shard, paths[shard], mean, facts, bar)


def apply(method: str, rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Transfers unit rows.

    Args:
        method: ``none``, ``mean_shift`` or ``unicorn``.
        rows: [n, d], any float dtype; unit norm.
        mean: float64 [d], of all text embeddings.

    Returns:
        float32 [n, d].

    Raises:
        EmbeddingError: a centred row has no direction (``unicorn``), as when all rows are equal; says which.
    """
    rows = rows.to(torch.float32)
    if method == "none":
        return rows
    shifted = rows - mean.to(torch.float32)
    if method == "mean_shift":
        return shifted
    norms = shifted.norm(dim=1, keepdim=True)
    if bool((norms < SMALLEST_NORM).any()):
        row = int((norms[:, 0] < SMALLEST_NORM).nonzero()[0])
        raise EmbeddingError(
            f"row {row} equals the mean of all embeddings, so that it has no direction after the shift"
        )
    unit: torch.Tensor = shifted / norms
    return unit


def chunks(path: Path) -> Iterator[tuple[int, torch.Tensor]]:
    """The embeddings of a shard, a few rows at a time: (first row, float16 [rows, d]); checked to be unit vectors.

    Raises:
        EmbeddingError: a row is not finite or not of unit norm; names the file and the row.
    """
    with safe_open(path, "pt") as file:
        embeddings = file.get_slice("embeddings")
        for first in range(0, embeddings.get_shape()[0], CHUNK_ROWS):
            chunk = embeddings[first : first + CHUNK_ROWS]
            off = (chunk.float().norm(dim=1) - 1).abs()
            if not bool((off <= UNIT_TOLERANCE).all()):  # also catches NaN
                row = int((~(off <= UNIT_TOLERANCE)).nonzero()[0])
                raise EmbeddingError(f"{path}, row {first + row}: the embedding is not a finite vector of norm 1")
            yield first, chunk


def _transfer_shard(
    run: RunDir, stage: str, shard: int, source: Path, mean: torch.Tensor, facts: dict[str, Any], bar: Any
) -> None:
    with safe_open(source, "pt") as file:
        kept = {name: file.get_tensor(name) for name in ("ids", "text_sha256")}
    out = torch.empty(len(kept["ids"]), len(mean), dtype=torch.float16)
    for first, chunk in chunks(source):
        try:
            out[first : first + len(chunk)] = apply(facts["method"], chunk, mean)
        except EmbeddingError as error:
            raise EmbeddingError(f"{source}, chunk from row {first}: {error}") from None
        bar.update(len(chunk))
    metadata = facts | {"source_sha256": run.record(SOURCE, shard)["sha256"], "shard": shard}
    run.seal_tensors(stage, run.shard_path(stage, shard), {"embeddings": out, **kept}, metadata, rows=len(out))


def _facts(run: RunDir, method: str, count: int) -> dict[str, Any]:
    """What a user must know to treat real image embeddings alike."""
    text_ops, image_ops = _OPS[method]
    return {
        "method": method,
        "version": VERSION,
        "text_ops": text_ops,
        "image_ops": image_ops,
        "rows": count,
        "encoder": run.stage(SOURCE)["fingerprint"],
    }


def _check_source(run: RunDir, shard: int, path: Path) -> None:
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("unicorn", "{}"))
    if facts.get("captions_sha256") != run.record("captions", shard)["sha256"]:
        raise RunError(f"{path} was made from other captions than {run.shard_path('captions', shard)}")
    if facts.get("encoder") != run.stage(SOURCE)["fingerprint"]:
        raise RunError(f"{path} was made by another encoder than the run's: {facts.get('encoder')}")

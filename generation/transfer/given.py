"""What a method is given besides the texts: unpaired image embeddings, and the space that an image tower fills."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Recipe
from ..encoders import load_encoder
from ..errors import EmbeddingError
from ..files import file_sha256
from ..images import image_embeddings, picture_files, read_rows
from ..progress import counted, progress
from ..rundir import RunDir

STAGE = "unpaired_images"
_SMALLEST_SINGULAR = 1e-6  # of the largest: what is below it spans nothing


@dataclass(frozen=True)
class Images:
    """Unpaired image embeddings.

    Attributes:
        path: where they lie.
        provenance: what they are, by content, as JSON values.
        chunks: gives them, float16 or float32 [any, d], as often as asked.
    """

    path: Path
    provenance: dict[str, Any]
    chunks: Callable[[], Iterable[torch.Tensor]]


def unpaired_images(run: RunDir, recipe: Recipe, path: Path) -> Images:
    """The images that a recipe or a command names. Pictures are encoded once, by the recipe's encoder, and kept in the
    run as ``unpaired_images/00000.safetensors``.

    Raises:
        EmbeddingError: see ``images.image_embeddings``.
    """
    dimension = run.stage("text_embeddings")["fingerprint"]["dimension"]
    provenance = {"name": path.name}
    if path.is_dir():
        provenance["pictures_sha256"] = _pictures_sha256(path)
        path = _encoded(run, recipe, path, provenance)
    elif path.is_file():
        provenance["sha256"] = file_sha256(path)
    return Images(path, provenance, lambda: image_embeddings(path, dimension=dimension))


def image_basis(path: Path, dimension: int) -> torch.Tensor:
    """Orthonormal columns that span what an image tower's projection can give, float64 [d, r].

    Args:
        path: a .safetensors or .npy file with the weight of the projection, [d, hidden], such as CLIP's
            ``visual_projection.weight``.
        dimension: d.

    Raises:
        EmbeddingError: the file holds no matrix of d rows, or it spans all d dimensions and would change nothing.
    """
    weight = torch.cat(list(read_rows(path))).double()
    if weight.shape[0] != dimension:
        raise EmbeddingError(f"{path}: a projection of shape {list(weight.shape)}; wanted [{dimension}, hidden]")
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    basis: torch.Tensor = left[:, values > _SMALLEST_SINGULAR * values[0]]
    if basis.shape[1] == dimension:
        raise EmbeddingError(f"{path} spans all {dimension} dimensions: projecting on it would change nothing")
    return basis


def _pictures_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in counted(picture_files(folder), "pictures, sha256", "file"):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _encoded(run: RunDir, recipe: Recipe, folder: Path, provenance: dict[str, Any]) -> Path:
    encoder = load_encoder(recipe.embed, recipe.directory)
    run.begin(STAGE, {"encoder": encoder.provenance(), **provenance}, changed="discard")
    path = run.shard_path(STAGE, 0)
    if not run.sealed(STAGE):
        with progress(STAGE, len(picture_files(folder)), 0, "picture") as bar:
            chunks = []
            for chunk in image_embeddings(folder, encoder):
                chunks.append(chunk.half())
                bar.update(len(chunk))
        rows = torch.cat(chunks)
        run.seal_tensors(STAGE, path, {"embeddings": rows}, run.stage(STAGE)["fingerprint"], rows=len(rows))
    return run.verified(STAGE, path)

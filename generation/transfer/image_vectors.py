"""Unpaired image embeddings: unit rows from a folder of pictures or from a file of vectors."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import EmbeddingError
from ..files import sha256
from .fitting import SMALLEST_SPREAD
from .methods import SMALLEST_NORM

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_CHUNK_ROWS = 1024

Encode = Callable[[list[Path]], torch.Tensor]  # pictures -> float32 [n, d]


def image_rows(images: Path | torch.Tensor, encode: Encode | None = None) -> Iterator[torch.Tensor]:
    """Yield unit image embeddings, float32 [at most 1024, d].

    ``images`` are vectors [m, d] of any norm; a .npy file of them; a .safetensors file of one 2-D tensor, or one named
    ``embeddings`` or ``vectors``; or a folder of pictures, which ``encode`` turns into vectors in the order of names.
    An EmbeddingError names the path that cannot be used, and the row that is zero or not finite.
    """
    source: torch.Tensor | list[Path] = images if isinstance(images, torch.Tensor) else _stored(images)
    if isinstance(source, list) and encode is None:
        raise EmbeddingError(f"{images} is a folder; give a .safetensors or .npy file of its pictures' vectors")
    for first in range(0, len(source), _CHUNK_ROWS):
        chunk = source[first : first + _CHUNK_ROWS]
        rows = (encode(chunk) if encode and isinstance(chunk, list) else torch.as_tensor(chunk)).float()
        norms = rows.norm(dim=1, keepdim=True)
        if bool((wrong := ~(norms.isfinite() & (norms >= SMALLEST_NORM))).any()):
            row, where = int(wrong.nonzero()[0, 0]), images if isinstance(images, Path) else "images"
            fault = "is zero" if bool(norms[row].isfinite()) else "holds NaN or Inf"
            raise EmbeddingError(f"{where}, row {first + row}: the image embedding {fault}; correct or remove the row")
        yield rows / norms


def image_mean(images: Path | torch.Tensor, encode: Encode | None = None) -> tuple[torch.Tensor, int]:
    """Return the mean, float64 [d], and the number of ``image_rows``: at least two, and not all equal."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for rows in image_rows(images, encode):
        total, count = total + rows.sum(0, dtype=torch.float64), count + len(rows)
    mean = total / max(count, 1)
    if count < 2 or 1 - float(mean.square().sum()) < SMALLEST_SPREAD:
        where, equal = images if isinstance(images, Path) else "images", "s that are all equal" if count > 1 else "(s)"
        fault = f"{where}: {count} image embedding{equal} cannot say where images lie"
        raise EmbeddingError(f"{fault}; give two that differ, or better 10,000: the error of their mean is below 0.01")
    return mean, count


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its sub-folders, sorted by name; an EmbeddingError says if there is none."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise EmbeddingError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def images_sha256(path: Path) -> str:
    """Return the sha256 of a file, or of the names and bytes of the pictures in a folder."""
    if not path.exists():
        raise EmbeddingError(f"images {path}: there is no such file or folder")
    if path.is_file():
        return sha256(path)
    lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in picture_files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _stored(path: Path) -> torch.Tensor | list[Path]:
    """Return the vectors [m, d] in a file, or the pictures in a folder."""
    try:
        if path.is_dir():
            return picture_files(path)
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            rows = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        elif path.suffix == ".safetensors":
            tensors = {name: tensor for name, tensor in load_file(path).items() if tensor.ndim == 2}
            names = list(tensors) if len(tensors) == 1 else [n for n in ("embeddings", "vectors") if n in tensors]
            if not names:
                raise ValueError(f"its 2-D tensors are {sorted(tensors)}; name the one of the vectors 'embeddings'")
            rows = tensors[names[0]]
        else:
            raise ValueError("give a folder of pictures, a .safetensors or a .npy file")
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(f"it holds {rows.dtype} {list(rows.shape)}; floats [m, d] are needed")
    except (OSError, ValueError, EOFError, TypeError, SafetensorError) as error:
        raise EmbeddingError(f"cannot read image embeddings from {path}: {error}") from error
    return rows

"""Unpaired image embeddings: unit rows from a folder of pictures or from a file of vectors."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import EmbeddingError
from ..files import sha256
from .fitting import SMALLEST_SPREAD, exact_sum
from .methods import SMALLEST_NORM

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_CHUNK_ROWS = 1024

Encode = Callable[[list[Path]], torch.Tensor]  # pictures -> float32 [n, d]


def image_rows(images: Path | torch.Tensor, encode: Encode | None = None) -> Iterator[torch.Tensor]:
    """Yield unit image embeddings, float32 [at most 1024, d].

    Args:
        images: vectors [m, d] of any norm; or a folder of pictures (with sub-folders, sorted by name), a .npy file, or
            a .safetensors file with one 2-D tensor or one named ``embeddings`` or ``vectors``.
        encode: the image tower, for a folder.

    Raises:
        EmbeddingError: the path cannot be used, or a row is zero or not finite; names file and row.
    """
    source = picture_files(images) if isinstance(images, Path) and images.is_dir() else images
    if isinstance(source, list) and encode is None:
        raise EmbeddingError(f"{images} is a folder; give a .safetensors or .npy file of its pictures' vectors")
    rows = _stored(source) if isinstance(source, Path) else source
    for first in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[first : first + _CHUNK_ROWS]
        found = encode(chunk).float() if encode and isinstance(chunk, list) else torch.as_tensor(chunk).float()
        norms = found.norm(dim=1, keepdim=True)
        if bool((wrong := ~(norms.isfinite() & (norms >= SMALLEST_NORM))).any()):
            row, where = int(wrong.nonzero()[0, 0]), images if isinstance(images, Path) else "images"
            fault = "is zero" if bool(norms[row].isfinite()) else "holds NaN or Inf"
            raise EmbeddingError(f"{where}, row {first + row}: the image embedding {fault}; correct or remove the row")
        yield found / norms


def image_mean(images: Path | torch.Tensor, encode: Encode | None = None) -> tuple[torch.Tensor, int]:
    """Return the mean, float64 [d], of unit image embeddings, and their number; the arguments are ``image_rows``'s.

    Raises:
        EmbeddingError: there are fewer than two, or all are equal; see also ``image_rows``.
    """
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for rows in image_rows(images, encode):
        total, count = total + exact_sum(rows), count + len(rows)
    mean = total / max(count, 1)
    if count < 2 or 1 - float(mean.square().sum()) < SMALLEST_SPREAD:
        fault = f"{count} image embedding(s)" if count < 2 else f"{count} image embeddings that are all equal"
        raise EmbeddingError(
            f"{images if isinstance(images, Path) else 'images'}: {fault} cannot say where images lie; give at least "
            "two that differ (with 10,000 the error of their mean is below 0.01)"
        )
    return mean, count


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its sub-folders, sorted by name.

    Raises:
        EmbeddingError: there is none.
    """
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


def _stored(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            rows = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
                chosen = names if len(names) == 1 else [name for name in ("embeddings", "vectors") if name in names]
                if not chosen:
                    raise ValueError(f"its 2-D tensors are {names}; name the one of the vectors 'embeddings'")
                rows = file.get_tensor(chosen[0])
        else:
            raise ValueError("give a folder of pictures, a .safetensors or a .npy file")
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(f"it holds {rows.dtype} {list(rows.shape)}; floats [m, d] are needed")
    except (OSError, ValueError, EOFError, TypeError, SafetensorError) as error:
        raise EmbeddingError(f"cannot read image embeddings from {path}: {error}") from error
    return rows

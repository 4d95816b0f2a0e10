"""Unpaired image embeddings, for the transfers that need statistics of images: unit rows out of a folder of pictures
or of a file of vectors, a chunk at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import EmbeddingError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CHUNK_ROWS = 1024
SMALLEST_NORM = 1e-6  # of a row: below it, it has no direction


def image_embeddings(path: Path, encoder: object = None, dimension: int | None = None) -> Iterator[torch.Tensor]:
    """The image embeddings that ``path`` holds, or that its pictures have.

    Args:
        path: a folder with .jpg, .jpeg, .png and .webp files, its sub-folders included, taken in the order of their
            names; a .safetensors file with a tensor ``embeddings`` [m, d], or with no other 2-D tensor; or a .npy file
            of an array [m, d]. Files of vectors are read a chunk at a time.
        encoder: encodes the pictures of a folder; its dimension is the one asked for.
        dimension: the d asked for, if there is no encoder; None takes any.

    Yields:
        [rows, d] unit rows: float16 where a file holds float16, else float32.

    Raises:
        EmbeddingError: there is no such path; the encoder has no image tower; a picture cannot be decoded; or a row is
            not finite, is zero or has another dimension. The message names the file and the row.
    """
    if encoder is not None:
        dimension = getattr(encoder, "dimension", dimension)
    first = 0
    for chunk in _pictures(path, encoder) if path.is_dir() else read_rows(path):
        yield _unit(chunk, path, first, dimension)
        first += len(chunk)
    if not first:
        raise EmbeddingError(f"image embeddings {path}: it holds no row")


def read_rows(path: Path) -> Iterator[torch.Tensor]:
    """The rows of a file of vectors as they are, [rows, d], a chunk at a time.

    Raises:
        EmbeddingError: there is no such file, or it holds no one matrix of floats.
    """
    if not path.is_file():
        raise EmbeddingError(f"image embeddings {path}: there is no such file or folder")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npy":
        return _npy(path)
    raise EmbeddingError(
        f"image embeddings {path}: give a folder of pictures ({', '.join(SUFFIXES)}), a .safetensors or .npy file"
    )


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, sorted by their names from there on.

    Raises:
        EmbeddingError: there is none.
    """
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise EmbeddingError(f"image folder {folder} holds no picture ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _pictures(folder: Path, encoder: object) -> Iterator[torch.Tensor]:
    from .encoders import ImageEncoder

    if not isinstance(encoder, ImageEncoder):
        raise EmbeddingError(
            f"image folder {folder}: the encoder has no image tower, and its vectors share no space with images. A "
            "dual encoder (CLIP, SigLIP, ...) or LLM2CLIP can encode pictures: name one as embed.encoder"
        )
    files = picture_files(folder)
    for first in range(0, len(files), CHUNK_ROWS):
        yield encoder.encode_images(files[first : first + CHUNK_ROWS])


def _safetensors(path: Path) -> Iterator[torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [name for name in sorted(file.keys()) if len(file.get_slice(name).get_shape()) == 2]
            chosen = names if len(names) == 1 else [name for name in names if name == "embeddings"]
            if not chosen:
                raise EmbeddingError(
                    f"{path}: it holds no tensor 'embeddings' [m, d]; its 2-D tensors: {names or 'none'}"
                )
            rows = file.get_slice(chosen[0])
            for first in range(0, rows.get_shape()[0], CHUNK_ROWS):
                yield rows[first : first + CHUNK_ROWS]
    except (OSError, SafetensorError) as error:
        raise EmbeddingError(f"{path} cannot be read as safetensors: {error}") from error


def _npy(path: Path) -> Iterator[torch.Tensor]:
    import numpy as np

    try:
        rows: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(f"{path} cannot be read as a .npy array of numbers: {error}") from error
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise EmbeddingError(f"{path}: an array [m, d] of floats is needed, but it is {rows.dtype} {list(rows.shape)}")
    for first in range(0, len(rows), CHUNK_ROWS):
        yield torch.from_numpy(np.array(rows[first : first + CHUNK_ROWS], dtype=rows.dtype.newbyteorder("=")))


def _unit(rows: torch.Tensor, path: Path, first: int, dimension: int | None) -> torch.Tensor:
    """Checks rows, and brings them to norm 1 and to a dtype that the transfers take."""
    if not rows.is_floating_point():
        raise EmbeddingError(f"{path}: embeddings must be floats, but are {rows.dtype}")
    if dimension is not None and rows.shape[1] != dimension:
        raise EmbeddingError(
            f"{path}: its embeddings have {rows.shape[1]} dimensions, but the encoder's have {dimension}; both must "
            "come from the same encoder"
        )
    wide = rows.double() if rows.dtype == torch.float64 else rows.float()
    norms = wide.norm(dim=1, keepdim=True)
    sound = norms.isfinite() & (norms >= SMALLEST_NORM)
    if not bool(sound.all()):
        row = int((~sound[:, 0]).nonzero()[0])
        what = "is zero" if bool(norms[row].isfinite()) else "holds NaN or Inf"
        raise EmbeddingError(f"{path}, row {first + row}: the embedding {what}; mend the row or leave it out")
    unit: torch.Tensor = (wide / norms).to(rows.dtype if rows.dtype == torch.float16 else torch.float32)
    return unit

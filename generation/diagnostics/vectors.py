"""Rows of embeddings, a chunk at a time, from the shards of a run or from files of the user's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import EmbeddingError
from ..records import draw

CHUNK_ROWS = 4096
UNIT_TOLERANCE = 1e-2  # of a stored row's norm


@dataclass(frozen=True)
class Vectors:
    """Many rows of one kind.

    Attributes:
        name: what they are, for messages and tables.
        rows: how many.
        dimension: d.
        chunks: gives them, float32 [any, d], as often as asked; the same each time.
    """

    name: str
    rows: int
    dimension: int
    chunks: Callable[[], Iterator[torch.Tensor]]

    def mapped(self, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> "Vectors":
        """The rows after ``change``, which keeps their number and dimension."""
        return replace(self, name=name, chunks=lambda: map(change, self.chunks()))

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """``count`` rows (all, if there are no more) drawn without repetition, in their order, float32 [count, d];
        from as many other rows the same positions are drawn."""
        chosen, first, drawn = sampled_rows(self.rows, count, seed), 0, []
        for chunk in self.chunks():
            drawn.append(chunk[chosen[(chosen >= first) & (chosen < first + len(chunk))] - first])
            first += len(chunk)
        return torch.cat(drawn)


def sampled_rows(rows: int, count: int, seed: int) -> torch.Tensor:
    """Which of ``rows`` rows are in a sample of ``count``: int64 [min(rows, count)], ascending."""
    generator = torch.Generator().manual_seed(draw("sample", seed))
    return torch.randperm(rows, generator=generator)[:count].sort().values


def in_memory(name: str, rows: torch.Tensor) -> Vectors:
    """Rows that are at hand, [n, d]."""
    return Vectors(name, len(rows), rows.shape[1], lambda: iter(torch.split(rows.float(), CHUNK_ROWS)))


def from_files(name: str, paths: Sequence[Path], norm: str) -> Vectors:
    """Rows of one or more files: ``.npy``, or ``.safetensors`` with ``embeddings`` (or no other matrix).

    Args:
        name: what they are.
        paths: at least one.
        norm: ``unit``: rows must be of norm 1. ``any``: they may be of any norm. ``normalise``: rows of any norm but 0
            are divided by it.

    Raises:
        EmbeddingError: a file is missing or holds no such matrix, there is no row, or dimensions differ; and, once
            chunks are asked for, a row is not finite or its norm not allowed. Names the file and the row.
    """
    shapes = [_shape(path) for path in paths]
    dimension = shapes[0][1]
    for path, shape in zip(paths, shapes, strict=True):
        if shape[1] != dimension:
            raise EmbeddingError(f"{path} has rows of {shape[1]} dimensions, but {paths[0]} of {dimension}")
    if not (rows := sum(shape[0] for shape in shapes)):
        raise EmbeddingError(f"{paths[0]} holds no row; nothing can be measured")

    def chunks() -> Iterator[torch.Tensor]:
        for path in paths:
            first = 0
            for chunk in _chunks(path):
                yield _checked(chunk.float(), path, first, norm)
                first += len(chunk)

    return Vectors(name, rows, dimension, chunks)


def same_dimension(one: Vectors, other: Vectors) -> None:
    """Refuses rows of different spaces.

    Raises:
        EmbeddingError: the dimensions differ.
    """
    if one.dimension != other.dimension:
        raise EmbeddingError(
            f"{other.name} have {other.dimension} dimensions, but {one.name} {one.dimension}: they are of different "
            "encoders; give embeddings of the run's"
        )


def _checked(rows: torch.Tensor, path: Path, first: int, norm: str) -> torch.Tensor:
    norms = rows.norm(dim=1)
    bad = {
        "unit": ~((norms - 1).abs() <= UNIT_TOLERANCE),  # so written, NaN is bad
        "any": ~norms.isfinite(),
        "normalise": ~(norms.isfinite() & (norms > 0)),
    }[norm]
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        wanted = {"unit": "of norm 1", "any": "finite", "normalise": "finite and of a norm above 0"}[norm]
        raise EmbeddingError(
            f"{path}, row {first + row}: the embedding has norm {float(norms[row]):.4g} and must be {wanted}; mend or "
            "leave out that row"
        )
    return rows / norms.unsqueeze(1) if norm == "normalise" else rows


def _shape(path: Path) -> tuple[int, int]:
    with _opened(path) as matrix:
        rows, dimension = matrix.shape
    return rows, dimension


def _chunks(path: Path) -> Iterator[torch.Tensor]:
    with _opened(path) as matrix:
        for first in range(0, matrix.shape[0], CHUNK_ROWS):
            yield matrix.read(first, first + CHUNK_ROWS)


class _opened:
    """A file's matrix, read by rows: ``shape`` and ``read(first, end)``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_opened":
        from safetensors import SafetensorError

        if self._path.is_dir():
            raise EmbeddingError(
                f"{self._path} is a folder; give the embeddings of its images, made by the run's encoder, as a "
                ".safetensors or .npy file"
            )
        try:
            self._read, self.shape = self._npy() if self._path.suffix == ".npy" else self._safetensors()
        except (OSError, ValueError, SafetensorError) as error:
            raise EmbeddingError(f"{self._path} cannot be read as embeddings: {error}") from error
        return self

    def __exit__(self, *error: object) -> None:
        del self._read

    def read(self, first: int, end: int) -> torch.Tensor:
        return self._read(first, end)

    def _npy(self) -> tuple[Callable[[int, int], torch.Tensor], tuple[int, int]]:
        import numpy as np

        matrix = np.load(self._path, mmap_mode="r", allow_pickle=False)
        if matrix.ndim != 2 or matrix.dtype.kind != "f":
            raise ValueError(f"it holds {matrix.dtype} {list(matrix.shape)}; wanted floats [rows, dimension]")
        return lambda first, end: torch.from_numpy(np.array(matrix[first:end])), matrix.shape

    def _safetensors(self) -> tuple[Callable[[int, int], torch.Tensor], tuple[int, int]]:
        from safetensors import safe_open

        file: Any = safe_open(self._path, "pt")
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        names = [name for name, shape in shapes.items() if len(shape) == 2]
        if "embeddings" not in names and len(names) != 1:
            raise ValueError(f"it has no tensor 'embeddings' [rows, dimension], but {shapes}")
        matrix = file.get_slice("embeddings" if "embeddings" in names else names[0])
        rows, dimension = matrix.get_shape()
        return lambda first, end: matrix[first:end], (rows, dimension)

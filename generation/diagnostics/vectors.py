"""Rows of embeddings, a chunk at a time, from the shards of a run or from files of the user's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ..errors import EmbeddingError
from ..images import read_rows
from ..progress import counted
from ..records import draw
from ..transfer.rows import UNIT_TOLERANCE, rows_at

CHUNK_ROWS = 4096


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

    def thinned(self, step: int) -> "Vectors":
        """One row in ``step``, the first included; these are kept in memory from when they are first asked for."""
        if step == 1:
            return self

        @cache
        def kept() -> torch.Tensor:
            found, first, filled = torch.empty(-(-self.rows // step), self.dimension), 0, 0
            for chunk in self.chunks():
                rows = chunk[-first % step :: step]
                found[filled : filled + len(rows)] = rows
                first, filled = first + len(chunk), filled + len(rows)
            return found

        return replace(self, rows=-(-self.rows // step), chunks=lambda: iter(torch.split(kept(), CHUNK_ROWS)))

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """``count`` rows (all, if there are no more) drawn without repetition, in their order, float32 [count, d];
        from as many other rows the same positions are drawn."""
        return rows_at(sampled_rows(self.rows, count, seed), self.chunks())


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
    looked = counted(paths, f"{name}, shapes", "file")
    shapes = {path: shape for path in looked if (shape := _shape(path))[0]}
    if not shapes:
        raise EmbeddingError(f"{paths[0]} holds no row; nothing can be measured")
    known, (_, dimension) = next(iter(shapes.items()))
    for path, shape in shapes.items():
        if shape[1] != dimension:
            raise EmbeddingError(f"{path} has rows of {shape[1]} dimensions, but {known} of {dimension}")

    def chunks() -> Iterator[torch.Tensor]:
        for path in paths:
            first = 0
            for chunk in read_rows(path):
                yield _checked(chunk.float(), path, first, norm)
                first += len(chunk)

    return Vectors(name, sum(shape[0] for shape in shapes.values()), dimension, chunks)


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
    if path.is_dir():
        raise EmbeddingError(
            f"{path} is a folder; give the embeddings of its images, made by the run's encoder, as a .safetensors or "
            ".npy file"
        )
    shapes = [chunk.shape for chunk in read_rows(path)]
    return sum(shape[0] for shape in shapes), shapes[0][1] if shapes else 0

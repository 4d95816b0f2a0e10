"""Exact sums of rows.

A stored float16 row holds multiples of 2^-24, so a float64 sum of up to 2^29 of them has no rounding at all: the mean
is the same to the bit in any order of rows, shards, threads or machines. Other rows (float32, or stored ones that were
transformed) are first rounded to that grid, by at most 2^-25 an element, so that their sums are exact as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import EmbeddingError

CHUNK_ROWS = 512  # small buffers, used again and again, are what makes this as fast as the disk
MOST_ROWS = 2**29  # whose sum is exact
# Adding and subtracting 1.5 * 2^(23 - k) in float32 rounds to multiples of 2^-k.
_COARSE, _FINE = 1.5 * 2.0**11, 1.5 * 2.0**-1


@dataclass(frozen=True)
class Sums:
    """The sum of some rows. Sums of other rows, made elsewhere, add up to the sum of all.

    Attributes:
        total: float64 [d].
        rows: how many.
        sources: what they came from, such as ``{"0": sha256 of shard 0}``; never the same twice.
    """

    total: torch.Tensor
    rows: int
    sources: Mapping[str, str]

    def __add__(self, other: "Sums") -> "Sums":
        """The sum of both.

        Raises:
            EmbeddingError: both hold the same source, or their dimensions differ.
        """
        if twice := self.sources.keys() & other.sources.keys():
            raise EmbeddingError(f"source {min(twice)} is in both sums; each may be counted once")
        if self.total.shape != other.total.shape:
            raise EmbeddingError(f"sums of {len(self.total)} and of {len(other.total)} dimensions do not add up")
        return Sums(self.total + other.total, self.rows + other.rows, {**self.sources, **other.sources})

    def mean(self, sources: Mapping[str, str] | None = None) -> torch.Tensor:
        """The mean, float64 [d].

        Args:
            sources: what the sum must be of, no more and no less; None does not look.

        Raises:
            EmbeddingError: a source is missing, foreign, or has another hash; or there is no row, or too many.
        """
        if sources is not None and (wrong := dict(sources).items() ^ dict(self.sources).items()):
            names = ", ".join(sorted({name for name, _ in wrong}))
            raise EmbeddingError(f"the sum is not of the shards asked for: {names} missing, foreign or changed")
        if not 0 < self.rows <= MOST_ROWS:
            raise EmbeddingError(f"a mean of {self.rows} rows; it takes 1 to {MOST_ROWS}")
        return self.total / self.rows


class Buffers:
    """One thread's memory for one chunk."""

    def __init__(self, dimension: int) -> None:
        self.rows = torch.empty(CHUNK_ROWS, dimension)
        self.high = torch.empty(CHUNK_ROWS, dimension)
        self.half = torch.empty(CHUNK_ROWS, dimension, dtype=torch.float16)
        self.columns = torch.empty(dimension)


def add_exactly(total: torch.Tensor, rows: torch.Tensor, buffers: Buffers, on_grid: bool) -> None:
    """Adds the rows to ``total`` (float64 [d]) without rounding, through float32 sums that are themselves exact: of
    the parts on a grid of 2^-12, at most 2^24 of its steps, and of the rests on one of 2^-24.

    Args:
        total: changed in place.
        rows: float32 [at most CHUNK_ROWS, d], no element above 2; destroyed.
        buffers: of this thread.
        on_grid: the rows are multiples of 2^-24 already.
    """
    high = torch.add(rows, _COARSE, out=buffers.high[: len(rows)]).sub_(_COARSE)
    rows.sub_(high)
    if not on_grid:
        rows.add_(_FINE).sub_(_FINE)
    for part in (high, rows):
        total.add_(torch.sum(part, 0, out=buffers.columns))

"""Exact sums of rows, as integers.

A float16 of magnitude below 2^11 is a multiple of 2^-24, so a stored row is summed in units of 2^-24 without any
rounding: the mean is the same to the bit in any order of rows, shards, threads or machines. Other rows (float32, or
stored ones that were transformed) are first rounded to that grid, by at most 2^-25 an element, and then summed as
exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import EmbeddingError

CHUNK_ROWS = 512  # small buffers, used again and again, are what makes this as fast as the disk
MOST_ROWS = 2**29  # whose sum a float64 holds exactly, for the division
UNITS = 2.0**24  # in 1
_GROUP = 32  # rows of elements below 4 whose sum an int32 holds


@dataclass(frozen=True)
class Sums:
    """The sum of some rows. Sums of other rows, made elsewhere, add up to the sum of all.

    Attributes:
        total: int64 [d], in units of 2^-24.
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
        return self.total.double() / UNITS / self.rows


class Buffers:
    """One thread's memory for one chunk."""

    def __init__(self, dimension: int) -> None:
        self.rows = torch.empty(CHUNK_ROWS, dimension)
        self.units = torch.empty(CHUNK_ROWS, dimension, dtype=torch.int32)
        self.half = torch.empty(CHUNK_ROWS, dimension, dtype=torch.float16)


def add_exactly(total: torch.Tensor, rows: torch.Tensor, buffers: Buffers, on_grid: bool) -> None:
    """Adds rows to a sum.

    Args:
        total: int64 [d], in units of 2^-24; changed in place.
        rows: float32 [at most CHUNK_ROWS, d], no element above 4; destroyed.
        buffers: of this thread.
        on_grid: the rows are multiples of 2^-24 already.
    """
    rows.mul_(UNITS)
    if not on_grid:
        rows.round_()
    units = buffers.units[: len(rows)].copy_(rows)
    whole = len(rows) - len(rows) % _GROUP
    for part in (units[:whole].view(-1, _GROUP, rows.shape[1]), units[whole:].unsqueeze(0)):
        total.add_(part.sum(1, dtype=torch.int32).sum(0))

"""One pass over many rows: their moments, norms and duplicates, and a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from .spectrum import eigenvalues
from .vectors import Vectors


class Moments:
    """Mean and covariance of rows that come in chunks, in float64. No digits are lost where the mean is long: rows are
    taken relative to the first chunk's mean.

    Attributes:
        rows: how many came.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shift = self._sum = self._products = torch.zeros(0, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows [any, d], at least one."""
        wide = rows.double()
        if not self.rows:
            self._shift = wide.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64)
        wide = wide - self._shift
        self._sum += wide.sum(0)
        self._products.addmm_(wide.T, wide)
        self.rows += len(rows)

    @property
    def mean(self) -> torch.Tensor:
        """Float64 [d]."""
        return self._shift + self._sum / self.rows

    @property
    def covariance(self) -> torch.Tensor:
        """Over all rows (1/n, not 1/(n-1)), float64 [d, d]."""
        centre = self._sum / self.rows
        return self._products / self.rows - torch.outer(centre, centre)


@dataclass(frozen=True)
class Cloud:
    """What is known of many rows.

    Attributes:
        name: what they are.
        rows: how many.
        mean: float64 [d].
        covariance: float64 [d, d].
        norms: smallest, mean and largest norm of a row.
        distinct: how many differ from all others before them.
        sample: float32 [m, d], in order.
    """

    name: str
    rows: int
    mean: torch.Tensor
    covariance: torch.Tensor
    norms: tuple[float, float, float]
    distinct: int
    sample: torch.Tensor

    @cached_property
    def spectrum(self) -> torch.Tensor:
        """The covariance's eigenvalues, float64 [d], descending."""
        return eigenvalues(self.covariance)

    @property
    def trace(self) -> float:
        """Mean |x - mean|^2."""
        return float(self.covariance.trace())


def survey(vectors: Vectors, sample: int, seed: int, on_rows: Callable[[int], object] = id) -> Cloud:
    """Passes once over all rows (twice, to draw the sample).

    Args:
        vectors: the rows, at least one.
        sample: how many to keep.
        seed: of their draw; see ``Vectors.sample``.
        on_rows: told how many rows were read.

    Raises:
        EmbeddingError: a row is not allowed; see ``from_files``.
    """
    moments, norms, prints = Moments(), [], []
    for chunk in vectors.chunks():
        moments.add(chunk)
        norms.append(chunk.double().norm(dim=1))
        prints.append(_fingerprints(chunk))
        on_rows(len(chunk))
    lengths = torch.cat(norms)
    return Cloud(
        name=vectors.name,
        rows=moments.rows,
        mean=moments.mean,
        covariance=moments.covariance,
        norms=(float(lengths.min()), float(lengths.mean()), float(lengths.max())),
        distinct=len(torch.unique(torch.cat(prints))),
        sample=vectors.sample(sample, seed),
    )


def _fingerprints(rows: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of each float32 row's bits, int64 [n]: equal for equal rows, else equal by chance (2^-60)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) * 2 + 1  # odd
    return (rows.contiguous().view(torch.int32).long() * factors).sum(1)  # wraps around, as it should

"""Measures of cosines: of pairs, and of all pairs within a cloud. Rows are [n, d]; they need not be of norm 1."""

import math

import torch

BLOCK_ROWS = 1024  # of a matrix of cosines, in memory at once
BINS = 200  # of a density of cosines, from -1 to 1


def unit(rows: torch.Tensor) -> torch.Tensor:
    """The rows over their norms; rows of norm 0 stay."""
    return torch.nn.functional.normalize(rows, dim=1)


def paired_cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """cos(a_i, b_i), float64 [n]. Their mean over sources and transferred rows is Phi (AnisoAlign, B.2)."""
    return (unit(one.double()) * unit(other.double())).sum(1)


def angular_structure(source: torch.Tensor, transferred: torch.Tensor) -> float:
    """Psi, Pearson's correlation of cos(u_i, u_j) and cos(z_i, z_j) over all i < j (AnisoAlign, B.2)."""
    u, z = unit(source), unit(transferred)
    # About the mean of all cosines, i = j included: near enough to theirs to lose no digits.
    about_u, about_z = (float(rows.double().mean(0).square().sum()) for rows in (u, z))
    sums = torch.zeros(5, dtype=torch.float64)
    for first in range(0, len(u), BLOCK_ROWS):
        a = cosines_to_others(u, first, own=about_u).double().sub_(about_u).flatten()
        b = cosines_to_others(z, first, own=about_z).double().sub_(about_z).flatten()
        sums += torch.stack([a.sum(), b.sum(), a @ a, b @ b, a @ b])
    if (count := len(u) * (len(u) - 1)) == 0:
        return math.nan
    a1, b1, aa, bb, ab = (sums / count).tolist()
    scale = math.sqrt(max(0.0, aa - a1**2) * max(0.0, bb - b1**2))
    return (ab - a1 * b1) / scale if scale else math.nan


def cosine_density(rows: torch.Tensor) -> torch.Tensor:
    """The shares of cos(x_i, x_j), i < j, in ``BINS`` equal bins from -1 to 1, float64 [BINS]."""
    rows, counts = unit(rows.float()), torch.zeros(BINS, dtype=torch.float64)
    for first in range(0, len(rows), BLOCK_ROWS):
        # Each pair counts twice, which no share notices; histc leaves out what is beyond 1.
        block = cosines_to_others(rows, first).clamp_(-1, 1)
        _own(block, first).fill_(2)
        counts += torch.histc(block, BINS, -1, 1).double()
    return counts / counts.sum().clamp(min=1)


def cosines_to_others(rows: torch.Tensor, first: int, own: float = -math.inf) -> torch.Tensor:
    """The cosines of up to ``BLOCK_ROWS`` unit rows from ``first`` with all rows, [any, n]; its own is ``own``."""
    block = rows[first : first + BLOCK_ROWS] @ rows.T
    _own(block, first).fill_(own)
    return block


def _own(block: torch.Tensor, first: int) -> torch.Tensor:
    """A view of the places where a row meets itself."""
    return block.diagonal(first)[: len(block)]


def jensen_shannon(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Jensen-Shannon divergence of two densities [bins] in nats: 0 for equal ones, ln 2 for disjoint ones."""
    middle = (one + other) / 2
    parts = [torch.special.xlogy(p, p) - torch.special.xlogy(p, middle) for p in (one, other)]
    return float(sum(part.sum() for part in parts) / 2)

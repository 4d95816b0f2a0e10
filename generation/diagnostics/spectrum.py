"""Measures of covariances and their spectra. Eigenvalues are float64 [d], descending."""

import math

import torch

SMALLEST = 1e-12  # of the largest eigenvalue: what is below is rounding, and counts as this much in logarithms


def eigenvalues(covariance: torch.Tensor) -> torch.Tensor:
    """The eigenvalues of a covariance [d, d], descending; rounding below 0 becomes 0."""
    values: torch.Tensor = torch.linalg.eigvalsh(covariance.double())
    return values.flip(0).clamp(min=0)


def top_axes(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """The axes of the ``count`` largest eigenvalues, float64 [d, count], the largest first."""
    axes: torch.Tensor = torch.linalg.eigh(covariance.double()).eigenvectors
    return axes[:, -count:].flip(1)


def participation_ratio(spectrum: torch.Tensor) -> float:
    """tr^2 / tr(C^2): how many axes there would be, were they all alike (AnisoAlign's d_eff)."""
    return float(spectrum.sum() ** 2 / (spectrum**2).sum())


def effective_rank(spectrum: torch.Tensor) -> float:
    """exp of the entropy of the normalised spectrum (Roy and Vetterli, 2007)."""
    shares = spectrum / spectrum.sum()
    return math.exp(float(-torch.special.xlogy(shares, shares).sum()))


def condition_number(spectrum: torch.Tensor) -> float:
    """Largest over smallest eigenvalue; infinite where the rows leave an axis empty (``SMALLEST``)."""
    smallest = float(spectrum[-1])
    return float(spectrum[0]) / smallest if smallest > SMALLEST * float(spectrum[0]) else math.inf


def power_law(spectrum: torch.Tensor, first: int = 10) -> float:
    """alpha of lambda_j ~ j^-alpha: least squares on both logarithms, ranks ``first`` to half of them (the papers
    print no range); nan for too few."""
    if len(spectrum) // 2 <= first:
        return math.nan
    ranks = torch.arange(first, len(spectrum) // 2 + 1, dtype=torch.float64)
    x, y = ranks.log(), _log(spectrum)[first - 1 : len(spectrum) // 2]
    x, y = x - x.mean(), y - y.mean()
    return float(-(x @ y) / (x @ x))


def energy(spectrum: torch.Tensor, axes: int) -> float:
    """E(K), the share of the trace in the ``axes`` largest eigenvalues (AnisoAlign, section 3)."""
    return float(spectrum[:axes].sum() / spectrum.sum())


def anisotropy(spectrum: torch.Tensor) -> float:
    """A_r, largest over mean eigenvalue: 1 for a ball, d for a line (AnisoAlign, section 3)."""
    return float(spectrum[0] / spectrum.mean())


def log_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """C_lambda, Pearson's correlation of the logarithms of two sorted spectra (AnisoAlign, section 3). Where axes are
    empty, as for images of fewer dimensions than the space has, it depends on how the rows were rounded."""
    return correlation(_log(one), _log(other))


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """O_q = |A' B|_F^2 / q for two sets of q orthonormal axes, [d, q]: 1 for the same space, q / d for random ones
    (AnisoAlign, section 3)."""
    return float((one.T @ other).square().sum() / one.shape[1])


def covariance_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|A - B|_F / |B|_F, G_Sigma with the images' covariance as B (AnisoAlign, section 3)."""
    return float((one - other).norm() / other.norm())


def share_inside(covariance: torch.Tensor, axes: torch.Tensor) -> float:
    """tr(P C) / tr C with P the projection on ``axes`` [d, q]: eta_U (AnisoAlign, section 3)."""
    return float((axes.T @ covariance @ axes).trace() / covariance.trace())


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Pearson's, of two vectors; nan where one is constant."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale else math.nan


def _log(spectrum: torch.Tensor) -> torch.Tensor:
    return spectrum.clamp(min=SMALLEST * float(spectrum[0])).log()

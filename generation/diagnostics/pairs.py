"""Measures of pairs (u_i, v_i): the gap Delta_i = v_i - u_i, its mean Dbar, and the residuals Delta_i - Dbar."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PairedGap:
    """What the differences of pairs are like (Unicorn v2, section 2; AnisoAlign, section 3).

    Attributes:
        mean: Dbar, float64 [d].
        covariance: of the differences, float64 [d, d]; Sigma_r.
        squared: mean |Delta_i|^2, AnisoAlign's D, which it calls a distance.
        cosine: mean cos(Delta_i, Dbar).
        lengths: |Delta_i|, float64 [n].
        residuals: |Delta_i - Dbar|, float64 [n].
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    squared: float
    cosine: float
    lengths: torch.Tensor
    residuals: torch.Tensor

    @property
    def norm(self) -> float:
        """|Dbar|, the paired gap."""
        return float(self.mean.norm())

    @property
    def shared(self) -> float:
        """rho = |Dbar|^2 / mean |Delta_i|^2, the share of the gap that one shift closes."""
        return self.norm**2 / self.squared

    @property
    def squared_after(self) -> float:
        """mean |Delta_i - Dbar|^2, what is left of D after the shift."""
        return float(self.residuals.square().mean())

    @property
    def uncentred(self) -> torch.Tensor:
        """Mean of Delta_i Delta_i', float64 [d, d]: what AnisoAlign, B.2, takes for a method's residuals."""
        return self.covariance + torch.outer(self.mean, self.mean)


def paired_gap(texts: torch.Tensor, images: torch.Tensor) -> PairedGap:
    """Measures pairs.

    Args:
        texts: [n, d], transferred or not.
        images: [n, d], the pairs' other halves.
    """
    differences = images.double() - texts.double()
    mean = differences.mean(0)
    residuals = differences - mean
    lengths = differences.norm(dim=1)
    cosines = differences @ mean / (lengths * mean.norm()).clamp(min=1e-12)
    return PairedGap(
        mean=mean,
        covariance=residuals.T @ residuals / len(residuals),
        squared=float(lengths.square().mean()),
        cosine=float(cosines.mean()),
        lengths=lengths,
        residuals=residuals.norm(dim=1),
    )

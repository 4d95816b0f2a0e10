"""Transfers that nobody has published as code: each is our reading of a formula, and none is part of the product.

Each function is fitted to unit rows, float32 [n, d], of texts and of images that are no pairs, and returns what moves
unit texts [n, d] to synthetic image embeddings, float32 [n, d] of unit rows.

column_space  our own: the centred texts are projected on the column space of the image tower's last matrix.
bc_align      block-wise covariance alignment, which ReVision (arXiv 2602.07026, appendix F) reports as a failure: it
              shows what a better paired cosine can cost in neighbourhoods.
aniso_init    the closed-form start of AnisoAlign (arXiv 2605.07825, section 4): radii in planes of a common frame are
              moved from the texts' to the images' distribution, and the rest is scaled. Its trained part cannot be
              rebuilt: the paper gives none of its settings.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

Transfer = Callable[[Tensor], Tensor]

PLANES = 128  # of the frame; the paper gives no number
QUANTILES = 257  # of a radius
ENERGY = 0.9  # of the common spectrum, in the first block; the paper gives no number
RIDGE = 1e-8  # of the mean variance: images may fill fewer dimensions than there are


def column_space(texts: Tensor, basis: Tensor) -> Transfer:
    """Fit Norm(B B' (u - mean(U))), where ``basis`` B [d, r] has orthonormal columns."""
    mean = texts.mean(0)
    return lambda rows: normalize((rows - mean) @ basis @ basis.T)


def bc_align(texts: Tensor, images: Tensor) -> Transfer:
    """Fit the map that gives texts the images' covariance in the block of the largest common axes, and in the rest."""
    target = images.mean(0)
    shift = target - texts.mean(0)
    shifted = normalize(texts + shift)
    text_cov, image_cov = covariance(shifted), covariance(images)
    values, axes = torch.linalg.eigh(text_cov + image_cov)
    rank = int((values.flip(0).cumsum(0) / values.sum() < ENERGY).sum()) + 1
    # x -> sum over both blocks P of P C_V^(1/2) C_U^(-1/2) P' x, with the covariances in the block
    parts = [
        block @ _power(block.T @ image_cov @ block, 0.5) @ _power(block.T @ text_cov @ block, -0.5) @ block.T
        for block in (axes[:, -rank:], axes[:, :-rank])
    ]
    matrix, mean = sum(parts, torch.zeros_like(text_cov)).float(), shifted.mean(0)

    def aligned(rows: Tensor) -> Tensor:
        return normalize((normalize(rows + shift) - mean) @ matrix.T + target)

    centre = aligned(texts).mean(0)
    return lambda rows: normalize(aligned(rows) - centre + target)


def aniso_init(texts: Tensor, images: Tensor) -> Transfer:
    """Fit the frame of the planes, the radii's quantiles in them, and the scale of the rest."""
    target = images.mean(0)
    shift = target - texts.mean(0)
    text_cov, image_cov = covariance(texts), covariance(images)
    frame = torch.linalg.eigh(text_cov + image_cov).eigenvectors.flip(1)[:, : 2 * PLANES]  # float64 [d, 2 planes]
    outside = torch.eye(len(target), dtype=torch.float64) - frame @ frame.T
    text_var, image_var = ((outside @ cov @ outside).diagonal() for cov in (text_cov, image_cov))
    spread = (image_var.clamp(min=0) / text_var.clamp(min=RIDGE * float(text_var.mean()))).sqrt().float()
    centre, inner = (outside @ target.double()).float(), frame.float()
    steps = torch.linspace(0, 1, QUANTILES)
    before, after = (torch.quantile(_radii(rows @ inner), steps, dim=1).T for rows in (texts + shift, images))

    def moved(rows: Tensor) -> Tensor:
        inside = (rows + shift) @ inner
        old = _radii(inside)  # [planes, n]
        factor = (_interpolate(old, before.contiguous(), after) / old.clamp(min=1e-12)).T.repeat_interleave(2, dim=1)
        rest = centre + spread * (rows + shift - inside @ inner.T - centre)
        rest -= (rest @ inner) @ inner.T  # a scale for each coordinate leaves the complement of the frame
        return normalize(rest + (inside * factor) @ inner.T)

    mean = moved(texts).mean(0)
    return lambda rows: normalize(moved(rows) - mean + target)


def covariance(rows: Tensor) -> Tensor:
    """Return the covariance of rows [n, d], float64 [d, d]."""
    centred = rows.double() - rows.double().mean(0)
    return centred.T @ centred / len(rows)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, axes = torch.linalg.eigh(matrix)
    raised: Tensor = (axes * values.clamp(min=RIDGE * float(values.mean())) ** exponent) @ axes.T
    return raised


def _radii(inside: Tensor) -> Tensor:
    """Return the radius of each row [n, 2 planes] in each plane, [planes, n]."""
    radii: Tensor = inside.view(len(inside), -1, 2).norm(dim=2)
    return radii.T.contiguous()


def _interpolate(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Map values [m, n] from quantiles [m, q] of the source to the target's, piecewise linear, held at the ends."""
    above = torch.searchsorted(source, values).clamp(1, source.shape[1] - 1)
    low, high = source.gather(1, above - 1), source.gather(1, above)
    share = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    moved: Tensor = torch.lerp(target.gather(1, above - 1), target.gather(1, above), share)
    return moved

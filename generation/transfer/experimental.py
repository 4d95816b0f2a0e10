"""Statistics of the experimental methods. None of them is published as code; each is our reading of a formula.

experimental_bc_align     block-wise covariance alignment, which ReVision (appendix F) reports as a failure: a negative
                          control, to show what a better paired cosine can cost in neighbourhoods.
experimental_aniso_init   the closed-form start of AnisoAlign (arXiv 2605.07825, section 4): radii in planes of a
                          common frame are moved from the texts' to the images' distribution, the rest is
                          scaled. Its trained part cannot be rebuilt: the paper gives none of its settings.
"""

from collections.abc import Mapping

import torch

from .rows import Rows

PLANES = 128  # of the frame; the paper gives no number
QUANTILES = 257  # of a radius
SAMPLE = 16_384  # rows that the quantiles are taken from
ENERGY = 0.9  # of the common spectrum, in the first block; the paper gives no number
_RIDGE = 1e-8  # of the mean variance: images may fill fewer dimensions than there are


def block_map(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The map that gives texts the images' covariance, in the block of the largest common axes and in the rest.

    Args:
        text: float64 [d, d], covariance of the texts.
        image: float64 [d, d], covariance of the images.

    Returns:
        float64 [d, d]: x -> sum over both blocks P of P C_V^(1/2) C_U^(-1/2) P' x, C_ the covariances in the block.
    """
    values, axes = torch.linalg.eigh(text + image)
    shares = values.flip(0).cumsum(0) / values.sum()
    rank = int((shares < ENERGY).sum()) + 1
    blocks = (axes[:, -rank:], axes[:, :-rank])
    return torch.stack([_match(block, text, image) for block in blocks if block.shape[1]]).sum(0)


def _match(block: torch.Tensor, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    inner_text, inner_image = block.T @ text @ block, block.T @ image @ block
    return block @ _power(inner_image, 0.5) @ _power(inner_text, -0.5) @ block.T


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, axes = torch.linalg.eigh(matrix)
    floor = _RIDGE * float(values.mean())
    powered: torch.Tensor = (axes * values.clamp(min=floor) ** exponent) @ axes.T
    return powered


def covariance(moment: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """From a mean of x x' and the mean of x, float64."""
    return moment - torch.outer(mean, mean)


def radii(
    texts: Rows, text_rows: int, images: Rows, image_rows: int, known: Mapping[str, torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """The frame of the planes, the radii's quantiles in them, and the scale of the rest.

    Args:
        texts: unit rows.
        text_rows: how many.
        images: unit rows.
        image_rows: how many.
        known: ``shift`` and ``mean_image``, float64 [d].
        seed: of the sample.

    Returns:
        ``frame`` [d, 2 m], ``radii_text`` and ``radii_image`` [m, QUANTILES], ``spread`` [d], ``centre`` [d].
    """
    moved, mean = ["add:shift"], known["mean_image"]  # texts so moved have the images' mean
    cov_text = covariance(texts.second_moment(moved, known), mean)
    cov_image = covariance(images.second_moment((), {}), mean)
    planes = min(PLANES, len(mean) // 4)
    frame = torch.linalg.eigh(cov_text + cov_image).eigenvectors.flip(1)[:, : 2 * planes].contiguous()
    sampled = texts.sample(min(SAMPLE, text_rows), text_rows, seed) + known["shift"].float()
    outside = torch.eye(len(mean), dtype=torch.float64) - frame @ frame.T
    variance_text, variance_image = ((outside @ cov @ outside).diagonal() for cov in (cov_text, cov_image))
    return {
        "frame": frame,
        "radii_text": _quantiles(sampled, frame),
        "radii_image": _quantiles(images.sample(min(SAMPLE, image_rows), image_rows, seed), frame),
        "spread": (variance_image.clamp(min=0) / variance_text.clamp(min=_RIDGE * float(variance_text.mean()))).sqrt(),
        "centre": outside @ mean,
    }


def move_radii(rows: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Moves each row's radius in each plane to the quantile that it had among the texts; float32 [n, d]."""
    frame = tensors["frame"].float()  # [d, 2 m]
    inside = rows @ frame
    planes = inside.view(len(rows), -1, 2)  # [n, m, 2]
    old = planes.norm(dim=2).T.contiguous()  # [m, n]
    new = _interpolate(old, tensors["radii_text"].float(), tensors["radii_image"].float())
    moved = (planes * (new / old.clamp(min=1e-12)).T.unsqueeze(2)).reshape(len(rows), -1)
    rest = rows - inside @ frame.T
    centre = tensors["centre"].float()
    rest = centre + tensors["spread"].float() * (rest - centre)
    rest = rest - (rest @ frame) @ frame.T  # a scale for each coordinate leaves the complement of the frame
    return torch.addmm(rest, moved, frame.T)


def _quantiles(rows: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    lengths = (rows @ frame.float()).view(len(rows), -1, 2).norm(dim=2)  # [n, m]
    steps = torch.linspace(0, 1, QUANTILES)
    return torch.quantile(lengths, steps, dim=0).T.double().contiguous()


def _interpolate(values: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Piecewise linear, from the source's quantiles [m, q] to the target's; values [m, n] beyond them are held."""
    above = torch.searchsorted(source, values.contiguous()).clamp(1, source.shape[1] - 1)
    low, high = source.gather(1, above - 1), source.gather(1, above)
    share = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    moved: torch.Tensor = torch.lerp(target.gather(1, above - 1), target.gather(1, above), share)
    return moved

"""The papers' figures, of rows in memory, [n, d]; definitions in AnisoAlign (arXiv 2605.07825), appendix B.2."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from generation.report.gap import NEIGHBOURS, neighbours_kept, recall

from .experimental import covariance

CLUSTERS, AXES, RECALL_ROWS = 100, 128, 4_000


def gap_figures(text: Tensor, image: Tensor) -> dict[str, float]:
    """Return the figures of pairs of unit rows, neither moved."""
    delta = image - text
    mean_text, mean_image, shift = text.mean(0), image.mean(0), delta.mean(0)
    residual, squared = (delta - shift).norm(dim=1), float(delta.square().sum(1).mean())
    values, trace = torch.linalg.eigvalsh(covariance(delta)).flip(0), float(covariance(delta).trace())
    # Rows as they are stored: where images have no variance, C_lambda sees the rounding to float16.
    text_values, text_axes = torch.linalg.eigh(covariance(text.half()))
    image_values, image_axes = torch.linalg.eigh(covariance(image.half()))
    logarithms = torch.stack([text_values, image_values]).clamp(min=1e-12).log()
    labels = clusters(text)
    return {
        "gap": float(shift.norm()),
        "cosine": cosine(text, image),
        "cosine_shifted": cosine(text + shift, image),
        "cosine_centred": cosine(text - mean_text, image - mean_image),
        "cosine_raw_image": cosine(text - mean_text, image),
        "text_mean": float(mean_text.norm()),
        "image_mean": float(mean_image.norm()),
        "scale": math.sqrt((1 - float(mean_image.square().sum())) / (1 - float(mean_text.square().sum()))),
        "rho": float(shift.square().sum()) / squared,
        "gap_cosine": cosine(delta, shift.expand_as(delta)),
        "squared_after": float(residual.square().mean()),
        "squared_ratio": float(residual.square().mean()) / squared,
        "residual_norm": float(residual.mean()),
        "anisotropy": float(values[0]) * len(values) / trace,
        "pc1": float(values[0]) / trace,
        "top10": float(values[:10].sum()) / trace,
        "d_eff": trace**2
        / (float(values.square().sum()) - trace**2 / len(text))
        / len(values),  # less what n rows add
        "log_spectra": float(torch.corrcoef(logarithms)[0, 1]),
        "overlap": float((text_axes[:, -AXES:].T @ image_axes[:, -AXES:]).square().sum()) / AXES,
        "image_rank": float(image_values.sum() ** 2 / image_values.square().sum()),
        "cluster_cosine": float(_cluster_cosines(delta, labels).mean()),
        "cluster_gain": _cluster_gain(text, image, labels),
    }


def method_figures(text: Tensor, moved: Tensor, image: Tensor) -> dict[str, float]:
    """Return the figures of pairs: texts, the same moved, and the images as they are used with them."""
    delta = (image - moved).double()
    moment = (delta.T @ delta if len(delta) > delta.shape[1] else delta @ delta.T) / len(delta)  # same eigenvalues
    return {
        "cosine": cosine(moved, image),
        "gap": float(delta.mean(0).norm()),
        "squared": float(moment.trace()),
        "anisotropy": float(torch.linalg.eigvalsh(moment)[-1] / moment.trace())
        * delta.shape[1],  # the gap left is an axis
        "recall_image": recall(moved[:RECALL_ROWS], image[:RECALL_ROWS]),
        "recall_text": recall(image[:RECALL_ROWS], moved[:RECALL_ROWS]),
        "phi": cosine(text, moved),
        "psi": float(torch.corrcoef(torch.stack([_cosines(text), _cosines(moved)]))[0, 1]),
        "omega": neighbours_kept(text, moved),
        **mixing(moved, image),
    }


def cosine(left: Tensor, right: Tensor) -> float:
    """Return the mean cosine of paired rows."""
    return float((normalize(left) * normalize(right)).sum(1).mean())


def mixing(text: Tensor, image: Tensor) -> dict[str, float]:
    """Return M_Z and M_X: entropy of the origin of the nearest neighbours of texts and of images, over chance."""
    rows = normalize(torch.cat([text, image]))
    similarity = rows @ rows.T
    nearest = similarity.fill_diagonal_(-2).topk(NEIGHBOURS, dim=1).indices
    is_text = torch.arange(len(rows)) < len(text)
    shuffled = is_text[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    shares = (labels[nearest].double().mean(1) for labels in (is_text, shuffled))
    found, chance = (-torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p) for p in shares)
    sides = {"mixing_z": is_text, "mixing_x": ~is_text}
    return {name: float(found[side].mean() / chance[side].mean()) for name, side in sides.items()}


def clusters(rows: Tensor) -> Tensor:
    """Return the cluster of each row by K-means from rows drawn at random, int64 [n]; there are n / 20 at most."""
    count = min(CLUSTERS, len(rows) // 20)
    centres = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]
    for _ in range(5):
        labels = (rows @ centres.T - centres.square().sum(1) / 2).argmax(1)
        centres = torch.stack([rows[labels == k].mean(0) if (labels == k).any() else centres[k] for k in range(count)])
    return labels


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines of all pairs of different rows, [n (n - 1) / 2]."""
    unit, first = normalize(rows), torch.triu_indices(len(rows), len(rows), 1)
    return (unit @ unit.T)[first[0], first[1]]


def _cluster_cosines(delta: Tensor, labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    means = torch.zeros(len(counts), delta.shape[1]).index_add_(0, labels, delta)[counts >= 5]
    return normalize(means) @ normalize(delta.mean(0), dim=0)


def _cluster_gain(text: Tensor, image: Tensor, labels: Tensor) -> float:
    """Return what the gap of half of the clusters adds to the paired cosine of the others."""
    source = labels % 2 == 0
    shift = (image - text)[source].mean(0)
    return cosine(text[~source] + shift, image[~source]) - cosine(text[~source], image[~source])

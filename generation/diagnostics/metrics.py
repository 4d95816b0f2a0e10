"""The figures that the data at hand allows, by the keys of ``figures.yaml``; what it does not allow is left out."""

import math

import torch

from .cloud import Cloud
from .clusters import CLUSTERS, SPLITS, cluster_consistency, cross_cluster_gain, kmeans
from .cosines import angular_structure, cosine_density, jensen_shannon, paired_cosines
from .neighbours import NEIGHBOURS, mixing, neighbour_overlap, recall_at_1
from .pairs import paired_gap
from .spectrum import (
    anisotropy,
    condition_number,
    covariance_distance,
    effective_rank,
    eigenvalues,
    energy,
    log_correlation,
    overlap,
    participation_ratio,
    power_law,
    share_inside,
    top_axes,
)

AXES = 128  # of O_q
FRAME_AXES = 256  # of eta_U
RECALL_ROWS = 4000  # among which R@1 looks: it falls with their number
PAIRS_PER_CLUSTER = 20  # on average, below which a cluster's mean gap is mostly noise
Figures = dict[str, float]


def cloud_figures(cloud: Cloud) -> Figures:
    """The figures ``cloud`` of rows alone (tier T)."""
    centred = (cloud.sample.double() - cloud.mean).norm(dim=1)
    spectrum = cloud.spectrum
    found = {
        "rows": cloud.rows,
        "dimension": len(cloud.mean),
        "norm_min": cloud.norms[0],
        "norm_mean": cloud.norms[1],
        "norm_max": cloud.norms[2],
        "mean_norm": float(cloud.mean.norm()),
        "trace": cloud.trace,
        **_spread("centred_norm", centred),
        "participation_ratio": participation_ratio(spectrum),
        "effective_rank": effective_rank(spectrum),
        "alpha": power_law(spectrum[: cloud.rows - 1]),
        "condition": condition_number(spectrum),
        "duplicates": 1 - cloud.distinct / cloud.rows,
    }
    return _defined(found)


def transfer_figures(source: torch.Tensor, transferred: torch.Tensor) -> Figures:
    """The figures ``transfer`` of rows and the same rows transferred, [n, d] each (tier S)."""
    phi = float(paired_cosines(source, transferred).mean())
    moved = source.double().mean(0) - torch.nn.functional.normalize(transferred.double(), dim=1).mean(0)
    found = {"phi": phi, "phi_bound": 1 - float(moved.square().sum()) / 2}
    found["psi"] = angular_structure(source, transferred)
    if len(source) > NEIGHBOURS:
        found["omega"] = neighbour_overlap(source, transferred)
    return _defined(found)


def unpaired_figures(texts: Cloud, images: Cloud, seed: int = 0) -> Figures:
    """The figures ``unpaired`` of texts, transferred or not, against images (tier U)."""
    axes = min(AXES, len(texts.mean))
    found = {
        "gap": float((texts.mean - images.mean).norm()),
        "gap_floor": math.sqrt(texts.trace / texts.rows + images.trace / images.rows),
        "scale": math.sqrt(images.trace / texts.trace) if texts.trace else math.nan,
        "log_spectra": log_correlation(texts.spectrum, images.spectrum),
        "overlap": overlap(top_axes(texts.covariance, axes), top_axes(images.covariance, axes)),
        "covariance_gap": covariance_distance(texts.covariance, images.covariance),
        "covariance_gap_absolute": float((texts.covariance - images.covariance).norm()),
        "cosine_divergence": jensen_shannon(cosine_density(texts.sample), cosine_density(images.sample)),
    }
    return _defined(found | mixing_figures(texts.sample, images.sample, seed))


def mixing_figures(texts: torch.Tensor, images: torch.Tensor, seed: int = 0) -> Figures:
    """``mixing_z``, ``mixing_x`` and ``mixing_rate``; none, if there are too few rows. As many of one as of the other
    are looked at, or the more of them would be the nearer by their number."""
    count = min(len(texts), len(images))
    if count <= NEIGHBOURS:
        return {}
    of_texts, of_images, rate = mixing(texts[:count], images[:count], seed=seed)
    return {"mixing_z": of_texts, "mixing_x": of_images, "mixing_rate": rate}


def gap_figures(texts: torch.Tensor, images: torch.Tensor, seed: int = 0) -> Figures:
    """The figures ``gap`` of pairs of unit rows, [n, d] each, neither moved (tier P)."""
    gap = paired_gap(texts, images)
    spectrum = eigenvalues(gap.covariance)
    u, v = texts.double(), images.double()
    found = {
        "pairs": len(texts),
        "cosine": float(paired_cosines(u, v).mean()),
        "cosine_shifted": float(paired_cosines(u + gap.mean, v).mean()),
        "cosine_centred": float(paired_cosines(u - u.mean(0), v - v.mean(0)).mean()),
        "paired_gap": gap.norm,
        "rho": gap.shared,
        "gap_cosine": gap.cosine,
        **_spread("residual", gap.residuals),
        "anisotropy": anisotropy(spectrum),
        "pc1": energy(spectrum, 1),
        "top10": energy(spectrum, 10),
        "top100": energy(spectrum, 100),
        "d_eff": participation_ratio(spectrum) / len(spectrum),
        "squared_before": gap.squared,
        "squared_after": gap.squared_after,
        "squared_ratio": gap.squared_after / gap.squared,
        "distance_ratio": float(gap.residuals.mean() / gap.lengths.mean()),
        "inside": share_inside(gap.covariance, top_axes(_covariance(u) + _covariance(v), min(FRAME_AXES, u.shape[1]))),
        **_recalls(texts, images),
        **_cluster_figures(texts, images, seed),
    }
    return _defined(found)


def paired_figures(transferred: torch.Tensor, images: torch.Tensor) -> Figures:
    """The figures ``paired`` of pairs of a transferred text and its image, raw or treated, [n, d] each (tier P)."""
    gap = paired_gap(transferred, images)
    found = {
        "cosine": float(paired_cosines(transferred, images).mean()),
        "gap": gap.norm,
        "gap_floor": math.sqrt(gap.squared_after / len(transferred)),
        "squared": gap.squared,
        "anisotropy_uncentred": anisotropy(eigenvalues(gap.uncentred)),
        **_recalls(transferred, images),
    }
    return _defined(found)


def _recalls(texts: torch.Tensor, images: torch.Tensor) -> Figures:
    u, v = texts[:RECALL_ROWS], images[:RECALL_ROWS]
    return {"recall_text": recall_at_1(u, v), "recall_image": recall_at_1(v, u)}


def _cluster_figures(texts: torch.Tensor, images: torch.Tensor, seed: int) -> Figures:
    found: Figures = {}
    for k in CLUSTERS:
        if len(texts) < k * PAIRS_PER_CLUSTER:
            break
        labels = kmeans(texts, k, seed)
        cosines = cluster_consistency(texts, images, labels)
        found[f"cluster_cosine_{k}"] = float(cosines.mean())
        found[f"cluster_share_{k}"] = float((cosines > 0.8).double().mean())
        for percent, share in SPLITS:
            found[f"cluster_gain_{k}_{percent}"] = cross_cluster_gain(texts, images, labels, share, seed)
    return found


def _spread(key: str, values: torch.Tensor) -> Figures:
    low, high = (float(values.quantile(q)) for q in (0.05, 0.95))
    return {f"{key}_mean": float(values.mean()), f"{key}_p05": low, f"{key}_p95": high}


def _covariance(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def _defined(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if not math.isnan(value)}

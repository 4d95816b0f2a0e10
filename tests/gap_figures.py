"""The figures of a modality gap, from pairs of unit rows, as the papers define them (AnisoAlign, arXiv 2605.07825, and
ReVision, arXiv 2602.07026): plain formulas in memory, for tests and for the calibration of the ground truth."""

import torch
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    """Each row of norm 1."""
    return torch.nn.functional.normalize(rows, dim=1)


def paired_cosine(texts: Tensor, images: Tensor) -> float:
    """Mean over the pairs of u_i . v_i; an image that is not of norm 1 counts by its direction."""
    return float((unit(texts) * unit(images)).sum(1).mean(dtype=torch.float64))


def mean(rows: Tensor) -> Tensor:
    """float64 [d]."""
    return rows.mean(0, dtype=torch.float64)


def gap_figures(texts: Tensor, images: Tensor) -> dict[str, float]:
    """What the differences Delta_i = v_i - u_i and their mean tell."""
    differences = images - texts
    centre = mean(differences)
    gap = float(centre.norm())
    lengths, residuals = differences.norm(dim=1), (differences - centre.float()).norm(dim=1)
    square = float((lengths**2).mean(dtype=torch.float64))
    residual = float((residuals**2).mean(dtype=torch.float64))
    return {
        "gap": gap,
        "cosine": paired_cosine(texts, images),
        "cosine after adding the gap": paired_cosine(texts + centre.float(), images),
        "rho": gap**2 / square,
        "cos(Delta_i, Dbar)": float(((differences @ centre.float()) / lengths).mean() / gap),
        "D": residual,
        "D ratio": residual / square,
        "residual norm": float(residuals.mean()),
        "residual norm p5": float(residuals.quantile(0.05)),
        "residual norm p95": float(residuals.quantile(0.95)),
        "residual norms in 1.05..1.20": float(((residuals > 1.05) & (residuals < 1.20)).float().mean()),
        "text mean norm": float(mean(texts).norm()),
        "image mean norm": float(mean(images).norm()),
        "cos(text mean, image mean)": float(mean(texts) @ mean(images) / (mean(texts).norm() * mean(images).norm())),
        "s": float(((1 - mean(images) @ mean(images)) / (1 - mean(texts) @ mean(texts))) ** 0.5),
    }


def covariance(rows: Tensor) -> Tensor:
    """float64 [d, d]; all in float64, for float32 sums would put a floor under the smallest eigenvalues."""
    centre = mean(rows)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in torch.split(rows, 8192):
        centred = part.double() - centre
        total += centred.T @ centred
    return total / len(rows)


def residual_figures(differences: Tensor) -> dict[str, float]:
    """The spectrum of Cov(Delta). What n rows add to the trace of its square, tr^2 / n, is taken off for d_eff."""
    rows, dimension = differences.shape
    values = torch.linalg.eigvalsh(covariance(differences)).flip(0)
    trace = float(values.sum())
    return {
        "A_r": float(values[0]) * dimension / trace,
        "d_eff/d": trace**2 / (float((values**2).sum()) - trace**2 / rows) / dimension,
        "PC1": float(values[0]) / trace,
        "top 10": float(values[:10].sum()) / trace,
    }


def spectrum_figures(texts: Tensor, images: Tensor, q: int) -> dict[str, float]:
    """How the two covariances compare. The rows are taken as they are stored, in float16: where images have no
    variance, C_lambda sees the rounding."""
    (text_values, text_axes), (image_values, image_axes) = (
        torch.linalg.eigh(covariance(rows.half().float())) for rows in (texts, images)
    )
    logarithms = torch.stack([text_values, image_values]).clamp(min=1e-12).log()
    return {
        "C_lambda": float(torch.corrcoef(logarithms)[0, 1]),
        "O_q": float((text_axes[:, -q:].T @ image_axes[:, -q:]).norm() ** 2 / q),
        "participation ratio, images": float(image_values.sum() ** 2 / (image_values**2).sum()),
        "participation ratio, texts": float(text_values.sum() ** 2 / (text_values**2).sum()),
        "kappa, texts": float(text_values[-1] / text_values[0]),
    }


def clusters(rows: Tensor, count: int, rounds: int = 5, seed: int = 0) -> Tensor:
    """Plain K-means from rows drawn at random: the cluster of each row, int64 [n]."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    centres = rows[drawn]
    for _ in range(rounds):
        label = (rows @ centres.T - (centres**2).sum(1) / 2).argmax(1)
        centres = torch.where(torch.bincount(label, minlength=count)[:, None] > 0, means(rows, label, count), centres)
    return label


def means(rows: Tensor, label: Tensor, count: int) -> Tensor:
    """Mean of the rows of each label, [count, d]; NaN where there are none."""
    sums = torch.zeros(count, rows.shape[1]).index_add_(0, label, rows)
    return sums / torch.bincount(label, minlength=count)[:, None]


def consistency(differences: Tensor, label: Tensor) -> Tensor:
    """cos(Dbar_k, Dbar) of each cluster that has 5 rows or more."""
    rows = torch.bincount(label)
    centres = means(differences, label, len(rows))[rows >= 5]
    return unit(centres) @ unit(mean(differences).float()[None])[0]


def transfer_gain(texts: Tensor, images: Tensor, label: Tensor, source_share: float) -> float:
    """What the gap of some clusters adds to the paired cosine of all the others."""
    order = torch.randperm(int(label.max()) + 1, generator=torch.Generator().manual_seed(0))
    source = torch.isin(label, order[: int(source_share * len(order))])
    gap = mean(images[source] - texts[source]).float()
    return paired_cosine(texts[~source] + gap, images[~source]) - paired_cosine(texts[~source], images[~source])

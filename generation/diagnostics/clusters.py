"""Whether the gap is the same everywhere: K-means on the texts, and the mean gap of each cluster."""

import torch

from .cosines import paired_cosines

CLUSTERS = (50, 100, 200, 500)  # AnisoAlign's K
SPLITS = ((50, 0.5), (80, 0.8))  # percent, share of the clusters that a shift is taken from
ROUNDS = 20  # of Lloyd's algorithm; the clusters hardly move after it


def kmeans(rows: torch.Tensor, clusters: int, seed: int = 0) -> torch.Tensor:
    """The cluster of each row, int64 [n] below ``clusters``: Lloyd's algorithm, begun at rows drawn at random. A
    cluster that loses all rows keeps its centre."""
    start = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:clusters]
    rows = rows.float()
    centres = rows[start].clone()
    for _ in range(ROUNDS):
        # |x - c|^2 without |x|^2, which moves no argmin
        labels = (centres.square().sum(1) - 2 * rows @ centres.T).argmin(1)
        counts = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, labels, rows)
        centres = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centres)
    return labels


def cluster_consistency(texts: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """cos(Dbar_k, Dbar) of each cluster that has rows, float64 [at most K] (Unicorn v2, Fig. 2b)."""
    differences = images.double() - texts.double()
    sums = torch.zeros(int(labels.max()) + 1, texts.shape[1], dtype=torch.float64).index_add_(0, labels, differences)
    sums = sums[torch.bincount(labels) > 0]  # a sum has its mean's direction
    return paired_cosines(sums, differences.mean(0).expand_as(sums))


def cross_cluster_gain(
    texts: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, source_share: float, seed: int = 0
) -> float:
    """Mean of cos(u + c, v) - cos(u, v) over the pairs of some clusters, c the mean gap of all other clusters (Unicorn
    v2, Fig. 2c).

    Args:
        texts: [n, d].
        images: [n, d].
        labels: the pairs' clusters, int64 [n].
        source_share: of the clusters, drawn at random, that c is taken from.
        seed: of the draw.
    """
    known = torch.unique(labels)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    cut = min(max(1, round(source_share * len(known))), len(known) - 1)
    source = torch.isin(labels, known[order[:cut]])
    shift = (images[source].double() - texts[source].double()).mean(0)
    u, v = texts[~source].double(), images[~source].double()
    return float((paired_cosines(u + shift, v) - paired_cosines(u, v)).mean())

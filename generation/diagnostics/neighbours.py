"""Measures of nearest neighbours by cosine. Rows are [n, d]; ties go to whichever torch.topk takes."""

import torch

from ..records import draw
from .cosines import BLOCK_ROWS, cosines_to_others, unit

NEIGHBOURS = 20  # the papers' k


def nearest(rows: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest others of each row, int64 [n, k], the nearest first; n > k."""
    rows, found = unit(rows.float()), []
    for first in range(0, len(rows), BLOCK_ROWS):
        found.append(cosines_to_others(rows, first).topk(k, dim=1).indices)
    return torch.cat(found)


def neighbour_overlap(source: torch.Tensor, transferred: torch.Tensor, k: int = NEIGHBOURS) -> float:
    """Omega_k, the mean share of a row's k neighbours that it keeps (AnisoAlign, B.2; ReVision, F with k = 10)."""
    before, after = nearest(source, k), nearest(transferred, k)
    return float((before.unsqueeze(2) == after.unsqueeze(1)).any(2).double().mean())


def recall_at_1(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """R@1, the share of queries whose nearest key is their own: queries and keys are pairs, [n, d] each."""
    found = (unit(queries.float()) @ unit(keys.float()).T).argmax(1)
    return float((found == torch.arange(len(queries))).double().mean())


def mixing(
    texts: torch.Tensor, images: torch.Tensor, k: int = NEIGHBOURS, seed: int = 0
) -> tuple[float, float, float]:
    """How well two clouds mix, by the k neighbours of each row among both.

    Args:
        texts: [n, d], transferred or not.
        images: [m, d].
        k: neighbours of a row.
        seed: of the permutation.

    Returns:
        M_Z and M_X: the mean entropy of the neighbours' origin, over texts and over images, each over the same once
        the origins are permuted among all rows (AnisoAlign, B.2): 1 is mixed, 0 apart. Then the mixing rate, the share
        of neighbours of the other origin (ReVision, appendix).
    """
    rows = torch.cat([texts.float(), images.float()])
    is_text = torch.arange(len(rows)) < len(texts)
    found = nearest(rows, k)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw("permute origins", seed)))
    entropy, chance = (_entropy(labels[found].double().mean(1)) for labels in (is_text, is_text[order]))
    ratios = [float(entropy[side].mean() / chance[side].mean()) for side in (is_text, ~is_text)]
    other = (is_text[found] != is_text.unsqueeze(1)).double().mean()
    return ratios[0], ratios[1], float(other)


def _entropy(share: torch.Tensor) -> torch.Tensor:
    """Of a choice of two, in nats."""
    of_all: torch.Tensor = torch.special.xlogy(share, share) + torch.special.xlogy(1 - share, 1 - share)
    return -of_all

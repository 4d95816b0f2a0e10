"""The command ``diagnose --ground-truth``: every transfer method on made-up pairs whose gap is that of the papers.

Statistics are fitted on texts and images that are no pairs; all figures are of further pairs. It needs no weights, and
says what a method does to such vectors, not what a model learns from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import Transfer
from ..ground_truth import GroundTruth
from ..progress import progress
from ..transfer import METHODS, Fitted
from ..transfer.fitting import fit_rows
from ..transfer.methods import needs_images
from ..transfer.noise import add_noise
from ..transfer.rows import Part, Rows
from ..validation import validate
from .cloud import survey
from .inference import image_name, takes_image_mean, treated
from .metrics import cloud_figures, gap_figures, mixing_figures, paired_figures, transfer_figures, unpaired_figures
from .of_run import RAW
from .pictures import method_pictures
from .report import Report, Section
from .vectors import in_memory

CHUNK_ROWS = 4096
FIT_ROWS = 4  # rows of texts, and of images, that statistics are fitted on, for each pair that is measured


@dataclass(frozen=True)
class _Case:
    """One row of the comparison."""

    method: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    *(_Case(method, method) for method in METHODS if method != "c3"),
    _Case("c3", "c3, eta 2.86 as in its code"),
    _Case("c3", "c3, eta 0.36 as AnisoAlign seems to have run it", {"noise_ratio": 0.36}),
    _Case("anchor", "anchor, half strength", {"strength": 0.5}),
)


def diagnose_ground_truth(rows: int = 10_000, seed: int = 0, dimension: int = 1280) -> Report:
    """Measures the ground truth, and each method on it.

    Args:
        rows: pairs that are measured.
        seed: of the ground truth, samples, noise, clusters and permutations.
        dimension: d.
    """
    truth = GroundTruth(dimension, seed)
    held_out, per_kind = -(-rows // CHUNK_ROWS), -(-FIT_ROWS * rows // CHUNK_ROWS)
    with progress("diagnose", held_out + 2 * per_kind + len(CASES) + 2, 0, "step", delay_s=2.0) as bar:

        def chunks(first: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for chunk in range(first, first + count):
                bar.update(1)
                yield truth.pairs(chunk, CHUNK_ROWS)

        bar.set_postfix_str("making pairs")
        texts, images = (torch.cat(side)[:rows] for side in zip(*chunks(0, held_out), strict=True))
        fit_texts = torch.cat([u for u, _ in chunks(held_out, per_kind)])
        fit_images = torch.cat([v for _, v in chunks(held_out + per_kind, per_kind)])
        bar.set_postfix_str("the gap")
        before, raw = (survey(in_memory(n, x), rows, seed) for n, x in (("Texts", texts), ("Raw images", images)))
        sections = [Section(cloud.name, "cloud", cloud_figures(cloud)) for cloud in (before, raw)]
        sections.append(Section(f"Texts against {RAW}", "unpaired", unpaired_figures(before, raw, seed)))
        sections.append(Section("Pairs of texts and raw images", "gap", gap_figures(texts, images, seed)))
        bar.update(1)
        comparison = []
        for case in CASES:
            bar.set_postfix_str(case.name)
            fitted = _fit(case, fit_texts, fit_images, truth)
            comparison += _compare(case, fitted, texts, images, fit_images.double().mean(0), seed)
            bar.update(1)
        bar.set_postfix_str("pictures")
        unicorn = _fit(_Case("unicorn", "unicorn"), fit_texts, fit_images, truth)
        after = survey(in_memory("Texts by unicorn", unicorn.to_text(texts)), rows, seed)
        drawn = method_pictures("unicorn", unicorn, before, after, raw, (texts, images))
        bar.update(1)
    facts = {"dimension": dimension, "rows": rows, "fit_rows": len(fit_texts), "seed": seed}
    title = f"Diagnostics of the ground truth, d = {dimension}"
    return Report(title, [_about(rows, len(fit_texts), seed)], sections, comparison, drawn, facts)


def _fit(case: _Case, texts: torch.Tensor, images: torch.Tensor, truth: GroundTruth) -> Fitted:
    # A recipe names files where these are at hand.
    settings: Transfer = validate(Transfer, {"method": case.method, **case.settings}, "transfer")
    known = Rows([Part("images", lambda: [images])]) if needs_images(case.method) else None
    basis = truth.image_basis() if case.method == "experimental_column_space" else None
    return fit_rows(settings, Rows([Part("texts", lambda: [texts])]), known, basis)


def _compare(
    case: _Case, fitted: Fitted, texts: torch.Tensor, images: torch.Tensor, image_mean: torch.Tensor, seed: int
) -> list[dict[str, Any]]:
    """The rows of a method: against images as it wants them and, where it wants their mean subtracted, raw ones."""
    moved = fitted.to_text(texts)
    if noise := fitted.facts["noise"]:
        moved = add_noise(moved, torch.arange(len(moved)), noise["eta_of_rows"], seed)
    kept = transfer_figures(texts, moved)
    used = [(image_name(fitted), treated(fitted, images, image_mean))]
    if takes_image_mean(fitted):
        used.append(("raw", images))
    return [_row(case.name, name, kept, moved, seen, seed) for name, seen in used]


def _row(
    method: str, name: str, kept: dict[str, float], moved: torch.Tensor, images: torch.Tensor, seed: int
) -> dict[str, Any]:
    pairs, mixed = paired_figures(moved, images), mixing_figures(moved, images, seed)
    return {
        "method": method,
        "image": name,
        "cosine": pairs["cosine"],
        "Delta_mu": pairs["gap"],
        "D": pairs["squared"],
        "A_r": pairs["anisotropy_uncentred"],
        "R@1 v->z": pairs["recall_image"],
        "R@1 z->v": pairs["recall_text"],
        "Phi": kept["phi"],
        "Psi": kept["psi"],
        "Omega": kept.get("omega"),
        "M_Z": mixed.get("mixing_z"),
        "M_X": mixed.get("mixing_x"),
    }


def _about(rows: int, fitted_on: int, seed: int) -> str:
    return (
        f"{rows} held-out pairs (seed {seed}); statistics are fitted on {fitted_on} texts and {fitted_on} images that "
        "are no pairs. In the comparison, cosine, Delta_mu, D and A_r (of x - z, not centred) are to the image named "
        "beside the method, R@1 is among at most 4000 pairs, and Phi, Psi and Omega (20 neighbours) are against the "
        "text. The ground truth is made to have the papers' gap; what they print of methods it was not tuned to."
    )

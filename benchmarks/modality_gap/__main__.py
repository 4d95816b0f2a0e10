"""Every transfer method on made-up pairs whose modality gap is that of the papers, beside what the papers print.

    python -m benchmarks.modality_gap --rows 2000 [--seed 0]

Statistics are fitted on four times as many texts, and on as many images that are no pairs of them; the methods are
measured on further pairs. It shows what a method does to such vectors, not what a model learns from them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from generation.transfer import METHODS, Statistics, apply_to_images, fit, parse_transfer

from ..processes import table
from .experimental import aniso_init, bc_align, column_space
from .ground_truth import CHUNK_ROWS, GroundTruth
from .measures import gap_figures, method_figures

FIT_ROWS = 4  # for each pair that is measured
PAPERS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = {
    **{
        method: {"method": method, **({"images": "given"} if method in ("anchor", "realign") else {})}
        for method in METHODS
    },
    "c3, eta 0.36": {"method": "c3", "noise_ratio": 0.36},  # as AnisoAlign seems to have run it
    "anchor, half strength": {"method": "anchor", "images": "given", "strength": 0.5},
}
COLUMNS = {
    **{"cosine": "cos", "gap": "Delta_mu", "squared": "D", "anisotropy": "A_r"},
    **{"recall_image": "R@1 v->z", "recall_text": "R@1 z->v", "phi": "Phi", "psi": "Psi", "omega": "Omega"},
    **{"mixing_z": "M_Z", "mixing_x": "M_X"},
}


class Sample:
    """What methods are fitted to and measured on: unit rows, float32 [n, d].

    ``text`` and ``image`` are pairs, of which ``rows`` are measured; ``fit_text`` and ``fit_image`` are no pairs.
    """

    def __init__(self, rows: int, seed: int = 0) -> None:
        self.truth = GroundTruth(seed)
        held_out, each = -(-rows // CHUNK_ROWS), -(-FIT_ROWS * rows // CHUNK_ROWS)
        text, image = self.truth.pairs(range(held_out))
        self.text, self.image = text[:rows], image[:rows]
        self.fit_text, _ = self.truth.pairs(range(held_out, held_out + each))
        _, self.fit_image = self.truth.pairs(range(held_out + each, held_out + 2 * each))
        self.image_mean = self.fit_image.mean(0, dtype=torch.float64)

    def fitted(self, settings: dict[str, Any]) -> Statistics:
        """Fit a method of the product; ``settings`` are a recipe's ``transfer`` section."""
        images, mean = (self.image_mean, len(self.fit_image)), self.fit_text.mean(0, dtype=torch.float64)
        return fit(parse_transfer(settings), mean, len(self.fit_text), [self.fit_text.clone()], images)

    def moved(self) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Yield each method's name, how images are treated, the texts moved, and the images so treated."""
        for name, settings in CASES.items():
            statistics = self.fitted(settings)
            moved = statistics.move(self.text.clone(), range(len(self.text)))
            image = apply_to_images(self.image, statistics, self.image_mean)
            centred = "sub:IMAGE_MEAN" in statistics.facts["image_ops"]
            yield name, "centred" if centred else "DeCap" if settings["method"] == "decap" else "raw", moved, image
            if centred:
                yield name, "raw", moved, self.image
        projected = column_space(self.fit_text, self.truth.image_basis)(self.text)
        yield "column_space", "centred", projected, normalize(self.image - self.image_mean.float())
        for function in (bc_align, aniso_init):
            yield function.__name__, "raw", function(self.fit_text, self.fit_image)(self.text), self.image
        order = torch.randperm(len(self.image), generator=torch.Generator().manual_seed(0))
        yield "control: a random image", "raw", self.image[order], self.image


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000, help="pairs to measure, from 100")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.rows < 100:
        parser.error(f"--rows {options.rows}: give 100 or more")
    sample = Sample(options.rows, options.seed)
    pairs = sample.truth.pairs(range(100, 100 + -(-FIT_ROWS * options.rows // CHUNK_ROWS)))
    print(f"The gap of {len(pairs[0]):,} pairs:\n")
    rows: list[list[Any]] = []
    for key, value in gap_figures(*pairs).items():
        paper = PAPERS["gap"][key]
        rows.append([paper["name"], f"{value:.3f}", str(paper.get("paper", "")), paper.get("note", "")])
    print(table(["figure", "made up", "papers", ""], rows))
    print(f"\nThe methods, on {options.rows:,} pairs; in brackets what the papers print:\n")
    rows = []
    for name, treated, moved, image in sample.moved():
        found, printed = method_figures(sample.text, moved, image), PAPERS["methods"].get(name, {})
        raw = treated == "raw"  # the papers compare with raw images
        cells = [
            f"{found[key]:.{1 if key == 'anisotropy' else 3}f}"
            + (f" ({printed[key]})" if raw and key in printed else "")
            for key in COLUMNS
        ]
        rows.append([name, treated, *cells])
    rows += [
        [name, "", *(f"({printed[key]})" if key in printed else "" for key in COLUMNS)]
        for name, printed in PAPERS["methods"].items()
        if name not in {row[0] for row in rows}
    ]
    print(table(["method", "images", *COLUMNS.values()], rows))


if __name__ == "__main__":
    main()

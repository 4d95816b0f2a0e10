"""Where the ground truth's parameters come from, and what the pairs then are: calibration and a table.

    python -m benchmarks.ground_truth --calibrate    # prints the ``CALIBRATED`` of generation/ground_truth.py; minutes
    python -m benchmarks.ground_truth                # figures beside the papers', as they ship

Calibration is a fixed-point iteration on statistics of 262,144 normalised pairs of seed 0: each parameter moves by
what its own figure is off. Ends with one line of JSON.
"""

import argparse
import json
import time
from dataclasses import asdict, replace

import numpy as np
import torch

from generation.ground_truth import GroundTruth, Parameters, calibrated, residual_spectrum
from tests.gap_figures import (
    clusters,
    consistency,
    gap_figures,
    residual_figures,
    spectrum_figures,
    transfer_gain,
)

GAP, RESIDUAL = (
    0.392,
    1.264,
)  # AnisoAlign, arXiv 2605.07825: the distance of the means; the mean squared distance after it is added
COSINE = 1 - (GAP**2 + RESIDUAL) / 2
MEAN_NORM = GAP / 2**0.5  # both means alike, and at right angles
SPECTRUM = {"A_r": 28.6, "d_eff/d": 0.284, "top 10": 0.097}
PARTS, PART_CHUNKS = 4, 16
PAPER = {
    "gap": ".392",
    "cosine": "~.29",
    "cosine after adding the gap": ".365-.370",
    "rho": ".11",
    "cos(Delta_i, Dbar)": ".33",
    "D": "1.264",
    "D ratio": ".89",
    "residual norm": "1.05-1.20, mostly",
    "A_r": "28.6",
    "d_eff/d": ".284",
    "PC1": ".022",
    "top 10": ".097",
    "C_lambda": ".845",
    "O_q": ".441 (q = 128)",
    "participation ratio, images": "57.5",
    "kappa, texts": "1.1e3",
    "consistency, K = 50": ".8-.9, falling",
    "transfer gain, 50/50": "~.075",
}


def calibrate(dimension: int, given: Parameters, rounds: int, spectrum: bool) -> Parameters:
    """Fixed-point rounds from ``given``; the residual's spectrum stays as it is unless ``spectrum`` is on."""
    wanted = _before(given)  # of the spectrum before normalisation, for SPECTRUM after it
    for _ in range(rounds):
        found = _statistics(dimension, given)
        print(f"{dimension}: {json.dumps({key: round(value, 4) for key, value in found.items()})}", flush=True)
        given = replace(
            given,
            shared=given.shared + COSINE - found["cosine"],
            text_mean=given.text_mean * MEAN_NORM / found["text_mean"],
            image_mean=given.image_mean * MEAN_NORM / found["image_mean"],
            tilt=given.tilt - found["product"] / MEAN_NORM**2,
        )
        if spectrum:
            wanted = {key: value * SPECTRUM[key] / found[key] for key, value in wanted.items()}
            given = _solved(given, wanted)
    return given


def _statistics(dimension: int, given: Parameters) -> dict[str, float]:
    """Means over the parts; what sampling adds to squared norms of means is taken off."""
    truth, total = GroundTruth(dimension, parameters=given), dict[str, float]()
    for part in range(PARTS):
        texts, images = _rows(truth, range(part * PART_CHUNKS, (part + 1) * PART_CHUNKS))
        u, v = (rows.mean(0, dtype=torch.float64) for rows in (texts, images))
        cosine = float((texts * images).sum(1).mean(dtype=torch.float64))
        one = {
            "cosine": cosine,
            "text_mean": float(u @ u - 1 / len(texts)) ** 0.5,
            "image_mean": float(v @ v - 1 / len(texts)) ** 0.5,
            "product": float(u @ v) - cosine / len(texts),
        } | residual_figures(images - texts)
        total = {key: total.get(key, 0) + value / PARTS for key, value in one.items()}
    return total


def _rows(truth: GroundTruth, chunks: range) -> list[torch.Tensor]:
    return [torch.cat(rows) for rows in zip(*(truth.pairs(chunk) for chunk in chunks), strict=True)]


def _before(law: Parameters) -> dict[str, float]:
    """The figures of SPECTRUM that the law itself has."""
    values = residual_spectrum(1280, law)
    return {"A_r": law.peak, "d_eff/d": float(1 / (values**2).sum() / 1280), "top 10": float(values[:10].sum())}


def _solved(given: Parameters, wanted: dict[str, float]) -> Parameters:
    """The law whose own figures are ``wanted``, by Newton's method in the two free parameters."""

    def off(free: np.ndarray) -> np.ndarray:
        found = _before(replace(given, peak=wanted["A_r"], offset=free[0], exponent=free[1]))
        return np.array([found[key] / wanted[key] - 1 for key in ("d_eff/d", "top 10")])

    free = np.array([given.offset, given.exponent])
    for _ in range(30):
        steps = np.diag([1e-4, 1e-6])
        slopes = np.stack([(off(free + step) - off(free - step)) / (2 * step.sum()) for step in steps], axis=1)
        free = free - np.linalg.solve(slopes, off(free))
    return replace(given, peak=wanted["A_r"], offset=float(free[0]), exponent=float(free[1]))


def figures(truth: GroundTruth, chunks: range) -> dict[str, float]:
    """Every figure, in memory."""
    texts, images = _rows(truth, chunks)
    q = truth.dimension // 10
    found = gap_figures(texts, images) | residual_figures(images - texts) | spectrum_figures(texts, images, q)
    for count in (50, 100, 200, 500):
        label = clusters(texts, count)
        found[f"consistency, K = {count}"] = float(consistency(images - texts, label).mean())
    found["transfer gain, 50/50"] = transfer_gain(texts, images, label, 0.5)
    found["transfer gain, 80/20"] = transfer_gain(texts, images, label, 0.8)
    return found


def main() -> None:
    """Calibrates, or prints the table; one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--dimension", type=int, default=1280)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=24, help="of 4096 pairs")
    options = parser.parse_args()
    if options.calibrate:
        high = calibrate(1280, calibrated(1280), 4, spectrum=True)
        law = {"peak": high.peak, "offset": high.offset, "exponent": high.exponent}
        low = calibrate(64, replace(calibrated(64), **law), 5, spectrum=False)
        print(json.dumps({"64": asdict(low), "1280": asdict(high)}))
        return
    start = time.perf_counter()
    truth = GroundTruth(options.dimension, options.seed)
    built = time.perf_counter()
    truth.pairs(0)
    seconds = {"build_s": built - start, "chunk_s": time.perf_counter() - built}
    found = figures(truth, range(1000, 1000 + options.chunks))  # not those it was calibrated on
    print("| figure | papers | ground truth |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {PAPER.get(name, '')} | {value:.4g} |")
    print(json.dumps({key: round(value, 5) for key, value in (found | seconds).items()}))


if __name__ == "__main__":
    main()

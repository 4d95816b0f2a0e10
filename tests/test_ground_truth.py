"""The ground truth against the papers' figures, against identities that hold for any unit rows, and against what the
transfers must do to it. All formulas stand here or in ``tests/gap_figures.py``."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from generation.errors import EmbeddingError
from generation.ground_truth import GroundTruth
from tests.gap_figures import (
    clusters,
    consistency,
    gap_figures,
    mean,
    paired_cosine,
    residual_figures,
    spectrum_figures,
    transfer_gain,
    unit,
)

GAP = {  # AnisoAlign's figure, or what follows from its figures; how far ours may be off
    "gap": (0.392, 0.006),
    "cosine": (0.291, 0.004),
    "cosine after adding the gap": (0.3675, 0.005),
    "rho": (0.108, 0.004),
    "cos(Delta_i, Dbar)": (0.33, 0.006),
    "D": (1.264, 0.01),
    "D ratio": (0.89, 0.005),
    "residual norm": (1.125, 0.01),
    "text mean norm": (0.2772, 0.006),
    "image mean norm": (0.2772, 0.006),
    "cos(text mean, image mean)": (0.0, 0.04),
    "s": (1.0, 0.002),
}
RESIDUAL = {"A_r": (28.6, 1.0), "d_eff/d": (0.284, 0.006), "PC1": (0.022, 0.001), "top 10": (0.097, 0.002)}
SPECTRA = {"C_lambda": (0.84, 0.02), "O_q": (0.44, 0.025), "participation ratio, images": (57.5, 4.0)}

Pairs = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return GroundTruth()


@pytest.fixture(scope="module")
def pairs(truth: GroundTruth) -> Pairs:
    """16,384 pairs that the calibration has not seen."""
    return rows_of(truth, range(2000, 2004))


def rows_of(truth: GroundTruth, chunks: range) -> Pairs:
    texts, images = zip(*(truth.pairs(chunk) for chunk in chunks), strict=True)
    return torch.cat(texts), torch.cat(images)


def off(found: dict[str, float], wanted: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The figures that are outside their bounds."""
    return {name: found[name] for name, (value, bound) in wanted.items() if not abs(found[name] - value) <= bound}


# -- the papers' figures -----------------------------------------------------------------------------------------


def test_gap_and_residual_are_those_of_the_papers(pairs: Pairs) -> None:
    found = gap_figures(*pairs)
    assert not off(found, GAP)
    assert found["residual norms in 1.05..1.20"] > 0.75  # "mostly 1.05 to 1.20"
    assert found["residual norm p5"] > 1.0 and found["residual norm p95"] < 1.25


def test_residual_is_anisotropic_as_printed(pairs: Pairs) -> None:
    texts, images = pairs
    found = residual_figures(images - texts)
    assert not off(found, RESIDUAL)
    assert found["PC1"] == pytest.approx(found["A_r"] / 1280)


def test_covariances_of_text_and_image_compare_as_printed(pairs: Pairs) -> None:
    texts, images = (rows[:8192] for rows in pairs)
    assert not off(spectrum_figures(texts, images, q=128), SPECTRA)


def test_clusters_share_the_gap_less_the_more_they_are_and_it_carries_over(pairs: Pairs) -> None:
    texts, images = pairs
    found = {}
    for count in (50, 100, 200, 500):
        label = clusters(texts, count)
        found[count] = consistency(images - texts, label)
    means = [float(values.mean()) for values in found.values()]
    assert means == sorted(means, reverse=True)
    assert means == pytest.approx([0.94, 0.90, 0.85, 0.76], abs=0.025)
    high = [float((values > 0.8).float().mean()) for values in found.values()]
    assert high == sorted(high, reverse=True) and high[0] > 0.9
    for share in (0.5, 0.8):
        assert transfer_gain(texts, images, label, share) == pytest.approx(0.075, abs=0.005)


@pytest.mark.parametrize(("dimension", "seed"), [(64, 0), (129, 0), (384, 3), (1280, 1)])
def test_the_same_gap_in_other_dimensions_and_populations(dimension: int, seed: int) -> None:
    found = gap_figures(*rows_of(GroundTruth(dimension, seed), range(2000, 2002)))
    wanted = {name: (value, 2.5 * bound) for name, (value, bound) in GAP.items() if name != "residual norm"}
    assert not off(found, wanted)


# -- identities of unit rows -------------------------------------------------------------------------------------


def test_identities_of_unit_rows(pairs: Pairs) -> None:
    texts, images = (rows[:4096] for rows in pairs)
    found = gap_figures(texts, images)
    gap, cosine = found["gap"], found["cosine"]
    square = float(((images - texts) ** 2).sum(1).mean(dtype=torch.float64))
    assert square == pytest.approx(2 - 2 * cosine, abs=1e-5)
    assert found["D"] == pytest.approx(2 - 2 * cosine - gap**2, abs=1e-5)
    assert found["D ratio"] == pytest.approx(1 - found["rho"], abs=1e-5)
    for rows in (texts, images):
        assert (rows.norm(dim=1) - 1).abs().max() < 2e-6
        trace = float(((rows - mean(rows).float()) ** 2).sum(1).mean(dtype=torch.float64))
        assert trace == pytest.approx(1 - float(mean(rows) @ mean(rows)), abs=1e-5)


def test_a_shift_without_norm_keeps_differences_and_who_is_found(pairs: Pairs) -> None:
    texts, images = (rows[:1000] for rows in pairs)
    shifted = texts - mean(texts).float()
    assert torch.allclose(shifted[0] - shifted[1], texts[0] - texts[1], atol=1e-6)
    best, best_shifted = ((images @ rows.T).argmax(1) for rows in (texts, shifted))
    assert (best == best_shifted).float().mean() > 0.998  # ties to float32
    assert 0.1 < (best == torch.arange(1000)).float().mean() < 0.6


# -- what the transfers do ---------------------------------------------------------------------------------------


def anchor(texts: Tensor, images: Tensor) -> Tensor:
    return unit(texts + (mean(images) - mean(texts)).float())


def realign(texts: Tensor, images: Tensor) -> Tensor:
    """ReVision v3, section 4."""
    text_mean, image_mean = mean(texts), mean(images)
    scale = ((1 - image_mean @ image_mean) / (1 - text_mean @ text_mean)).sqrt()
    moved = unit((image_mean + scale * (texts - text_mean)).float())
    return unit((moved - mean(moved) + image_mean).float())


def test_mean_shift_gains_a_third_of_what_the_images_mean_gains(pairs: Pairs) -> None:
    texts, images = pairs
    before = paired_cosine(texts, images)
    centred = unit(texts - mean(texts).float())
    assert paired_cosine(centred, images - mean(images).float()) - before == pytest.approx(0.0243, abs=0.003)
    assert paired_cosine(centred, images) - before == pytest.approx(0.012, abs=0.003)
    assert paired_cosine(anchor(texts, images), images) - before == pytest.approx(0.0745, abs=0.004)


@pytest.mark.parametrize("sigma", [0.01, 0.02, 0.08])
def test_what_noise_leaves_of_a_text_is_as_predicted(sigma: float, pairs: Pairs) -> None:
    texts = pairs[0]
    noise = torch.randn(texts.shape, generator=torch.Generator().manual_seed(0))
    phi = paired_cosine(texts, unit(texts - mean(texts).float() + sigma * noise))
    trace = 1 - float(mean(texts) @ mean(texts))
    assert phi == pytest.approx(trace / (trace + sigma**2 * texts.shape[1]) ** 0.5, abs=0.003)


def test_realign_leaves_a_fifth_or_less_of_the_anchors_drift(pairs: Pairs) -> None:
    texts, images = (rows[:4096] for rows in pairs)
    drift, realigned = (
        float((mean(rows) - mean(images)).norm()) for rows in (anchor(texts, images), realign(texts, images))
    )
    assert 0.004 < drift < 0.03 and realigned < drift / 5
    assert paired_cosine(texts, realign(texts, images)) == pytest.approx(0.921, abs=0.004)


def test_no_rule_is_nearer_to_its_texts_than_jensens_bound(pairs: Pairs) -> None:
    texts, images = (rows[:4096] for rows in pairs)
    for moved in (unit(texts - mean(texts).float()), anchor(texts, images), realign(texts, images), images):
        bound = 1 - float((mean(texts) - mean(moved)).norm()) ** 2 / 2
        assert paired_cosine(texts, moved) <= bound


# -- the generator -----------------------------------------------------------------------------------------------


def digest(pairs: Pairs) -> str:
    return hashlib.sha256(b"".join(rows.contiguous().numpy().tobytes() for rows in pairs)).hexdigest()


def test_a_chunk_is_the_same_to_the_bit_alone_after_others_and_with_other_threads(truth: GroundTruth) -> None:
    after = digest(truth.pairs(7, 600))
    script = "from tests.test_ground_truth import GroundTruth, digest; print(digest(GroundTruth().pairs(7, 600)))"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    alone = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == after
    assert after != digest(truth.pairs(8, 600))


def test_the_first_rows_of_a_chunk_do_not_depend_on_how_many_are_asked_for() -> None:
    truth = GroundTruth(64)
    whole, part = truth.pairs(3, 1500), truth.pairs(3, 700)
    assert all(torch.equal(few, many[:700]) for few, many in zip(part, whole, strict=True))
    assert [len(rows) for rows in truth.pairs(3, 0)] == [0, 0]


def test_the_default_population_is_frozen() -> None:
    texts, images = GroundTruth().pairs(0, 701)
    assert texts.dtype == images.dtype == torch.float32 and texts.shape == images.shape == (701, 1280)
    known = {
        0: ([-0.0232771, -0.0357412, -0.0047589], [-0.0150526, 0.0118760, -0.0127132]),
        700: ([0.0386623, -0.0232534, 0.0070712], [0.0242375, -0.0312907, -0.0206302]),
    }
    for row, (text, image) in known.items():
        assert texts[row, :3].tolist() == pytest.approx(text, abs=1e-6)
        assert images[row, :3].tolist() == pytest.approx(image, abs=1e-6)


def test_another_seed_is_another_population() -> None:
    one, other = GroundTruth(64, seed=1), GroundTruth(64, seed=2)
    assert float((one.pairs(0)[0] * other.pairs(0)[0]).sum(1).abs().mean()) < 0.3
    assert not torch.allclose(one.frame(), other.frame(), atol=0.1)


@pytest.mark.parametrize("dimension", [64, 129, 1280])
def test_images_lie_in_their_basis_and_texts_do_not(dimension: int) -> None:
    truth = GroundTruth(dimension)
    basis = truth.image_basis()
    assert basis.shape == (dimension, truth.image_rank) and truth.image_rank == round(0.8 * dimension)
    assert torch.allclose(basis.T @ basis, torch.eye(truth.image_rank), atol=1e-5)
    texts, images = truth.pairs(0, 1024)
    outside = [(rows - rows @ basis @ basis.T).norm(dim=1) for rows in (texts, images)]
    assert outside[0].min() > 0.01 and outside[1].max() < 1e-5
    if dimension < 1280:  # there it takes long
        assert int(torch.linalg.matrix_rank(images, rtol=1e-4)) == truth.image_rank


def test_the_population_lies_along_its_frame_as_it_says(truth: GroundTruth, pairs: Pairs) -> None:
    frame = truth.frame()
    for rows, known in zip(pairs, (truth.text_mean, truth.image_mean), strict=True):
        assert torch.cosine_similarity(frame.double().T @ mean(rows), torch.from_numpy(known), dim=0) > 0.98
    known = torch.from_numpy(truth.text_residual + truth.image_residual)
    found = ((pairs[1] - pairs[0]) @ frame).var(0).double()
    assert ((found / known).log().abs() < 0.25).all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: GroundTruth(63), "dimension 63"),
        (lambda: GroundTruth(64, seed=-1), "seed -1"),
        (lambda: GroundTruth(64, seed=2**64), "seed 18446744073709551616"),
        (lambda: GroundTruth(64).pairs(-1), "chunk -1"),
        (lambda: GroundTruth(64).pairs(0, rows=-5), "rows -5"),
    ],
)
def test_bad_input_is_named(build: object, said: str) -> None:
    with pytest.raises(EmbeddingError, match=said):
        build()  # type: ignore[operator]

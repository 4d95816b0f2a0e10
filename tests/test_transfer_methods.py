"""Each transfer method against its formula in float64, written here; and what real images are treated with."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import Transfer
from generation.errors import EmbeddingError, RecipeError
from generation.transfer import METHODS, Fitted, apply_to_images, fit, image_mean
from generation.transfer.experimental import QUANTILES
from generation.transfer.fitting import fit_rows
from generation.transfer.methods import needs_images
from generation.transfer.noise import Noise, add_noise, conventions, normal
from generation.transfer.ops import apply_ops
from generation.transfer.rows import Part, Rows

DIMENSION = 32
Array = np.ndarray[Any, np.dtype[np.float64]]


def unit_rows(rows: int, seed: int, lean: float, dimension: int = DIMENSION) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.5, 2, dimension).roll(seed)
    raw = torch.randn(rows, dimension, generator=generator) * scales + lean
    return torch.nn.functional.normalize(raw, dim=1)


TEXTS, IMAGES = unit_rows(3000, 1, 0.5).half(), unit_rows(2000, 2, -0.3)


def fitted(method: str, texts: torch.Tensor = TEXTS, **options: Any) -> Fitted:
    if needs_images(method):
        options["images"] = IMAGES
    images = options.pop("images", None)
    return fit(method, lambda: [texts[:1234], texts[1234:]], images, **options)


def norm(rows: Array) -> Array:
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def reference(method: str, strength: float = 1.0, iterations: int = 0) -> Array:
    """The formulas of the papers (``generation/transfer/methods.py`` names them)."""
    u, v = TEXTS.double().numpy(), IMAGES.double().numpy()
    mean_u, mean_v = u.mean(0), v.mean(0)
    if method in ("none", "capdec", "close", "lafite", "decap"):
        return norm(u)
    if method == "mean_shift":
        return u - mean_u
    if method in ("unicorn", "c3"):
        return norm(u - mean_u)
    if method == "anchor":
        return norm(u + strength * (mean_v - mean_u))
    trace_u, trace_v = ((u - mean_u) ** 2).sum(1).mean(), ((v - mean_v) ** 2).sum(1).mean()
    moved = norm(mean_v + np.sqrt(trace_v / trace_u) * (u - mean_u))
    for _ in range(1 + iterations):
        moved = norm(moved - moved.mean(0) + mean_v)
    return moved


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("experimental_")])
def test_a_method_agrees_with_its_formula_in_float64(method: str) -> None:
    made = fitted(method).to_text(TEXTS)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.numpy(), reference(method), atol=2e-4)  # stored rows have norm 1 to 4e-4


def test_anchor_can_cross_a_part_of_the_gap_and_realign_repeat_its_last_step() -> None:
    np.testing.assert_allclose(fitted("anchor", strength=0.4).to_text(TEXTS), reference("anchor", 0.4), atol=2e-4)
    drifts = []
    for iterations in range(3):
        made = fitted("realign", centroid_iterations=iterations).to_text(TEXTS)
        np.testing.assert_allclose(made, reference("realign", iterations=iterations), atol=2e-4)
        drifts.append(float((made.double().mean(0) - IMAGES.double().mean(0)).norm()))
    assert drifts[0] > 3 * drifts[1] > 9 * drifts[2]


def test_a_trace_of_unit_rows_is_one_minus_the_square_of_their_mean() -> None:
    found = fitted("realign").tensors
    traces = [(rows - rows.mean(0)).square().sum(1).mean() for rows in (IMAGES.double(), TEXTS.double())]
    assert float(found["scale"]) == pytest.approx(float((traces[0] / traces[1]).sqrt()), abs=2e-4)


def test_what_real_images_undergo() -> None:
    own_mean = image_mean(lambda: [IMAGES])
    np.testing.assert_allclose(own_mean, IMAGES.double().mean(0), atol=1e-7)
    raw = IMAGES[:50] * 3.0  # of any norm
    v, mean = IMAGES[:50].double().numpy(), own_mean.numpy()
    for method, wanted in {"none": v, "unicorn": v - mean, "mean_shift": v - mean, "c3": norm(v - mean)}.items():
        given_mean = None if method == "none" else own_mean
        np.testing.assert_allclose(apply_to_images(fitted(method), raw, given_mean), wanted, atol=1e-5)
    for method in ("anchor", "realign", "capdec", "experimental_bc_align"):
        np.testing.assert_allclose(apply_to_images(fitted(method), raw), v, atol=1e-5)
    unit = apply_to_images(fitted("unicorn", unit_images=True), raw, own_mean)
    np.testing.assert_allclose(unit, norm(v - mean), atol=1e-5)


def test_decap_makes_an_image_out_of_its_memory_of_texts() -> None:
    found = fitted("decap", memory_rows=40)
    memory = found.tensors["memory"].double().numpy()
    assert memory.shape == (40, DIMENSION)
    assert all((TEXTS.double().numpy() == row).all(1).any() for row in memory)
    scores = np.exp(IMAGES[:20].double().numpy() @ memory.T / 0.01)
    wanted = norm((scores / scores.sum(1, keepdims=True)) @ memory)
    np.testing.assert_allclose(apply_to_images(found, IMAGES[:20]), wanted, atol=1e-4)
    assert torch.equal(found.tensors["memory"], fitted("decap", memory_rows=40).tensors["memory"])


def test_a_mean_of_the_images_is_asked_for_where_it_is_needed_and_refused_elsewhere() -> None:
    with pytest.raises(EmbeddingError, match="unicorn subtracts the mean of your own image embeddings"):
        apply_to_images(fitted("unicorn"), IMAGES)
    with pytest.raises(EmbeddingError, match="realign takes no image_mean"):
        apply_to_images(fitted("realign"), IMAGES, torch.zeros(DIMENSION))
    with pytest.raises(EmbeddingError, match="must be finite, of shape"):
        apply_to_images(fitted("unicorn"), IMAGES, torch.zeros(3))
    with pytest.raises(EmbeddingError, match=r"shape \[5, 7\]"):
        apply_to_images(fitted("none"), torch.ones(5, 7))
    with pytest.raises(EmbeddingError, match="row 1 has norm 0"):
        apply_to_images(fitted("none"), torch.stack([IMAGES[0], IMAGES[0] * 0]))


def test_a_method_that_needs_images_says_so_and_refuses_those_of_another_encoder() -> None:
    with pytest.raises(EmbeddingError, match="realign needs unpaired image embeddings"):
        fit("realign", lambda: [TEXTS])
    with pytest.raises(EmbeddingError, match="not one encoder's"):
        fit("anchor", lambda: [TEXTS], unit_rows(10, 0, 0.1, dimension=8))
    with pytest.raises(RecipeError, match="unicron"):
        fit("unicron", lambda: [TEXTS])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 3.0])
@pytest.mark.parametrize("method", ["none", "unicorn"])
def test_a_row_that_is_no_finite_unit_vector_is_named(value: float, method: str) -> None:
    bad = TEXTS.clone()
    bad[1300] = value
    with pytest.raises(EmbeddingError, match="texts, row 1300: the embedding is no finite vector of norm 1"):
        fit(method, lambda: [bad])


def test_rows_that_all_equal_their_mean_have_no_direction() -> None:
    with pytest.raises(EmbeddingError, match="row 0 has norm .* equal the mean"):
        same = TEXTS[:1].repeat(5, 1)
        found = fit("unicorn", lambda: [same])
        apply_ops(same.float(), found.facts["text_ops"][1:], found.tensors)


# -- noise -------------------------------------------------------------------------------------------------------


def test_one_noise_under_the_names_of_all_papers() -> None:
    capdec = conventions(3.2, 640)  # transfer-methods: variance 0.016 at d = 640
    assert capdec["variance"] == pytest.approx(0.016)
    assert capdec["kappa"] == pytest.approx(0.298, abs=5e-4)
    assert conventions(2.86, 512)["sigma"] == pytest.approx(0.1265, abs=2e-4)
    assert conventions(3.0, 512)["xi"] == pytest.approx(0.75)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True), st.integers(0, 2**63), st.randoms())
def test_a_rows_noise_depends_on_its_number_and_the_seed_alone(numbers: list[int], seed: int, order: Any) -> None:
    whole = normal(torch.tensor(numbers), 8, seed)
    shuffled = order.sample(range(len(numbers)), len(numbers))
    again = normal(torch.tensor([numbers[place] for place in shuffled]), 8, seed)
    assert torch.equal(again, whole[shuffled])
    assert not torch.equal(normal(torch.tensor(numbers), 8, seed + 1), whole)


@pytest.mark.parametrize("eta", [0.36, 1.0, 2.86])
def test_noisy_rows_have_the_cosine_that_eta_promises(eta: float) -> None:
    rows = unit_rows(2000, 5, 0.1, dimension=256)
    noisy = add_noise(rows, torch.arange(2000), eta, seed=3)
    assert (noisy.norm(dim=1) - 1).abs().max() < 1e-5
    assert float((noisy * rows).sum(1).mean()) == pytest.approx(conventions(eta, 256)["kappa"], abs=0.01)


def test_a_trainer_draws_lafites_noise_from_the_sphere_as_baking_does() -> None:
    told = fitted("lafite", noise_ratio=0.8).facts["noise"]
    assert told["sphere"] and not fitted("capdec").facts["noise"]["sphere"]
    rows, numbers = unit_rows(50, 6, 0.1), torch.arange(50)
    drawn = normal(numbers, DIMENSION, 4).double().numpy()
    wanted = norm(rows.double().numpy() + 0.8 * norm(drawn))
    np.testing.assert_allclose(add_noise(rows, numbers, told["eta_of_rows"], 4, told["sphere"]), wanted, atol=1e-5)


def test_data_sets_hold_clean_rows_unless_noise_is_asked_for() -> None:
    clean = fitted("c3", noise_ratio=0.5)
    np.testing.assert_allclose(clean.to_text(TEXTS), reference("unicorn"), atol=2e-4)
    assert clean.facts["noise"]["baked"] is False
    centred = 1 - float(TEXTS.double().mean(0).square().sum())
    assert clean.facts["noise"]["eta_of_rows"] == pytest.approx(0.5 / centred**0.5)
    assert fitted("unicorn").facts["noise"] is None


@pytest.mark.parametrize(("method", "sphere"), [("c3", False), ("capdec", False), ("close", False), ("lafite", True)])
def test_baked_noise_follows_the_order_of_the_method(method: str, sphere: bool) -> None:
    numbers = torch.arange(100) + 7
    found = fitted(method, noise_ratio=0.8, bake_noise=True)
    made = apply_ops(TEXTS[:100].float(), found.facts["text_ops"], found.tensors, Noise(0.8, 11, numbers))
    u = TEXTS[:100].double().numpy()
    base = u - TEXTS.double().mean(0).numpy() if method == "c3" else norm(u)
    drawn = normal(numbers, DIMENSION, 11).double().numpy()
    noise = 0.8 * (norm(drawn) if sphere else drawn / np.sqrt(DIMENSION))
    np.testing.assert_allclose(made, norm(base + noise), atol=5e-4)


# -- experimental ------------------------------------------------------------------------------------------------


def test_column_space_projects_on_the_images_own_space() -> None:
    basis = torch.linalg.qr(torch.randn(DIMENSION, 10, generator=torch.Generator().manual_seed(0))).Q
    asked = Transfer(method="experimental_column_space")
    found = fit_rows(asked, Rows([Part("texts", lambda: [TEXTS])]), None, basis)
    b, u = basis.double().numpy(), TEXTS.double().numpy()
    np.testing.assert_allclose(found.to_text(TEXTS), norm((u - u.mean(0)) @ b @ b.T), atol=5e-4)


def test_bc_align_gives_texts_the_covariance_of_images() -> None:
    made = fitted("experimental_bc_align").to_text(TEXTS).double()
    wanted = torch.cov(IMAGES.double().T)
    before = (torch.cov(TEXTS.double().T) - wanted).norm()
    assert (torch.cov(made.T) - wanted).norm() < 0.3 * before
    assert (made.mean(0) - IMAGES.double().mean(0)).norm() < 0.01


def test_aniso_init_gives_planes_the_radii_of_images() -> None:
    found = fitted("experimental_aniso_init")
    frame = found.tensors["frame"].numpy()
    moved = apply_ops(TEXTS.float(), found.facts["text_ops"][1:3], found.tensors).double().numpy()
    for plane in range(frame.shape[1] // 2):
        axes = frame[:, 2 * plane : 2 * plane + 2]
        ours, theirs = (np.sqrt(((rows @ axes) ** 2).sum(1)) for rows in (moved, IMAGES.double().numpy()))
        shares = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(np.quantile(ours, shares), np.quantile(theirs, shares), atol=2 / QUANTILES)

"""Each measure against its definition, written out in float64 numpy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.diagnostics import clusters, cosines, neighbours, spectrum
from generation.diagnostics.cloud import survey
from generation.diagnostics.pairs import paired_gap
from generation.diagnostics.vectors import from_files, in_memory, sampled_rows

Array = np.ndarray


def rows(count: int, dimension: int, seed: int) -> torch.Tensor:
    """Unit rows of unequal variances and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dimension + 1) ** -0.5
    raw = torch.randn(count, dimension, generator=generator) * scale + 0.2
    return torch.nn.functional.normalize(raw, dim=1)


def wide(tensor: torch.Tensor) -> Array:
    return tensor.numpy().astype(np.float64)


def unit(matrix: Array) -> Array:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def covariance(matrix: Array) -> Array:
    return np.cov(matrix.T, bias=True)


def neighbours_of(matrix: Array, k: int) -> list[set[int]]:
    similar = unit(matrix) @ unit(matrix).T
    np.fill_diagonal(similar, -np.inf)
    return [set(np.argsort(-row)[:k].tolist()) for row in similar]


U, V = rows(300, 24, 0), rows(300, 24, 1) * 0.7 + rows(300, 24, 0) * 0.3
SPECTRUM = np.sort(np.linalg.eigvalsh(covariance(wide(U))))[::-1]
LARGEST = torch.from_numpy(SPECTRUM.copy())


def test_one_pass_gives_moments_norms_duplicates_and_a_sample() -> None:
    everything = torch.cat([U, U[:7], rows(5000, 24, 2)])
    cloud = survey(in_memory("rows", everything), sample=50, seed=3)
    np.testing.assert_allclose(cloud.mean.numpy(), wide(everything).mean(0), atol=1e-14)
    np.testing.assert_allclose(cloud.covariance.numpy(), covariance(wide(everything)), atol=1e-14)
    lengths = np.linalg.norm(wide(everything), axis=1)
    np.testing.assert_allclose(cloud.norms, (lengths.min(), lengths.mean(), lengths.max()))
    assert (cloud.rows, cloud.distinct) == (5307, 5300)
    assert torch.equal(cloud.sample, everything[sampled_rows(5307, 50, 3)])


def test_a_shard_whose_rows_were_all_rejected_is_passed_over(tmp_path: Path) -> None:
    paths = [tmp_path / f"{shard}.npy" for shard in range(3)]
    for path, part in zip(paths, (U[:0], U[:100], U[100:]), strict=True):
        np.save(path, part.numpy())
    vectors = from_files("texts", paths, "unit")
    assert (vectors.rows, vectors.dimension) == (300, 24)
    assert torch.equal(torch.cat(list(vectors.chunks())), U)


def test_a_mean_far_from_the_origin_loses_no_digits() -> None:
    far = rows(5000, 8, 0) + 1000
    cloud = survey(in_memory("far", far), sample=10, seed=0)
    np.testing.assert_allclose(cloud.covariance.numpy(), covariance(wide(far)), rtol=1e-9, atol=1e-12)


def test_figures_of_a_spectrum() -> None:
    shares = SPECTRUM / SPECTRUM.sum()
    np.testing.assert_allclose(spectrum.eigenvalues(torch.from_numpy(covariance(wide(U)))), SPECTRUM, atol=1e-15)
    assert spectrum.participation_ratio(LARGEST) == pytest.approx(SPECTRUM.sum() ** 2 / (SPECTRUM**2).sum())
    assert spectrum.effective_rank(LARGEST) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert spectrum.condition_number(LARGEST) == pytest.approx(SPECTRUM[0] / SPECTRUM[-1])
    assert spectrum.energy(LARGEST, 5) == pytest.approx(SPECTRUM[:5].sum() / SPECTRUM.sum())
    assert spectrum.anisotropy(LARGEST) == pytest.approx(24 * SPECTRUM[0] / SPECTRUM.sum())
    ranks = np.arange(3, 13)
    slope = np.polyfit(np.log(ranks), np.log(SPECTRUM[2:12]), 1)[0]
    assert spectrum.power_law(LARGEST, first=3) == pytest.approx(-slope)


def test_a_power_law_is_found_and_an_empty_axis_makes_the_condition_infinite() -> None:
    made = torch.arange(1, 201, dtype=torch.float64) ** -1.33
    assert spectrum.power_law(made) == pytest.approx(1.33)
    assert spectrum.condition_number(torch.tensor([1.0, 0.5, 0.0])) == math.inf
    assert spectrum.effective_rank(torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2)


def test_figures_of_two_covariances() -> None:
    cov_u, cov_v = covariance(wide(U)), covariance(wide(V))
    t_u, t_v = torch.from_numpy(cov_u), torch.from_numpy(cov_v)
    logs = [np.log(np.sort(np.linalg.eigvalsh(c))) for c in (cov_u, cov_v)]
    found = spectrum.log_correlation(spectrum.eigenvalues(t_u), spectrum.eigenvalues(t_v))
    assert found == pytest.approx(np.corrcoef(*logs)[0, 1])
    axes_u, axes_v = (np.linalg.eigh(c)[1][:, -5:] for c in (cov_u, cov_v))
    found = spectrum.overlap(spectrum.top_axes(t_u, 5), spectrum.top_axes(t_v, 5))
    assert found == pytest.approx(np.linalg.norm(axes_v.T @ axes_u) ** 2 / 5)
    norm = np.linalg.norm
    assert spectrum.covariance_distance(t_u, t_v) == pytest.approx(norm(cov_u - cov_v) / norm(cov_v))
    inside = np.trace(axes_v @ axes_v.T @ cov_u) / np.trace(cov_u)
    assert spectrum.share_inside(t_u, spectrum.top_axes(t_v, 5)) == pytest.approx(inside)


def test_cosines_of_pairs_and_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosines, "BLOCK_ROWS", 70)  # more than one block, the last one short
    u, v = unit(wide(U)), unit(wide(V))
    np.testing.assert_allclose(cosines.paired_cosines(U, V).numpy(), (u * v).sum(1), atol=1e-12)
    above = np.triu_indices(300, 1)
    within = (u @ u.T)[above], (v @ v.T)[above]
    assert cosines.angular_structure(U, V) == pytest.approx(np.corrcoef(*within)[0, 1], abs=1e-5)
    counts = np.histogram(within[0], bins=cosines.BINS, range=(-1, 1))[0]
    found = cosines.cosine_density(U).numpy()
    assert found.sum() == pytest.approx(1)
    assert np.abs(found - counts / counts.sum()).sum() < 1e-3  # float32 may fall on the other side of an edge


def test_jensen_shannon_divergence() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    m = (p + q).numpy() / 2
    kl = [sum(a * math.log(a / b) for a, b in zip(x.tolist(), m, strict=True) if a) for x in (p, q)]
    assert cosines.jensen_shannon(p, q) == pytest.approx(sum(kl) / 2)
    assert cosines.jensen_shannon(p, p) == pytest.approx(0, abs=1e-15)
    assert cosines.jensen_shannon(p.flip(0) * 0 + torch.eye(3)[0], torch.eye(3)[2]) == pytest.approx(math.log(2))


def test_neighbours_kept_and_retrieved() -> None:
    before, after = neighbours_of(wide(U), 20), neighbours_of(wide(V), 20)
    overlap = np.mean([len(a & b) / 20 for a, b in zip(before, after, strict=True)])
    assert neighbours.neighbour_overlap(U, V) == pytest.approx(overlap, abs=1e-4)
    hits = (unit(wide(U)) @ unit(wide(V)).T).argmax(1) == np.arange(300)
    assert neighbours.recall_at_1(U, V) == pytest.approx(hits.mean())
    assert 0 < hits.mean() < 1


def test_mixing_is_the_entropy_of_origins_over_that_of_permuted_ones() -> None:
    far = V.roll(3, 1)  # another direction of the mean
    pool = neighbours_of(np.concatenate([wide(U), wide(far)]), 20)
    share = np.array([np.mean([j < 300 for j in found]) for found in pool])
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.nan_to_num(-share * np.log(share)) + np.nan_to_num(-(1 - share) * np.log(1 - share))
    # A permutation draws 20 of 599 origins: its mean entropy, from the hypergeometric distribution.
    weights = [math.comb(300, k) * math.comb(299, 20 - k) / math.comb(599, 20) for k in range(21)]
    chance = -sum(w * sum(p * math.log(p) for p in (k / 20, 1 - k / 20) if p) for k, w in enumerate(weights))
    of_texts, of_images, rate = neighbours.mixing(U, far)
    assert of_texts == pytest.approx(entropy[:300].mean() / chance, rel=0.02)
    assert of_images == pytest.approx(entropy[300:].mean() / chance, rel=0.02)
    other = np.concatenate([1 - share[:300], share[300:]])
    assert rate == pytest.approx(other.mean(), abs=1e-4)
    assert 0 < rate < 0.45


def test_clouds_that_are_one_mix_and_those_apart_do_not() -> None:
    of_texts, of_images, rate = neighbours.mixing(rows(400, 16, 3), rows(400, 16, 4))
    assert of_texts == pytest.approx(1, abs=0.03)
    assert of_images == pytest.approx(1, abs=0.03)
    assert rate == pytest.approx(0.5, abs=0.02)
    assert neighbours.mixing(rows(400, 16, 3) + 1, -1 - rows(400, 16, 4)) == (0, 0, 0)


def test_the_gap_of_pairs() -> None:
    gap, delta = paired_gap(U, V), wide(V) - wide(U)
    mean = delta.mean(0)
    lengths = np.linalg.norm(delta, axis=1)
    assert gap.norm == pytest.approx(np.linalg.norm(mean))
    assert gap.shared == pytest.approx((mean @ mean) / (lengths**2).mean())
    assert gap.cosine == pytest.approx((delta @ mean / lengths / np.linalg.norm(mean)).mean())
    assert gap.squared == pytest.approx((lengths**2).mean())
    np.testing.assert_allclose(gap.residuals.numpy(), np.linalg.norm(delta - mean, axis=1), rtol=1e-9)
    np.testing.assert_allclose(gap.covariance.numpy(), covariance(delta), atol=1e-12)
    np.testing.assert_allclose(gap.uncentred.numpy(), delta.T @ delta / 300, atol=1e-12)


def test_clusters_their_gaps_and_what_one_lends_another() -> None:
    centres = torch.eye(8)[:4] * 5
    truth = torch.arange(200) % 4
    texts = centres[truth] + 0.01 * rows(200, 8, 5)
    labels = clusters.kmeans(texts, 4, seed=1)
    if len(set(zip(truth.tolist(), labels.tolist(), strict=True))) != 4:
        pytest.fail("four far clusters are not found")
    gaps = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]]).repeat(1, 2)
    images = texts + gaps[truth]
    overall = gaps.mean(0)
    wanted = sorted(float(torch.cosine_similarity(g, overall, dim=0)) for g in gaps)
    found = clusters.cluster_consistency(texts, images, labels)
    assert sorted(found.tolist()) == pytest.approx(wanted, abs=1e-5)
    same = texts + overall
    gain = clusters.cross_cluster_gain(texts, same, labels, 0.5)
    u, v = unit(wide(texts)), unit(wide(same))
    share = 1 - (u * v).sum(1)  # one gap for all: u + c is v
    per_cluster = [share[(labels == k).numpy()].mean() for k in range(4)]
    assert min(per_cluster) - 1e-6 <= gain <= max(per_cluster) + 1e-6


def test_a_cluster_that_loses_all_rows_does_no_harm() -> None:
    texts = torch.cat([torch.eye(4)[:1].repeat(50, 1), torch.eye(4)[1:2]])
    labels = clusters.kmeans(texts, 10)
    found = clusters.cluster_consistency(texts, texts + 0.5, labels)
    assert bool(found.isfinite().all())


def test_every_figure_that_is_computed_is_listed_and_the_other_way_round(tmp_path: Path) -> None:
    from generation.diagnostics import metrics
    from generation.diagnostics.figures import figures

    many, other = rows(10_000, 8, 6), rows(10_000, 8, 7)
    both = [survey(in_memory("rows", r), 500, 0) for r in (many, other)]
    found = {
        "cloud": metrics.cloud_figures(both[0]),
        "transfer": metrics.transfer_figures(U, V),
        "unpaired": metrics.unpaired_figures(*both),
        "gap": metrics.gap_figures(many, other),
        "paired": metrics.paired_figures(U, V),
    }
    for kind, values in found.items():
        assert set(values) | ({"alpha"} if kind == "cloud" else set()) == set(figures(kind))

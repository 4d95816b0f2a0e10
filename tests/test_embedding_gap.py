"""The measurement of the modality gap: figures of made pairs whose truth is known, and refusals."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from generation.metrics.embedding_gap import embedding_gap
from generation.metrics.embedding_gap.embedding_gap import measure
from tests.conftest import ROOT


def pairs(rows: int = 2000, dimension: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shared, one, other = (torch.randn(rows, dimension, generator=generator) for _ in range(3))
    texts, images = (torch.nn.functional.normalize(x, dim=1) for x in (shared + one + 1, shared + other - 0.5))
    return texts, images


def test_figures_agree_with_float64_and_with_the_invariants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_gap, "CHUNK_ROWS", 300)
    u, v = pairs()
    found = measure(u.tolist(), v.tolist(), (u + 0.5 * (v - u).mean(0)).tolist(), v.tolist())
    delta = (v.double() - u.double()).numpy()
    mean = delta.mean(0)
    assert found["gap"] == pytest.approx(np.linalg.norm(mean))
    assert found["cosine"] == pytest.approx(float((u.double() * v.double()).sum(1).mean()), abs=1e-6)
    assert found["rho"] == pytest.approx(mean @ mean / (delta**2).sum(1).mean())
    cosines = delta @ mean / np.linalg.norm(delta, axis=1) / np.linalg.norm(mean)
    assert found["gap_cosine"] == pytest.approx(cosines.mean())
    assert found["gap"] ** 2 / found["rho"] == pytest.approx(2 - 2 * found["cosine"], abs=1e-5)  # of unit rows
    assert found["gap_after"] == pytest.approx(found["gap"] / 2, rel=1e-5)
    assert found["cosine_after"] > found["cosine"]


def test_files_give_the_figures_of_lists_and_evaluate_loads_it(tmp_path: Path) -> None:
    u, v = (rows.half() for rows in pairs(500))
    save_file({"vectors": u}, tmp_path / "u.safetensors")
    save_file({"embeddings": v}, tmp_path / "v.safetensors")
    files = {"texts": [str(tmp_path / "u.safetensors")], "images": [str(tmp_path / "v.safetensors")]}
    measurement = evaluate.load(str(ROOT / "generation/metrics/embedding_gap"))
    found = measurement.compute(**files)
    assert found == measure(**files) == measure(u.tolist(), v.tolist())
    assert found["pairs"] == 500


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    good = [[1.0, 0.0], [0.0, 1.0]]
    (tmp_path / "x.safetensors").write_text("")
    for arguments, said in (
        (([], []), "texts and images hold no rows"),
        ((good, [[1.0, 0.0]]), r"texts is \[2, 2\] and images \[1, 2\]"),
        ((good, [[1.0, 0.0], [0.0, 0.0]]), "images, row 1: the vector is zero or not finite"),
        ((good, [[1.0, 0.0], [float("nan"), 0.0]]), "images, row 1"),
        ((good, good, good[:1], good[:1]), "transferred has 1 rows, and texts 2"),
        ((good, good, None, good), "treated is given without transferred"),
        (([str(tmp_path / "x.safetensors")], good), r"x\.safetensors has no tensor"),
        (([str(tmp_path / "none.safetensors")], good), r"none\.safetensors has no tensor"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(*arguments)

"""The command ``diagnose`` to its end: on a run without and with images, on the ground truth, and on bad input."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from generation.diagnostics.command import diagnose
from generation.errors import EmbeddingError, RunError
from generation.transfer.rows import one_thread_an_operation
from tests.conftest import generation, manifest

DIMENSION = 384


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on cores that others use take many times as long."""
    with one_thread_an_operation():
        yield


def unit_rows(rows: int, dimension: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimension, generator=generator) + 0.3, dim=1)


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"))
    return content


def figures(folder: Path, title: str) -> dict[str, dict[str, Any]]:
    """One table of a report, by key."""
    (section,) = (s for s in report(folder)["sections"] if s["title"] == title)
    return {figure["key"]: figure for figure in section["figures"]}


def pictures(folder: Path) -> list[str]:
    """The pictures of a folder, each of which opens and shows something in colour."""
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 300
        coloured = np.ptp(pixels, axis=2) > 40
        assert 0.0005 < coloured.mean() < 0.6, path
    return sorted(path.name for path in folder.glob("*.png"))


@pytest.fixture
def joint_run(run_copy: Path) -> Path:
    """The finished run, as if its encoder embedded images into the same space."""
    content = manifest(run_copy)
    content["stages"]["text_embeddings"]["fingerprint"]["joint_with_images"] = True
    (run_copy / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return run_copy


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Unpaired images of any norm, and pairs, in the run's dimension."""
    np.save(tmp_path / "images.npy", 7 * unit_rows(60, DIMENSION, 0).numpy())
    save_file({"embeddings": unit_rows(150, DIMENSION, 1).half()}, tmp_path / "texts.safetensors")
    save_file({"embeddings": unit_rows(150, DIMENSION, 2)}, tmp_path / "pictures.safetensors")
    return {path.stem: path for path in tmp_path.iterdir() if path.suffix in (".npy", ".safetensors")}


def test_a_run_whose_encoder_knows_no_images_has_no_gap_and_the_report_says_why(run_copy: Path) -> None:
    done = generation("diagnose", "--run-dir", run_copy, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    folder = run_copy / "report" / "diagnostics"
    assert str(folder / "diagnostics.md") in done.stdout.splitlines()
    text = (folder / "diagnostics.md").read_text(encoding="utf-8")
    assert "joint_with_images: false" in text
    assert "needs an encoder that embeds images too" in text
    stored = torch.cat([load_file(p)["embeddings"] for p in sorted((run_copy / "text_embeddings").iterdir())])
    found = figures(folder, "Texts")
    assert found["rows"]["here"] == 18
    assert found["mean_norm"]["here"] == pytest.approx(float(stored.double().mean(0).norm()), abs=1e-9)
    gap = figures(folder, "Texts against raw images")["gap"]
    assert gap["here"] is None
    assert gap["paper"].startswith("text .392")
    assert pictures(folder) == [f"unicorn_{name}.png" for name in ("clouds", "cosines", "norms", "spectra")]


def test_images_are_left_aside_by_a_run_whose_encoder_knows_none(run_copy: Path, files: dict[str, Path]) -> None:
    diagnose(run_copy, files["images"], None, 100, None)
    assert "left aside" in "".join(report(run_copy / "report" / "diagnostics")["remarks"])
    assert figures(run_copy / "report" / "diagnostics", "Texts against raw images")["gap"]["here"] is None


def test_images_and_pairs_give_every_table_and_each_says_which_image(
    joint_run: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    pairs = (files["texts"], files["pictures"])
    written = diagnose(joint_run, files["images"], pairs, 100, tmp_path / "out")
    assert all(path.is_file() for path in written)
    titles = [section["title"] for section in report(tmp_path / "out")["sections"]]
    assert titles == [
        "Texts",
        "Texts by unicorn",
        "unicorn: texts against the same texts transferred",
        "Raw images",
        "Texts against raw images",
        "Texts by unicorn against raw images",
        "Texts by unicorn against images as unicorn wants them (centred)",
        "Pairs of texts and raw images",
        "Pairs of texts by unicorn and raw images",
        "Pairs of texts by unicorn and images as it wants them (centred)",
    ]
    texts = torch.cat([load_file(p)["embeddings"] for p in sorted((joint_run / "text_embeddings").iterdir())]).double()
    images = torch.from_numpy(np.load(files["images"])).double()
    images = images / images.norm(dim=1, keepdim=True)
    gap = figures(tmp_path / "out", "Texts against raw images")["gap"]["here"]
    assert gap == pytest.approx(float((texts.mean(0) - images.mean(0)).norm()), abs=1e-6)
    centred = figures(tmp_path / "out", titles[6])
    assert centred["gap"]["here"] < 0.3 * figures(tmp_path / "out", titles[5])["gap"]["here"]
    assert figures(tmp_path / "out", "Pairs of texts and raw images")["pairs"]["here"] == 100
    assert len(pictures(tmp_path / "out")) == 4
    diagnose(joint_run, files["images"], pairs, 100, tmp_path / "again")
    for path in written:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_joint_run_without_images_says_which_files_would_help(joint_run: Path) -> None:
    diagnose(joint_run, None, None, 100, None)
    folder = joint_run / "report" / "diagnostics"
    assert "--images PATH" in figures(folder, "Texts against raw images")["overlap"]["needs"]
    assert "--pairs TEXT" in figures(folder, "Pairs of texts and raw images")["rho"]["needs"]


def test_the_ground_truth_gives_a_table_of_every_method(tmp_path: Path) -> None:
    done = generation("diagnose", "--ground-truth", 64, "--rows", 1000, "--output", tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    rows = {(row["method"], row["image"]): row for row in report(tmp_path)["comparison"]}
    assert {"none", "mean_shift", "unicorn", "anchor", "realign", "capdec", "decap"} <= {name for name, _ in rows}
    before, raw, centred = (rows[key] for key in (("none", "raw"), ("unicorn", "raw"), ("unicorn", "centred")))
    assert (before["Phi"], before["Psi"]) == pytest.approx((1, 1))
    assert before["cosine"] < raw["cosine"] < centred["cosine"] < rows["anchor", "raw"]["cosine"]
    assert centred["Delta_mu"] < 0.2 * before["Delta_mu"]
    assert "| unicorn | centred |" in (tmp_path / "diagnostics.md").read_text(encoding="utf-8")
    assert len(pictures(tmp_path)) == 4


@pytest.mark.slow
def test_the_ground_truth_in_the_papers_dimension(tmp_path: Path) -> None:
    done = generation("diagnose", "--ground-truth", "--rows", 2000, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert figures(tmp_path, "Pairs of texts and raw images")["paired_gap"]["here"] == pytest.approx(0.392, abs=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_that_cannot_be_used_is_named_with_its_file(value: float, joint_run: Path, tmp_path: Path) -> None:
    images = unit_rows(5000, DIMENSION, 0)
    images[4500] = value
    save_file({"embeddings": images}, tmp_path / "bad.safetensors")
    with pytest.raises(EmbeddingError, match=r"bad\.safetensors, row 4500: the embedding has norm"):
        diagnose(joint_run, tmp_path / "bad.safetensors", None, 100, None)


def test_images_of_another_dimension_are_refused(joint_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", unit_rows(30, 512, 0).numpy())
    with pytest.raises(EmbeddingError, match="512 dimensions, but texts 384"):
        diagnose(joint_run, tmp_path / "other.npy", None, 100, None)


def test_unequal_numbers_of_pairs_are_refused(joint_run: Path, files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", unit_rows(149, DIMENSION, 0).numpy())
    with pytest.raises(EmbeddingError, match=r"texts\.safetensors has 150 rows, but .*few\.npy 149"):
        diagnose(joint_run, None, (files["texts"], tmp_path / "few.npy"), 100, None)


def test_files_that_hold_no_embeddings_are_refused_by_name(joint_run: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 4), "b": torch.ones(3, 4)}, tmp_path / "two.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.ones((0, DIMENSION)))
    for name in ("two.safetensors", "torn.safetensors", "objects.npy", "missing.npy", "empty.npy", "."):
        with pytest.raises(EmbeddingError, match=str(tmp_path / name)):
            diagnose(joint_run, tmp_path / name, None, 100, None)


def test_options_that_make_no_sense_are_refused(joint_run: Path, files: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="--rows 50: at least 100"):
        diagnose(joint_run, None, None, 50, None)
    with pytest.raises(RunError, match="--ground-truth makes its own images"):
        diagnose(64, files["images"], None, 100, None)
    both = generation("diagnose", "--ground-truth", "--run-dir", joint_run)
    assert both.returncode == 2


def test_a_changed_shard_is_refused_by_name(run_copy: Path) -> None:
    path = run_copy / "image_embeddings" / "unicorn" / "00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"00000\.safetensors was changed"):
        diagnose(run_copy, None, None, 100, None)

"""The transfer against references written from the formulas, and its statistics against any order of rows."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.config import load_recipe
from generation.errors import EmbeddingError, RunError
from generation.files import file_sha256
from generation.rundir import RunDir
from generation.transfer import CHUNK_ROWS, apply, chunks, transfer
from tests.conftest import manifest, write_recipe

METHODS = ("none", "mean_shift", "unicorn")


def unit_rows(rows: int, dimension: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, dimension, generator=generator) + 0.3
    return torch.nn.functional.normalize(raw, dim=1).half()


def reference(method: str, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The formulas of the paper in float64."""
    rows = rows.astype(np.float64)
    if method == "none":
        return rows
    shifted = rows - mean
    return shifted if method == "mean_shift" else shifted / np.sqrt((shifted**2).sum(1, keepdims=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_agrees_with_the_formula_in_float64(method: str, run_copy: Path) -> None:
    recipe = load_recipe(write_recipe(run_copy.parent, transfer={"method": method}))
    transfer(RunDir(run_copy), recipe)
    texts = [load_file(path) for path in sorted((run_copy / "text_embeddings").iterdir())]
    everything = torch.cat([text["embeddings"] for text in texts]).numpy()
    mean = everything.astype(np.float64).mean(0)
    statistics = load_file(run_copy / "transfer" / f"{method}.safetensors")
    np.testing.assert_allclose(statistics["mean_text"].numpy(), mean, atol=1e-15)
    for text, path in zip(texts, sorted((run_copy / "image_embeddings" / method).iterdir()), strict=True):
        made = load_file(path)
        assert made["embeddings"].dtype == torch.float16
        wanted = reference(method, text["embeddings"].numpy(), mean)
        np.testing.assert_allclose(made["embeddings"].numpy().astype(np.float64), wanted, atol=6e-4)
        assert torch.equal(made["ids"], text["ids"])
        assert torch.equal(made["text_sha256"], text["text_sha256"])


def test_the_statistics_say_what_to_do_with_real_images(finished_run: Path) -> None:
    with safe_open(finished_run / "transfer" / "unicorn.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["unicorn"])
    assert facts["text_ops"] == ["l2norm", "sub:mean_text", "l2norm"]
    assert facts["image_ops"] == ["l2norm", "sub:USER_IMAGE_MEAN"]
    assert facts["rows"] == 18
    assert facts["encoder"]["joint_with_images"] is False


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(1, 24), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_the_sum_of_stored_rows_is_the_same_to_the_bit_in_any_order_and_sharding(
    rows: int, dimension: int, seed: int, cut: int
) -> None:
    embeddings = unit_rows(rows, dimension, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    whole = embeddings.sum(0, dtype=torch.float64)
    parts = sum((part.sum(0, dtype=torch.float64) for part in embeddings[order].split(cut)), torch.zeros(dimension))
    assert torch.equal(whole, parts.double())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(2, 24), st.integers(0, 2**32 - 1))
def test_unicorn_gives_unit_rows_and_mean_shift_keeps_differences(rows: int, dimension: int, seed: int) -> None:
    embeddings = unit_rows(rows, dimension, seed)
    mean = embeddings.double().mean(0)
    if float((embeddings.double() - mean).norm(dim=1).min()) < 1e-3:
        return
    assert (apply("unicorn", embeddings, mean).norm(dim=1) - 1).abs().max() < 1e-5
    shifted = apply("mean_shift", embeddings, mean)
    torch.testing.assert_close(shifted[0] - shifted[1], embeddings[0].float() - embeddings[1].float())
    assert shifted.double().mean(0).abs().max() < 1e-6


def test_rows_that_all_equal_the_mean_are_refused() -> None:
    rows = unit_rows(1, 8, 0).repeat(5, 1)
    with pytest.raises(EmbeddingError, match="row 0 equals the mean"):
        apply("unicorn", rows, rows.double().mean(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 3.0])
@pytest.mark.parametrize("row", [0, 5, CHUNK_ROWS + 3])
def test_a_bad_row_is_named_with_its_file(value: float, row: int, tmp_path: Path) -> None:
    embeddings = unit_rows(CHUNK_ROWS + 10, 8, 1)
    embeddings[row] = value
    save_file({"embeddings": embeddings}, tmp_path / "bad.safetensors")
    with pytest.raises(EmbeddingError, match=rf"bad\.safetensors, row {row}:"):
        list(chunks(tmp_path / "bad.safetensors"))


def rerun(run: Path) -> None:
    transfer(RunDir(run), load_recipe(write_recipe(run.parent, transfer={"method": "mean_shift"})))


def test_a_flipped_bit_in_a_source_shard_is_refused_by_name(run_copy: Path) -> None:
    path = run_copy / "text_embeddings" / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"00001\.safetensors was changed"):
        rerun(run_copy)


def test_a_torn_source_shard_is_refused_by_name(run_copy: Path) -> None:
    path = run_copy / "text_embeddings" / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"00002\.safetensors was changed"):
        rerun(run_copy)


def test_a_missing_source_shard_is_refused_rather_than_moving_the_mean(run_copy: Path) -> None:
    (run_copy / "text_embeddings" / "00001.safetensors").unlink()
    with pytest.raises(RunError, match=r"00001\.safetensors is gone"):
        rerun(run_copy)


def test_a_shard_made_from_other_captions_is_refused(run_copy: Path) -> None:
    path = run_copy / "text_embeddings" / "00000.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    known = manifest(run_copy)["stages"]["captions"]["files"]["captions/00000.parquet"]["sha256"].encode()
    assert known in content[: 8 + length]
    path.write_bytes(content.replace(known, b"0" * 64))
    data = manifest(run_copy)
    data["stages"]["text_embeddings"]["files"]["text_embeddings/00000.safetensors"]["sha256"] = file_sha256(path)
    (run_copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match="made from other captions"):
        rerun(run_copy)

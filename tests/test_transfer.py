"""Transfer methods against their formulas in float64; the stage over whole runs, damage, other settings and kills."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from generation.errors import EmbeddingError, RecipeError, RunError
from generation.recipe import parse_recipe
from generation.stages import TEXT_EMBEDDINGS, image_embeddings
from generation.store import Run
from generation.transfer import METHODS, Statistics, apply_to_images, fit, image_mean, parse_transfer
from generation.transfer.methods import normal_rows
from generation.transfer.stage import make_image_embeddings, statistics_input
from generation.vectors import VectorShard, write_vectors
from tests.conftest import ROOT
from tests.runs import make_run
from tests.tiny_models import tiny_clip

DIMENSION = 32
Array = np.ndarray[Any, np.dtype[np.float64]]


def unit_rows(rows: int, seed: int, lean: float = 0.3, dimension: int = DIMENSION) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, dimension, generator=generator) * torch.linspace(0.5, 2, dimension).roll(seed) + lean
    return torch.nn.functional.normalize(raw, dim=1)


TEXTS, IMAGES = unit_rows(3000, 1, 0.5).half(), unit_rows(2000, 2, -0.3)


def fitted(method: str, texts: torch.Tensor = TEXTS, cut: int = 1234, **keys: Any) -> Statistics:
    """Return the statistics of a method over two shards, the first of ``cut`` rows."""
    section, mean = parse_transfer({"method": method} | keys), texts.double().sum(0) / len(texts)
    images = image_mean(IMAGES) if method in ("anchor", "realign") else None
    return fit(section, mean, len(texts), [texts[:cut].float(), texts[cut:].float()], images)


def norm(rows: Array) -> Array:
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def reference(method: str, strength: float = 1.0) -> Array:
    """The formulas of the papers (``generation/transfer/methods.py`` names them), without noise."""
    u, v = TEXTS.double().numpy(), IMAGES.double().numpy()
    mean_u, mean_v = u.mean(0), v.mean(0)
    moved = norm(mean_v + np.sqrt(v.var(0).sum() / u.var(0).sum()) * (u - mean_u))
    formulas = {
        "mean_shift": u - mean_u,
        "unicorn": norm(u - mean_u),
        "c3": norm(u - mean_u),
        "anchor": norm(u + strength * (mean_v - mean_u)),
        "realign": norm(moved - moved.mean(0) + mean_v),
    }
    return formulas.get(method, u)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_agrees_with_its_formula_and_can_be_inverted(method: str) -> None:
    before, statistics = torch.get_num_threads(), fitted(method)
    torch.set_num_threads(1 if before > 1 else 2)  # gives the same bytes
    assert all(torch.equal(statistics.tensors[name], tensor) for name, tensor in fitted(method).tensors.items())
    torch.set_num_threads(before)
    for name, tensor in fitted(method, cut=2999).tensors.items():  # other shards
        torch.testing.assert_close(tensor, statistics.tensors[name], atol=1e-12, rtol=0)
    moved = statistics.move(TEXTS.float())
    np.testing.assert_allclose(moved, reference(method), atol=4e-4)  # stored rows have norm 1 to 4e-4
    if method == "anchor":  # across a part of the gap
        np.testing.assert_allclose(fitted(method, strength=0.4).move(TEXTS.float()), reference(method, 0.4), atol=4e-4)
    back = statistics.invert(moved.half())
    assert float(torch.cosine_similarity(back, TEXTS.float(), dim=1).min()) > 0.99999
    for other in METHODS:  # transfer at load time: as good as the direct way
        again = fitted(other, cut=500)
        direct, through = again.move(TEXTS.float()), again.move(back.clone())
        assert float(torch.cosine_similarity(through, direct, dim=1).min()) >= 0.9999


# Noise


@pytest.mark.parametrize(("method", "sphere"), [("c3", False), ("capdec", False), ("close", False), ("lafite", True)])
def test_noise_follows_the_order_of_the_method_and_the_cosine_that_eta_promises(method: str, sphere: bool) -> None:
    statistics = fitted(method, noise_ratio=0.8)
    numbers = list(range(7, 107))
    made = statistics.move(TEXTS[:100].float(), numbers, seed=11)
    backwards = statistics.move(TEXTS[:100].flip(0).float(), numbers[::-1], seed=11)
    assert torch.equal(backwards.flip(0), made)  # noise depends on number and seed only
    assert not torch.equal(statistics.move(TEXTS[:100].float(), numbers, seed=12), made)
    u = TEXTS[:100].double().numpy()
    base = u - TEXTS.double().mean(0).numpy() if method == "c3" else u
    drawn = normal_rows(numbers, 11, DIMENSION).double().numpy()
    np.testing.assert_allclose(made, norm(base + 0.8 * (norm(drawn) if sphere else drawn / DIMENSION**0.5)), atol=5e-4)
    wide = unit_rows(2000, 5, 0.1, 256)
    noisy = fit(parse_transfer({"method": "capdec", "noise_ratio": 0.8}), wide.double().mean(0), 2000)
    cosines = (noisy.move(wide.clone(), list(range(2000))) * wide).sum(1)
    assert float(cosines.mean()) == pytest.approx(statistics.facts["noise"]["cosine"], abs=0.01)
    section = parse_transfer({"method": "capdec", "noise_ratio": 0.8, "bake_noise": True})
    baked = fit(section, wide.double().mean(0), 2000, seed=5)  # has a seed of its own
    assert torch.equal(baked.move(wide[:9].clone(), range(9)), noisy.move(wide[:9].clone(), range(9), 5))


# Real images


def test_what_real_images_become() -> None:
    mean, count = image_mean(IMAGES)
    assert count == len(IMAGES)
    np.testing.assert_allclose(mean, IMAGES.double().mean(0), atol=1e-7)
    raw, v = IMAGES[:50] * 3.0, IMAGES[:50].double().numpy()
    centred = v - mean.numpy()
    for method, wanted in {"none": v, "unicorn": centred, "mean_shift": centred, "c3": norm(centred)}.items():
        np.testing.assert_allclose(apply_to_images(raw, fitted(method), mean), wanted, atol=1e-5)
        np.testing.assert_allclose(apply_to_images(raw, fitted("realign"), mean, method), wanted, atol=1e-5)
    for method in ("anchor", "realign", "capdec", "close", "lafite"):
        np.testing.assert_allclose(apply_to_images(raw, fitted(method)), v, atol=1e-5)


def test_decap_makes_an_image_of_its_memory_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.transfer.fitting.MEMORY_ROWS", 40)
    statistics = fitted("decap")
    memory = statistics.tensors["memory"].double().numpy()
    assert all((TEXTS.double().numpy() == row).all(1).any() for row in memory) and memory.shape == (40, DIMENSION)
    scores = np.exp(IMAGES[:20].double().numpy() @ memory.T / 0.01)
    wanted = norm((scores / scores.sum(1, keepdims=True)) @ memory)
    np.testing.assert_allclose(apply_to_images(IMAGES[:20], statistics), wanted, atol=1e-4)


def test_what_cannot_be_applied_is_refused() -> None:
    for images, method, mean, transfer, said in (
        (IMAGES, "none", None, "decap", "needs its own statistics"),
        (IMAGES, "none", None, "unicron", "'unicron' is not one of none, mean_shift"),
        (IMAGES, "unicorn", None, None, "unicorn subtracts the mean of your own image embeddings"),
        (IMAGES, "unicorn", torch.zeros(3), None, r"finite and of shape \[32\]"),
        (torch.ones(5, 7), "none", None, None, r"shape \[5, 7\]; this transfer needs \[n, 32\]"),
        (torch.stack([IMAGES[0], IMAGES[0] * 0]), "none", None, None, "row 1 has norm 0"),
    ):
        with pytest.raises(EmbeddingError, match=said):
            apply_to_images(images, fitted(method), mean, transfer)
    with pytest.raises(EmbeddingError, match="realign needs unpaired image embeddings .* none were given"):
        fit(parse_transfer("realign"), TEXTS.double().mean(0), len(TEXTS))
    with pytest.raises(EmbeddingError, match=r"images: torch.float32 \[32\], and floats \[m, d\] are needed"):
        image_mean(IMAGES[0])
    with pytest.raises(EmbeddingError, match="32 dimensions, and these have 8"):
        fit(parse_transfer("anchor"), TEXTS.double().mean(0), len(TEXTS), (), image_mean(unit_rows(9, 1, 0.1, 8)))
    same = TEXTS[:1].repeat(5, 1)
    for method in ("unicorn", "realign"):
        with pytest.raises(EmbeddingError, match="all 5 text embeddings are equal"):
            fitted(method, same, cut=2)
    assert fitted("anchor", same, cut=2).move(same.float()).isfinite().all()
    for wrong, said in (("unicron", "unicron"), ({"method": "anchor", "imagse": "x"}, "unknown key .*imagse")):
        with pytest.raises(RecipeError, match=said):
            parse_transfer(wrong)


# The stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run").path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def transfer(path: Path, rank: int = 0, world_size: int = 1, **section: Any) -> Run:
    """Make the image embeddings of a run with another ``transfer`` section."""
    recipe = Run(path).recipe.model_dump(mode="json") | {"transfer": section or {"method": "unicorn"}}
    opened = Run(path, parse_recipe(recipe, "test"))
    make_image_embeddings(opened, rank, world_size)
    return opened


def image_file(folder: Path, rows: int = 400, dimension: int = 16) -> str:
    path = folder / f"images{rows}.safetensors"
    save_file({"embeddings": (unit_rows(rows, 8, 0.4, dimension) * 2).half()}, path)
    return str(path)


def contents(path: Path, *folders: str) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for name in folders for f in (path / name).rglob("*.safetensors")}


@pytest.mark.parametrize("method", ["none", "mean_shift", "unicorn", "c3", "decap"])
def test_a_run_fits_the_formula_and_is_only_repaired(method: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened, stage = transfer(run, method=method), image_embeddings(method)
    texts = [VectorShard(opened.verified(TEXT_EMBEDDINGS, shard)) for shard in range(3)]
    made = [VectorShard(opened.verified(stage, shard)) for shard in range(3)]
    everything = torch.cat([text.vectors for text in texts]).double().numpy()
    statistics = Statistics.load(path := run / "transfer" / f"{method}.safetensors")
    assert np.array_equal(statistics.tensors["mean_text"].numpy(), everything.sum(0) / len(everything))
    wanted = everything if method in ("none", "decap") else everything - everything.mean(0)
    wanted = norm(wanted) if method in ("unicorn", "c3") else wanted
    np.testing.assert_allclose(torch.cat([shard.vectors for shard in made]).double(), wanted, atol=5e-4)
    for number, (text, shard) in enumerate(zip(texts, made, strict=True)):
        assert (shard.ids, shard.input_hashes) == (text.ids, text.input_hashes)
        assert shard.metadata == {"stage": stage.name, "shard": number, **statistics_input(opened, method)}
    again = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    transfer(run, method=method)
    assert again == {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    path.write_bytes((right := path.read_bytes())[:-1] + bytes([right[-1] ^ 1]))  # of a tensor
    with pytest.raises(EmbeddingError, match=rf"{method}\.safetensors is not a sound statistics file"):
        transfer(run, method=method, statistics=str(path))
    transfer(run, method=method)
    assert path.read_bytes() == right and "fitted again" in caplog.text
    assert all(file.stat().st_mtime_ns == time for file, time in again.items() if file != path)  # no shard was due
    opened.require(stage, statistics_input(opened, method))


def test_other_settings_or_images_make_all_shards_again(run: Path) -> None:
    baked, seen = {"method": "capdec", "bake_noise": True}, set()
    anchor = {"method": "anchor", "images": image_file(run.parent, rows=300)}
    sections = [baked | {"noise_ratio": 0.5}, baked | {"noise_ratio": 0.6}, {"method": "capdec"}, anchor]
    for section in (*sections, anchor | {"images": image_file(run.parent)}, anchor | {"strength": 0.5}):
        transfer(run, **section)
        seen.add(b"".join(contents(run, f"image_embeddings/{section['method']}").values()))
    assert len(seen) == 6


def test_an_added_shard_moves_all_rows_unless_the_old_statistics_are_kept(run: Path) -> None:
    first = contents(run, "image_embeddings", "transfer")
    kept = shutil.copytree(run, run.parent / "kept")
    shutil.copyfile(run / "transfer" / "unicorn.safetensors", run.parent / "v1.safetensors")
    make_run(run, shards=4)
    transfer(run)
    moved = contents(run, "image_embeddings", "transfer")
    assert moved.keys() > first.keys() and all(moved[name] != first[name] for name in first)
    shutil.copytree(run, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("image_embeddings", "transfer"))
    transfer(kept, method="unicorn", statistics=str(run.parent / "v1.safetensors"))
    found = contents(kept, "image_embeddings", "transfer")
    assert found.keys() == moved.keys() and all(found[name] == first[name] for name in first)
    with pytest.raises(EmbeddingError, match=r"v1\.safetensors was made with other settings: settings.method"):
        transfer(kept, method="none", statistics=str(run.parent / "v1.safetensors"))
    with pytest.raises(EmbeddingError, match=r"00000\.parquet is not a complete statistics file of a transfer"):
        transfer(kept, method="none", statistics=str(kept / "captions" / "00000.parquet"))


def _rewrite(path: Path, change: Any) -> None:
    """Replace a shard of text embeddings."""
    run, shard = Run(path), VectorShard(path / "text_embeddings" / "00001.safetensors")
    new = (change(shard.vectors.clone()), shard.ids, shard.input_hashes, {})
    run.commit(TEXT_EMBEDDINGS, 1, len(shard), lambda file: write_vectors(file, *new))


def test_a_source_that_is_damaged_or_not_of_unit_rows_is_refused_by_name(run: Path) -> None:
    _rewrite(run, lambda rows: rows.index_fill(0, torch.tensor([2]), 0))
    with pytest.raises(EmbeddingError, match=r"00001\.safetensors, row 2: its norm is 0 and must be 1"):
        transfer(run, method="mean_shift")
    _rewrite(run, lambda rows: rows[:, :5].contiguous())
    with pytest.raises(EmbeddingError, match=r"dimensions \[5, 16\]"):
        transfer(run, method="mean_shift")
    path = run / "text_embeddings" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-5] + b"xxxxx")
    with pytest.raises(RunError, match=r"00001\.safetensors: sha256 .* recorded"):
        transfer(run, method="mean_shift")
    path.with_suffix(".json").unlink()
    with pytest.raises(RunError, match=r"'text_embeddings' is not complete \(2 of 3 shards\)"):
        transfer(run, method="mean_shift")


def test_images_that_cannot_be_used_are_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run.parent
    (folder / "pictures").mkdir()
    (folder / "x.txt").write_text("")
    save_file({"a": torch.ones(2, 16), "b": torch.ones(2, 16)}, folder / "two.safetensors")
    rows, row_7 = unit_rows(20, 1, 0.1, 16), torch.arange(20).unsqueeze(1) == 7
    arrays = {"ints": torch.ones(4, 16, dtype=torch.int64), "one": rows[:1], "same": rows[:1].repeat(50, 1)}
    for name, array in (arrays | {"nan": rows.where(~row_7, torch.nan), "zero": rows.where(~row_7, 0)}).items():
        np.save(folder / f"{name}.npy", array)
    for images, said in (
        ("one.npy", r"one\.npy: 1 image embedding\(s\) cannot say"),
        ("same.npy", r"same\.npy: 50 image embeddings that are all equal"),
        ("nan.npy", r"nan\.npy, row 7: the image embedding holds NaN"),
        ("zero.npy", r"zero\.npy, row 7: the image embedding is zero"),
        ("ints.npy", r"ints\.npy: torch\.int64 \[4, 16\], and floats"),
        ("two.safetensors", r"two\.safetensors: its float matrices are \['a', 'b'\]"),
        ("x.txt", r"x\.txt: give a folder of pictures"),
        ("missing", "missing: there is no such file"),
        ("pictures", "pictures holds no pictures"),
        (image_file(folder, dimension=8), "16 dimensions, and these have 8"),
    ):
        with pytest.raises(EmbeddingError, match=said):
            transfer(run, method="anchor", images=str(folder / images))
    transfer(run, method="realign", images=image_file(folder, rows=40))
    assert "the error of the mean of 40 images is 0.1" in caplog.text
    transfer(run, method="c3")
    assert "leaves a cosine of 0.33 to clean rows" in caplog.text


def test_a_folder_of_pictures_is_encoded_by_the_recipes_encoder(tmp_path: Path) -> None:
    folder, run = tmp_path / "pictures", tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    for number in range(6):
        Image.effect_noise((40, 30), 20 * number).save(folder / ("sub" if number % 2 else ".") / f"{number}.PNG")
    make_run(run, dim=12, recipe={"embed": {"encoder": str(tiny_clip(tmp_path / "clip"))}})
    found = []
    for _ in range(2):
        transfer(run, method="realign", images=str(folder))
        found.append(Statistics.load(run / "transfer" / "realign.safetensors").facts)
        (folder / "0.PNG").unlink(missing_ok=True)
    assert [facts["images"]["rows"] for facts in found] == [6, 5]
    assert found[0]["inputs"]["images"] != found[1]["inputs"]["images"]


TRANSFER = """
import os, sys
from pathlib import Path
from generation.recipe import parse_recipe
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
left, rename = int(sys.argv[5]), os.replace  # 1: stage.json, 2: statistics, 3: a shard, 4: its record or another shard
def replace(*paths):
    global left
    left -= 1
    os.kill(os.getpid(), 9) if left == 0 else rename(*paths)
os.replace = replace
transfer = {"method": "realign", "images": sys.argv[2]}
run = Path(sys.argv[1])
recipe = parse_recipe(Run(run).recipe.model_dump(mode="json") | {"transfer": transfer}, "test")
make_image_embeddings(Run(run, recipe), int(sys.argv[3]), int(sys.argv[4]))
"""


def test_kill_9_and_then_two_ranks_side_by_side_give_the_same_bytes(run: Path) -> None:
    images, whole = image_file(run.parent), shutil.copytree(run, run.parent / "whole")
    script = [sys.executable, "-c", TRANSFER, str(run), images]
    assert subprocess.run([*script, "0", "1", "4"], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    tasks = [subprocess.Popen([*script, rank, "2", "99"], cwd=ROOT) for rank in "01"]
    transfer(whole, method="realign", images=images)
    assert [task.wait() for task in tasks] == [0, 0]
    assert contents(run, "image_embeddings", "transfer") == contents(whole, "image_embeddings", "transfer")
    assert not [path for path in contents(run, ".") if load_file(run / path) == {}]

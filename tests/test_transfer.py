"""The transfer stage over whole runs: against the formulas, against damage, and against kills."""

import json
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.embeddings import embed
from generation.errors import EmbeddingError, RecipeError, RunError
from generation.files import file_sha256
from generation.recipe import load_recipe
from generation.rundir import RunDir
from generation.transfer import Fitted
from generation.transfer.methods import VERSION
from generation.transfer.noise import normal
from generation.transfer.stage import transfer
from tests.conftest import ROOT, manifest, write_recipe
from tests.tiny_models import tiny_clip


def rerun(run: Path, **section: Any) -> None:
    section = section or {"method": "mean_shift"}
    transfer(RunDir(run), load_recipe(write_recipe(run.parent, transfer=section)))


def shards(run: Path, folder: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted((run / folder).iterdir())]


def facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["unicorn"])
        return found


@pytest.mark.parametrize("method", ["none", "mean_shift", "unicorn", "c3"])
def test_a_run_agrees_with_the_formula_in_float64(method: str, run_copy: Path) -> None:
    rerun(run_copy, method=method)
    texts, made = shards(run_copy, "text_embeddings"), shards(run_copy, f"image_embeddings/{method}")
    everything = torch.cat([text["embeddings"] for text in texts]).double().numpy()
    statistics = load_file(run_copy / "transfer" / f"{method}.safetensors")
    assert np.array_equal(statistics["mean_text"].numpy(), everything.sum(0) / len(everything))
    wanted = everything if method == "none" else everything - everything.mean(0)
    if method in ("unicorn", "c3"):
        wanted = wanted / np.sqrt((wanted**2).sum(1, keepdims=True))
    found = torch.cat([shard["embeddings"] for shard in made])
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.double(), wanted, atol=3e-4)
    for text, shard in zip(texts, made, strict=True):
        assert torch.equal(shard["ids"], text["ids"])
        assert torch.equal(shard["text_sha256"], text["text_sha256"])


def test_a_shard_says_where_it_came_from_and_what_was_done(finished_run: Path) -> None:
    stages = manifest(finished_run)["stages"]
    told = facts(finished_run / "image_embeddings" / "unicorn" / "00001.safetensors")
    assert (told["method"], told["version"], told["shard"]) == ("unicorn", VERSION, 1)
    assert told["statistics_sha256"] == file_sha256(finished_run / "transfer" / "unicorn.safetensors")
    assert told["source_sha256"] == file_sha256(finished_run / "text_embeddings" / "00001.safetensors")
    assert told["encoder"] == stages["text_embeddings"]["fingerprint"]


def test_the_statistics_say_what_to_do_with_real_images(finished_run: Path) -> None:
    told = facts(finished_run / "transfer" / "unicorn.safetensors")
    assert told["text_ops"] == ["l2norm", "sub:mean_text", "l2norm"]
    assert told["image_ops"] == ["l2norm", "sub:USER_IMAGE_MEAN"]
    assert (told["image_mean"], told["rows"], told["noise"]) == ("user", 18, None)
    assert told["encoder"]["joint_with_images"] is False
    sources = {f"{shard:05d}": f"text_embeddings/{shard:05d}.safetensors" for shard in range(3)}
    assert list(told["inputs"].values()) == [file_sha256(finished_run / name) for name in sources.values()]


def test_a_users_new_text_is_treated_as_the_runs(finished_run: Path) -> None:
    fitted = Fitted.load(finished_run / "transfer" / "unicorn.safetensors")
    text = shards(finished_run, "text_embeddings")[0]["embeddings"]
    made = shards(finished_run, "image_embeddings/unicorn")[0]["embeddings"]
    np.testing.assert_allclose(fitted.to_text(text), made.float(), atol=4e-4)
    with pytest.raises(EmbeddingError, match=r"00000\.parquet holds no transfer's statistics"):
        Fitted.load(finished_run / "captions" / "00000.parquet")


def test_noise_is_baked_only_when_asked_for_and_then_by_the_id(
    run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rerun(run_copy, method="c3")
    assert "leaves a cosine of 0.33" in caplog.text
    rerun(run_copy, method="capdec", noise_ratio=0.5, bake_noise=True)
    told = facts(run_copy / "transfer" / "capdec.safetensors")["noise"]
    assert (told["eta"], told["baked"], told["seed"]) == (0.5, True, 0)
    text, made = (shards(run_copy, f)[2] for f in ("text_embeddings", "image_embeddings/capdec"))
    numbers = torch.tensor([int(bytes(row.tolist())) for row in text["ids"]])
    noisy = text["embeddings"].float() + 0.5 * normal(numbers, 384, seed=0) / 384**0.5
    wanted = torch.nn.functional.normalize(noisy, dim=1)
    np.testing.assert_allclose(made["embeddings"].float(), wanted, atol=3e-4)


def test_another_setting_makes_all_shards_again_and_the_same_setting_none(run_copy: Path) -> None:
    rerun(run_copy, method="capdec", noise_ratio=0.5, bake_noise=True)
    path = run_copy / "image_embeddings" / "capdec" / "00000.safetensors"
    first, made = path.read_bytes(), path.stat().st_mtime_ns
    rerun(run_copy, method="capdec", noise_ratio=0.5, bake_noise=True)
    assert path.stat().st_mtime_ns == made
    rerun(run_copy, method="capdec", noise_ratio=0.6, bake_noise=True)
    assert path.read_bytes() != first


# -- damage ------------------------------------------------------------------------------------------------------


def source(run: Path, shard: int) -> Path:
    return run / "text_embeddings" / f"{shard:05d}.safetensors"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("damage", "said"), [(flip, "was changed"), (tear, "was changed"), (Path.unlink, "is gone")])
def test_a_damaged_source_is_refused_by_name_rather_than_moving_the_mean(
    damage: Callable[[Path], object], said: str, run_copy: Path
) -> None:
    damage(source(run_copy, 1))
    with pytest.raises(RunError, match=rf"00001\.safetensors {said}"):
        rerun(run_copy)
    assert not (run_copy / "transfer" / "mean_shift.safetensors").exists()


def resealed(run: Path, shard: int, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Rewrites a source shard and the manifest's record of it, as a file of another making would stand there."""
    tensors, told = load_file(source(run, shard)), facts(source(run, shard))
    change(tensors, told)
    save_file(tensors, source(run, shard), {"unicorn": json.dumps(told)})
    data = manifest(run)
    record = data["stages"]["text_embeddings"]["files"][f"text_embeddings/{shard:05d}.safetensors"]
    record["sha256"] = file_sha256(source(run, shard))
    (run / "manifest.json").write_text(json.dumps(data))


def _other_captions(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    told["captions_sha256"] = "0" * 64


def _other_encoder(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    told["encoder"]["model"] = "another"


def _other_dimension(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    tensors["embeddings"] = tensors["embeddings"][:, :100].contiguous()


def _twice(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    tensors["ids"][3] = tensors["ids"][1]


def _nan(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    tensors["embeddings"][2, 0] = float("nan")


def _zero(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
    tensors["embeddings"][2] = 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_captions, r"00001\.safetensors was made from other captions"),
        (_other_encoder, r"00001\.safetensors was made by another encoder"),
        (_other_dimension, r"00001\.safetensors: 100 dimensions; the encoder has 384"),
        (_twice, r"00001\.safetensors, row 3: the id 0000100001 is there for the second time"),
        (_nan, r"00001\.safetensors, row 2: the embedding is no finite vector"),
        (_zero, r"00001\.safetensors, row 2: the embedding is no finite vector"),
    ],
)
def test_a_foreign_or_faulty_source_is_refused_by_name_and_row(change: Any, said: str, run_copy: Path) -> None:
    resealed(run_copy, 1, change)
    with pytest.raises((RunError, EmbeddingError), match=said):
        rerun(run_copy)
    assert not (run_copy / "transfer" / "mean_shift.safetensors").exists()


def test_a_header_that_lies_about_its_length_is_refused(run_copy: Path) -> None:
    path = source(run_copy, 0)
    content = bytearray(path.read_bytes())
    content[:8] = struct.pack("<Q", 2**40)
    path.write_bytes(content)
    data = manifest(run_copy)
    data["stages"]["text_embeddings"]["files"]["text_embeddings/00000.safetensors"]["sha256"] = file_sha256(path)
    (run_copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(EmbeddingError, match=r"00000\.safetensors is no whole shard"):
        rerun(run_copy)


# -- images ------------------------------------------------------------------------------------------------------


def image_file(folder: Path, rows: int = 400, dimension: int = 384) -> Path:
    raw = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(8)) + 0.4
    save_file({"embeddings": (raw * 2).half()}, folder / "images.safetensors")
    return folder / "images.safetensors"


def test_realign_moves_the_cloud_onto_unpaired_images(run_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = image_file(run_copy.parent)
    rerun(run_copy, method="realign", images=str(path), centroid_iterations=3)
    raw = load_file(path)["embeddings"].double()
    mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
    made = torch.cat([shard["embeddings"] for shard in shards(run_copy, "image_embeddings/realign")]).double()
    assert (made.mean(0) - mean).norm() < 2e-3
    told = facts(run_copy / "transfer" / "realign.safetensors")
    assert (told["image_mean"], told["images"]["rows"], told["image_ops"]) == ("included", 400, ["l2norm"])
    assert "the mean of 400 images is known to 0.0" in caplog.text
    recorded = manifest(run_copy)["stages"]["image_embeddings/realign"]["fingerprint"]["images"]
    assert recorded == {"name": "images.safetensors", "sha256": file_sha256(path)}


def test_other_images_make_all_shards_again(run_copy: Path) -> None:
    path = run_copy / "image_embeddings" / "anchor" / "00000.safetensors"
    rerun(run_copy, method="anchor", images=str(image_file(run_copy.parent)))
    first = path.read_bytes()
    rerun(run_copy, method="anchor", images=str(image_file(run_copy.parent, rows=300)))
    assert path.read_bytes() != first


def test_images_that_cannot_be_used_are_refused_by_name(run_copy: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"images\.safetensors: its embeddings have 8 dimensions"):
        rerun(run_copy, method="anchor", images=str(image_file(run_copy.parent, dimension=8)))
    (run_copy.parent / "pictures").mkdir()
    with pytest.raises(EmbeddingError, match="pictures holds no picture"):
        rerun(run_copy, method="anchor", images="pictures")
    with pytest.raises(RecipeError, match="transfer.method anchor needs transfer.images"):
        rerun(run_copy, method="anchor")
    with pytest.raises(RecipeError, match="transfer.images is for anchor, .*; method is unicorn"):
        rerun(run_copy, method="unicorn", images="pictures")


def test_column_space_takes_the_weight_of_a_projection(run_copy: Path) -> None:
    weight = torch.randn(384, 20, generator=torch.Generator().manual_seed(1))
    save_file({"visual_projection.weight": weight}, run_copy.parent / "head.safetensors")
    rerun(run_copy, method="experimental_column_space", image_basis="head.safetensors")
    made = shards(run_copy, "image_embeddings/experimental_column_space")[0]["embeddings"].double()
    solved = torch.linalg.lstsq(weight.double(), made.T).solution
    np.testing.assert_allclose(weight.double() @ solved, made.T, atol=1e-3)
    with pytest.raises(EmbeddingError, match="spans all 384 dimensions"):
        save_file({"w": torch.eye(384)}, run_copy.parent / "head.safetensors")
        rerun(run_copy, method="experimental_column_space", image_basis="head.safetensors")


# -- kills -------------------------------------------------------------------------------------------------------

KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from generation.recipe import load_recipe
from generation.rundir import RunDir
from generation.transfer.stage import transfer
left, rename = int(sys.argv[1]), os.replace
def replace(*paths):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
os.replace = replace
transfer(RunDir(Path(sys.argv[2])), load_recipe(Path(sys.argv[3])))
"""


@pytest.mark.parametrize("rename", [1, 2, 3, 4, 7], ids=["begin", "statistics", "recorded", "shard", "last"])
def test_kill_9_in_every_phase_is_made_good_by_the_same_command(rename: int, run_copy: Path) -> None:
    image = image_file(run_copy.parent)
    recipe = write_recipe(run_copy.parent, transfer={"method": "realign", "images": str(image)})
    script = [sys.executable, "-c", KILLED_AT_A_RENAME, str(rename), str(run_copy), str(recipe)]
    assert subprocess.run(script, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    rerun(run_copy, method="realign", images=str(image))
    shutil.copytree(run_copy, run_copy.parent / "whole")
    data = manifest(run_copy.parent / "whole")
    del data["stages"]["image_embeddings/realign"]
    (run_copy.parent / "whole" / "manifest.json").write_text(json.dumps(data))
    rerun(run_copy.parent / "whole", method="realign", images=str(image))
    for name in ("image_embeddings/realign/00000.safetensors", "transfer/realign.safetensors"):
        assert (run_copy / name).read_bytes() == (run_copy.parent / "whole" / name).read_bytes()
    assert not list(run_copy.rglob(".*.tmp"))


def test_a_folder_of_pictures_is_encoded_once_and_moves_the_cloud_onto_it(
    run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = tiny_clip(run_copy.parent / "tiny-clip")
    (run_copy.parent / "pictures").mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 90, 200 - 30 * number)).save(
            run_copy.parent / "pictures" / f"{number}.png"
        )
    data = manifest(run_copy)
    for name in ("text_embeddings", "image_embeddings/unicorn"):
        del data["stages"][name]
    (run_copy / "manifest.json").write_text(json.dumps(data))
    sections = {"embed": {"encoder": str(clip)}, "transfer": {"method": "realign", "images": "pictures"}}
    recipe = load_recipe(write_recipe(run_copy.parent, **sections))
    embed(RunDir(run_copy), recipe)
    transfer(RunDir(run_copy), recipe)
    kept = run_copy / "unpaired_images" / "00000.safetensors"
    images = load_file(kept)["embeddings"].double()
    assert len(images) == 6
    told = facts(run_copy / "transfer" / "realign.safetensors")
    assert told["images"]["rows"] == 6
    statistics = load_file(run_copy / "transfer" / "realign.safetensors")
    np.testing.assert_allclose(statistics["mean_image"], images.mean(0), atol=1e-3)
    made = kept.stat().st_mtime_ns
    transfer(RunDir(run_copy), load_recipe(write_recipe(run_copy.parent, **sections)))
    assert kept.stat().st_mtime_ns == made

"""Two builds with other bytes never share an entry of the cache of ``datasets``: real loads, one cache."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import config, load_dataset
from huggingface_hub import constants

from generation.builders.build import build
from generation.builders.command import main
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from tests.fake_hub import FakeHub
from tests.runs import make_recipe, make_run
from unicorn_1_2m import Unicorn12M


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of the same texts and sizes, by two methods, and the data set built from each."""
    folder = tmp_path_factory.mktemp("builds")
    make_run(folder / "run_one")
    shutil.copytree(folder / "run_one", folder / "run_two")
    make_image_embeddings(Run(folder / "run_two", make_recipe(folder / "run_two", "mean_shift")))
    for name in ("one", "two"):
        build(Unicorn12M, folder / f"run_{name}", folder / name)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(path: Path) -> Any:
    return load_dataset(str(path), "with_embeddings", split="train")["image_embedding"][:]


def by_class(**options: str) -> Any:
    builder = Unicorn12M(config_name="with_embeddings", hash="mine", **options)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")["image_embedding"][:]


def stored(path: Path) -> list[list[float]]:
    tables = [pq.ParquetFile(file).read(["image_embedding"]) for file in sorted((path / "with_embeddings").iterdir())]
    return [vector for table in tables for vector in table["image_embedding"].to_pylist()]


def test_no_way_to_read_a_build_reads_another_one_in_its_place(builds: Path, tmp_path: Path) -> None:
    assert stored(builds / "one") != stored(builds / "two")
    sizes = [[path.stat().st_size for path in sorted((builds / name).glob("*/*.parquet"))] for name in ("one", "two")]
    assert sizes[0] == sizes[1]  # so that nothing but the contents tells them apart
    for name in ("one", "two", "one"):
        wanted, built = stored(builds / name), tmp_path / "unicorn-1.2m"
        for place in (tmp_path / "run", built):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(builds / f"run_{name}", tmp_path / "run")
        shutil.copytree(builds / name, built)
        shutil.copytree(builds / name, tmp_path / name / "unicorn-1.2m", dirs_exist_ok=True)
        assert load(built) == load(tmp_path / name / "unicorn-1.2m") == wanted
        assert by_class(run_dir=str(tmp_path / "run")) == by_class(data_dir=str(built)) == wanted


def test_fill_cache_serves_what_was_filled_last(builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "one"):
        options = ["--run-dir", builds / f"run_{name}", "--output", tmp_path / name, "--fill-cache", "with_embeddings"]
        monkeypatch.setattr(sys, "argv", ["unicorn_1_2m.py", *map(str, options)])
        assert main(Unicorn12M) == 0
        assert load_dataset("unicorn-1.2m", split="train")["image_embedding"][:] == stored(builds / name)


def test_revisions_of_the_hub_and_a_local_build_of_their_name(builds: Path, tmp_path: Path) -> None:
    script = """
import sys
from datasets import load_dataset
from generation.builders.command import main
from unicorn_1_2m import Unicorn12M
builds, local = sys.argv[1:]
for name, version in (("one", "1.0.0"), ("two", "2.0.0")):
    options = ["--run-dir", f"{builds}/run_{name}", "--output", f"{local}/{name}", "--version", version]
    sys.argv[1:] = [*options, "--push-to-hub", "user/unicorn-1.2m"]
    assert main(Unicorn12M) == 0
places = [("user/unicorn-1.2m", {"revision": f"v{number}.0.0"}) for number in (1, 2, 1)]
for place, options in [*places, (f"{local}/unicorn-1.2m", {})]:
    print("read", load_dataset(place, "with_embeddings", split="train", **options)["image_embedding"][:])
"""
    shutil.copytree(builds / "two", tmp_path / "unicorn-1.2m")
    with FakeHub() as hub:
        done = hub.run(["-c", script, builds, tmp_path], tmp_path / "home")
    assert done.returncode == 0, done.stderr
    found = [line.removeprefix("read ") for line in done.stdout.splitlines() if line.startswith("read ")]
    assert found == [str(stored(builds / name)) for name in ("one", "two", "one", "two")]

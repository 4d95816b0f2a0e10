"""Seeds out of data sets of the Hub: the full recipe against small stand-ins, on the test hub."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from generation.config import CONFIGS
from tests.conftest import ROOT, command, manifest
from tests.fake_hub import FakeHub
from tests.fake_tgi import FakeTGI

IMAGES = 40
COMMITS: dict[str, str] = {}
CARD = """---
configs:
- config_name: labeled
  data_files: [{split: train, path: labeled/train-*}]
- config_name: unlabeled
  default: true
  data_files: [{split: train, path: unlabeled/train-*}]
---
"""


def quintets(folder: Path, what: str) -> None:
    """A JSONL file as those of embedding-data: five captions of an image a row."""
    folder.mkdir()
    with (folder / "captions.jsonl").open("w") as file:
        for image in range(IMAGES):
            captions = [f"A {what} stands near the {thing} in village {image}." for thing in ("gate", "well", "barn")]
            file.write(
                json.dumps({"set": captions + [f"Someone feeds the {what} of village {image}.", "Dog."]}) + "\n"
            )


def alt_texts(folder: Path) -> None:
    """Parquet files as those of Conceptual Captions: two configs, links beside the captions."""
    for config, caption in (
        ("unlabeled", "view of the old harbour from hill number {}"),
        ("labeled", "wrong config {}"),
    ):
        (folder / config).mkdir(parents=True)
        for shard in range(2):
            found = [caption.format(2 * row + shard) for row in range(100)] + ["click here for more pictures", None]
            table = pa.table({"image_url": ["https://example.org/x.jpg"] * len(found), "caption": found})
            pq.write_table(table, folder / config / f"train-{shard}.parquet")
    (folder / "README.md").write_text(CARD)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("stand_ins")
    quintets(folder / "coco", "horse")
    quintets(folder / "flickr30k", "child")
    alt_texts(folder / "conceptual_captions")
    script = """
import sys
from huggingface_hub import HfApi
for folder in sys.argv[1:]:
    name = "user/" + folder.rpartition("/")[2]
    HfApi().create_repo(name, repo_type="dataset")
    print(HfApi().upload_folder(repo_id=name, repo_type="dataset", folder_path=folder).oid)
"""
    with FakeHub() as server:
        names = ("coco", "flickr30k", "conceptual_captions")
        done = server.run(script, folder, *(folder / name for name in names), token="hf_test")
        assert done.returncode == 0, done.stderr
        COMMITS.update(zip(names, done.stdout.split(), strict=True))
        yield server


def recipe(folder: Path, **changes: Any) -> Path:
    """The full recipe with the stand-ins' ids and commits, and a few domains; ``changes`` go to the last source."""
    for part in ("configs", "seed_data"):
        shutil.copytree(CONFIGS.parent / part, folder / part, dirs_exist_ok=True)
    data = yaml.safe_load((CONFIGS / "unicorn_1_2m.yaml").read_text())
    for source in data["seeds"]["hub"]:
        source |= {"dataset": f"user/{source['name']}", "revision": COMMITS[source["name"]]}
    data["seeds"]["hub"][-1] |= changes
    data["seeds"]["domains"] |= {"files": ["../seed_data/domains_full/c*.yaml"], "labels_per_domain": 3}
    path = folder / "configs" / "filled.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run(hub: FakeHub, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = hub.environment(folder / "home")
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def test_the_full_recipe_is_validated_by_a_dry_run(hub: FakeHub, tmp_path: Path) -> None:
    with FakeTGI() as server:
        options = ("--config", recipe(tmp_path), "--run-dir", tmp_path / "run", "--endpoint", server.url)
        done = run(hub, tmp_path, "run", *options, "--dry-run", "--probes", "0")
    assert done.returncode == 0, done.stderr
    assert f"coco: {IMAGES} seeds of {5 * IMAGES} captions; dropped: {3 * IMAGES} same_image" in done.stdout
    assert "conceptual_captions: 200 seeds of 204 captions; dropped: 2 boilerplate, 2 empty" in done.stdout
    assert "3 domains: 90 seeds" in done.stdout
    assert "rows to ask, prompt expand_caption@" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_cap_draws_the_same_rows_at_every_reading_and_the_manifest_says_from_where(
    hub: FakeHub, tmp_path: Path
) -> None:
    path = recipe(tmp_path, limit=50)
    made = []
    for name in "ab":
        done = run(hub, tmp_path, "seeds", "--config", path, "--run-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        made.append(sorted((file.name, file.read_bytes()) for file in (tmp_path / name / "seeds").iterdir()))
    assert made[0] == made[1]
    found = manifest(tmp_path / "a")["stages"]["seeds"]["sources"]["conceptual_captions"]
    assert (found["seeds"], found["read"], found["dropped"]["over_limit"]) == (50, 204, 150)
    told = {key: found[key] for key in ("dataset", "config", "split", "revision")}
    commit = COMMITS["conceptual_captions"]
    assert told == {"dataset": "user/conceptual_captions", "config": "unlabeled", "split": "train", "revision": commit}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "user/none"}, "data set user/none (config unlabeled, split train, revision"),
        ({"split": "test"}, "cannot be opened"),
        ({"column": "text"}, "has no column 'text'; its columns: image_url, caption"),
        ({"revision": "main"}, "revision 'main' is no commit"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named(
    hub: FakeHub, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    done = run(hub, tmp_path, "seeds", "--config", recipe(tmp_path, **changes), "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "error: seed source 'conceptual_captions'" in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr

"""What several test files need: a small recipe over bundled seeds, the command line as a process, a finished run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.fake_tgi import FakeTGI

ROOT = Path(__file__).parent.parent
CAPTIONS = ROOT / "generation" / "seed_data" / "captions.txt"


def recipe_data(
    captions: int = 18, shard_rows: int = 8, captions_section: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """A recipe of ``captions`` bundled seeds; ``captions_section`` is added to, ``sections`` replace whole ones."""
    task = {"fraction": 0.5, "min_items": 2, "max_items": 3}
    data = {
        "name": "small",
        "seeds": {
            "shard_rows": shard_rows,
            "captions": [{"name": "bundled", "path": str(CAPTIONS), "license": "Apache-2.0", "limit": captions}],
        },
        "captions": {"prompt": "expand_caption_small", "attempts": 4, **(captions_section or {})},
        "instructions": {
            "attempts": 6,
            **{task_name: {"prompt": f"{task_name}_small", **task} for task_name in TASK_NAMES},
        },
    }
    return data | sections


TASK_NAMES = ("multiple_choice", "question_answering", "complex_reasoning")


def write_recipe(folder: Path, **options: Any) -> Path:
    """The small recipe as a file of ``folder``."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_data(**options)), encoding="utf-8")
    return path


def command(*arguments: object) -> list[str]:
    """The command line ``python -m generation ...``."""
    return [sys.executable, "-m", "generation", *map(str, arguments)]


def generation(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m generation ...`` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def manifest(run: Path) -> dict[str, Any]:
    """A run's manifest."""
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return content


def rows(run: Path, stage: str) -> list[dict[str, Any]]:
    """All sealed rows of a stage, read with pyarrow alone."""
    return [row for path in sorted((run / stage).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def fake() -> Iterator[FakeTGI]:
    """A fake TGI server without faults."""
    with FakeTGI() as server:
        yield server


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run against the fake TGI server; not to be changed (see ``run_copy``)."""
    folder = tmp_path_factory.mktemp("finished")
    with FakeTGI() as server:
        done = generation(
            "run", "--config", write_recipe(folder), "--run-dir", folder / "run", "--endpoint", server.url
        )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def built(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets of the finished run, side by side; not to be changed."""
    from generation.builders.build import build
    from unicorn_1_2m import Unicorn12M
    from unicorn_471k_instruction import Unicorn471KInstruction

    folder = tmp_path_factory.mktemp("built")
    build(Unicorn12M, finished_run, folder / "unicorn-1.2m")
    build(Unicorn471KInstruction, finished_run, folder / "unicorn-471k-instruction")
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copy(finished_run.parent / "recipe.yaml", tmp_path / "recipe.yaml")
    return tmp_path / "run"

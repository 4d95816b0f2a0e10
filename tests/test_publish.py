"""Pushing, tagging, loading and streaming both data sets: real libraries against the test hub, each in a process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.fake_hub import FakeHub, Fault

NAMES = {"unicorn-1.2m": "unicorn_1_2m.py", "unicorn-471k-instruction": "unicorn_471k_instruction.py"}


def push(hub: FakeHub, name: str, run: Path, folder: Path, *options: str, token: str | None = "hf_test") -> Any:
    arguments = ["--run-dir", run, "--output", folder / name, "--push-to-hub", f"user/{name}", *options]
    return subprocess.run(
        [sys.executable, NAMES[name], *map(str, arguments)],
        cwd=ROOT,
        env=hub.environment(folder / "home", token),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def told(hub: FakeHub, home: Path, script: str) -> Any:
    done = hub.run(f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n{script}", home, token="hf_test")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(hub: FakeHub, name: str, revision: str) -> dict[str, bytes]:
    repo = hub.repo(f"user/{name}")
    found = repo.at(revision).files
    return {path: repo.content[blob.key] for path, blob in found.items() if path != ".gitattributes"}


@pytest.fixture(scope="module")
def pushed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, Path]]:
    """A hub with both data sets at v1.0.0, and the folder that they were built in."""
    folder = tmp_path_factory.mktemp("pushed")
    with FakeHub() as hub:
        for name in NAMES:
            done = push(hub, name, finished_run, folder, "--private")
            assert done.returncode == 0, done.stderr
            assert f'load_dataset("user/{name}", revision="v1.0.0")' in done.stdout
        yield hub, folder


def test_what_arrives_is_what_was_built_and_no_token_is_told(pushed: tuple[FakeHub, Path]) -> None:
    hub, folder = pushed
    for name in NAMES:
        assert stored(hub, name, "v1.0.0") == files(folder / name)
    assert hub.repo("user/unicorn-1.2m").private
    assert hub.token not in json.dumps([str(content) for content in files(folder).values()])


def test_load_dataset_reads_both_configs_at_the_tag(pushed: tuple[FakeHub, Path], tmp_path: Path) -> None:
    script = """
from datasets import load_dataset
read = {}
for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
    for config in ("default", "with_embeddings"):
        data = load_dataset(f"user/{name}", config, revision="v1.0.0", split="train")
        read[f"{name} {config}"] = [len(data), len(data.column_names), str(data.info.version)]
print(json.dumps(read))
"""
    assert told(pushed[0], tmp_path, script) == {
        "unicorn-1.2m default": [18, 9, "1.0.0"],
        "unicorn-1.2m with_embeddings": [18, 10, "1.0.0"],
        "unicorn-471k-instruction default": [27, 9, "1.0.0"],
        "unicorn-471k-instruction with_embeddings": [27, 10, "1.0.0"],
    }


def test_a_stream_from_the_hub_starts_with_ranges_and_gives_all_rows(
    pushed: tuple[FakeHub, Path], tmp_path: Path
) -> None:
    script = """
from datasets import load_dataset
stream = load_dataset("user/unicorn-1.2m", "with_embeddings", revision="v1.0.0", split="train", streaming=True)
rows = [row["id"] for row in stream]
print(json.dumps([len(rows), len(set(rows))]))
"""
    assert told(pushed[0], tmp_path, script) == [18, 18]


def test_instructions_join_the_vectors_of_a_pinned_revision(pushed: tuple[FakeHub, Path], tmp_path: Path) -> None:
    script = """
from unicorn_471k_instruction import Unicorn471KInstruction
from generation.errors import RunError
base = "hf://datasets/user/unicorn-"
def rows(**options):
    builder = Unicorn471KInstruction(
        config_name="with_embeddings", data_dir=base + "471k-instruction@v1.0.0", hash="x", **options
    )
    return list(builder.as_streaming_dataset(split="train"))
joined, kept = rows(embeddings=base + "1.2m@v1.0.0"), rows()
try:
    rows(embeddings=base + "1.2m")
except RunError as error:
    refused = str(error)
print(json.dumps([joined == kept, len(joined), refused]))
"""
    same, count, refused = told(pushed[0], tmp_path, script)
    assert (same, count) == (True, 27)
    assert "names no revision" in refused


def test_a_tag_is_never_moved_and_a_new_version_takes_the_place_of_the_old_on_main_alone(
    pushed: tuple[FakeHub, Path], finished_run: Path, tmp_path: Path
) -> None:
    hub, folder = pushed
    before = stored(hub, "unicorn-1.2m", "v1.0.0")
    refused = push(hub, "unicorn-1.2m", finished_run, tmp_path)
    assert refused.returncode == 1
    assert "already has a tag v1.0.0" in refused.stderr
    done = push(hub, "unicorn-1.2m", finished_run, tmp_path, "--version", "1.1.0")
    assert done.returncode == 0, done.stderr
    assert stored(hub, "unicorn-1.2m", "v1.0.0") == before
    assert (
        stored(hub, "unicorn-1.2m", "main")
        == stored(hub, "unicorn-1.2m", "v1.1.0")
        == files(tmp_path / "unicorn-1.2m")
    )


def test_an_interrupted_push_goes_on_without_sending_again_what_arrived(finished_run: Path, tmp_path: Path) -> None:
    with FakeHub(faults=[Fault("lfs_upload", {4, 5, 6, 7, 8, 9, 10, 11, 12}, 403)]) as hub:
        failed = push(hub, "unicorn-1.2m", finished_run, tmp_path)
        assert failed.returncode == 1
        assert "user/unicorn-1.2m could not be published" in failed.stderr
        assert "the same command goes on" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert "v1.0.0" not in hub.repo("user/unicorn-1.2m").tags
        hub.script()
        arrived = len(hub.seen("lfs_upload"))
        shutil.rmtree(tmp_path / "unicorn-1.2m")
        done = push(hub, "unicorn-1.2m", finished_run, tmp_path)
        assert done.returncode == 0, done.stderr
        assert stored(hub, "unicorn-1.2m", "v1.0.0") == files(tmp_path / "unicorn-1.2m")
        large = sum(1 for name in files(tmp_path / "unicorn-1.2m") if name.endswith((".parquet", ".safetensors")))
        assert len(hub.seen("lfs_upload")) - arrived < large


def test_a_wrong_token_is_told_without_showing_it(finished_run: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        done = push(hub, "unicorn-1.2m", finished_run, tmp_path, token="hf_secret_of_mine")
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "hf_secret_of_mine" not in done.stderr + done.stdout


def test_a_missing_token_is_told_before_anything_is_built(finished_run: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        done = push(hub, "unicorn-1.2m", finished_run, tmp_path, token=None)
    assert done.returncode == 1
    assert "set $HF_TOKEN" in done.stderr
    assert not (tmp_path / "unicorn-1.2m").exists()

"""Pushing, tagging, loading and streaming both data sets: real libraries against the fake Hub, each in a process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_hub import FakeHub
from tests.runs import make_run

ROOT = Path(__file__).parents[1]
SCRIPTS = {"unicorn-1.2m": "unicorn_1_2m.py", "unicorn-471k-instruction": "unicorn_471k_instruction.py"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run").path


def push(hub: FakeHub, run: Path, folder: Path, *options: str, name: str = "unicorn-1.2m", **environment: Any) -> Any:
    """Build and push; the result of the process."""
    arguments = ["--run-dir", run, "--output", folder / name]
    if "--push-to-hub" not in options:
        arguments += ["--push-to-hub", f"user/{name}"]
    return hub.run([ROOT / SCRIPTS[name], *arguments, *options], folder / "home", **environment)


def ask(hub: FakeHub, home: Path, script: str) -> Any:
    """Run Python text that prints JSON, with the fake Hub; return what it prints."""
    done = hub.run(["-c", f"import json\n{script}"], home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def built(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(hub: FakeHub, revision: str, name: str = "unicorn-1.2m") -> dict[str, bytes]:
    _, files = hub.repos[f"user/{name}"].at(revision)
    return {path: data for path, data in files.items() if path != ".gitattributes"}


@pytest.fixture(scope="module")
def pushed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, Path]]:
    """A Hub with both data sets at v1.0.0, and the folder they were built in."""
    folder = tmp_path_factory.mktemp("pushed")
    with FakeHub() as hub:
        for name in SCRIPTS:
            done = push(hub, run, folder, "--private", name=name)
            assert done.returncode == 0, done.stderr
            assert f'load_dataset("user/{name}", revision="v1.0.0")' in done.stdout
        yield hub, folder


def test_what_arrives_is_what_was_built(pushed: tuple[FakeHub, Path]) -> None:
    hub, folder = pushed
    for name in SCRIPTS:
        assert stored(hub, "v1.0.0", name) == built(folder / name)
        assert hub.repos[f"user/{name}"].private
        assert b"hf_write" not in b"".join(built(folder / name).values())
    card = stored(hub, "v1.0.0")["README.md"].decode()
    assert 'load_dataset("user/unicorn-1.2m", split="train", revision="v1.0.0")' in card
    assert "datasets/user/unicorn-471k-instruction" in card


def test_both_configs_load_and_stream_at_the_tag_and_join_a_pinned_revision(
    pushed: tuple[FakeHub, Path], tmp_path: Path
) -> None:
    script = """
from datasets import load_dataset
from generation.errors import DatasetError
from unicorn_471k_instruction import Unicorn471KInstruction
read = {}
for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
    for config in ("default", "with_embeddings"):
        data = load_dataset(f"user/{name}", config, revision="v1.0.0", split="train")
        stream = load_dataset(f"user/{name}", config, revision="v1.0.0", split="train", streaming=True)
        assert [row["id"] for row in stream] == data["id"][:]
        read[f"{name} {config}"] = [len(data), str(data.info.version)]
base = "hf://datasets/user/unicorn-"
def rows(**options):
    options = {"config_name": "with_embeddings", "data_dir": base + "471k-instruction@v1.0.0"} | options
    return list(Unicorn471KInstruction(**options).as_streaming_dataset(split="train"))
read["joined"] = rows(embeddings=base + "1.2m@v1.0.0") == rows()
try:
    rows(embeddings=base + "1.2m")
except DatasetError as error:
    read["refused"] = str(error)
print(json.dumps(read))
"""
    read = ask(pushed[0], tmp_path, script)
    assert "pinned revision" in read.pop("refused")
    assert read.pop("joined")
    assert list(read.values()) == [[18, "1.0.0"], [18, "1.0.0"], [27, "1.0.0"], [27, "1.0.0"]]


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push-to-hub", "unicorn-1.2m"], "hf_write", "give USER/NAME"),
        (["--push-to-hub", "user/bad name"], "hf_write", "give USER/NAME"),
        (["--push-to-hub", "stranger/name"], "hf_write", "may write for user, group only"),
        ([], None, "set $HF_TOKEN"),
        ([], "hf_read", "may only read"),
        ([], "hf_secret_of_mine", "401"),
        ([], "hf_write", "already has a tag v1.0.0"),
        (["--push-to-hub", "user/public", "--private"], "hf_write", "exists and is public"),
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_built(
    options: list[str], token: str | None, message: str, pushed: tuple[FakeHub, Path], run: Path, tmp_path: Path
) -> None:
    hub = pushed[0]
    hub.repos["user/public"] = type(hub.repos["user/unicorn-1.2m"])("user/public", False)
    hub.repos["user/public"].commit({})
    done = push(hub, run, tmp_path, *options, token=token)
    assert done.returncode == 1
    assert message in done.stderr
    assert "hf_secret_of_mine" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "unicorn-1.2m").exists()


def test_the_second_version_says_what_moved_and_leaves_the_first_alone(
    pushed: tuple[FakeHub, Path], run: Path, tmp_path: Path
) -> None:
    hub = pushed[0]
    before = stored(hub, "v1.0.0")
    repo = hub.repos["user/unicorn-1.2m"]
    repo.commit({**repo.at("main")[1], "notes.md": b"mine"})
    shutil.copytree(run, tmp_path / "run")
    make_run(tmp_path / "run", shards=4)
    done = push(hub, tmp_path / "run", tmp_path, "--version", "1.1.0")
    assert done.returncode == 0, done.stderr
    assert "notes.md" in done.stderr  # named and kept
    assert stored(hub, "v1.0.0") == before
    assert stored(hub, "v1.1.0") == built(tmp_path / "unicorn-1.2m") | {"notes.md": b"mine"}
    changes = dict(json.loads(stored(hub, "v1.1.0")["manifest.json"])["changelog"])
    assert (
        "+3 rows from source alpha; +3 rows from source beta; all vectors moved, smallest cosine 0.9"
        in changes["1.1.0"]
    )
    assert changes["1.0.0"] == "first version"


def test_an_edited_card_is_refused_until_the_edits_are_discarded(run: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        assert push(hub, run, tmp_path).returncode == 0
        repo = hub.repos["user/unicorn-1.2m"]
        edited = repo.at("main")[1]["README.md"] + b"\nMy own words.\n"
        repo.commit({**repo.at("main")[1], "README.md": edited})
        refused = push(hub, run, tmp_path, "--version", "1.0.1")
        assert refused.returncode == 1
        assert "edited README.md" in refused.stderr
        assert repo.at("main")[1]["README.md"] == edited
        done = push(hub, run, tmp_path, "--version", "1.0.1", "--discard-edits")
        assert done.returncode == 0, done.stderr
        assert repo.at("main")[1]["README.md"] != edited


def test_an_interrupted_push_goes_on_and_its_version_takes_no_other_contents(run: Path, tmp_path: Path) -> None:
    with FakeHub(fail=lambda route, number: 403 if route == "lfs_upload" and number >= 2 else None) as hub:
        failed = push(hub, run, tmp_path)
        assert failed.returncode == 1
        assert "the same command goes on where it stopped" in failed.stderr
        assert "Traceback" not in failed.stderr
        hub.fail, arrived = (
            lambda route, number: 403 if route == "tag" else None,
            len(hub.repos["user/unicorn-1.2m"].objects),
        )
        assert arrived
        before = hub.seen["lfs_upload"]
        assert push(hub, run, tmp_path).returncode == 1  # everything arrives, but for the tag
        large = sum(name.endswith((".parquet", ".safetensors", ".png")) for name in built(tmp_path / "unicorn-1.2m"))
        assert hub.seen["lfs_upload"] - before == large - arrived
        hub.fail = lambda route, number: None
        other = make_run(tmp_path / "other", salt="other").path
        refused = push(hub, other, tmp_path)
        assert refused.returncode == 1
        assert "holds version 1.0.0 with other contents" in refused.stderr
        done = push(hub, run, tmp_path)
        assert done.returncode == 0, done.stderr
        assert stored(hub, "v1.0.0") == built(tmp_path / "unicorn-1.2m")

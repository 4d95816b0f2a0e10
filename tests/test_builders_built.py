"""The builder classes over built directories: joined, streamed, refused when changed; the bare name from the cache."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from generation.builders.build import build
from generation.builders.builder import UnicornBuilder
from generation.errors import RunError
from generation.recipe import load_recipe
from generation.rundir import RunDir
from generation.transfer.stage import transfer
from tests.conftest import ROOT, write_recipe
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

BOTH = [Unicorn12M, Unicorn471KInstruction]


@pytest.fixture(scope="module")
def built(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for builder_class in BOTH:
        build(builder_class, finished_run, folder / builder_class.NAME, version="1.2.0")
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "built")
    return tmp_path / "built"


def opened(builder_class: type[UnicornBuilder], folder: Path, tmp_path: Path, **options: Any) -> UnicornBuilder:
    options = {"config_name": "with_embeddings", "hash": "built", "cache_dir": str(tmp_path / "cache")} | options
    return builder_class(data_dir=str(folder / builder_class.NAME), **options)


def everything(builder: UnicornBuilder) -> list[dict[str, Any]]:
    return list(builder.as_streaming_dataset(split="train"))


@pytest.mark.parametrize("builder_class", BOTH)
def test_stored_joined_and_from_the_run_are_the_same_rows(
    builder_class: type[UnicornBuilder], built: Path, finished_run: Path, tmp_path: Path
) -> None:
    stored = everything(opened(builder_class, built, tmp_path))
    joined = everything(opened(builder_class, built, tmp_path, embeddings=str(built / "unicorn-1.2m")))
    from_run = everything(builder_class(config_name="with_embeddings", run_dir=str(finished_run), hash="run"))
    assert stored == joined == from_run
    assert len(stored[0]["image_embedding"]) == 384
    plain = everything(opened(builder_class, built, tmp_path, config_name="default"))
    assert plain == [{name: value for name, value in row.items() if name != "image_embedding"} for row in stored]


def test_preparing_with_several_processes_gives_the_same_rows(built: Path, tmp_path: Path) -> None:
    builder = opened(Unicorn12M, built, tmp_path, embeddings=str(built / "unicorn-1.2m"))
    builder.download_and_prepare(num_proc=2)
    prepared = builder.as_dataset(split="train")
    assert prepared.to_list() == everything(opened(Unicorn12M, built, tmp_path))
    shuffled = builder.as_streaming_dataset(split="train").shuffle(seed=1, buffer_size=5)
    assert sorted(row["id"] for row in shuffled) == prepared["id"][:]


def test_vectors_of_another_build_are_refused_by_hash(copied: Path, tmp_path: Path) -> None:
    path = copied / "unicorn-1.2m" / "manifest.json"
    manifest = json.loads(path.read_text())
    name = "image_embeddings/unicorn/00001.safetensors"
    files = manifest["stages"]["image_embeddings/unicorn"]["files"]
    files[name]["sha256"] = "ab" * 32
    path.write_text(json.dumps(manifest))
    builder = opened(Unicorn471KInstruction, copied, tmp_path, embeddings=str(copied / "unicorn-1.2m"))
    with pytest.raises(
        RunError, match=r"another image_embeddings/unicorn/00001\.safetensors than the rows were built"
    ):
        everything(builder)
    del files[name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"no image_embeddings/unicorn/00001\.safetensors"):
        everything(builder)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("with_embeddings/train-00001-of-00003.parquet", {}),
        ("data/train-00001-of-00003.parquet", {"config_name": "default"}),
        ("image_embeddings/unicorn/00001.safetensors", {"embeddings": "unicorn-1.2m"}),
    ],
)
def test_a_changed_or_missing_file_is_refused_on_load(
    file: str, options: dict[str, str], copied: Path, tmp_path: Path
) -> None:
    if "embeddings" in options:
        options = options | {"embeddings": str(copied / options["embeddings"])}
    path = copied / "unicorn-1.2m" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{path.name} was changed"):
        everything(opened(Unicorn12M, copied, tmp_path, **options))
    path.unlink()
    with pytest.raises(RunError, match=f"{path.name} is gone"):
        everything(opened(Unicorn12M, copied, tmp_path, **options))


def test_a_place_that_cannot_be_read_is_named(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no manifest.json"):
        Unicorn12M(data_dir=str(tmp_path), hash="x")
    with pytest.raises(RunError, match="names no revision"):
        Unicorn12M(data_dir="hf://datasets/user/unicorn-1.2m", hash="x")
    with pytest.raises(RunError, match="holds no built data"):
        everything(Unicorn12M(data_dir=str(finished_run), hash="x"))
    with pytest.raises(RunError, match="needs run_dir"):
        Unicorn12M(hash="x")


def test_the_version_is_the_builds_and_stands_in_the_card(built: Path) -> None:
    assert json.loads((built / "unicorn-1.2m" / "manifest.json").read_text())["built"]["version"] == "1.2.0"
    info = datasets.load_dataset_builder(str(built / "unicorn-1.2m"), "with_embeddings").info
    assert str(info.version) == "1.2.0"


def script(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "unicorn_1_2m.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_version_that_is_none_is_refused(finished_run: Path, tmp_path: Path) -> None:
    done = script("--run-dir", finished_run, "--output", tmp_path / "out", "--version", "v1")
    assert done.returncode == 2
    assert "'v1' is no semantic version such as 1.0.0" in done.stderr


@pytest.mark.parametrize(("config", "columns"), [("default", 9), ("with_embeddings", 10)])
def test_the_bare_name_works_from_any_directory_once_the_cache_is_filled(
    config: str, columns: int, finished_run: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    options = ["--run-dir", finished_run, "--output", tmp_path / "out", "--fill-cache", config]
    filled = script(*options, environment=environment)
    assert filled.returncode == 0, filled.stderr
    program = 'from datasets import load_dataset; d = load_dataset("unicorn-1.2m", split="train"); print(d.shape)'
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"(18, {columns})"), done.stderr


READERS = {
    "ours": """
from unicorn_1_2m import Unicorn12M
stream = Unicorn12M(config_name="with_embeddings", data_dir=folder, hash="x").as_streaming_dataset(split="train")
""",
    "datasets": """
from datasets import load_dataset
stream = load_dataset(folder, "with_embeddings", split="train", streaming=True)
""",
}


@pytest.mark.parametrize("reader", READERS)
def test_leaving_a_stream_early_and_exiting_does_not_hang(reader: str, built: Path, tmp_path: Path) -> None:
    program = f"folder = {str(built / 'unicorn-1.2m')!r}{READERS[reader]}print(next(iter(stream))['id'], flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.split() == ["0000000000"], done.stderr
    # The Parquet reader of datasets may abort where it might have hung (apache/arrow#45214); ours does neither.
    assert done.returncode in ([0] if reader == "ours" else [0, -signal.SIGABRT])


def test_our_stream_leaves_no_thread_that_could_abort_the_exit(built: Path, tmp_path: Path) -> None:
    """The abort is a race of a thread of Arrow's, which lets go of a Python file while Python ends, with that end."""
    program = f"""
import os
import pyarrow.parquet
folder = {str(built / "unicorn-1.2m")!r}{READERS["ours"]}
rows, before = iter(stream), len(os.listdir("/proc/self/task"))
print(next(rows)["id"], len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["0000000000", "0"], done.stderr


def test_a_column_can_be_read_alone(built: Path) -> None:
    read = datasets.load_dataset(str(built / "unicorn-1.2m"), split="train", columns=["id", "caption"])
    assert read.column_names == ["id", "caption"]


def test_files_keep_within_what_the_viewer_takes(built: Path) -> None:
    for path in (built / "unicorn-1.2m" / "data").iterdir():
        rows = pq.read_table(path).to_pylist()
        assert len(json.dumps(rows[:100])) < 10_000_000  # a page of the viewer
        assert len(json.dumps(rows[:10])) < 200_000  # its first rows
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        assert all(group.total_byte_size < 300_000_000 and group.column(0).has_offset_index for group in groups)


def test_companions_are_links_or_where_there_are_none_copies(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "image_embeddings/unicorn/00000.safetensors"
    build(Unicorn12M, finished_run, tmp_path / "linked")
    assert (tmp_path / "linked" / name).samefile(finished_run / name)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    build(Unicorn12M, finished_run, tmp_path / "copied")
    assert not (tmp_path / "copied" / name).samefile(finished_run / name)
    assert (tmp_path / "copied" / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_run_with_several_methods_is_built_by_the_one_that_is_named(run_copy: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(run_copy.parent, transfer={"method": "mean_shift"}))
    transfer(RunDir(run_copy), recipe)
    with pytest.raises(RunError, match="of unicorn and mean_shift; a data set takes one: name it as --method"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    with pytest.raises(RunError, match="no embeddings by realign, but by unicorn and mean_shift"):
        build(Unicorn12M, run_copy, tmp_path / "out", method="realign")
    build(Unicorn12M, run_copy, tmp_path / "out", method="mean_shift")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [name for name in manifest["stages"] if name.startswith("image_")] == ["image_embeddings/mean_shift"]
    assert (tmp_path / "out" / "transfer" / "mean_shift.safetensors").is_file()


def test_a_run_without_embeddings_is_told_what_is_missing(run_copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    for name in ("text_embeddings", "image_embeddings/unicorn"):
        del manifest["stages"][name]
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="holds no embeddings yet; run the stages embed and transfer first"):
        build(Unicorn12M, run_copy, tmp_path / "out")

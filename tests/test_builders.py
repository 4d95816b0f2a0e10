"""The two builder scripts and classes: what a reader sees who imports nothing of ours, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from generation.builders import build as build_module
from generation.builders.build import build
from generation.builders.builder import UnicornBuilder
from generation.builders.command import main
from generation.builders.published import PublishedDataset
from generation.errors import DatasetError, RunError
from generation.show import show_record
from generation.stages import CAPTIONS, INSTRUCTIONS, TASKS
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from tests.runs import make_recipe, make_run
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

ROOT = Path(__file__).parents[1]
BOTH: list[type[UnicornBuilder]] = [Unicorn12M, Unicorn471KInstruction]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", judged=True).path


@pytest.fixture(scope="module")
def built(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for cls in BOTH:
        build(cls, run, folder / cls.NAME, version="1.2.0")
    return folder


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def built_copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "built_copy"))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    command, env = [sys.executable, *map(str, arguments)], {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200, check=False)


def stream(builder: UnicornBuilder) -> Rows:
    return list(builder.as_streaming_dataset(split="train"))


def rows(folder: Path) -> Rows:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_snippets_of_the_cards_work_in_a_process_that_knows_nothing_of_us(built: Path, tmp_path: Path) -> None:
    program = """
assert [str(vectors.info.version), len(list(stream))] == ["1.2.0", len(vectors)]
assert vectors[:8]["image_embedding"].dtype == torch.float16 and vectors[:8]["image_embedding"].shape == (8, 16)
for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
    for row in load_dataset(name, split="train"):
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert [turn["value"].count("<image>") for turn in row["conversations"]] == [1] + [0] * (len(speakers) - 1)
by_id = {row["id"]: row["image_embedding"] for row in load_dataset("unicorn-1.2m", "with_embeddings", split="train")}
joined = load_dataset("unicorn-471k-instruction", "with_embeddings", split="train")
assert all(row["image_embedding"] == by_id[row["id"]] for row in joined)
print(len(captions), len(conversations), len(by_id), len(joined))
"""
    cards = [(built / cls.NAME / "README.md").read_text() for cls in BOTH]
    snippets = [text for card in cards for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:3]]
    done = python("-c", "\n".join([*snippets, program]), cwd=built, HF_HOME=str(tmp_path))
    assert (done.returncode, done.stdout.split()) == (0, ["18", "27", "18", "27"]), done.stderr


def test_rows_are_those_of_the_run_and_vectors_those_of_the_shards(run: Path, built: Path) -> None:
    opened = Run(run)
    captions = {row["id"]: row for shard in range(3) for row in opened.table(CAPTIONS, shard).to_pylist()}
    stages = [(task, shard) for task in TASKS for shard in range(3)]
    talks = {(r["id"], t): r for t, s in stages for r in opened.table(INSTRUCTIONS[t], s).to_pylist()}
    for row in rows(built / "unicorn-1.2m" / "with_embeddings"):
        source = captions[row["id"]]
        assert all(row[name] == source[name] for name in ("caption", "seed", "license", "words", "prompt", "model"))
        turns = [("human", source["instruction"]), ("gpt", source["caption"])]
        assert row["conversations"] == [{"from": speaker, "value": text} for speaker, text in turns]
        path = built / "unicorn-1.2m" / "image_embeddings" / "unicorn" / f"{row['embedding_shard']:05d}.safetensors"
        shard = load_file(path)
        assert np.array_equal(np.float16(row["image_embedding"]), shard["vectors"][row["embedding_row"]])
        assert bytes(shard["ids"][row["embedding_row"]]).decode() == row["id"]
        assert row["judge"] == float(row["id"][-1] != "5")
    for row in rows(built / "unicorn-471k-instruction" / "data"):
        source = talks.pop((row["id"], TASKS[row["task"]]))
        assert (row["conversations"], row["caption"]) == (source["conversations"], captions[row["id"]]["caption"])
        assert (row["grounded"], row["judge"], row["question_types"]) == (0.75, 0.5, ["what", "how many"])
    assert not talks


def test_near_duplicates_are_searched_on_request_and_then_known_to_both_sets(tmp_path: Path) -> None:
    salt = " ".join(["", *map(str, range(300))])  # the same words in every caption: all are nearly equal
    run, first = make_run(tmp_path / "run", shards=1, salt=salt).path, "0000000000"
    assert {(row["judge"], row["duplicate_group"]) for row in stream(Unicorn12M(run_dir=str(run)))} == {(None, None)}
    for searched, said in [(False, "Near-duplicates were not searched"), (True, "Near-duplicates: 6 of 6 captions")]:
        manifest = build(Unicorn12M, run, tmp_path / "out", duplicates=searched)
        assert manifest["duplicates"] == (6 if searched else None)
        assert said in (tmp_path / "out" / "README.md").read_text()
    for cls in BOTH:  # not searched again
        assert {row["duplicate_group"] for row in stream(cls(run_dir=str(run)))} == {first}
    recipe = {"captions": {"drop_duplicates": 0.8}}
    other = make_run(tmp_path / "other", shards=1, salt=salt, recipe=recipe).path
    assert stream(Unicorn12M(run_dir=str(other)))[5]["duplicate_group"] == first  # since the recipe drops duplicates


@pytest.mark.parametrize("cls", BOTH)
def test_stored_joined_prepared_and_from_the_run_are_the_same_rows(
    cls: type[UnicornBuilder], built: Path, run: Path
) -> None:
    options = {"config_name": "with_embeddings", "data_dir": str(built / cls.NAME)}
    stored = stream(cls(**options))
    assert len(stored[0]["image_embedding"]) == 16
    assert stored == stream(cls(config_name="with_embeddings", run_dir=str(run)))
    builder = cls(config_name="with_embeddings", run_dir=str(run))
    builder.download_and_prepare(num_proc=2)
    prepared = builder.as_dataset(split="train")
    assert prepared.to_list() == stored
    assert prepared.features["image_embedding"] == datasets.List(datasets.Value("float16"), length=16)
    assert prepared.features["source"].names == ["alpha", "beta"]
    plain = stream(cls(data_dir=str(built / cls.NAME)))
    assert plain == [{name: value for name, value in row.items() if name != "image_embedding"} for row in stored]


READERS: list[Callable[[Path], Any]] = [
    lambda folder: duckdb.sql(f"SELECT * FROM '{folder}/*.parquet'").to_arrow_table().to_pydict(),
    lambda folder: pd.read_parquet(folder).to_dict("list"),
    lambda folder: pl.read_parquet(folder / "*.parquet").to_dict(as_series=False),
]


@pytest.mark.parametrize("read", READERS)
def test_other_readers_see_every_value(read: Callable[[Path], Any], built: Path) -> None:
    for folder in (built / cls.NAME / "with_embeddings" for cls in BOTH):
        wanted, found = rows(folder), read(folder)
        assert set(found) == set(wanted[0])
        for name in ("id", "caption", "embedding_row", "words"):
            assert list(found[name]) == [row[name] for row in wanted]
        assert [list(turns) for turns in found["conversations"]] == [row["conversations"] for row in wanted]
        vectors = np.array([row["image_embedding"] for row in wanted], np.float16)
        assert np.array_equal(np.array([list(vector) for vector in found["image_embedding"]]), vectors)


def test_files_are_as_the_viewer_wants_them_and_every_part_holds_all_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "FILE_BYTES", 1)  # one file a shard
    make_run(tmp_path / "run", rows=20)
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        for path in (tmp_path / cls.NAME).rglob("*.parquet"):
            metadata = pq.read_metadata(path)
            columns = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
            assert all(column.has_offset_index for column in columns)
            vectors = [column.path_in_schema.startswith("image_embedding") for column in columns]
            assert [column.compression == "ZSTD" for column in columns] == [not vector for vector in vectors]
    paths = sorted((tmp_path / "unicorn-471k-instruction" / "data").iterdir())
    assert [path.name for path in paths] == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    for path in paths:
        tasks = pq.ParquetFile(path).read(["task"])["task"].to_pylist()
        assert set(tasks[:10]) == {0, 1, 2} and tasks != sorted(tasks)


def test_the_same_run_builds_the_same_bytes_and_shards_are_links_where_there_are_links(
    run: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in BOTH:
        build(cls, run, tmp_path / cls.NAME, version="1.2.0")
        build(cls, run, tmp_path / cls.NAME, version="1.2.0")  # over an earlier build
        assert files(built / cls.NAME) == files(tmp_path / cls.NAME)
    name = "image_embeddings/unicorn/00000.safetensors"
    assert (tmp_path / "unicorn-1.2m" / name).samefile(run / name)
    monkeypatch.setattr(os, "link", lambda *_: os.stat("/this/is/an/OSError"))
    build(Unicorn12M, run, tmp_path / "unicorn-1.2m", version="1.2.0")
    assert not (tmp_path / "unicorn-1.2m" / name).samefile(run / name)
    assert files(built / "unicorn-1.2m") == files(tmp_path / "unicorn-1.2m")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # it may be a link
    path.write_bytes(content)


def test_a_changed_file_of_the_run_is_named_and_nothing_is_left(run_copy: Path, tmp_path: Path) -> None:
    for file in ("captions/00001.parquet", "image_embeddings/unicorn/00000.safetensors"):  # vectors are read first
        tamper(run_copy / file)
        with pytest.raises(RunError, match=f"{file}: sha256"):
            build(Unicorn12M, run_copy, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_changed_or_missing_file_of_a_built_set_is_refused(built_copy: Path) -> None:
    folder = built_copy / "unicorn-1.2m"
    for config, file in (("with_embeddings", "with_embeddings/"), ("default", "data/")):
        tamper(folder / (file := f"{file}train-00000-of-00001.parquet"))
        with pytest.raises(DatasetError, match=f"{file} was changed"):
            stream(Unicorn12M(config_name=config, data_dir=str(folder)))
        (folder / file).unlink()
        with pytest.raises(DatasetError, match=f"has no {file}"):
            stream(Unicorn12M(config_name=config, data_dir=str(folder)))


def test_rows_are_joined_only_with_the_vectors_they_were_built_with(built: Path, tmp_path: Path) -> None:
    name = "with_embeddings/train-00000-of-00001.parquet"
    talks, captions = (PublishedDataset(str(built / cls.NAME)) for cls in (Unicorn471KInstruction, Unicorn12M))
    joined = [row for part in talks.joined_tables("data" + name[15:], captions) for row in part.to_pylist()]
    assert joined == pq.read_table(built / talks.manifest["name"] / name).to_pylist()
    make_run(tmp_path / "run", salt="other")
    build(Unicorn12M, tmp_path / "run", tmp_path / "other")
    for source, word in ((PublishedDataset(str(tmp_path / "other")), "another"), (talks, "no")):
        with pytest.raises(DatasetError, match=rf"{word} image_embeddings/unicorn/00000\.safetensors"):
            list(talks.joined_tables("data" + name[15:], source))


def test_what_cannot_be_read_is_named_for_what_it_is(run: Path, built: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"data_dir": str(tmp_path)}, "has no manifest.json"),
        ({"data_dir": str(run)}, "It is a run: give it as run_dir"),
        ({"data_dir": "hf://datasets/user/unicorn-1.2m"}, "a pinned revision"),
        ({"data_dir": str(built / "unicorn-471k-instruction")}, "is a built unicorn-471k-instruction"),
        ({"run_dir": str(built / "unicorn-1.2m")}, "is a built data set, not a run"),
        ({}, "needs run_dir"),
    ]:
        with pytest.raises(DatasetError, match=message):
            Unicorn12M(**options)


def test_an_unfinished_run_says_what_to_run(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "transfer/unicorn.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="image_embeddings/unicorn' .*0 of 3"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    shutil.rmtree(run_copy / "image_embeddings")
    with pytest.raises(RunError, match=r"image_embeddings/unicorn' is not .* generation transfer"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    (run_copy / "captions/00002.json").unlink()
    with pytest.raises(RunError, match=r"'captions' is not complete \(2 of 3 shards\). Run `"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("served", ["/data", "unknown"])
def test_a_model_that_its_server_does_not_name_is_named_by_the_recipe(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.runs.MODEL", served)
    path = make_run(tmp_path / "run", shards=1).path
    for cls in BOTH:
        with pytest.raises(DatasetError, match=rf"'{served}'.*model_name: OWNER/NAME.*run --config RECIPE"):
            build(cls, path, tmp_path / cls.NAME)
    make_run(path, shards=1, recipe={"server": {"model_name": "owner/Model-7B"}})
    for cls in BOTH:
        build(cls, path, tmp_path / cls.NAME)
        assert {row["model"] for row in rows(tmp_path / cls.NAME / "data")} == {"owner/Model-7B"}
        card = (tmp_path / cls.NAME / "README.md").read_text()
        assert "owner/Model-7B" in card and not re.search(rf"written by [^.]*{served}", card)


def test_only_an_earlier_build_is_replaced(run: Path, built_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (built_copy / "unicorn-1.2m" / "notes.txt").write_text("also mine")
    for output, message in [
        (tmp_path / "mine", "no build wrote: thesis.txt"),
        (tmp_path / "mine" / "thesis.txt", "is a file"),
        (built_copy / "unicorn-1.2m", "no build wrote: notes.txt"),
        (run, "lies in the run"),
        (run / "captions" / "built", "lies in the run"),
        (run.parent, "or holds it"),
    ]:
        with pytest.raises(DatasetError, match=message):
            build(Unicorn12M, run, output)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_run_with_several_methods_is_built_by_the_one_that_is_named(run_copy: Path, tmp_path: Path) -> None:
    make_image_embeddings(Run(run_copy, make_recipe(run_copy, "mean_shift", judged=True)))
    assert build(Unicorn12M, run_copy, tmp_path / "out")["method"] == "mean_shift"  # the recipe's now
    manifest = build(Unicorn12M, run_copy, tmp_path / "named", method="unicorn")
    assert {name.split("/")[1] for name in manifest["vectors"]} == {"unicorn"}
    with pytest.raises(RunError, match="'image_embeddings/decap' is not complete"):
        build(Unicorn12M, run_copy, tmp_path / "no", method="decap")


def test_a_build_that_does_not_end_leaves_the_earlier_one(run: Path, built_copy: Path, monkeypatch: Any) -> None:
    folder, rename = built_copy / "unicorn-1.2m", Path.rename
    before = files(folder)

    def stop(path: Path, target: Path) -> None:  # between the last two steps
        if target == folder:
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=f"cannot write {folder}: No space"):
        patch.setattr(pq.ParquetWriter, "write_table", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        build(Unicorn12M, run, folder)
    assert files(folder) == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop)
        build(Unicorn12M, run, folder, version="1.2.0")
    assert not folder.exists()
    build(Unicorn12M, run, folder, version="1.2.0")
    assert files(folder) == before
    assert sorted(path.name for path in built_copy.iterdir()) == ["unicorn-1.2m", "unicorn-471k-instruction"]


def test_the_command_builds_logs_json_and_refuses_a_version_that_is_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--run-dir", run, "--output", tmp_path / "out"]
    done = python("unicorn_471k_instruction.py", *options, "--version", "2.0.0", "--log-json")
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["status"]) == (0, "done"), done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["version"] == "2.0.0"
    monkeypatch.setattr(sys, "argv", ["unicorn_1_2m.py", *map(str, options), "--version", "v1"])
    assert (main(Unicorn12M), "not a semantic version" in capfd.readouterr().err) == (2, True)


def test_a_stream_that_is_left_early_leaves_no_thread_that_could_abort_the_exit(built: Path, tmp_path: Path) -> None:
    program = f"""
import os
import pyarrow.parquet
from unicorn_1_2m import Unicorn12M
before = len(os.listdir("/proc/self/task"))
for config in ("default", "with_embeddings"):
    builder = Unicorn12M(config_name=config, data_dir={str(built / "unicorn-1.2m")!r})
    rows = iter(builder.as_streaming_dataset(split="train"))
    print(next(rows)["id"], len(os.listdir("/proc/self/task")) - before)
"""
    done = python("-c", program, HF_HOME=str(tmp_path), OMP_NUM_THREADS="1")
    assert (done.returncode, done.stdout.split()) == (0, ["0000000000", "0"] * 2), done.stderr


def test_show_prints_a_record_through_all_stages(run: Path) -> None:
    shown = show_record(Run(run))
    assert all(name in shown for name in ("seeds", "captions", "instructions/", "judgements/", "image_embeddings/"))
    assert "too_short: A <b>kettle</b>." in show_record(Run(run), "6")
    with pytest.raises(RunError, match="has no record '0000000099'"):
        show_record(Run(run), "99")

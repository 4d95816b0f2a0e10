"""Exports, read back with the readers that they are meant for."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from generation.builders.build import build
from generation.errors import DatasetError, RunError, UnicornError
from generation.export import export_dataset
from generation.stages import TASKS
from tests.runs import make_run
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

SETS = BIG, SMALL = "unicorn-1.2m", "unicorn-471k-instruction"
OUTPUT = {"llava": "out.json", "messages": "out.jsonl", "webdataset": "out"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    run = make_run(folder / "run")
    for name, builder in ((BIG, Unicorn12M), (SMALL, Unicorn471KInstruction)):
        build(builder, run.path, folder / name)
    return folder


def stored(built: Path, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each row of a data set, and what of it exports hold."""
    rows = pq.ParquetDataset(built / name / "with_embeddings").read().to_pylist()
    return [(row, {key: row[key] for key in ("id", "caption", "conversations")}) for row in rows]


@pytest.mark.parametrize("name", SETS)
def test_llava_keeps_conversations_and_messages_turn_back_into_them(name: str, built: Path, tmp_path: Path) -> None:
    output, wanted = tmp_path / "out.jsonl", stored(built, name)
    assert export_dataset(str(built / name), "llava", tmp_path / "out.json") == len(wanted)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [content for _, content in wanted]
    assert export_dataset(str(built / name), "messages", output) == len(wanted)
    read = datasets.load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    for row, (original, _) in zip(read, wanted, strict=True):
        turns = []
        for message in row["messages"]:
            parts = ["<image>" if part["type"] == "image" else part["text"] for part in message["content"]]
            turns.append({"from": {"user": "human", "assistant": "gpt"}[message["role"]], "value": "\n".join(parts)})
        assert turns == original["conversations"]
        assert all(row[key] == original[key] for key in ("id", "embedding_shard", "embedding_row"))
        assert sum(part["type"] == "image" for message in row["messages"] for part in message["content"]) == 1


@pytest.mark.parametrize("name", SETS)
def test_webdataset_reads_its_tars(name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.export.TAR_ROWS", 10)
    (tmp_path / ".out.tmp").mkdir()  # left by an export that was killed
    (tmp_path / ".out.tmp" / "00099.tar").write_text("torn")
    export_dataset(str(built / name), "webdataset", tmp_path / "out")
    wanted, tars = stored(built, name), sorted((tmp_path / "out").iterdir())
    assert [tar.name for tar in tars] == [f"{number:05d}.tar" for number in range((len(wanted) + 9) // 10)]
    read = [sample for tar in tars for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode()]
    assert len({sample["__key__"] for sample in read}) == len(wanted)
    for sample, (row, content) in zip(read, wanted, strict=True):
        task = TASKS[row["task"]] if "task" in row else None
        assert sample["json"] == content | ({"task": task} if task else {})
        assert sample["__key__"] == (f"{row['id']}-{task}" if task else row["id"])
        assert sample["npy"].dtype == np.float16 and sample["npy"].tolist() == row["image_embedding"]
    shutil.copytree(built / name, tmp_path / "set", ignore=shutil.ignore_patterns("with_embeddings"))
    export_dataset(str(tmp_path / "set"), "webdataset", tmp_path / "joined", str(built / BIG))
    assert [tar.read_bytes() for tar in sorted((tmp_path / "joined").iterdir())] == [tar.read_bytes() for tar in tars]


@pytest.mark.parametrize("form", OUTPUT)
def test_output_that_exists_is_kept_and_a_failed_export_leaves_nothing(form: str, built: Path, tmp_path: Path) -> None:
    (tmp_path / OUTPUT[form]).write_text("years of work")
    with pytest.raises(DatasetError, match="exists; remove it"):
        export_dataset(str(built / BIG), form, tmp_path / OUTPUT[form])
    assert (tmp_path / OUTPUT[form]).read_text() == "years of work"
    shutil.copytree(built / BIG, tmp_path / "set")
    for path in (tmp_path / "set").rglob("train-*.parquet"):
        path.write_bytes(path.read_bytes() + b"x")
    (tmp_path / "made").mkdir()
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.parquet was changed"):
        export_dataset(str(tmp_path / "set"), form, tmp_path / "made" / OUTPUT[form])
    assert not list((tmp_path / "made").iterdir())
    with pytest.raises(RunError, match="cannot write .*set.*json"):
        export_dataset(str(built / BIG), form, tmp_path / "set" / "manifest.json" / OUTPUT[form])


def test_refusals_name_the_value(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_, out = str(built / BIG), tmp_path / "out"
    for arguments, said in (
        ((set_, "original", out), "'original' is not one of llava, messages, webdataset"),
        ((set_, "llava", out, "here"), "llava holds no vectors; remove --embeddings here"),
        ((set_, "messages", tmp_path / "out.csv"), r"out\.csv: format messages needs a name that ends in \.jsonl"),
        ((str(tmp_path), "llava", out), r"has no manifest\.json"),
        ((str(built / "run"), "llava", out), "It is a run"),
        ((set_, "webdataset", out, str(built / SMALL)), r"00000\.safetensors"),
        ((set_, "webdataset", out), "needs the package webdataset: pip install"),
    ):
        if "package" in said:
            monkeypatch.setitem(sys.modules, "webdataset", None)
        with pytest.raises(UnicornError, match=said):
            export_dataset(*arguments)
    assert not list(tmp_path.iterdir())

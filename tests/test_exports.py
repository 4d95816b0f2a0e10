"""Exports, read back with the readers that they are meant for."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from generation import exports
from generation.errors import ExportError, RunError
from generation.exports import export, fragments
from tests.conftest import TASK_NAMES, generation, rows

Row = dict[str, Any]
FORMATS = {"llava": "out.json", "messages": "out.jsonl", "webdataset": "out", "original": "out"}
VECTORS = ("webdataset", "original")
SETS = CAPTIONS, INSTRUCTIONS = "unicorn-1.2m", "unicorn-471k-instruction"

each_set = pytest.mark.parametrize("name", SETS)


class DataUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain data; whatever else a pickle asks for is refused."""

    _ALLOWED = {("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no data")
        return super().find_class(module, name)


def stored(built: Path, name: str) -> list[Row]:
    """The rows of a data set, vectors included, read with pyarrow alone."""
    return rows(built / name, "with_embeddings")


def conversation(row: Row) -> Row:
    return {key: row[key] for key in ("id", "caption", "conversations")}


def unpickled(folder: Path) -> list[Row]:
    paths = [folder / f"caption_embeddings_{n}.pkl" for n in range(1, len(list(folder.glob("*.pkl"))) + 1)]
    return [entry for path in paths for entry in DataUnpickler(io.BytesIO(path.read_bytes())).load()]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@each_set
def test_llava_is_one_list_of_rows_without_images(name: str, built: Path, tmp_path: Path) -> None:
    assert export(str(built / name), "llava", tmp_path / "out.json") == len(stored(built, name))
    read = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert read == [conversation(row) for row in stored(built, name)]
    assert all(list(row) == ["id", "caption", "conversations"] for row in read)


@given(count=st.integers(0, 5), text=st.text())
def test_a_list_of_any_length_and_text_is_valid_json(
    tmp_path_factory: pytest.TempPathFactory, count: int, text: str
) -> None:
    wanted = [{"id": str(number), "caption": text, "conversations": []} for number in range(count)]
    target = tmp_path_factory.mktemp("json") / "list.json"
    exports._write_json(iter(wanted), target)
    assert json.loads(target.read_bytes()) == wanted


@each_set
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_turn_back_into_conversations(kind: str, name: str, built: Path, tmp_path: Path) -> None:
    assert export(str(built / name), "messages", tmp_path / f"out.{kind}") == len(stored(built, name))
    loader = {"jsonl": "json"}.get(kind, kind)
    read = datasets.load_dataset(
        loader, data_files=str(tmp_path / f"out.{kind}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(read) == len(stored(built, name))
    for row, wanted in zip(read, stored(built, name), strict=True):
        assert [turned_back(message) for message in row["messages"]] == wanted["conversations"]
        assert [row[key] for key in ("id", "embedding_shard", "embedding_row")] == [
            wanted[key] for key in ("id", "embedding_shard", "embedding_row")
        ]
        images = [part for message in row["messages"] for part in message["content"] if part["type"] == "image"]
        assert len(images) == 1


def turned_back(message: Row) -> Row:
    parts = ["<image>" if part["type"] == "image" else part["text"] for part in message["content"]]
    return {"from": {"user": "human", "assistant": "gpt"}[message["role"]], "value": "\n".join(parts)}


@given(text=st.text(min_size=1).filter(lambda text: "<image>" not in text), place=st.sampled_from(["", "<", ">"]))
def test_fragments_keep_the_text_and_the_place_of_the_image(text: str, place: str) -> None:
    value = {"": text, "<": f"<image>\n{text}", ">": f"{text}\n<image>"}[place]
    said, image = {"type": "text", "text": text}, {"type": "image"}
    assert fragments(value) == {"": [said], "<": [image, said], ">": [said, image]}[place]


@each_set
def test_the_webdataset_library_reads_its_tars(
    name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "TAR_ROWS", 10)
    export(str(built / name), "webdataset", tmp_path / "out")
    wanted = stored(built, name)
    shards = sorted((tmp_path / "out").iterdir())
    assert [shard.name for shard in shards] == [f"{n:05d}.tar" for n in range((len(wanted) + 9) // 10)]
    samples = [list(webdataset.WebDataset(str(shard), shardshuffle=False).decode()) for shard in shards]
    assert all(len(part) == 10 for part in samples[:-1])
    read = [sample for part in samples for sample in part]
    assert len({sample["__key__"] for sample in read}) == len(wanted)
    for sample, row in zip(read, wanted, strict=True):
        task = TASK_NAMES[row["task"]] if "task" in row else None
        assert sample["json"] == conversation(row) | ({"task": task} if task else {})
        assert sample["__key__"] == (f"{row['id']}-{task}" if task else row["id"])
        assert sample["npy"].dtype == np.float16
        assert np.array_equal(sample["npy"], row["image_embedding"])


@each_set
@pytest.mark.parametrize("size", [9, 10], ids=["exact", "with_a_rest"])
def test_the_originals_layout_holds_rows_and_pickled_vectors(
    size: int, name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PICKLE_ROWS", size)  # 9 divides the 18 and 27 rows: no empty pickle is written
    export(str(built / name), "original", tmp_path / "out")
    wanted = stored(built, name)
    assert json.loads((tmp_path / "out/conversations.json").read_bytes()) == [conversation(row) for row in wanted]
    assert len(list((tmp_path / "out").glob("*.pkl"))) == (len(wanted) + size - 1) // size
    for entry, row in zip(unpickled(tmp_path / "out"), wanted, strict=True):
        assert list(entry) == ["id", "caption", "embed"]
        assert (entry["id"], entry["caption"]) == (row["id"], row["caption"])
        assert entry["embed"].dtype == np.float32
        assert np.array_equal(entry["embed"], row["image_embedding"])


def test_the_command_says_what_it_wrote_and_what_a_pickle_is(built: Path, tmp_path: Path) -> None:
    done = generation("export", built / CAPTIONS, "--format", "original", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "can run any code when they are read" in done.stderr
    assert "never read one" in done.stderr
    assert done.stdout == f"{tmp_path / 'out'}: 18 rows of {built / CAPTIONS}\n"


@each_set
@pytest.mark.parametrize("form", VECTORS)
def test_vectors_of_the_shards_are_those_of_the_parquet_files(
    form: str, name: str, built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / name, tmp_path / "set", ignore=shutil.ignore_patterns("with_embeddings"))
    export(str(built / name), form, tmp_path / "stored")
    export(str(tmp_path / "set"), form, tmp_path / "joined", str(built / CAPTIONS))
    assert contents(tmp_path / "joined") == contents(tmp_path / "stored")


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_exists_is_left_alone(form: str, built: Path, tmp_path: Path) -> None:
    output = tmp_path / FORMATS[form]
    output.write_text("years of work")
    with pytest.raises(ExportError, match="exists; remove it"):
        export(str(built / CAPTIONS), form, output)
    assert output.read_text() == "years of work"


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_half_way_leaves_nothing(
    form: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PICKLE_ROWS", 4)
    monkeypatch.setattr(exports, "TAR_ROWS", 4)
    shutil.copytree(built / CAPTIONS, tmp_path / "set")
    for path in (tmp_path / "set").rglob("train-00002-of-00003.parquet"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 4
        path.write_bytes(content)
    (tmp_path / "made").mkdir()
    with pytest.raises(RunError, match=r"train-00002-of-00003\.parquet was changed after it was built"):
        export(str(tmp_path / "set"), form, tmp_path / "made" / FORMATS[form])
    assert not list((tmp_path / "made").iterdir())


def test_a_killed_export_is_made_anew(built: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "00099.tar").write_text("left by kill -9")
    export(str(built / CAPTIONS), "webdataset", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", ["llava", "messages"])
def test_embeddings_do_not_go_with_formats_of_text(form: str, built: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{form} holds no vectors: leave --embeddings here out"):
        export(str(built / CAPTIONS), form, tmp_path / FORMATS[form], "here")


def test_messages_are_written_to_a_name_that_says_how(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"out\.csv: the format messages is written to a name in \.jsonl or"):
        export(str(built / CAPTIONS), "messages", tmp_path / "out.csv")


def test_only_a_built_directory_is_exported(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no built data/"):
        export(str(finished_run), "llava", tmp_path / "out.json")
    with pytest.raises(RunError, match=r"holds no manifest\.json"):
        export(str(tmp_path), "llava", tmp_path / "out.json")


def test_vectors_that_are_missing_or_of_others_are_refused(built: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree(built / INSTRUCTIONS, text, ignore=shutil.ignore_patterns("with_embeddings"))
    with pytest.raises(RunError, match=r"with_embeddings/train-00000-of-00008\.parquet is gone"):
        export(str(text), "webdataset", tmp_path / "out")
    with pytest.raises(RunError, match=r"image_embeddings/unicorn/00000\.safetensors is gone"):
        export(str(text), "webdataset", tmp_path / "out", str(built / INSTRUCTIONS))
    other = tmp_path / "other"
    shutil.copytree(built / CAPTIONS, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["stages"]["image_embeddings/unicorn"]["files"]["image_embeddings/unicorn/00001.safetensors"]["sha256"] = (
        "0" * 64
    )
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"holds another image_embeddings/unicorn/00001\.safetensors"):
        export(str(text), "original", tmp_path / "out", str(other))
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_before_any_work(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ExportError, match=r"needs the library of that name: pip install -r requirements-export\.txt"):
        export(str(built / CAPTIONS), "webdataset", tmp_path / "out")


def test_a_directory_that_cannot_be_written_is_named(built: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for form, name in FORMATS.items():
        with pytest.raises(RunError, match="cannot write .*file"):
            export(str(built / CAPTIONS), form, tmp_path / "file" / name)

"""Built data sets: ``verify`` finds what is wrong in them, ``repair`` writes it again from the run, to the byte."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.errors import RunError
from generation.verification.command import verify
from generation.verification.faults import Fault
from generation.verification.rebuild import rebuild
from tests.conftest import generation, manifest
from tests.damage import edit, flip, record_again, rewrite_rows, rewrite_tensors, state
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

BOTH = (Unicorn12M, Unicorn471KInstruction)
TEXT, VECTORS = "data/train-00001-of-00003.parquet", "with_embeddings/train-00001-of-00003.parquet"
SHARD, STATISTICS = "image_embeddings/unicorn/00001.safetensors", "transfer/unicorn.safetensors"
CARD, PICTURE = "README.md", "figures/lengths.png"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """Copies of both data sets."""
    shutil.copytree(built, tmp_path / "built")
    return tmp_path / "built"


@pytest.fixture
def captions(folder: Path) -> Path:
    return folder / "unicorn-1.2m"


def found(path: Path, embeddings: Path | None = None) -> list[Fault]:
    return verify(path, embeddings).faults


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_any_file_is_found(captions: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(manifest(captions)["built"]["files"])))
    content = (captions / name).read_bytes()
    flip(captions / name, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
    try:
        (fault,) = found(captions)
        assert (fault.file, "was changed" in fault.what) == (name, True)
    finally:
        (captions / name).write_bytes(content)


def test_every_file_but_the_manifest_is_recorded(built: Path) -> None:
    for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
        files = {str(path.relative_to(built / name)) for path in (built / name).rglob("*") if path.is_file()}
        assert manifest(built / name)["built"]["files"].keys() == files - {"manifest.json"}


def change_vectors(path: Path, row: int) -> None:
    table = pq.read_table(path)
    rows = np.array(table["image_embedding"].combine_chunks().flatten()).reshape(len(table), -1).copy()
    rows[row] = np.roll(rows[row], 1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    pq.write_table(
        table.set_column(table.num_columns - 1, "image_embedding", column.cast(table.schema[-1].type)), path
    )


def test_vectors_that_are_not_the_shards_are_found_by_row(folder: Path) -> None:
    talks = folder / "unicorn-471k-instruction"
    for path, embeddings in ((folder / "unicorn-1.2m", None), (talks, folder / "unicorn-1.2m")):
        name = sorted(name for name in manifest(path)["built"]["files"] if name.startswith("with_"))[0]
        change_vectors(path / name, 1)
        record_again(path, name)
        (fault,) = [fault for fault in found(path, embeddings) if "vector" in fault.what]
        assert (fault.file, fault.row) == (name, 1)
        assert "its vector is not that of its embedding_row in" in fault.what
    assert "were not held against their shards" in verify(talks).notes[0]


ROWS: dict[str, tuple[str, Any, str, int | None, str]] = {
    "another caption": (TEXT, {"caption": "A dog."}, VECTORS, None, "its column caption is not that of data/"),
    "another vector's row": (VECTORS, {"embedding_row": 7}, VECTORS, 2, "its id is not that of its embedding_row in"),
    "a row that is not there": (VECTORS, {"embedding_row": 8}, VECTORS, 2, "embedding_row is 8; there are 8 rows"),
    "no id": (TEXT, {"id": "7"}, TEXT, 2, "the id '7' is no ten digits"),
    "an id twice": (TEXT, {"id": "0000100003"}, TEXT, 3, "is there a second time"),
    "another text than embedded": (
        VECTORS,
        {"caption": "A dog."},
        VECTORS,
        2,
        "its text is not that of its embedding_row in",
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_do_not_belong_are_found(what: str, captions: Path) -> None:
    name, change, home, row, words = ROWS[what]
    rewrite_rows(captions, name, lambda rows: rows[2].update(change))
    assert [fault.row for fault in found(captions) if fault.file == home and words in fault.what] == [row]


def test_an_id_that_two_parts_hold_is_found(captions: Path) -> None:
    rewrite_rows(captions, TEXT, lambda rows: rows[0].update(id="0000000000"))
    assert any("the id 0000000000 is there a second time" in fault.what for fault in found(captions))


def test_shards_and_statistics_are_held_against_each_other(captions: Path) -> None:
    rewrite_tensors(captions, STATISTICS, lambda tensors, facts: facts.update(rows=1, note="x"))
    whats = [(fault.file, fault.what[:40]) for fault in found(captions)]
    assert (SHARD, "says that its statistics_sha256 is ") in [(file, what[:35]) for file, what in whats]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_examples: 18", "num_examples: 17", "num_examples is 17; the files make 18"),
        ("download_size: ", "download_size: 9", "download_size is 9"),
        ("- name: caption", "- name: title", "has other columns"),
        ("dataset_info:", "dataset_info: [", "its header cannot be read"),
    ],
)
def test_a_card_with_other_numbers_or_columns_is_found(captions: Path, old: str, new: str, words: str) -> None:
    text = (captions / CARD).read_text(encoding="utf-8")
    (captions / CARD).write_text(text.replace(old, new, 1), encoding="utf-8")
    record_again(captions, CARD)
    assert any(words in fault.what for fault in found(captions))


@pytest.mark.parametrize("name", [TEXT, VECTORS, SHARD, STATISTICS, CARD, PICTURE])
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_broken_file_is_written_again_to_the_byte_and_no_other_is_touched(
    name: str, how: str, captions: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (captions / name).read_bytes()
    flip(captions / name) if how == "flipped" else (captions / name).unlink()
    before = state(captions)
    rebuild(captions, finished_run, BOTH)
    after = state(captions)
    assert (captions / name).read_bytes() == whole
    assert {file for file in after if after[file] != before.get(file)} == {name}
    assert f"{name}: written again, byte for byte as it was" in capsys.readouterr().out
    aside = captions.with_name("unicorn-1.2m.damaged") / name
    assert aside.exists() == (how == "flipped")
    assert not captions.with_name(".unicorn-1.2m.repair").exists()
    assert found(captions) == []


def test_both_data_sets_are_repaired_by_the_command(folder: Path, finished_run: Path) -> None:
    path = folder / "unicorn-471k-instruction"
    before = state(path)
    for name in manifest(path)["built"]["files"]:
        flip(path / name)
    (path / "notes.txt").write_text("x")
    edit(path, "built", "files", "data/train-00000-of-00008.parquet", "rows", value=77)
    assert generation("repair", path, "--run-dir", finished_run, "--dry-run").returncode == 0
    assert len(found(path)) == len(manifest(path)["built"]["files"]) + 1
    done = generation("repair", path, "--run-dir", finished_run)
    assert done.returncode == 0, done.stderr
    after = state(path)
    assert {name: facts[2] for name, facts in after.items()} == {name: facts[2] for name, facts in before.items()}
    assert found(path, folder / "unicorn-1.2m") == []


def test_a_run_that_builds_other_bytes_is_refused_and_nothing_is_replaced(captions: Path, run_copy: Path) -> None:
    flip(captions / TEXT)
    flip(captions / SHARD)
    before = state(captions)
    rewrite_rows(run_copy, "captions/00001.parquet", lambda rows: rows[0].update(prompt="other@1.0.0"))
    with pytest.raises(RunError, match=r"train-00001-of-00003\.parquet \(sha256 .*\) came out otherwise from"):
        rebuild(captions, run_copy, BOTH)
    after = state(captions)
    assert {name for name in after if after[name] != before[name]} == {SHARD}


def test_a_kill_between_two_files_is_taken_up(
    captions: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: facts[2] for name, facts in state(captions).items()}
    for name in (TEXT, VECTORS, SHARD):
        flip(captions / name)
    calls, replace = iter(range(100)), os.replace

    def cut_short(*paths: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr("os.replace", cut_short)
    with pytest.raises(KeyboardInterrupt):
        rebuild(captions, finished_run, BOTH)
    monkeypatch.undo()
    rebuild(captions, finished_run, BOTH)
    assert {name: facts[2] for name, facts in state(captions).items()} == whole


def test_options_of_the_other_kind_are_refused(captions: Path, finished_run: Path, tmp_path: Path) -> None:
    refused = generation("repair", captions)
    assert "is a built data set, which is repaired from its run: --run-dir RUN, and no --config" in refused.stderr
    refused = generation("repair", finished_run, "--run-dir", tmp_path)
    assert "--run-dir is for built data sets" in refused.stderr
    edit(captions, "built", "name", value="other")
    flip(captions / TEXT)
    with pytest.raises(RunError, match="built.name is 'other'; there is no builder of that name"):
        rebuild(captions, finished_run, BOTH)


def test_machines_are_told_what_mends_a_data_set(captions: Path) -> None:
    (captions / PICTURE).unlink()
    (fault,) = json.loads(generation("verify", captions, "--json").stdout)["faults"]
    assert (fault["file"], fault["remedy"]) == (PICTURE, f"python -m generation repair {captions} --run-dir RUN")

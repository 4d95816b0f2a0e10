"""``verify`` finds every kind of damage, by file and row, goes on after it, and takes nothing sound for damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.errors import RunError
from generation.verification.command import told, verify
from generation.verification.faults import Fault
from tests.conftest import generation, manifest
from tests.damage import edit, flip, record_again, rewrite_rows, rewrite_tensors, swap

CAPTIONS, SEEDS = "captions/00001.parquet", "seeds/00001.parquet"
TALK = "instructions/question_answering/00000.parquet"
TEXT, IMAGE = "text_embeddings/00001.safetensors", "image_embeddings/unicorn/00001.safetensors"
STATISTICS = "transfer/unicorn.safetensors"


def faults(path: Path) -> list[Fault]:
    return verify(path).faults


def recorded(run: Path) -> list[str]:
    return [name for stage in manifest(run)["stages"].values() for name in stage["files"]]


def test_a_finished_run_and_both_built_sets_are_whole(finished_run: Path, built: Path) -> None:
    before = (finished_run / "manifest.json").stat()
    for path in (finished_run, built / "unicorn-1.2m", built / "unicorn-471k-instruction"):
        found = verify(path)
        assert (found.faults, found.files > 10) == ([], True)
        assert f"{path}: whole, {found.files} files" in told(found, False)
    assert (finished_run / "manifest.json").stat() == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_any_sealed_file_is_found(run_copy: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(recorded(run_copy)))
    path = run_copy / name
    content = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
    try:
        (found,) = faults(run_copy)
        assert (found.file, found.kind) == (name, "file")
        assert "was changed" in found.what
        assert manifest(run_copy)["stages"][stage_of(name)]["files"][name]["sha256"] in found.what
    finally:
        path.write_bytes(content)


def stage_of(name: str) -> str:
    return "image_embeddings/unicorn" if name == STATISTICS else str(Path(name).parent)


@pytest.mark.parametrize("name", [SEEDS, CAPTIONS, TALK, TEXT, IMAGE, STATISTICS])
def test_a_file_that_is_gone_or_cut_short_is_named(run_copy: Path, name: str) -> None:
    (path := run_copy / name).write_bytes(path.read_bytes()[:-9])
    assert [(fault.file, "was changed" in fault.what) for fault in faults(run_copy)] == [(name, True)]
    path.unlink()
    assert [(fault.file, fault.what) for fault in faults(run_copy)] == [(name, "is gone")]


def test_all_faults_are_listed_with_what_mends_them(run_copy: Path) -> None:
    swap(run_copy / "captions/00000.parquet", run_copy / CAPTIONS)
    (run_copy / TEXT).unlink()
    foreign = ["captions/00009.parquet", "notes.txt", "seeds/.00001.parquet.tmp", "captions/00001.jsonl"]
    for name in foreign:
        (run_copy / name).write_text("x")
    done = generation("verify", run_copy)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for name in ("captions/00000.parquet", CAPTIONS, TEXT):
        assert f"{name}: " in done.stdout
    for name in foreign:
        assert f"{name}: is not in the manifest" in done.stdout
    assert f"7 faults in 22 files, 0.1 MB. What mends them: python -m generation repair {run_copy}" in done.stdout


def test_machines_get_one_json_object(run_copy: Path) -> None:
    rewrite_rows(run_copy, SEEDS, lambda rows: rows[3].update(id="0000100009"))
    done = generation("verify", run_copy, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["whole"], found["holds"], found["files"]) == (1, False, "run", 22)
    first = next(fault for fault in found["faults"] if fault["file"] == SEEDS)
    assert (first["row"], first["what"]) == (3, "the id is 0000100009, and should be 0000100003")
    assert first["remedy"] == f"python -m generation repair {run_copy} --config RECIPE"


def exchange(rows: list[Any], one: int, other: int) -> None:
    rows[one], rows[other] = rows[other], rows[one]


ROWS: dict[str, tuple[str, Callable[[Any], Any], int | None, str]] = {
    "no id": (CAPTIONS, lambda rows: rows[2].update(id="12345"), 2, "'12345' is no ten digits"),
    "an id of another shard": (CAPTIONS, lambda rows: rows[2].update(id="0000000002"), 2, "is not of shard 1"),
    "an id twice": (CAPTIONS, lambda rows: rows[5].update(id="0000100004"), 5, "is there a second time"),
    "a lost caption": (CAPTIONS, lambda rows: rows[:-1], None, "1 seeds, the first 0000100007, are neither"),
    "captions out of order": (CAPTIONS, lambda rows: exchange(rows, 3, 4), 4, "0000100003 is out of order"),
    "a caption of another seed": (CAPTIONS, lambda rows: rows[1].update(seed="A dog."), 1, "its seed is not"),
    "another caption than embedded": (CAPTIONS, lambda rows: rows[6].update(caption="A dog."), 6, "its text is not"),
    "a wrong row": (TALK, lambda rows: rows[1].update(caption_row=7), 1, "caption_row 7 has the caption 0000000007"),
    "a row that is not there": (TALK, lambda rows: rows[1].update(caption_row=8), 1, "there are 8 captions"),
    "another shard's caption": (TALK, lambda rows: rows[0].update(caption_shard=1), 0, "caption_shard is 1"),
    "another task": (TALK, lambda rows: rows[0].update(task="chat"), 0, "the task is chat"),
    "half a conversation": (TALK, lambda rows: rows[0]["conversations"].pop(), 0, "the conversation has"),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_do_not_belong_are_found_where_they_are(what: str, run_copy: Path) -> None:
    name, change, row, words = ROWS[what]
    rewrite_rows(run_copy, name, change)
    home = TEXT if "embedded" in what else name
    assert [fault.row for fault in faults(run_copy) if fault.file == home and words in fault.what] == [row]


def test_other_columns_are_named(run_copy: Path) -> None:
    table = pq.read_table(run_copy / CAPTIONS)
    pq.write_table(table.drop(["seed"]), run_copy / CAPTIONS)
    record_again(run_copy, CAPTIONS)
    (found,) = [fault for fault in faults(run_copy) if fault.file == CAPTIONS]
    assert found.what == "has other columns: none in place of seed string"


def vector(row: int, value: float) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda tensors, facts: tensors["embeddings"][row].fill_(value)


TENSORS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any], int | None, str]] = {
    "not finite": (TEXT, vector(3, float("nan")), 3, "norm is nan; wanted norm 1"),
    "not a unit vector": (IMAGE, vector(5, 0.5), 5, "wanted norm 1"),
    "another id": (TEXT, lambda tensors, facts: tensors["ids"][2].fill_(49), 2, f"its id is not that of {CAPTIONS}"),
    "another text": (IMAGE, lambda tensors, facts: tensors["text_sha256"][4].zero_(), 4, f"not that of {TEXT}"),
    "other captions": (TEXT, lambda tensors, facts: facts.update(captions_sha256="0" * 64), None, "captions_sha256"),
    "another encoder": (TEXT, lambda tensors, facts: facts["encoder"].update(model="x"), None, "its encoder is"),
    "another method": (IMAGE, lambda tensors, facts: facts.update(method="none"), None, "its method is none"),
    "another source": (IMAGE, lambda tensors, facts: facts.update(source_sha256="0"), None, "its source_sha256 is 0"),
    "other statistics": (IMAGE, lambda tensors, facts: facts.update(statistics_sha256="0"), None, "statistics_sha256"),
    "another number": (IMAGE, lambda tensors, facts: facts.update(shard=2), None, "its shard is 2; by the manifest"),
    "other rows": (STATISTICS, lambda tensors, facts: facts.update(rows=7), None, "its rows is 7; by the manifest"),
    "other inputs": (STATISTICS, lambda tensors, facts: facts["inputs"].pop("1"), None, "its inputs is"),
    "no statistics": (STATISTICS, lambda tensors, facts: tensors["mean_text"].fill_(float("inf")), None, "not finite"),
    "no shard": (TEXT, lambda tensors, facts: tensors.pop("ids"), None, "is no whole shard of embeddings"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_vectors_that_do_not_belong_are_found_where_they_are(what: str, run_copy: Path) -> None:
    name, change, row, words = TENSORS[what]
    rewrite_tensors(run_copy, name, change)
    assert [fault.row for fault in faults(run_copy) if fault.file == name and words in fault.what] == [row]


def test_norms_bend_by_what_float16_rounds_and_no_more(run_copy: Path) -> None:
    for factor, found in ((1.0009, []), (1.002, [0])):
        rewrite_tensors(run_copy, TEXT, lambda tensors, facts, f=factor: tensors["embeddings"][0].mul_(f))
        assert [fault.row for fault in faults(run_copy) if "norm" in fault.what and fault.file == TEXT] in ([], found)


COUNTS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "rows": (("captions", "files", CAPTIONS, "rows"), 9),
    "bytes": (("seeds", "files", SEEDS, "bytes"), 9),
    "rejected": (("captions", "files", CAPTIONS, "rejected_by_reason"), {"loop": 1}),
    "tokens": (("captions", "files", CAPTIONS, "prompt_tokens"), 1),
    "vectors": (("text_embeddings", "files", TEXT, "rows"), 7),
    "balance": (("captions", "balance", "accepted"), 17),
    "balance of a task": (("instructions/question_answering", "balance", "items"), 1),
    "source": (("seeds", "sources", "bundled", "seeds"), 17),
    "sample": (("instructions/question_answering", "samples", 0, "counts", "1"), 5),
    "statistics": (("instructions/question_answering", "statistics", "items"), 5),
}


@pytest.mark.parametrize("what", COUNTS)
def test_a_count_that_the_files_do_not_make_is_the_manifests_fault(what: str, run_copy: Path) -> None:
    keys, value = COUNTS[what]
    edit(run_copy, "stages", *keys, value=value)
    (found,) = faults(run_copy)
    assert (found.file, found.kind) == ("manifest.json", "record")
    assert ".".join(map(str, ("stages", *keys[:2]))) in found.what


@pytest.mark.parametrize(("keys", "value"), [(("captions", "files", CAPTIONS), None), (("captions", "files"), [])])
def test_a_manifest_that_nothing_can_be_held_against_is_refused(run_copy: Path, keys: Any, value: Any) -> None:
    edit(run_copy, "stages", *keys, value=value)
    done = generation("verify", run_copy)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "manifest.json: the record of captions" in done.stderr


def test_a_directory_that_is_neither_is_named(tmp_path: Path, finished_run: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        verify(tmp_path)
    with pytest.raises(RunError, match="--embeddings is for built data sets"):
        verify(finished_run, tmp_path)

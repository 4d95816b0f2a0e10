"""The run directory: what is sealed stays as it was, what changed is named, and one process writes at a time."""

import errno
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError, safe_open

from generation.errors import RunError
from generation.rundir import RunDir

ROOT = Path(__file__).parent.parent
TABLE = pa.table({"id": ["0000000000", "0000000001"], "caption": ["A dog.", "A cat."]})
REJECTED = pa.table({"id": ["0000000002"], "reason": ["loop"]})
FINGERPRINT: dict[str, Any] = {"min_words": 51, "prompt": {"of": {"id": "a"}, "sha256": "00"}, "files": ("a", "b")}


def begun(path: Path, *stages: str) -> RunDir:
    run = RunDir(path / "run", create=True)
    for stage in stages:
        run.begin(stage, FINGERPRINT)
    return run


def sealed(path: Path, stage: str = "captions", shards: int = 1, rejected: pa.Table | None = None) -> RunDir:
    run = begun(path, stage)
    for shard in range(shards):
        run.seal_tables(stage, shard, TABLE, rejected, prompt_tokens=7)
    return run


def reopened(run: RunDir) -> RunDir:
    return RunDir(run.path)


def files(run: RunDir) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changed", ["refuse", "keep", "discard"])
def test_a_stage_resumed_with_the_same_settings_keeps_its_record(tmp_path: Path, changed: Any) -> None:
    run = sealed(tmp_path)
    record = reopened(run).begin("captions", FINGERPRINT, changed)
    assert record["fingerprint"] == {**FINGERPRINT, "files": ["a", "b"]}
    assert list(record["files"]) == ["captions/00000.parquet"]


def test_a_stage_begun_with_other_settings_names_each_with_old_and_new_value(tmp_path: Path) -> None:
    run = sealed(tmp_path)
    before = reopened(run).manifest
    other = {"min_words": 60, "prompt": {"of": {"id": "b"}, "sha256": "00"}, "new": True}
    with pytest.raises(RunError) as caught:
        reopened(run).begin("captions", other)
    message = str(caught.value)
    assert "stage 'captions' was begun with other settings" in message
    changes = ("min_words: 51 -> 60", "prompt.of.id: 'a' -> 'b'", "files: ['a', 'b'] -> None")
    assert all(change in message for change in (*changes, "new: None -> True"))
    assert "sha256" not in message
    assert reopened(run).manifest == before


@pytest.mark.parametrize(("changed", "kept"), [("keep", [0, 1]), ("discard", [])])
def test_new_settings_may_keep_or_discard_the_sealed_files(tmp_path: Path, changed: Any, kept: list[int]) -> None:
    run = reopened(sealed(tmp_path, shards=2))
    run.begin("captions", {"min_words": 60}, changed)
    assert run.sealed("captions") == reopened(run).sealed("captions") == kept
    assert run.begin("captions", {"min_words": 60})["fingerprint"] == {"min_words": 60}
    with pytest.raises(RunError, match="min_words: 60 -> 51"):
        run.begin("captions", FINGERPRINT)


def test_a_pinned_fact_binds_the_stage_from_then_on(tmp_path: Path) -> None:
    run = begun(tmp_path, "captions")
    run.pin("captions", model={"id": "small", "sha": "1"})
    run = reopened(run)
    run.begin("captions", FINGERPRINT)
    run.pin("captions", model={"id": "small", "sha": "1"})
    before = reopened(run).manifest
    with pytest.raises(RunError, match=r"model\.id: 'small' -> 'large'; model\.sha: '1' -> None\."):
        run.pin("captions", model={"id": "large"})
    assert reopened(run).manifest == before


@pytest.mark.parametrize("call", [RunDir.stage, RunDir.pin, RunDir.note])
def test_a_stage_that_was_not_begun_is_named(tmp_path: Path, call: Any) -> None:
    with pytest.raises(RunError, match="stage 'captions' has not been run"):
        call(begun(tmp_path), "captions")


def test_a_stage_is_finished_once_every_source_shard_has_its_counterpart(tmp_path: Path) -> None:
    run = begun(tmp_path, "seeds", "captions")
    with pytest.raises(RunError, match="stage 'captions' has 0 of 0 shards"):
        run.finished("captions", "seeds")
    for shard in range(2):
        run.seal_tables("seeds", shard, TABLE, None)
    for shard in range(2):
        with pytest.raises(RunError, match=f"stage 'captions' has {shard} of 2 shards; run it to its end first"):
            run.finished("captions", "seeds")
        run.seal_tables("captions", shard, TABLE, None)
    assert reopened(run).finished("captions", "seeds") == [0, 1]


@pytest.mark.parametrize("stage", ["captions", "instructions/multiple_choice"])
def test_a_sealed_shard_is_recorded_with_rows_bytes_and_hash(tmp_path: Path, stage: str) -> None:
    run = reopened(sealed(tmp_path, stage, rejected=REJECTED))
    assert files(run) == {"manifest.json", f"{stage}/00000.parquet", f"rejected/{stage}/00000.parquet"}
    for name, rows in ((f"{stage}/00000.parquet", 2), (f"rejected/{stage}/00000.parquet", 1)):
        content = (run.path / name).read_bytes()
        record = run.stage(stage)["files"][name]
        assert (record["rows"], record["bytes"]) == (rows, len(content))
        assert record["sha256"] == sha256(content).hexdigest()
    assert run.record(stage, 0)["prompt_tokens"] == 7
    assert run.sealed(stage) == [0]
    assert run.table(stage, 0) == TABLE
    assert pq.read_table(run.path / "rejected" / stage / "00000.parquet") == REJECTED


@pytest.mark.parametrize("rejected", [None, REJECTED[:0]], ids=["none", "empty"])
def test_a_shard_without_rejected_rows_has_no_file_of_them(tmp_path: Path, rejected: pa.Table | None) -> None:
    assert files(sealed(tmp_path, rejected=rejected)) == {"manifest.json", "captions/00000.parquet"}


@pytest.mark.parametrize("position", [0, 0.5, -1], ids=["first", "middle", "last"])
def test_a_sealed_file_with_one_flipped_byte_is_refused(tmp_path: Path, position: float) -> None:
    run = reopened(sealed(tmp_path))
    path = run.shard_path("captions", 0)
    content = bytearray(path.read_bytes())
    content[int(position * len(content)) if position > 0 else int(position)] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        run.table("captions", 0)
    assert f"{path} was changed after it was sealed" in str(caught.value)
    assert f"`python -m generation verify {run.path}` lists all that is wrong, and `repair` mends it" in str(
        caught.value
    )


def test_a_deleted_file_is_refused(tmp_path: Path) -> None:
    run = reopened(sealed(tmp_path))
    (path := run.shard_path("captions", 0)).unlink()
    with pytest.raises(RunError) as caught:
        run.table("captions", 0)
    assert f"{path} is gone; `python -m generation verify {run.path}` lists all that is wrong" in str(caught.value)


def test_a_file_that_is_not_recorded_is_refused(tmp_path: Path) -> None:
    run = reopened(sealed(tmp_path))
    path = run.shard_path("captions", 1)
    pq.write_table(TABLE, path)
    with pytest.raises(RunError) as caught:
        run.table("captions", 1)
    assert f"{path} is not recorded in the manifest" in str(caught.value)
    assert run.sealed("captions") == [0]


def test_sealing_the_same_table_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (sealed(tmp_path / name, rejected=REJECTED) for name in "ab")
    assert first.stage("captions")["files"] == second.stage("captions")["files"]


def test_sealing_the_same_tensors_and_metadata_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run = begun(tmp_path, "text_embeddings")
    metadata = {f"key {number}": number for number in range(9)}
    contents = set()
    for shard in range(8):
        path = run.shard_path("text_embeddings", shard)
        tensors = {"embeddings": torch.arange(6.0).reshape(3, 2), "ids": torch.arange(3)}
        ordered = dict(sorted(metadata.items(), reverse=bool(shard % 2)))
        run.seal_tensors("text_embeddings", path, tensors, ordered, rows=3)
        contents.add(path.read_bytes())
    (content,) = contents
    record = reopened(run).record("text_embeddings", 0)
    assert record == {"bytes": len(content), "sha256": sha256(content).hexdigest(), "rows": 3}
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["unicorn"]) == metadata
        assert file.get_tensor("embeddings").tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a manifest"),
        (b'{"format": 1, "stages": {"capt', "cannot be read as a manifest"),
        (b"\xff\xfe", "cannot be read as a manifest"),
        (b"[]", "cannot be read as a manifest"),
        (b"{}", "cannot be read as a manifest"),
        (b'{"format": 2, "stages": {}}', "has format 2; this version of the code reads format 1"),
        (b'{"format": null}', "has format None"),
    ],
)
def test_a_torn_or_foreign_manifest_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        RunDir(tmp_path, create=True)
    assert str(caught.value).startswith(f"{path} {words}")
    assert path.read_bytes() == content


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        RunDir(tmp_path)


def raise_os_error(code: int) -> None:
    raise OSError(code, os.strerror(code))


def write_half(*arguments: Any, **_: Any) -> None:
    next(path for path in arguments if isinstance(path, Path)).write_bytes(b'{"form')
    raise_os_error(errno.ENOSPC)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "fault", "raised"),
    [
        ("pathlib.Path.write_text", write_half, RunError),
        ("generation.files._sync", interrupt, KeyboardInterrupt),
        ("os.replace", interrupt, KeyboardInterrupt),
    ],
)
def test_a_manifest_write_that_fails_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Any, raised: type[BaseException]
) -> None:
    run = sealed(tmp_path)
    before, content = files(run), (run.path / "manifest.json").read_bytes()
    monkeypatch.setattr(name, fault)
    with pytest.raises(raised):
        run.note("captions", complete=True)
    assert files(run) == before
    assert (run.path / "manifest.json").read_bytes() == content


def test_a_shard_that_cannot_be_written_is_named_and_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sealed(tmp_path)
    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(RunError) as caught:
        run.seal_tables("captions", 1, TABLE, None)
    assert f"cannot write {run.shard_path('captions', 1)}: No space left on device" in str(caught.value)
    assert files(run) == {"manifest.json", "captions/00000.parquet"}
    assert reopened(run).sealed("captions") == [0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    run = begun(tmp_path)
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/file/run: Not a directory"):
        RunDir(tmp_path / "file" / "run", create=True)
    monkeypatch.setattr("os.open", lambda *_: raise_os_error(errno.EROFS))
    with pytest.raises(RunError, match=f"cannot write {run.path}: Read-only file system"), run.lock():
        pass


HOLD = """
import sys, time
from pathlib import Path
from generation.rundir import RunDir

with RunDir(Path(sys.argv[1]), create=True).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_of_another_process_is_refused_and_freed_by_its_death(tmp_path: Path) -> None:
    run = RunDir(tmp_path, create=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(RunError, match=f"{tmp_path} is in use by another process"), run.lock():
                pass
        finally:
            process.kill()
    with run.lock():
        pass


def test_a_lock_is_freed_when_its_work_fails(tmp_path: Path) -> None:
    run = RunDir(tmp_path, create=True)
    with pytest.raises(ZeroDivisionError), run.lock():
        with pytest.raises(RunError, match="in use"), RunDir(tmp_path, create=True).lock():
            pass
        raise ZeroDivisionError
    with run.lock():
        pass


def test_a_lock_shows_what_others_wrote_before_it_was_taken(tmp_path: Path) -> None:
    run = begun(tmp_path, "captions")
    early = reopened(run)
    with run.lock():
        run.seal_tables("captions", 0, TABLE, None)
    with early.lock():
        early.begin("seeds", {})
    assert reopened(run).sealed("captions") == [0]


def test_later_pins_keep_earlier_ones(tmp_path: Path) -> None:
    run = begun(tmp_path, "captions")
    run.pin("captions", model="m")
    run.pin("captions", encoder="e")
    assert reopened(run).begin("captions", {"words": 1}, changed="keep")["fingerprint"]["model"] == "m"


def test_a_full_disk_is_told_alike_for_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    run = begun(tmp_path, "text_embeddings")
    with pytest.raises(RunError, match="No space left"):
        run.seal_tensors("text_embeddings", run.shard_path("text_embeddings", 0), {}, {})
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_manifest_without_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match="cannot be read as a manifest"):
        RunDir(tmp_path)


def test_a_path_through_a_file_is_told_as_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/run"):
        RunDir(tmp_path / "file" / "run", create=True)

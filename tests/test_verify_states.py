"""``verify`` of runs that are on their way: unfinished, in use, with rejected rows, driven again, judged, imported."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from generation.errors import RunError
from generation.rundir import RunDir
from generation.verification.command import verify
from generation.verification.faults import Findings
from generation.verification.repair import repair_run
from tests.conftest import generation, manifest, write_recipe
from tests.damage import edit, flip, rewrite_rows
from tests.fake_tgi import FakeTGI, Fault
from tests.test_original_import import defective, imported
from tests.test_pipeline import answered, start, wait_until
from tests.test_rundir import HOLD, ROOT


def said(found: Findings) -> str:
    return " | ".join(found.notes)


@pytest.fixture(scope="module")
def spoiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of 18 seeds of which four were rejected; no later stage is begun."""
    folder = tmp_path_factory.mktemp("spoiled")
    options = ("--config", write_recipe(folder, captions_section={"attempts": 1}), "--run-dir", folder / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(faults=[Fault("garbage", frozenset({3, 7, 11, 17}))]) as server:
        assert generation("captions", *options, "--endpoint", server.url).returncode == 0
    return folder / "run"


@pytest.fixture
def spoiled(spoiled_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(spoiled_once, tmp_path / "run")
    shutil.copy(spoiled_once.parent / "recipe.yaml", tmp_path)
    return tmp_path / "run"


def test_rejected_rows_and_such_as_were_recovered_are_whole(spoiled: Path) -> None:
    assert verify(spoiled).faults == []
    with FakeTGI() as server:
        assert generation("retry", spoiled, "--endpoint", server.url).returncode == 0
    assert verify(spoiled).faults == []


def test_a_row_that_is_accepted_and_rejected_is_found(spoiled: Path) -> None:
    name = next(name for name in manifest(spoiled)["stages"]["captions"]["files"] if name.startswith("rejected/"))
    shard = name.split("/")[-1]
    accepted = RunDir(spoiled).table("captions", int(shard[:5]))["id"][0].as_py()
    rewrite_rows(spoiled, name, lambda rows: rows[0].update(id=accepted))
    found = [(fault.row, fault.what) for fault in verify(spoiled).faults if fault.file == f"captions/{shard}"]
    assert (0, f"the id {accepted} is also among the rejected rows") in found
    assert any("are neither captions nor rejected rows" in what for _, what in found)


def test_reasons_are_counted(spoiled: Path) -> None:
    files = manifest(spoiled)["stages"]["captions"]["files"]
    name = next(name for name in files if name.startswith("captions/") and files[name]["rejected_by_reason"])
    count = files[name]["rejected_by_reason"]["too_short"]
    edit(spoiled, "stages", "captions", "files", name, "rejected_by_reason", value={"loop": count})
    (found,) = verify(spoiled).faults
    assert f"is {{'loop': {count}}}, but the rows make {{'too_short': {count}}}" in found.what


def test_an_unfinished_run_is_no_fault_and_is_said(run_copy: Path) -> None:
    """Killed in mid-stage, with a journal, a shard that is not recorded yet, and a write that was cut short."""
    run = RunDir(run_copy)
    for stage in ("image_embeddings/unicorn", "text_embeddings"):
        run.unseal(stage, 1)
    for name in ("captions/00001.jsonl", "text_embeddings/.00001.safetensors.tmp"):
        (run_copy / name).write_text("")
    run.unseal("captions", 1, rows=0, rejected_by_reason={})
    found = verify(run_copy)
    assert found.faults == []
    assert "captions is unfinished (2 shards made, 1 due); it goes on with: captions" in found.notes
    assert "text_embeddings is unfinished" in said(found)
    (run_copy / "captions" / "00002.jsonl").write_text("")
    assert [fault.file for fault in verify(run_copy).faults] == ["captions/00002.jsonl"]


def test_a_damaged_line_of_a_journal_is_found_and_a_torn_last_one_is_none(run_copy: Path) -> None:
    RunDir(run_copy).unseal("captions", 1, rows=0, rejected_by_reason={})
    journal = run_copy / "captions" / "00001.jsonl"
    journal.write_bytes(b'{"id": "0000100000", "row": {}}\n{"id": 7, \n{"row": {}}\n{"id": "00001')
    before = journal.read_bytes()
    assert [(fault.file, fault.row, fault.kind) for fault in verify(run_copy).faults] == [
        ("captions/00001.jsonl", 2, "journal"),
        ("captions/00001.jsonl", 3, "journal"),
    ]
    assert journal.read_bytes() == before


def test_a_run_in_use_is_judged_by_what_is_not_being_written(run_copy: Path) -> None:
    flip(run_copy / "captions/00001.parquet")
    (run_copy / "captions" / "00007.parquet").write_text("")
    with subprocess.Popen([sys.executable, "-c", HOLD, run_copy], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            found = verify(run_copy)
        finally:
            process.kill()
    assert [fault.file for fault in found.faults] == ["captions/00001.parquet"]
    assert "another process uses this run; what it was writing was not judged" in found.notes
    assert [fault.file for fault in verify(run_copy).faults] == ["captions/00001.parquet", "captions/00007.parquet"]


def test_a_run_whose_captions_are_being_made_has_no_fault(tmp_path: Path) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(faults=[Fault("hang", frozenset(range(12, 99)))]) as server:
        process = start("captions", *options, "--endpoint", server.url)
        wait_until(lambda: answered(server) > 11)
        found = verify(tmp_path / "run")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert found.faults == []
    assert "captions is unfinished" in said(found)
    assert verify(tmp_path / "run").faults == []


def test_embeddings_of_texts_that_are_no_more_are_said(run_copy: Path) -> None:
    run = RunDir(run_copy)
    fingerprint = run.stage("image_embeddings/unicorn")["fingerprint"]
    edit(run_copy, "stages", "image_embeddings/unicorn", "fingerprint", "inputs", "1", value="0" * 64)
    assert "image_embeddings/unicorn was made from other text embeddings" in said(verify(run_copy))
    assert fingerprint["inputs"]["1"] != "0" * 64


def test_verdicts_of_a_judge_are_checked(run_copy: Path) -> None:
    with FakeTGI() as server:
        options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy, "--endpoint", server.url)
        judged = generation("instructions", *options, "--judge", server.url)
        assert judged.returncode == 0, judged.stderr
    assert verify(run_copy).faults == []
    files = manifest(run_copy)["stages"]["judgements/multiple_choice"]["files"]
    name = next(name for name, facts in files.items() if name.startswith("judgements/") and facts["rows"])
    rewrite_rows(run_copy, name, lambda rows: rows[0].update(turn=9))
    (first, *_) = verify(run_copy).faults
    assert (first.file, first.row) == (name, 0)
    assert "turn 9 of" in first.what


def test_an_imported_run_is_checked_like_any_other_and_not_asked_for_again(tmp_path: Path) -> None:
    run, _ = imported(tmp_path, defective(tmp_path))
    assert verify(run).faults == []
    name = next(name for name in manifest(run)["stages"]["captions"]["files"] if name.startswith("captions/"))
    flip(run / name)
    assert [fault.file for fault in verify(run).faults] == [name]
    before = (run / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="imported from the original's files, so no server can be asked"):
        repair_run(RunDir(run), None)
    assert (run / "manifest.json").read_bytes() == before

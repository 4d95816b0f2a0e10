"""A disk that is full, and places that cannot be written: a clear error, and what was answered stays."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from generation.rehearsal.faults import full_disk
from tests.conftest import ROOT, command, generation, rows, write_recipe
from tests.fake_tgi import FakeTGI
from tests.test_pipeline import answered

FEW_BYTES = 8_000  # largest size of any file: enough for the seeds and for some rows of a journal


def on_a_full_disk(arguments: list[Any]) -> subprocess.CompletedProcess[str]:
    """A command, no file of which can grow beyond ``FEW_BYTES``."""
    return subprocess.run(
        arguments, cwd=ROOT, preexec_fn=full_disk(FEW_BYTES), capture_output=True, text=True, check=False
    )


def test_a_disk_that_fills_up_in_mid_run_stops_it_with_every_answer_kept(tmp_path: Path) -> None:
    run, options = tmp_path / "run", ("--config", write_recipe(tmp_path, shard_rows=18), "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI() as server:
        stopped = on_a_full_disk(command("captions", *options, "--endpoint", server.url))
        assert stopped.returncode == 1
        assert "00000.jsonl: No space left on device. Every line before is kept" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        kept = (run / "captions" / "00000.jsonl").read_bytes().count(b"\n")
        assert 0 < kept < 18
        before = answered(server)
        assert generation("captions", *options, "--endpoint", server.url).returncode == 0
        assert answered(server) - before == 18 - kept + 1  # and the warm-up
    assert len(rows(run, "captions")) == 18


def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    refused = generation("seeds", "--config", write_recipe(tmp_path), "--run-dir", "/proc/run")
    assert refused.returncode == 1
    assert "cannot write /proc/run" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_build_on_a_full_disk_says_so_and_leaves_nothing_behind(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "unicorn-1.2m"
    stopped = on_a_full_disk([sys.executable, "unicorn_1_2m.py", "--run-dir", finished_run, "--output", output])
    assert stopped.returncode == 1
    assert f"error: cannot write {output}: " in stopped.stderr
    assert "give the same command again" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert list(tmp_path.iterdir()) == []

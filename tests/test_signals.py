"""SIGINT and SIGTERM: asking stops at once, what is in flight gets its time, and the run says how to go on."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, generation, manifest, rows, write_recipe
from tests.fake_tgi import FakeTGI, Fault
from tests.test_pipeline import answered, start, wait_until

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def ended(run: Path) -> int:
    """Rows in journals and sealed shards."""
    return sum(1 for path in (run / "captions").glob("*.jsonl") for _ in path.open()) + len(rows(run, "captions"))


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_in_flight_is_answered_nothing_more_is_asked_and_the_command_shown_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    run, options = tmp_path / "a run", ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "a run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(max_concurrent_requests=4, latency_s=0.5) as server:
        process = start("captions", *options, "--endpoint", server.url)
        wait_until(lambda: answered(server) >= 1 + 4)
        process.send_signal(number)
        asked = answered(server)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert answered(server) <= asked + 1  # one may have been on its way
        assert ended(run) == answered(server) - 1  # all but the warm-up
        command = said.strip().splitlines()[-1].strip()
        assert shlex.split(command)[1:4] == ["-m", "generation", "captions"]
        assert subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=False).returncode == 0
        assert answered(server) == 18 + 2
    sessions = manifest(run)["stages"]["captions"]["sessions"]
    assert sum(session["rows"] for session in sessions) == 18


@pytest.mark.parametrize("number", SIGNALS)
def test_a_server_that_hangs_is_waited_for_no_longer_than_the_grace_period(
    number: signal.Signals, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, server={"grace_s": 0.5})
    options = ("--config", recipe, "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(faults=[Fault("hang", frozenset(range(5, 100)))]) as server:
        process = start("captions", *options, "--endpoint", server.url)
        wait_until(lambda: answered(server) > 6)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert ended(tmp_path / "run") == 4


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, server={"grace_s": 600})
    options = ("--config", recipe, "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(faults=[Fault("hang", frozenset(range(5, 100)))]) as server:
        process = start("captions", *options, "--endpoint", server.url)
        wait_until(lambda: answered(server) > 6)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        process.communicate(timeout=20)
    assert process.returncode == 130

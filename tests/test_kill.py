"""Real processes on one run: killed with kill -9, stopped with signals, and side by side, over real HTTP."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generation.stages import CAPTIONS
from generation.store import Run
from tests.conftest import ROOT, command
from tests.fake_server import FakeServer, Reply
from tests.test_engine import data, make_run, rejected, rows, sampling_seed

SHARDS, ROWS, LIMIT = 3, 40, 8
CHILD = """
import sys
from pathlib import Path
from generation.config import Server
from generation import engine
from generation.errors import Interrupted
from generation.store import Run
from tests.test_engine import FakeTask

path, url, rank, world_size = sys.argv[1:]
try:
    engine.generate(Run(Path(path)), [FakeTask()], Server(endpoints=(url,)), int(rank), int(world_size))
except Interrupted:
    sys.exit(130)
"""


def script(body: dict[str, Any], n: int) -> str | None:
    """Let rows 3 fail always, and rows 1 where the sampling seed is even."""
    row = body["messages"][-1]["content"].split()[-1]
    return "bad too_short" if row == "3" or (row == "1" and body["seed"] % 2 == 0) else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("undisturbed") / "run", SHARDS, ROWS)
    with FakeServer("tgi", script=script) as server:
        assert finish(start(run, server)) == 0
    assert (len(rows(run)), len(rejected(run))) == (SHARDS * (ROWS - 1), SHARDS)
    return run


def start(run: Run, server: FakeServer, rank: int = 0, world_size: int = 1, **options: Any) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(run.path), server.url, str(rank), str(world_size)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str]) -> int:
    assert "Traceback" not in (said := process.communicate(timeout=120)[1]), said
    return process.returncode


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def asked(server: FakeServer) -> Counter[tuple[str, int]]:
    return Counter((body["messages"][-1]["content"], body["seed"]) for body in server.bodies)


def ended(run: Run) -> int:
    journaled = sum(path.read_bytes().count(b"\n") for path in run.directory(CAPTIONS).glob("[0-9]*.jsonl"))
    return journaled + len(rows(run)) + len(rejected(run))


def test_kill_9_loses_nothing_and_repeats_at_most_what_was_in_flight(tmp_path: Path, undisturbed: Run) -> None:
    run, chance, kills = make_run(tmp_path / "run", SHARDS, ROWS), random.Random(0), 0
    with FakeServer("tgi", script=script, latency_s=0.02, limit=LIMIT) as server:
        for _ in range(8):
            target = server.counts["answers"] + chance.randrange(1, 16)
            process = start(run, server)
            wait_until(lambda: server.counts["answers"] >= target or process.poll() is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        assert kills >= 6 and finish(start(run, server)) == 0
    assert data(run) == data(undisturbed)
    first = {sampling_seed(shard, row, 1) for shard in range(SHARDS) for row in range(ROWS)}
    again = sum(count - 1 for (_, seed), count in asked(server).items() if seed in first)
    assert again - server.counts["429"] <= kills * LIMIT + (kills + 1)  # one warm-up a session
    assert not list(run.directory(CAPTIONS).glob("[0-9]*.jsonl"))


@pytest.mark.parametrize("ranks", [[(0, 2), (1, 2)], [(0, 1), (0, 1)]], ids=["ranks", "no ranks"])
def test_two_processes_share_a_run(tmp_path: Path, undisturbed: Run, ranks: list[tuple[int, int]]) -> None:
    run = make_run(tmp_path / "run", SHARDS, ROWS)
    with FakeServer("tgi", script=script, latency_s=0.02) as server:
        processes = [start(run, server, *rank) for rank in ranks]
        assert [finish(process) for process in processes] == [0, 0]
    assert data(run) == data(undisturbed)
    assert sum(asked(server).values()) - len(asked(server)) <= 2  # warm-ups


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_requests_in_flight_finish_also_in_a_background_job(
    tmp_path: Path, undisturbed: Run, number: signal.Signals
) -> None:
    run = make_run(tmp_path / "run", SHARDS, ROWS)
    with FakeServer("tgi", script=script, latency_s=0.3, limit=4) as server:
        ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 (as a shell starts `command &`)
        process = start(run, server, preexec_fn=ignore)
        wait_until(lambda: server.counts["answers"] >= 1 + 4)
        process.send_signal(number)
        before = server.counts["requests"]
        assert finish(process) == 130
        assert server.counts["requests"] <= before + 4  # may have been on their way
        assert ended(run) >= len(asked(server)) - 1 - 4  # but for the warm-up, and rows that have attempts left
        server.latency_s, server.limit = 0, None
        assert finish(start(run, server)) == 0
    assert data(run) == data(undisturbed)
    assert [session["rows"] > 0 for session in run.sessions(CAPTIONS)] == [True, True]


def test_a_server_that_hangs_is_left_at_a_second_signal(tmp_path: Path) -> None:  # after GRACE_S: test_signals.py
    run = make_run(tmp_path / "run", 1, 12)
    with FakeServer("tgi", script=lambda body, n: Reply(action="hang") if n >= 5 else None, limit=4) as server:
        process = start(run, server)
        wait_until(lambda: server.counts["requests"] >= 6)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert finish(process) == 130 and time.monotonic() - begun < 8
        assert ended(run) == 4  # but for the warm-up


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1])
def test_faults_on_the_way_change_no_row(seed: int) -> None:
    """Kill -9 of each command, flipped bits, deleted files: both data sets have the same rows."""
    done = command("-m", "benchmarks.rehearsal", "--rows", 300, "--chaos", "--seed", seed, timeout_s=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert all(figures["equal"].values()) and figures["counts_right"] and len(figures["faults"]) > 5

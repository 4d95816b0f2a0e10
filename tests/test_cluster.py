"""Stages in many tasks under datatrove's local executor: real processes, killed for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster_runs import SLOWLY, asked_again, asked_rows, descendants, sealed, seeded_copy, started, wait_until
from tests.conftest import ROOT, TASK_NAMES, command, generation, manifest, write_recipe
from tests.fake_tgi import FakeTGI


@pytest.fixture
def seeded(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has its seeds."""
    return seeded_copy(finished_run, tmp_path)


def options(run: Path, server: FakeTGI, tasks: int, workers: int) -> tuple[Any, ...]:
    place = ("--config", run.parent / "recipe.yaml", "--run-dir", run, "--endpoint", server.url)
    return (*place, "--executor", "local", "--tasks", tasks, "--workers", workers)


def folder(run: Path, stage: str, number: int = 0) -> Path:
    return run / "tasks" / stage / f"{number:05d}"


def test_a_whole_run_in_tasks_is_the_run_of_one_process(tmp_path: Path, fake: FakeTGI, finished_run: Path) -> None:
    run = tmp_path / "run"
    write_recipe(tmp_path)
    done = generation("run", *options(run, fake, 2, 2), "--log-json")
    assert done.returncode == 0, done.stderr
    assert sealed(run) == sealed(finished_run)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()][-1] == "end"  # each line is JSON
    ours, other = manifest(run)["stages"], manifest(finished_run)["stages"]
    assert ours.keys() == other.keys()
    for stage in ("captions", *(f"instructions/{task}" for task in TASK_NAMES)):
        for key in ("fingerprint", "pinned", "balance", "servers", "demonstration", "files"):
            assert ours[stage][key] == other[stage][key]
        for key in ("rows", "requests", "completion_tokens"):
            assert sum(s[key] for s in ours[stage]["sessions"]) == sum(s[key] for s in other[stage]["sessions"])
    assert [task["shards"] for task in ours["captions"]["tasks"]["00000"]] == [[0, 2], [1]]
    assert [task["rows"] for task in ours["text_embeddings"]["tasks"]["00000"]] == [10, 8]
    assert json.loads((folder(run, "captions") / "work" / "stats.json").read_text())[0]["stats"]["rows"]["total"] == 18


def test_kill_9_of_a_task_is_told_and_the_same_command_asks_no_answered_row_again(
    seeded: Path, finished_run: Path
) -> None:
    with FakeTGI(latency_s=0.15, batch_slots=2) as server:
        completed = folder(seeded, "captions") / "work" / "completions"
        with started("captions", *options(seeded, server, 3, 1)) as process:
            wait_until(lambda: (completed / "00000").exists() and len(asked_rows(server)) > 8 + 3)
            (task,) = descendants(process.pid, "work")
            task.kill()
            _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "captions: work: 2 of 3 tasks are not completed. task 1:" in said
        assert "give the same command again" in said
        first = folder(seeded, "captions") / "parts" / "00000.json"
        before = first.stat().st_mtime_ns
        server.configure(latency_s=0.0)
        again = generation("captions", *options(seeded, server, 3, 1))
        assert again.returncode == 0, again.stderr
        assert first.stat().st_mtime_ns == before  # a completed task is skipped
        assert asked_again(server) <= server.max_in_flight
    assert sealed(seeded, ("captions",)) == sealed(finished_run, ("captions",))
    assert not list(seeded.rglob("*.jsonl"))


def test_kill_9_of_the_command_takes_its_tasks_along_and_they_resume(seeded: Path, finished_run: Path) -> None:
    write_recipe(seeded.parent, server=SLOWLY)
    with FakeTGI(latency_s=1.0) as server:
        with started("captions", *options(seeded, server, 2, 2)) as process:
            wait_until(lambda: len(asked_rows(server)) > 6)
            tasks = descendants(process.pid, "work")
            assert tasks
        psutil.wait_procs(tasks, timeout=60)
        assert not any(task.is_running() for task in tasks)
        assert len(asked_rows(server)) < 18  # they have not gone on to their ends
        server.configure(latency_s=0.0)
        again = generation("captions", *options(seeded, server, 2, 2))
        assert again.returncode == 0, again.stderr
        assert asked_again(server) <= server.max_in_flight
    assert sealed(seeded, ("captions",)) == sealed(finished_run, ("captions",))


@pytest.mark.parametrize("workers", [1, 2])  # 1 is done without a pool
def test_ctrl_c_lets_what_is_in_flight_end(workers: int, seeded: Path) -> None:
    write_recipe(seeded.parent, server=SLOWLY | {"grace_s": 60.0})
    with FakeTGI(latency_s=6.0) as server, started("captions", *options(seeded, server, 2, workers)) as process:
        wait_until(lambda: len(asked_rows(server)) >= 2)
        tasks = descendants(process.pid, "work")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "The same command goes on" in said
        assert "Traceback" not in said
        psutil.wait_procs(tasks, timeout=60)
        asked = len(asked_rows(server))
    answered = sum(path.read_bytes().count(b"\n") for path in (seeded / "captions").glob("*.jsonl"))
    assert 2 <= answered == asked < 18


def test_tasks_that_failed_are_taken_up_by_another_number_of_workers_but_not_of_tasks(seeded: Path) -> None:
    with FakeTGI(api_key="sesame-opens") as server:
        failed = generation("captions", *options(seeded, server, 2, 2), TGI_API_KEY="wrong")
        assert failed.returncode == 1
        assert "401" in failed.stderr
        other = generation("captions", *options(seeded, server, 3, 3), TGI_API_KEY="sesame-opens")
        assert other.returncode == 1
        assert "give --tasks 2" in other.stderr
        plain = generation("captions", *options(seeded, server, 2, 2)[:6], TGI_API_KEY="sesame-opens")
        assert plain.returncode == 1
        assert "'captions' is under way in tasks" in plain.stderr
        done = generation("captions", *options(seeded, server, 2, 1), TGI_API_KEY="sesame-opens")
        assert done.returncode == 0, done.stderr
    logs = b"".join(path.read_bytes() for path in (seeded / "tasks").rglob("*") if path.is_file())
    assert b"sesame-opens" not in logs + failed.stderr.encode() + done.stderr.encode()
    assert b"Traceback" not in failed.stderr.encode()


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (("--executor", "local"), "--executor local needs --tasks"),
        (("--executor", "local", "--tasks", 2, "--judge", "http://127.0.0.1:1"), "--judge is for one process"),
        (("--tasks", 2), "--tasks and --workers are for --executor"),
    ],
)
def test_options_that_do_not_go_together_are_refused(added: tuple[object, ...], said: str, tmp_path: Path) -> None:
    place = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    refused = generation("run", *place, *added)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_datatrove_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    program = [
        "import sys, importlib.util as util",
        "find = util.find_spec",
        "util.find_spec = lambda name: None if name == 'datatrove' else find(name)",
        "from generation.__main__ import main",
        "sys.exit(main(sys.argv[1:]))",
    ]
    place = command("run", "--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")[3:]
    arguments = [sys.executable, "-c", "\n".join(program), *place, "--executor", "local", "--tasks", "2"]
    refused = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "pip install -r requirements-cluster.txt" in refused.stderr

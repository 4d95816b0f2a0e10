"""``--log-json``: what machines are told, by every command and both builders, as real processes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generation import events
from generation.arguments import parser
from generation.errors import RunError
from generation.progress import counted, progress
from tests.conftest import ROOT, generation, write_recipe
from tests.fake_tgi import FakeTGI, Fault
from tests.test_pipeline import answered, start, wait_until

BULK = {"tokens_per_s", "in_flight", "rejected", "retried"}
TASKS = ("multiple_choice", "question_answering", "complex_reasoning")
STAGES = [
    "seeds",
    "captions",
    *(f"instructions/{task}" for task in TASKS),
    "text_embeddings",
    "image_embeddings/unicorn",
]


def lines(text: str) -> list[dict[str, Any]]:
    """All lines as objects; a line that is none fails the test. The last one, and no other, is the end."""
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] == "end" for line in found] == [False] * (len(found) - 1) + [True]
    assert all(line["time"].endswith("+00:00") for line in found)
    by_bar: dict[int, list[dict[str, Any]]] = {}
    for line in found:
        if line["event"] == "progress":
            by_bar.setdefault(line["bar"], []).append(line)
    for bar in by_bar.values():
        done = [line["done"] for line in bar]
        assert done == sorted(done)
        assert {line["stage"] for line in bar} == {bar[0]["stage"]}
        assert [line["state"] for line in bar[:-1]] == ["running"] * (len(bar) - 1)
        assert bar[-1]["state"] in ("done", "stopped")
        for line in bar:
            assert {"unit", "rate", "eta_s", "total"} <= line.keys()
    return found


def test_a_run_tells_every_stage_and_nothing_else_is_on_stderr(tmp_path: Path) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    with FakeTGI(api_key="sesame-opens", faults=[Fault("garbage", frozenset(range(1, 60)))]) as server:
        done = generation("run", *options, "--endpoint", server.url, "--log-json", TGI_API_KEY="sesame-opens")
    assert done.returncode == 0, done.stderr
    told = lines(done.stderr)
    assert told[-1]["status"] == "done"
    assert told[-1]["exit_status"] == 0
    last = {line["stage"]: line for line in told if line.get("state") == "done" and line["stage"] in STAGES}
    assert list(last) == STAGES  # others show themselves only where a wait is long
    for stage, line in last.items():
        assert line["done"] == line["total"]
        assert line["eta_s"] == 0
        assert (line.keys() >= BULK) == (stage == "captions" or stage.startswith("instructions/"))
    assert last["captions"]["tokens_per_s"] > 0
    assert last["captions"]["rejected"] > 0
    assert "sesame-opens" not in done.stderr + done.stdout


def test_a_file_gets_the_lines_of_each_run_and_people_theirs(tmp_path: Path, finished_run: Path) -> None:
    log, recipe = tmp_path / "log.jsonl", finished_run.parent / "recipe.yaml"
    for _ in range(2):
        done = generation("seeds", "--config", recipe, "--run-dir", tmp_path / "run", f"--log-json={log}")
        assert done.returncode == 0, done.stderr
    assert "{" not in done.stderr
    first, again = log.read_text().split('"end"')[0], log.read_text()
    assert '"stage": "seeds"' in first
    assert again.count('"event": "end"') == 2
    refused = generation("seeds", "--config", recipe, "--run-dir", tmp_path / "none", f"--log-json={tmp_path}")
    assert refused.returncode == 1
    assert f"error: --log-json {tmp_path}: it cannot be written" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_what_stops_a_command_is_its_last_line(tmp_path: Path) -> None:
    refused = generation("embed", "--config", write_recipe(tmp_path), "--run-dir", tmp_path / "none", "--log-json")
    (end,) = lines(refused.stderr)
    assert (refused.returncode, end["status"], end["exit_status"], end["error"]) == (1, "failed", 1, "RunError")
    assert "is no run directory" in end["message"]


def test_a_signal_is_told_as_a_warning_and_a_stopped_end(tmp_path: Path) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(max_concurrent_requests=4, latency_s=0.3) as server:
        process = start("captions", *options, "--endpoint", server.url, "--log-json")
        wait_until(lambda: answered(server) >= 1 + 4)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    told = lines(said)
    (warning,) = [line for line in told if line["event"] == "warning"]
    assert warning["logger"] == "generation.bulk"
    assert "stopping" in warning["message"]
    assert told[-2]["state"] == "stopped"
    assert 0 < told[-2]["done"] < told[-2]["total"]
    assert (told[-1]["status"], told[-1]["exit_status"], process.returncode) == ("stopped", 130, 130)


def test_a_builder_tells_too(finished_run: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "unicorn_1_2m.py",
        "--run-dir",
        finished_run,
        "--output",
        tmp_path / "built",
        "--log-json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = lines(done.stderr)
    assert "build" in {line.get("stage") for line in told}


@pytest.mark.parametrize("command", ["show", "duplicates"])
def test_commands_that_look_at_a_run_tell_too(command: str, run_copy: Path) -> None:
    done = generation(command, "--run-dir", run_copy, "--log-json")
    assert done.returncode == 0, done.stderr
    assert lines(done.stderr)[-1]["status"] == "done"


def test_every_command_takes_the_option() -> None:
    (commands,) = [action for action in parser()._actions if action.dest == "command"]
    for name, command in dict(commands.choices or {}).items():  # type: ignore[call-overload]
        assert "--log-json" in command.format_help(), name


# -- in this process ---------------------------------------------------------------------------------------------


def told_by(act: Any, log: Path) -> list[dict[str, Any]]:
    assert events.run_command(act, str(log), "stopped") == 0
    return lines(log.read_text())


def test_a_bar_counts_what_was_made_before_but_not_in_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("generation.progress.time.monotonic", lambda: now)

    def act() -> None:
        nonlocal now
        with progress("s", 100, 10, "row") as bar:
            bar.skip(20)
            now += 8
            bar.update(16)
            now += 1
            bar.update(4)  # too soon for another line
            bar.set_postfix_str("looking")
            now += 11
            bar.update(10)

    made = [line for line in told_by(act, tmp_path / "log") if line["event"] == "progress"]
    assert [line["done"] for line in made] == [10, 46, 60, 60]
    assert [line["rate"] for line in made] == [0.0, 2.0, 1.5, 1.5]
    assert [line["eta_s"] for line in made] == [None, 27.0, 26.7, 26.7]
    assert [line.get("now") for line in made] == [None, None, "looking", "looking"]


def test_a_wait_of_under_two_seconds_shows_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("generation.progress.time.monotonic", lambda: now)

    def act(step: float) -> None:
        nonlocal now
        for _ in counted(range(4), "s", "row"):
            now += step

    assert len(told_by(lambda: act(0.4), tmp_path / "short")) == 1
    made = told_by(lambda: act(1.5), tmp_path / "long")
    assert [(line["done"], line["total"]) for line in made[:-1]] == [(2, 4), (4, 4)]


def test_a_bug_keeps_its_traceback_and_a_bar_that_it_leaves_behind_says_nothing_after_the_end(tmp_path: Path) -> None:
    def act() -> None:
        with progress("s", None, 0, "row"):
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        events.run_command(act, str(tmp_path / "log"), "stopped")
    *_, bar, end = lines((tmp_path / "log").read_text())
    assert (bar["state"], bar["total"], bar["eta_s"]) == ("stopped", None, None)
    assert (end["status"], end["error"]) == ("crashed", "ZeroDivisionError")
    assert "a bug" in end["traceback"]


def test_a_generator_that_outlives_the_command_says_nothing_after_the_end(tmp_path: Path) -> None:
    def rows() -> Iterator[int]:
        with progress("s", 2, 0, "row") as bar:
            for row in (1, 2):
                yield row
                bar.update()

    def act() -> None:
        kept = rows()
        next(kept)
        raise RunError(f"{tmp_path} is gone")

    assert events.run_command(act, str(tmp_path / "log"), "stopped") == 1
    *_, end = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (end["event"], end["message"]) == ("end", f"{tmp_path} is gone")


def test_prints_and_warnings_of_libraries_are_lines_like_all_others(tmp_path: Path) -> None:
    script = (
        "import sys, warnings; from generation import events\n"
        "def act():\n"
        "    print('half a', end=' ', file=sys.stderr); print('line\\rand \\u2603', file=sys.stderr)\n"
        "    warnings.warn('careful')\n"
        "    sys.stderr.write('begun')\n"
        "    1 / 0\n"
        "sys.exit(events.run_command(act, '-', 'stopped'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    told = lines(done.stderr)
    assert [line["message"] for line in told if line["event"] == "message"] == ["half a line", "and \u2603", "begun"]
    assert any(line["event"] == "warning" and "careful" in line["message"] for line in told)
    assert (told[-1]["status"], done.returncode) == ("crashed", 1)

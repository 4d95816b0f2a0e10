"""SIGTERM ends every command within the grace period, also as a background job, where a shell has SIGINT ignored."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree, rmtree

import psutil
import pytest

from generation.builders.build import build
from tests.conftest import ROOT, generation, write_recipe
from tests.fake_server import FakeServer, Reply
from tests.runs import make_run
from tests.tiny_models import tiny_clip
from unicorn_1_2m import Unicorn12M

CHILD = """
import runpy, signal, sys, time
from pathlib import Path
from generation import cli, files

def hang(*arguments, **options):  # as a disk that hangs, in whichever thread, and does not wake for a signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Path(marker).touch()
    time.sleep(600)

kind, marker, script, *sys.argv[1:] = sys.argv[1:]
cli.GRACE_S = 1.0
if kind == "disk":
    files.sha256 = files.write_atomically = hang
elif kind == "server":
    from generation import engine
    engine.GRACE_S = 1.0
sys.argv[0] = script
(runpy.run_path if script.endswith(".py") else runpy.run_module)(script, run_name="__main__")
"""
WARM_UPS = 3  # one a task
PATHS = ("run", "begun", "set", "new", "recipe.yaml")
COMMANDS = {  # command line, what of the run is removed before, and what hangs
    "run": ("generation run --run-dir begun", "", "server"),
    "captions": ("generation captions --run-dir begun", "", "server"),
    "cluster worker": ("generation captions --run-dir begun --rank 0 --world-size 2", "", "server"),
    "cluster": ("generation captions --run-dir begun --executor local --tasks 2", "", "server of tasks"),
    "cluster killed": ("generation captions --run-dir begun --executor local --tasks 2", "", "server of tasks"),
    "instructions": ("generation instructions --run-dir run", "instructions", "server"),
    "judge": ("generation judge --run-dir run", "judgements", "server"),
    "seeds": ("generation seeds --run-dir new --config recipe.yaml", "", "disk"),
    "embed": ("generation embed --run-dir run", "text_embeddings", "disk"),
    "transfer": ("generation transfer --run-dir run", "image_embeddings", "disk"),
    "verify": ("generation verify run", "", "disk"),
    "report": ("generation report run", "", "disk"),
    "build": (f"{ROOT}/unicorn_1_2m.py --run-dir run --output new", "", "disk"),
    "export": ("generation export set --output new --format webdataset", "", "disk"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its data set, a recipe of its own, and a run of that recipe that has seeds."""
    folder = tmp_path_factory.mktemp("finished")
    run = make_run(folder / "run", judged=True, recipe={"embed": {"encoder": str(tiny_clip(folder / "clip"))}})
    build(Unicorn12M, run.path, folder / "set")
    done = generation("seeds", "--config", write_recipe(folder), "--run-dir", folder / "begun")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_ends_every_command_within_the_grace_period(name: str, finished: Path, tmp_path: Path) -> None:
    words, removed, kind = COMMANDS[name]
    copytree(finished, tmp_path, dirs_exist_ok=True)
    if removed:
        rmtree(tmp_path / "run" / removed)
    script, first, *others = words.split()
    line = [sys.executable, "-c", CHILD, kind, str(tmp_path / "hangs"), script, first]
    line += [str(tmp_path / word) if word in PATHS else word for word in others]
    answered = WARM_UPS if kind == "server" else 0
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 (as a shell starts `command &`)
    with FakeServer("tgi", script=lambda body, n: Reply(action="hang") if n >= answered else None) as server:
        line += ["--endpoint", server.url] if kind != "disk" else []
        process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=ignore)
        while not (tmp_path / "hangs").exists() and server.counts["requests"] <= answered + 1:
            assert process.poll() is None, process.communicate(timeout=10)
            time.sleep(0.01)
        process.send_signal(number := signal.SIGKILL if "killed" in name else signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGTERM else -number) and "Traceback" not in said
    deadline = time.monotonic() + 20  # the grace period of tasks that the command started
    while any(str(tmp_path) in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.1)

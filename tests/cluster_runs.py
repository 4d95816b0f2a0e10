"""Runs in many tasks, for the tests of the executors: what is asked, which processes there are, what must be equal."""

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import ROOT, command, manifest, write_recipe
from tests.fake_tgi import FakeTGI

SLOWLY = {"max_in_flight": 2, "grace_s": 0.2}  # a recipe's section: a server's latency then sets the pace
STAGES = ("captions", "instructions", "text_embeddings", "image_embeddings", "transfer")


def seeded_copy(finished_run: Path, folder: Path) -> Path:
    """The finished run as it was when it had its seeds alone, in three shards; its recipe lies beside it."""
    run = folder / "run"
    shutil.copytree(finished_run / "seeds", run / "seeds")
    content = manifest(finished_run)
    content["stages"] = {"seeds": content["stages"]["seeds"]}
    (run / "manifest.json").write_text(json.dumps(content))
    write_recipe(folder)
    return run


def sealed(run: Path, stages: tuple[str, ...] = STAGES) -> dict[str, bytes]:
    """All files of some stages, by name."""
    paths = (path for stage in stages for path in (run / stage).rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """`python -m generation ...`, running in a process group of its own; killed at the end if it still does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], object], seconds: float = 90) -> None:
    """Waits for what must come."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def descendants(process: int, word: str) -> list[psutil.Process]:
    """The living processes below one whose command line has a word."""
    found = []
    try:
        for child in psutil.Process(process).children(recursive=True):
            try:
                if word in child.cmdline() or word in child.name():
                    found.append(child)
            except psutil.Error:
                continue
    except psutil.NoSuchProcess:
        pass
    return found


def asked_rows(server: FakeTGI) -> Counter[str]:
    """How often each request was asked, warm-ups left out."""
    bodies = [request["body"] for request in server.requests if request["route"] == "/v1/chat/completions"]
    return Counter(json.dumps(body) for body in bodies if body and body["max_tokens"] != 16)  # none of a wrong key


def asked_again(server: FakeTGI) -> int:
    """Requests that were asked more than once."""
    return sum(count - 1 for count in asked_rows(server).values())

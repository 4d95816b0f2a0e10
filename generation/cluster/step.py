"""What datatrove runs: a job of ours as a process of its own.

datatrove's workers (a pool's process, an actor of Ray, a task of Slurm) wait for that process and do nothing else, so
its end, a ``kill -9`` included, is seen by all of them alike: a pool whose own worker is killed would wait for ever.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import multiprocess.process
from datatrove.pipeline.base import PipelineStep

from ..errors import RunError
from ..parts import part_rows

ROOT = Path(__file__).parents[2]  # of the clone
_LOOK_S = 0.5  # between two looks at who waits for the process


class Step(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """One job of a command, as ``python -m generation task ...``.

    Args:
        job: ``plan``, ``work`` or ``finish``.
        folder: of the plan; what the process says goes to its ``logs``.
        arguments: of the command line, without the rank.
    """

    type = "Unicorn"

    def __init__(self, job: str, folder: Path, arguments: tuple[str, ...]) -> None:
        self.name = f"{folder.parent.name}: {job}"
        super().__init__()
        self.job, self.folder, self.arguments = job, folder, arguments

    def log_path(self, rank: int) -> Path:
        """What the process of a task says, now and in earlier tries."""
        return self.folder / "logs" / (f"{rank:05d}.log" if self.job == "work" else f"{self.job}.log")

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Runs one task to its end.

        Raises:
            RunError: it failed; with its last line.
        """
        command = [sys.executable, "-m", "generation", "task", self.job, *self.arguments, "--rank", str(rank)]
        log = self.log_path(rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            self.track_time("task"),
            log.open("ab") as file,
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches it over its stdin, once
            ) as process,
        ):
            status = _wait(process)
        if status:
            raise RunError(f"{self.name}, task {rank} ended with {status}: {last_line(log)}")
        if self.job == "work":
            self.stat_update("rows", value=part_rows(self.folder, rank), unit="task")


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The exit status. If whoever has started this worker is gone, nobody waits any more: the process is told to stop
    (its stdin closes), and so ends this one."""
    parent = multiprocess.process.parent_process()  # None where datatrove runs the step in its main process
    if parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the main process sees to it
    while True:
        try:
            return process.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            if parent is not None and not parent.is_alive():
                os._exit(1)


def last_line(path: Path) -> str:
    """The last line of a log that is not blank."""
    if not path.exists():
        return f"it has not begun; see {path.parent}"
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = deque((line.strip() for line in file if line.strip()), maxlen=1)
    return f"{lines[0] if lines else 'it said nothing'} ({path})"

"""Child processes with an account: wall seconds, CPU seconds, and the peak memory of any process of the tree."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
LOOK_S = 0.05


@dataclass(frozen=True)
class Account:
    """What a command took.

    Attributes:
        status: its exit status.
        seconds: wall time.
        cpu_s: user and system time of it and its children.
        peak_mb: most memory of any process of it, mapped files left out, in MB of 10^6 bytes.
        output: stdout and stderr.
    """

    status: int
    seconds: float
    cpu_s: float
    peak_mb: float
    output: str


def run_command(*arguments: object, cores: set[int] | None = None) -> Account:
    """Run ``python ARGUMENTS`` in the clone's root to its end, on ``cores`` if they are given."""
    start, peak, cpu = time.perf_counter(), 0.0, dict[int, float]()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    tree = psutil.Process(process.pid)
    if cores:
        tree.cpu_affinity(sorted(cores))
    while process.poll() is None:
        with suppress(psutil.Error):
            for one in (tree, *tree.children(recursive=True)):
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
                memory = one.memory_info()
                peak = max(peak, (memory.rss - memory.shared) / 1e6)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    output = process.stdout.read() if process.stdout else ""
    return Account(process.returncode, time.perf_counter() - start, sum(cpu.values()), peak, output)


class ServerProcess:
    """The tests' fake server in a process of its own, on one core if it is given; started again, it keeps its port."""

    def __init__(self, *options: object, core: int | None = None) -> None:
        self._options, self._core, self.url = options, core, ""
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        port = ["--port", self.url.rpartition(":")[2]] if self.url else []
        command = [sys.executable, "-m", "tests.fake_server", *map(str, self._options), *port]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if self._core is not None:
            psutil.Process(self._process.pid).cpu_affinity([self._core])
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it with kill -9."""
        self._process.kill()
        self._process.wait()

    def restart(self, away_s: float) -> None:
        """Kill it, and start it again after ``away_s`` seconds."""
        self.kill()
        time.sleep(away_s)
        self.start()


@contextmanager
def fake_server(*options: object, core: int | None = None) -> Iterator[str]:
    """Start the fake server, yield its URL, and kill it."""
    server = ServerProcess(*options, core=core)
    try:
        yield server.url
    finally:
        server.kill()


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table; numbers to the right."""
    shown = [[f"{cell:,.3g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
              for cell in row] for row in rows]  # fmt: skip
    marks = ["---:" if rows and isinstance(rows[0][place], int | float) else "---" for place in range(len(columns))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, marks, *shown])

"""Commands as child processes: what they took, and what they said (Linux)."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the project; commands run there
SAMPLE_S = 0.02  # between two looks at the memory of a child and of its children


@dataclass(frozen=True)
class Took:
    """What a command took.

    Attributes:
        seconds: by the clock.
        cpu_s: of all cores, its own children included.
        peak_mb: anonymous memory of the process that had most, sampled every ``SAMPLE_S``.
        status: exit status; -9 after a kill.
        output: all of stdout.
        said: all of stderr.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    status: int
    output: str
    said: str


class Child:
    """A command that was begun.

    Args:
        command: ``sys.executable`` and what follows it.
        log: where its stdout and stderr go, as ``<log>.out`` and ``<log>.err``.
        environment: variables besides those of this process.
        prepare: called in the child before the command begins.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._out, self._err = log.with_name(f"{log.name}.out"), log.with_name(f"{log.name}.err")
        self._start = time.perf_counter()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=prepare,
            )
        self._peak, self._over = 0, threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        self._ended: Took | None = None

    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()

    def wait(self) -> Took:
        """Waits for the end; stopped in that, it ends the command as well."""
        try:
            _, status, usage = os.wait4(self.process.pid, 0)
        except BaseException:
            self.kill()
            raise
        seconds = time.perf_counter() - self._start
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._over.set()
        self._watch.join()
        return Took(
            seconds=seconds,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_mb=self._peak / 1000,
            status=self.process.returncode,
            output=self._out.read_text(encoding="utf-8", errors="replace").strip(),
            said=self._err.read_text(encoding="utf-8", errors="replace"),
        )

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._peak = max(self._peak, *map(_anonymous_kb, _family(self.process.pid)))


def generation(*arguments: object) -> list[str]:
    """The command ``python -m generation ...``."""
    return [sys.executable, "-m", "generation", *map(str, arguments)]


def module(name: str, *arguments: object) -> list[str]:
    """The command ``python -m generation.rehearsal.<name> ...``."""
    return [sys.executable, "-m", f"generation.rehearsal.{name}", *map(str, arguments)]


def bytes_of(folder: Path) -> int:
    """The size of all files below a folder but for links: those of a built data set are files of its run."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in found if stat.st_nlink == 1)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def _anonymous_kb(pid: int) -> int:
    """Anonymous memory of a process in kB; 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1])
    return 0

"""Fresh processes to measure in, and the memory that they took (Linux)."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


def in_fresh_process(module: str, *arguments: object) -> Any:
    """What ``python -m module arguments...`` prints last, read as JSON; its stderr goes to ours.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(pid: int | str = "self") -> int:
    """The peak of a process's resident set; of it alone, where getrusage's may be that of its parent."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


class Memory:
    """The peak of this process's anonymous memory while it is entered, in MB, sampled every 5 ms."""

    def __enter__(self) -> "Memory":
        self.peak, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
            self.peak = max(self.peak, int(line.split()[1]) / 1000)

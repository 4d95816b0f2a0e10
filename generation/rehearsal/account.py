"""What the stand-in server did, in two files that outlive ``kill -9``: a mapped page of counts, and a log of answers.

The operating system keeps a mapped page and what was written to a file when their process is killed, so that a server
that is started again counts on, and whoever looks on needs not ask it.
"""

import mmap
from collections import Counter
from pathlib import Path

import numpy as np

from .answers import KINDS

FAULTS = ("429", "500", "reset")
# in_flight: requests that are being answered; lost: those whose client went away; probes: those of ``load``.
COUNTS = ("in_flight", "requests", "warm_ups", "lost", "refused", "probes", *FAULTS, *KINDS)
_PLACES = {name: place for place, name in enumerate(COUNTS)}


class Account:
    """Counts by name, and the keys of all requests that were answered.

    Args:
        path: the file of the counts; the log lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.with_suffix(".keys")
        with path.open("ab") as file:
            file.truncate(8 * len(COUNTS))
        with path.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 8 * len(COUNTS))).cast("q")
        self._log = self.log.open("ab", buffering=0)

    def add(self, name: str, count: int = 1) -> None:
        """Counts something."""
        self._counts[_PLACES[name]] += count

    def answered(self, kind: str, key: int) -> None:
        """Counts an answer that a client will read."""
        self._counts[_PLACES[kind]] += 1
        self._log.write(key.to_bytes(8, "little"))

    def begin(self) -> None:
        """Nothing is in flight on a server that begins."""
        self._counts[_PLACES["in_flight"]] = 0

    def counts(self) -> dict[str, int]:
        """All counts so far."""
        return dict(zip(COUNTS, self._counts, strict=True))

    def answers(self) -> int:
        """How many answers were given, of all kinds."""
        return sum(self._counts[_PLACES[kind]] for kind in KINDS)

    def answered_again(self) -> int:
        """How many answers were to requests that had been answered before."""
        keys = np.fromfile(self.log, np.uint64)
        return len(keys) - len(np.unique(keys))


def difference(before: dict[str, int], after: dict[str, int]) -> Counter[str]:
    """What was counted in between."""
    return Counter({name: after[name] - before[name] for name in COUNTS})

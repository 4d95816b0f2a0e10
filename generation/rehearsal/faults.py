"""What is done to a run under ``--chaos``, and whether a command said clearly what is wrong and what to do."""

import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .children import Child, Took
from .ground import Ground, ServerProcess
from .steps import Step, begin

POLL_S = 0.005
DAY_S = 86_400.0
CLOCK = Path(__file__).parent / "clock"
# What the user is to do, as messages say it.
_REMEDY = re.compile(
    r"same\s+command|generation (?:verify|repair|run|seeds|captions|instructions|embed|transfer)|mend the cause|"
    r"restore it|make it again|--endpoint",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Struck:
    """One fault, and what came of it.

    Attributes:
        fault: what was done.
        said: what the command said.
        remedy: what was then done, as it said.
        came: what came of it.
        right: whether that is as it should be.
    """

    fault: str
    said: str
    remedy: str
    came: str
    right: bool

    def line(self) -> str:
        """For people."""
        return f"{'ok  ' if self.right else 'BAD '} {self.fault} | said: {self.said} | {self.remedy} | {self.came}"


@dataclass(frozen=True)
class Strike:
    """Something that is done to a command while it runs: ``act`` as soon as ``due``."""

    due: Callable[[], bool]
    act: Callable[[Child], object]


def run_under(
    ground: Ground,
    step: Step,
    strikes: Iterable[Strike] = (),
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
) -> tuple[Took, int]:
    """Runs a step, and strikes while it runs; returns also how many of the strikes came before its end."""
    child = begin(ground, step, environment, prepare)
    struck = 0
    for strike in strikes:
        if not _due(child, strike.due):
            break
        strike.act(child)
        struck += 1
    return child.wait(), struck


def _due(child: Child, due: Callable[[], bool]) -> bool:
    """Waits until ``due``; False where the command ended before."""
    while child.running():
        if due():
            return True
        time.sleep(POLL_S)
    return False


def answers(ground: Ground, count: int) -> Callable[[], bool]:
    """Due once the server has given so many answers in all."""
    return lambda: ground.account.answers() >= count


def files(folder: Path, count: int) -> Callable[[], bool]:
    """Due once a folder holds so many files."""
    return lambda: folder.is_dir() and sum(1 for _ in folder.iterdir()) >= count


def server_restart(server: ServerProcess, rng: Random, environment: Mapping[str, str] | None = None) -> None:
    """Kills the server, and starts it again on the same port some time later."""
    server.kill()
    time.sleep(rng.uniform(0.1, 1.0))
    server.start(environment)


def clock_jump(after_s: float, by_s: float) -> dict[str, str]:
    """The environment of a process whose wall clock jumps."""
    path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "REHEARSAL_CLOCK_JUMP": f"{after_s}:{by_s}"}


def full_disk(bytes_free: int) -> Callable[[], None]:
    """For the child: no file may grow beyond so many bytes, as on a disk that has no more."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, bytes_free))


def flip_bit(path: Path, rng: Random) -> str:
    """Turns one bit of a file around; returns what was done, in words."""
    place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {place} turned in {path.parent.name}/{path.name}"


def delete(path: Path, rng: Random) -> str:
    """Deletes a file; returns what was done, in words."""
    path.unlink()
    return f"{path.parent.name}/{path.name} deleted"


def clearly_refused(took: Took, name: str) -> bool:
    """Whether a command ended with status 1 and one message that names the file and a remedy."""
    return took.status == 1 and "Traceback" not in took.said and name in took.said and bool(_REMEDY.search(took.said))

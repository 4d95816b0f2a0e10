"""The commands of a rehearsal, as the user gives them, one after the other; each is measured."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TASKS
from ..errors import RehearsalError
from .account import difference
from .answers import CAPTIONS
from .children import ROOT, Child, Took, bytes_of, generation, module
from .ground import Ground, ServerProcess
from .reading import SETS

CAPACITY_S = 5.0  # for which the server's capacity is measured, for each kind of request; less for few rows
_OFFLINE = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: in the table.
        command: the whole of it.
        leaves: the folders that it writes to.
        asks: the kinds of requests that it makes of the server.
    """

    name: str
    command: list[str]
    leaves: tuple[Path, ...] = ()
    asks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What became of the requests of one kind.

    Attributes:
        kind: see ``answers.KINDS``.
        answers: that the server gave.
        seconds: that the client took for them, by its own account of its sessions.
        capacity: answers/s that the server gives to clients that do nothing but ask.
    """

    kind: str
    answers: int
    seconds: float
    capacity: float

    @property
    def share(self) -> float:
        """Of the server's capacity."""
        return self.answers / self.seconds / self.capacity if self.seconds else 0.0


@dataclass(frozen=True)
class Done:
    """A step that was taken.

    Attributes:
        name: the step's.
        rows: that went through it.
        took: time, CPU, memory.
        bytes: that it left on disk.
        asked: by kind of request; empty for a step that asks nothing.
        found: what it printed last, where that is JSON.
    """

    name: str
    rows: int
    took: Took
    bytes: int
    asked: tuple[Asked, ...] = ()
    found: Any = None


def steps(ground: Ground, url: str) -> list[Step]:
    """All steps, in order."""
    run, recipe = ground.run, ("--config", ground.recipe, "--run-dir", ground.run)
    asking = (*recipe, "--endpoint", url)
    rejected = run / "rejected"
    made = [
        Step("seeds", generation("seeds", *recipe), (run / "seeds", run / "report")),
        Step("captions", generation("captions", *asking), (run / "captions", rejected / "captions"), (CAPTIONS,)),
        Step(
            "instructions",
            generation("instructions", *asking),
            (run / "instructions", rejected / "instructions"),
            TASKS,
        ),
        Step("embed", generation("embed", *recipe), (run / "text_embeddings",)),
        Step("transfer", generation("transfer", *recipe), (run / "image_embeddings", run / "transfer")),
    ]
    for name, script in zip(SETS, ("unicorn_1_2m.py", "unicorn_471k_instruction.py"), strict=True):
        output = ground.sets / name
        command = [sys.executable, str(ROOT / script), "--run-dir", str(run), "--output", str(output)]
        made.append(Step(f"build {name}", command, (output,)))
    for what, leaves in (("load", "cache"), ("stream", ""), ("train", "texts")):
        left = (ground.sets / leaves,) if leaves else ()
        made.append(Step(what, module("reading", what, ground.sets), left))
    made.append(Step("report", generation("report", run), (run / "report",)))
    return made + [Step(f"verify {path.name}", verify(ground, path)) for path in (run, *ground.built)]


def verify(ground: Ground, path: Path) -> list[str]:
    """The command that verifies the run, or one of its data sets; the conversations' set has its vectors in the
    captions'."""
    return generation("verify", path, *(("--embeddings", ground.built[0]) if path == ground.built[1] else ()))


def take(ground: Ground, server: ServerProcess, step: Step) -> Done:
    """Runs a step to its end.

    Raises:
        RehearsalError: it failed; its last words are in the message.
    """
    counted, held = ground.account.counts(), sum(map(bytes_of, step.leaves))
    took = begin(ground, step).wait()
    if took.status:
        raise RehearsalError(
            f"step {step.name} ended with {took.status}: {last_words(took)}. All that it said is in {ground.logs}"
        )
    found = json.loads(took.output) if took.output.startswith("{") else None
    left = sum(map(bytes_of, step.leaves)) - held
    answers = difference(counted, ground.account.counts())
    asked = tuple(_asked(ground, server, kind, answers[kind]) for kind in step.asks)
    return Done(step.name, rows_of(ground, step.name, found), took, left, asked, found)


def begin(
    ground: Ground,
    step: Step,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
) -> Child:
    """Begins a step."""
    log = ground.logs / step.name.replace(" ", "_").replace("/", "_")
    return Child(step.command, log, {**_OFFLINE, **(environment or {})}, prepare)


def last_words(took: Took) -> str:
    """The last line that a command said."""
    lines = took.said.strip().splitlines()
    return lines[-1] if lines else "nothing was said"


def rows_of(ground: Ground, name: str, found: Any) -> int:
    """How many rows went through a step."""
    if isinstance(found, dict) and "rows" in found:
        return int(found["rows"])
    records = ground.manifest()["stages"]
    if name == "seeds":
        return sum(source["read"] for source in records["seeds"]["sources"].values())
    if name == "captions":
        return int(records["captions"]["balance"]["items"])
    conversations = [
        records.get(f"instructions/{task}", {}).get("balance", {"items": 0, "accepted": 0}) for task in TASKS
    ]
    if name == "instructions":
        return sum(balance["items"] for balance in conversations)
    if name.endswith(SETS[1]):
        return sum(balance["accepted"] for balance in conversations)
    return int(records["captions"]["balance"]["accepted"])


def _asked(ground: Ground, server: ServerProcess, kind: str, answers: int) -> Asked:
    """The client's rate beside the server's capacity, which is measured now, on the same process."""
    stage = kind if kind == CAPTIONS else f"instructions/{kind}"
    seconds = sum(session["seconds"] for session in ground.manifest()["stages"][stage]["sessions"])
    measured = min(CAPACITY_S, 0.5 + ground.rows / 10_000)
    command = module("load", server.url, "--run-dir", ground.run, "--config", ground.recipe, "--kind", kind)
    command += ["--in-flight", str(server.slots), "--seconds", str(measured)]
    took = Child(command, ground.logs / f"load_{kind}").wait()
    if took.status:
        raise RehearsalError(f"the server's capacity for {kind} could not be measured: {last_words(took)}")
    return Asked(kind, answers, seconds, json.loads(took.output)["answers_per_s"])

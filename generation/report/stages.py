"""What the manifest says of a run: how far each stage is, where rows were lost, and what it took."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..config import TASKS
from ..rundir import RunDir

TEXTS, MOVED = "text_embeddings", "image_embeddings"
GENERATED = ("captions", *(f"instructions/{task}" for task in TASKS))
_COMMANDS = {
    "seeds": "seeds",
    "captions": "captions",
    "instructions": "instructions",
    TEXTS: "embed",
    MOVED: "transfer",
}
NOT_BEGUN, UNFINISHED, FINISHED = "not begun", "unfinished", "finished"


@dataclass(frozen=True)
class Stage:
    """One stage of a run, in numbers.

    Attributes:
        name: its folder.
        state: ``NOT_BEGUN``, ``UNFINISHED`` or ``FINISHED``.
        shards: sealed.
        due: shards that it needs to be finished; 0 where not known.
        rows: in the sealed shards.
        bytes: of all its files.
        rejected: rejected rows by reason, the most frequent first; for the seeds, those dropped.
        pending: rows that are still to end.
        requests: asked of the servers.
        prompt_tokens, completion_tokens: over all attempts, those of rejected rows included.
        retries: requests that were asked again, by cause.
        model: that wrote the rows; empty where none did.
    """

    name: str
    state: str
    shards: int = 0
    due: int = 0
    rows: int = 0
    bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    model: str = ""

    @property
    def lost(self) -> int:
        """Rows rejected or dropped."""
        return sum(self.rejected.values())

    @property
    def items(self) -> int:
        """Rows that came in."""
        return self.rows + self.lost + self.pending

    @property
    def command(self) -> str:
        """The sub-command that makes it."""
        return _COMMANDS[self.name.split("/")[0]]


def stages(run: RunDir) -> dict[str, Stage]:
    """All stages of a run by name, in the order in which they are made, those not begun included."""
    methods = sorted(name for name in run.manifest["stages"] if name.startswith(f"{MOVED}/"))
    found = {"seeds": _seeds(run)}
    for name in GENERATED:
        found[name] = _generated(run, name, found["seeds" if name == "captions" else "captions"])
    for name, source in ((TEXTS, "captions"), *((name, TEXTS) for name in methods or [MOVED])):
        found[name] = _stage(run, name, source, found[source], _same_rows)
    return found


def sessions(run: RunDir) -> list[dict[str, Any]]:
    """The accounts of all sessions in which servers were asked, each with its ``stage``, by the time they began."""
    known = run.manifest["stages"]
    listed = [
        {"stage": name, **session}
        for name in GENERATED
        if name in known
        for session in known[name].get("sessions", ())
    ]
    return sorted(listed, key=lambda session: str(session["begun"]))


def seconds_covered(sessions: Iterable[Mapping[str, Any]]) -> float:
    """How long at least one of the sessions lasted: those of tasks on a cluster last side by side."""
    covered, end = 0.0, -math.inf
    spans = ((datetime.fromisoformat(session["begun"]).timestamp(), session["seconds"]) for session in sessions)
    for start, seconds in sorted(spans):
        covered += max(0.0, start + seconds - max(start, end))
        end = max(end, start + seconds)
    return covered


def _seeds(run: RunDir) -> Stage:
    if "seeds" not in run.manifest["stages"]:
        return Stage("seeds", NOT_BEGUN)
    record = run.stage("seeds")
    shards = len(run.sealed("seeds"))
    complete = bool(shards and record.get("complete", True))
    dropped = Counter[str]()
    for source in record.get("sources", {}).values():
        dropped.update(source.get("dropped", {}))
    return Stage(
        "seeds",
        FINISHED if complete else UNFINISHED,
        shards,
        shards if complete else 0,
        rows=_sum(run, "seeds", "rows"),
        bytes=_bytes(run, "seeds"),
        rejected=_by_count(dropped),
    )


def _generated(run: RunDir, name: str, source: Stage) -> Stage:
    """A stage that asks servers; its counts are of sealed shards and of those that were opened again."""
    base = _stage(run, name, source.name, source, lambda run, name, source: True)
    if base.state == NOT_BEGUN:
        return base
    record = run.stage(name)
    shards = [run.record(name, shard) for shard in run.sealed(name)] + list(run.unsealed(name).values())
    reasons, retries = Counter[str](), Counter[str]()
    for shard in shards:
        reasons.update(shard["rejected_by_reason"])
        retries.update(shard.get("retries", {}))
    return Stage(
        name,
        base.state,
        base.shards,
        base.due,
        rows=sum(shard["rows"] for shard in shards),
        bytes=base.bytes,
        rejected=_by_count(reasons),
        pending=record.get("balance", {}).get("pending", 0),
        **{
            key: sum(shard.get(key, 0) for shard in shards)
            for key in ("requests", "prompt_tokens", "completion_tokens")
        },
        retries=_by_count(retries),
        model=str(record["fingerprint"].get("model", {}).get("id", "")),
    )


def _stage(run: RunDir, name: str, source: str, before: Stage, whole: Callable[[RunDir, str, str], bool]) -> Stage:
    """A stage that has one shard for each of its source's."""
    if name not in run.manifest["stages"]:
        return Stage(name, NOT_BEGUN, due=before.shards)
    made, due = run.sealed(name), run.sealed(source)
    finished = before.state == FINISHED and made == due and whole(run, name, source)
    return Stage(
        name,
        FINISHED if finished else UNFINISHED,
        len(made),
        len(due),
        rows=_sum(run, name, "rows"),
        bytes=_bytes(run, name),
    )


def _same_rows(run: RunDir, name: str, source: str) -> bool:
    """Whether each shard has as many rows as its source's, to which ``retry`` may have added since."""
    return all(run.record(name, shard)["rows"] == run.record(source, shard)["rows"] for shard in run.sealed(name))


def _sum(run: RunDir, stage: str, key: str) -> int:
    return sum(run.record(stage, shard)[key] for shard in run.sealed(stage))


def _bytes(run: RunDir, stage: str) -> int:
    return sum(file["bytes"] for file in run.stage(stage)["files"].values())


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

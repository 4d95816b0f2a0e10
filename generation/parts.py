"""A stage done in many tasks, each of which writes to a manifest of its own: its part.

    RUN/tasks/<command>/00000/     one plan; <command> is captions, instructions, embed ...
      plan.json                    how many tasks, and the shards of each stage that they share: shards[rank::tasks]
      parts/00003.json             what task 3 has made; merged into RUN/manifest.json once all tasks have ended
      logs/                        what the plan, each task and the finish said
      plan/ work/ finish/          datatrove's: which tasks are completed, its logs, statistics and Slurm's scripts

Tasks write shards where one process would, and share no file that is written to. So they need no lock but each its
own, and one that was killed resumes from its part and from the journals.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunError
from .files import guarded, locked, seal_json
from .manifest import FORMAT, changes, now
from .rundir import RunDir

LOCK_WAIT_S = 30.0  # for a predecessor that was killed and has not quite ended


@dataclass(frozen=True)
class Plan:
    """Which task makes which shards.

    Attributes:
        folder: where the plan and its parts lie.
        tasks: how many there are.
        shards: by stage, those that were due when the plan was made.
        settings: of the recipe, as they were then.
        key: in the plan and in all its parts, and in no other's.
    """

    folder: Path
    tasks: int
    shards: dict[str, list[int]]
    settings: dict[str, Any]
    key: str

    def shards_of(self, stage: str, rank: int) -> list[int]:
        """Those of one task, from 0."""
        return self.shards[stage][rank :: self.tasks]

    def part_path(self, rank: int) -> Path:
        """Where a task's part lies."""
        return self.folder / "parts" / f"{rank:05d}.json"

    def remedy(self, rank: int) -> str:
        """How to have a task done anew, for messages."""
        files = f"{self.part_path(rank)} and {self.folder / 'work' / 'completions' / f'{rank:05d}'}"
        return f"to have the task's shards made anew, remove {files} and give the same command again"


def plan_folder(run: Path, command: str) -> Path:
    """The folder of a command's plan: of the one that is under way, else of the next one."""
    if found := under_way(run, command):
        return found
    return run / "tasks" / command / f"{len(_folders(run, command)):05d}"


def under_way(run: Path, command: str) -> Path | None:
    """The folder of the plan whose tasks are not merged yet, or whose stage is not finished, if there is one."""
    folders = _folders(run, command)
    ended = folders and (folders[-1] / "finish" / "completions" / "00000").exists()  # datatrove's mark
    return None if ended or not folders else folders[-1]


def refuse_under_way(run: Path, command: str) -> None:
    """Keeps a command from working beside the tasks of a plan.

    Raises:
        RunError: there is one under way.
    """
    if folder := under_way(run, command):
        raise RunError(
            f"{folder}: '{command}' is under way in tasks; give its command with --executor again to go on. To give "
            "them up, remove that folder: shards that are not merged yet are then made anew"
        )


def refuse_other_tasks(folder: Path, tasks: int) -> None:
    """Keeps a plan's number of tasks.

    Raises:
        RunError: a plan is there, with another number.
    """
    if (folder / "plan.json").exists() and (found := read_plan(folder).tasks) != tasks:
        raise RunError(f"{folder} is under way in {found} tasks, not {tasks}; give --tasks {found} to go on")


def write_plan(run: RunDir, folder: Path, tasks: int, shards: dict[str, list[int]], settings: dict[str, Any]) -> Plan:
    """Fixes a plan for good."""
    key = f"{run.manifest['created']} {now()} {time.time_ns()}"
    content = {"format": FORMAT, "key": key, "tasks": tasks, "shards": shards, "settings": settings}
    seal_json(folder / "plan.json", content)
    return read_plan(folder)


def read_plan(folder: Path) -> Plan:
    """The plan of a folder.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    names = ("tasks", "shards", "settings", "key")
    content = _read(folder / "plan.json", names, "give the command with --executor again, which makes it first")
    return Plan(folder, *(content[name] for name in names))


class Part(RunDir):
    """A run as one of its tasks sees it: what others have made is there to read, as it was when the task began; what
    is due are the task's own shards, and all that is recorded goes into its part.

    Args:
        path: the run's directory.
        plan: the plan.
        rank: the task's number, from 0.

    Raises:
        RunError: no such task, or a part or the run's manifest cannot be read or are of another plan.
    """

    def __init__(self, path: Path, plan: Plan, rank: int) -> None:
        if not 0 <= rank < plan.tasks:
            raise RunError(f"{plan.folder} has tasks 0 to {plan.tasks - 1}; there is no task {rank}")
        super().__init__(path)
        self.plan, self.rank = plan, rank
        self._worked: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._others: dict[str, set[str]] = {}
        guarded(plan.folder, lambda: plan.part_path(rank).parent.mkdir(parents=True, exist_ok=True))
        self._take_up()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from working at the same task; notes where and how long this one did.

        Raises:
            RunError: another process still does after ``LOCK_WAIT_S``, or the directory cannot be written.
        """
        path = self.plan.part_path(self.rank)
        with locked(path.with_suffix(".lock"), path, LOCK_WAIT_S):
            self.reload()
            self._worked.append({"host": socket.gethostname(), "begun": now()})
            self._start = time.monotonic()
            try:
                yield
            finally:
                self.save()

    def reload(self) -> None:
        """Reads the run's manifest and the part again.

        Raises:
            RunError: one of them cannot be read.
        """
        super().reload()
        self._take_up()

    def due(self, stage: str, source: str) -> list[int]:
        """The task's own shards that are not sealed."""
        own = self.plan.shards_of(stage, self.rank)
        return [shard for shard in super().due(stage, source) if shard in own]

    def pin(self, stage: str, **facts: Any) -> None:
        """See ``RunDir.pin``; a task that would not agree with another ends before it has made anything.

        Raises:
            RunError: the stage was pinned to something else before, here or by another task.
        """
        for rank in range(self.plan.tasks):
            if rank != self.rank and self.plan.part_path(rank).exists():
                other = read_part(self.plan, rank)["stages"][stage]["fingerprint"]
                if moved := changes({key: other.get(key, value) for key, value in facts.items()}, facts):
                    raise RunError(
                        f"{self.plan.part_path(rank)}: task {rank} makes stage '{stage}' otherwise than task "
                        f"{self.rank} would: {'; '.join(moved)}. All tasks must be given servers of one model; if "
                        f"task {rank} had the wrong one, {self.plan.remedy(rank)}"
                    )
        super().pin(stage, **facts)

    def save(self) -> None:
        """Writes the part atomically."""
        self._worked[-1]["seconds"] = round(time.monotonic() - self._start, 1)
        records = {}
        for stage, others in self._others.items():
            record = self.stage(stage)
            files = {name: facts for name, facts in record["files"].items() if name not in others}
            records[stage] = record | {"files": files}
        content = {"format": FORMAT, "key": self.plan.key, "rank": self.rank, "worked": self._worked}
        seal_json(self.plan.part_path(self.rank), content | {"stages": records})

    def _take_up(self) -> None:
        """Lays what the task has made over what the run holds."""
        path = self.plan.part_path(self.rank)
        kept = read_part(self.plan, self.rank) if path.exists() else {"worked": [], "stages": {}}
        self._worked = kept["worked"]
        for stage in self.plan.shards:
            record = self.stage(stage)
            record.pop("sessions", None)  # of others
            self._others[stage] = set(record["files"])
            own = kept["stages"].get(stage, {"files": {}})
            record.update(own | {"files": record["files"] | own["files"]})


def read_part(plan: Plan, rank: int) -> dict[str, Any]:
    """What a task has recorded.

    Raises:
        RunError: it cannot be read, or is of another plan or task.
    """
    content = _read(plan.part_path(rank), ("key", "rank", "worked", "stages"), plan.remedy(rank))
    if (content["key"], content["rank"]) != (plan.key, rank):
        raise RunError(
            f"{plan.part_path(rank)} is a part of another plan or task than {plan.folder / 'plan.json'}, task {rank}; "
            + plan.remedy(rank)
        )
    return content


def part_rows(folder: Path, rank: int) -> int:
    """How many rows a task has made; of all stages of its command.

    Raises:
        RunError: see ``read_part``.
    """
    stages = read_part(read_plan(folder), rank)["stages"]
    return sum(rows_of(stage, record) for stage, record in stages.items())


def rows_of(stage: str, record: dict[str, Any]) -> int:
    """The rows in the shards of a stage's record in a part."""
    return sum(facts["rows"] for name, facts in record["files"].items() if Path(name).parent == Path(stage))


def _folders(run: Path, command: str) -> list[Path]:
    return sorted(path for path in (run / "tasks" / command).glob("[0-9]" * 5) if path.is_dir())


def _read(path: Path, names: tuple[str, ...], remedy: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            return {name: content[name] for name in names}
        raise ValueError(f"format {content['format']}; wanted {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error!r}; {remedy}") from error

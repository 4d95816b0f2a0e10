"""What a task asks, what of it is to be done in a session, and when a stage fails as a whole."""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from ..errors import StageFailed
from ..logs import counted
from ..prompts import Prompt
from ..rows import Row
from ..stages import Stage
from ..store import Run
from ..tgi.protocol import Answer, Request
from ..tgi.scheduler import RequestStats
from .journal import TOKENS, Item, UnfinishedShard

FIRST_ROWS, FEW_ROWS = 50, 5  # rows that must not all fail for the same reason: half of a small run, but at least 5
REFUSED = "refused"
ADVICE = {
    "empty": "The model writes nothing, or only thinks: set server.thinking to off, or serve another model",
    "unfinished": "Answers are cut off: raise max_tokens in the prompt file",
    REFUSED: "The server refuses the requests: do what it says, or change the prompt",
}
OTHER_ADVICE = (
    "If such answers are good, relax the stage's bounds in the recipe; if not, change the prompt or the model"
)


class GenerationTask(Protocol):
    """What one stage asks about each item.

    Attributes:
        stage: whose rows it makes.
        prompt: for provenance.
        attempts: answers to request before an item is rejected.
        extra: further values that rows depend on and that may change (``Run.inputs``).
    """

    stage: Stage
    prompt: Prompt
    attempts: int
    extra: Mapping[str, str]

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return every item of the shard, in order; each ends as a row or a rejected row."""

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request of one attempt (from 1); each attempt has a sampling seed of its own."""

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the stage's own columns of a row, or the reason code for which the last answer fails."""


class Work:
    """What is to be done for one task in this session, and what was done."""

    def __init__(self, run: Run, task: GenerationTask, rank: int, world_size: int) -> None:
        self.task = task
        self.shards: list[int] = []  # with items to ask about
        self.items = self.waiting = 0  # in these shards; of them, without a row
        self.longest: Item | None = None
        self.proven = any(record.rows for record in run.records(task.stage).values())  # has an accepted row
        self.sums, self.rejected, self.retries = Counter[str](), Counter[str](), Counter[str]()
        for shard in left_journals(run, task.stage):
            with run.claim(task.stage, shard) as mine:  # a kill came between the record and the journal's removal
                if mine and not run.is_due(task.stage, shard, task.extra):
                    run.file(task.stage, shard, ".jsonl").unlink(missing_ok=True)
        # By number, not by place among the due shards: a rank that starts later sees fewer of them.
        due = [shard for shard in run.due(task.stage, task.extra) if shard % world_size == rank]
        for shard in counted(due, f"{task.stage.name}, planning", "shard"):
            with run.claim(task.stage, shard) as mine:
                if not mine:
                    self.shards.append(shard)  # another process makes it, or plans to: look again when it is reached
                elif run.is_due(task.stage, shard, task.extra):
                    self._plan(run, shard)

    def _plan(self, run: Run, number: int) -> None:
        """Take note of what is to be asked about a shard; commit it if that is nothing."""
        shard = UnfinishedShard(run, self.task.stage, number, self.task.items(run, number))
        self.proven |= shard.has_accepted
        if not shard.todo:
            shard.commit(self.task.extra)
            return
        self.shards.append(number)
        self.items += len(shard.items)
        self.waiting += len(shard.todo)
        self.longest = max([*shard.todo, self.longest or shard.todo[0]], key=lambda item: len(str(item.values)))

    def add(self, row: Row, stats: RequestStats) -> None:
        """Count a finished row.

        Raises:
            StageFailed: all rows of the stage so far failed for the same reason.
        """
        self.sums.update({name: row[name] for name in TOKENS}, rows=1, requests=stats.requests)
        self.retries.update(stats.retries)
        if "reason" not in row:
            self.proven = True
            return
        self.rejected[row["reason"]] += 1
        if not self.proven and len(self.rejected) == 1:
            rows = min(FIRST_ROWS, max(FEW_ROWS, self.waiting // 2))
            if self.rejected.total() >= rows:
                raise _failure(self.task.stage, f"the first {rows} rows all failed", self.rejected, row)


def left_journals(run: Run, stage: Stage) -> list[int]:
    """Return the numbers of the shards that have a journal."""
    return sorted(int(path.stem) for path in run.directory(stage).glob("[0-9]*.jsonl"))


def require_accepted(run: Run, task: GenerationTask) -> None:
    """Raise ``StageFailed`` if the stage is complete and has only rejected rows."""
    stage, records = task.stage, run.records(task.stage)
    if any(record.rows for record in records.values()) or run.due(stage, task.extra):
        return
    for shard in records:
        if (rejected := run.rejected(stage, shard)) is not None:
            reasons = sum((Counter(record.counts["rejected"]) for record in records.values()), Counter[str]())
            raise _failure(stage, "no row was accepted", reasons, rejected.slice(0, 1).to_pylist()[0])


def _failure(stage: Stage, what: str, reasons: Mapping[str, int], row: Row) -> StageFailed:
    counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
    return StageFailed(
        f"stage '{stage.name}': {what} ({counts}). Row {row['id']} was rejected as '{row['reason']}'; the answer was "
        f"{row['raw'][:500]!r}. {ADVICE.get(row['reason'], OTHER_ADVICE)}. Then give the same command again: the "
        "rejected rows are requested again"
    )

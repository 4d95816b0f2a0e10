"""What a task asks, what of it is to be done in a session, and when a stage fails as a whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
OTHER_ADVICE = "Relax the stage's bounds in the recipe if such answers are good, else change the prompt or the model"


class GenerationTask(Protocol):
    """What one stage asks about each item."""

    stage: Stage
    prompt: Prompt  # for provenance
    attempts: int  # answers to request before an item is rejected
    extra: Mapping[str, str]  # further values that rows depend on and that may change (``Run.inputs``)

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return every item of the shard, in order; each ends as a row or a rejected row."""

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request of one attempt (from 1); each attempt has a sampling seed of its own."""

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the stage's own columns of a row, or the reason code for which the last answer fails."""


class Work:
    """What is to be done for one task in this session, and what was done. Shards with nothing to ask are committed."""

    def __init__(self, run: Run, task: GenerationTask, rank: int, world_size: int) -> None:
        assert task.stage.source is not None
        self.run, self.task, self.shards = run, task, list[int]()  # shards: those with items to ask about
        self.items, self.waiting = 0, 0  # how many items these have, and how many of them had no row
        self.extremes: list[Item] = []  # the longest and the shortest item without a row, for the warm-up
        self.proven = any(record.rows for record in run.records(task.stage).values())  # has an accepted row
        self.sums, self.rejected, self.retries = Counter[str](), Counter[str](), Counter[str]()
        # By number, not by place among the due shards: a rank that starts later sees fewer of them.
        own = [shard for shard in run.shards(task.stage.source) if shard % world_size == rank]
        for number in counted(own, f"{task.stage.name}, planning", "shard"):
            if run.is_due(task.stage, number, task.extra) or run.file(task.stage, number, ".jsonl").exists():
                with self.claimed(number) as shard:
                    if shard:
                        self.items, self.waiting = self.items + len(shard.items), self.waiting + len(shard.todo)
                        ordered = sorted([*shard.todo, *self.extremes], key=lambda item: len(str(item.values)))
                        self.extremes = [ordered[-1], ordered[0]]
                    if run.is_due(task.stage, number, task.extra):  # else ``claimed`` has finished it
                        self.shards.append(number)  # also if another process holds it: look again when it is reached

    @contextmanager
    def claimed(self, number: int) -> Iterator[UnfinishedShard | None]:
        """Hold and yield a shard with items to ask about; else commit it, unless another process has or does it."""
        run, stage, extra = self.run, self.task.stage, self.task.extra
        with run.claim(stage, number) as mine:
            if mine and run.is_due(stage, number, extra):
                shard = UnfinishedShard(run, stage, number, self.task.items(run, number))
                self.proven |= shard.has_accepted
                if shard.todo:
                    yield shard
                    return
                shard.commit(extra)
            elif mine:
                run.file(stage, number, ".jsonl").unlink(missing_ok=True)  # a kill came between the record and this
            yield None

    def add(self, row: Row, stats: RequestStats) -> None:
        """Count a finished row; StageFailed: all rows of the stage so far failed for the same reason."""
        self.sums["rows"] += 1
        self.sums["requests"] += stats.requests
        for name in TOKENS:
            self.sums[name] += row[name]
        if stats.retries:
            self.retries.update(stats.retries)
        if "reason" not in row:
            self.proven = True
            return
        self.rejected[row["reason"]] += 1
        rows = min(FIRST_ROWS, max(FEW_ROWS, self.waiting // 2))
        if not self.proven and len(self.rejected) == 1 and self.rejected.total() >= rows:
            self._fail(f"the first {rows} rows all failed", self.rejected, row)

    def require_accepted(self) -> None:
        """Raise ``StageFailed`` if the stage is complete and has only rejected rows."""
        run, stage = self.run, self.task.stage
        records = run.records(stage)
        if any(record.rows for record in records.values()) or run.due(stage, self.task.extra):
            return
        if rows := [row for shard in records if (table := run.rejected(stage, shard)) for row in table.to_pylist()]:
            self._fail("no row was accepted", Counter(row["reason"] for row in rows), rows[0])

    def _fail(self, what: str, reasons: Mapping[str, int], row: Row) -> None:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
        raise StageFailed(
            f"stage '{self.task.stage.name}': {what} ({counts}). The answer to row {row['id']} ({row['reason']}) was "
            f"{(row['raw'] or '')[:500]!r}. {ADVICE.get(row['reason'], OTHER_ADVICE)}; then give the same command "
            "again, which requests the rejected rows again"
        )

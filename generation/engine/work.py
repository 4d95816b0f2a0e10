"""What tasks ask, their shards in progress, and what of them is to be done in a session.

A shard in progress = its finished rows + its journal (``00000.jsonl``), append-only, one JSON object a line:
``{"row": {...}, "retries": {...}}`` is a finished row (rejected if it has a ``reason``) and what was sent again, by
cause; ``{"again": {...}}`` makes the rejected row of this id due again, after so many ``attempts`` and tokens.
"""

import errno
import io
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
import pyarrow as pa

from ..errors import RunError, StageFailed
from ..files import explained
from ..limits import SYNC_S
from ..logs import counted
from ..prompts import Prompt
from ..stages import REJECTED_SCHEMA, Row, Stage
from ..store import Run, parquet, read_table
from ..tgi.client import Answer, Request
from ..tgi.scheduler import RequestStats

logger = logging.getLogger(__name__)
TOKENS = ("prompt_tokens", "completion_tokens", "thinking_tokens")
SUMS = ("attempts", *TOKENS)  # columns that add up when a rejected row is requested again
Key = tuple[str, int]  # id and input_hash: a row is finished only for the input that it was made from
FIRST_ROWS, FEW_ROWS = 50, 5  # rows that must not all fail for the same reason: half of a small run, but at least 5
REFUSED = "refused"
ADVICE = {
    "empty": "The model writes nothing, or only thinks: set server.thinking to off, or serve another model",
    "unfinished": "Answers are cut off: raise max_tokens in the prompt file",
    REFUSED: "The server refuses the requests: do what it says, or change the prompt",
}
OTHER_ADVICE = "Relax the stage's bounds in the recipe if such answers are good, else change the prompt or the model"


class Item(NamedTuple):
    """What one row is about: its id, the ``text_hash`` of what it is made from, and what its requests need."""

    id: str
    input_hash: int
    values: dict[str, Any]

    @property
    def key(self) -> Key:
        """What a row of this item must agree with."""
        return self[:2]


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


class Journal:
    """An append-only JSONL file. A line reaches the operating system before the next request is sent, so a killed
    process loses no answer, and the disk at most ``SYNC_S`` later. The first ``append`` cuts off a torn last line.
    Memory holds where the lines are, not what they say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[Key, int] = {}  # where the line of each finished row begins, in bytes
        self.again: dict[Key, Row] = {}  # attempts and tokens so far of each row that is due again
        self.retries = Counter[str]()  # requests that were sent again, by cause
        self.has_accepted = False
        self._size, self._synced = 0, 0.0  # bytes of whole lines; time
        self._file: io.FileIO | None = None
        with explained(path), path.open("rb") if path.exists() else io.BytesIO() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.endswith(b"\n"):
                        self._note(orjson.loads(line), len(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    remedy = "Delete that line and give the same command again: only its row is requested again"
                    raise RunError(f"{path}, line {number} is damaged ({error!r}). {remedy}") from error

    def _note(self, line: Mapping[str, Any], size: int) -> None:
        row = line["row"] if "row" in line else line["again"]
        key = row["id"], row["input_hash"]
        self.finished.pop(key, None)
        self.again.pop(key, None)
        if "row" in line:
            self.finished[key] = self._size
            self.has_accepted |= "reason" not in row
        else:
            self.again[key] = row
        if "retries" in line:
            self.retries.update(line["retries"])
        self._size += size

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line; a RunError says that it cannot be written, and no half line is left behind."""
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        try:
            if self._file is None:
                self._file = io.FileIO(self.path, "ab")
                self._file.truncate(self._size)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if (now := time.monotonic()) - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = now
        except OSError:
            with explained(self.path):
                if self._file:
                    self._file.truncate(self._size)
                raise
        self._note(line, len(data))

    def rows(self) -> list[Row]:
        """Return the finished rows."""
        data = self.path.read_bytes() if self.finished else b""
        return [orjson.loads(data[start : data.index(b"\n", start)])["row"] for start in self.finished.values()]

    def close(self) -> None:
        """Sync and close the file, if it was written to."""
        if self._file and not self._file.closed:
            with self._file, explained(self.path):
                os.fsync(self._file.fileno())


class UnfinishedShard:
    """A shard that is due. A row of its journal is preferred to an accepted row, and that to a rejected one; ``todo``:
    the ``items`` with none. Files without a record count if they can be read; those that differ from it do not."""

    def __init__(self, run: Run, stage: Stage, number: int, items: Sequence[Item] = ()) -> None:
        self._run, self._stage, self._number, self.items = run, stage, number, items
        self.journal = Journal(run.file(stage, number, ".jsonl"))
        self._rejected, self._accepted = self._read(".rejected.parquet", REJECTED_SCHEMA), self._read("", stage.schema)
        kept, again = {*_keys(self._rejected), *_keys(self._accepted)}, self.journal.again
        has_row = (kept - again.keys()) | self.journal.finished.keys()
        self.todo = [item for item in items if item.key not in has_row]
        self.waiting = len(self.todo)  # how many of them still have no row
        self.has_accepted = self.journal.has_accepted or len(self._accepted) > 0

    def _read(self, suffix: str, schema: pa.Schema) -> pa.Table:
        """Return the rows of one of the shard's files; none if it is missing or damaged."""
        path, record = self._run.file(self._stage, self._number, suffix), self._run.record(self._stage, self._number)
        try:
            if path.is_file() and (not record or path.name in record.files):
                path = self._run.verified(self._stage, self._number, suffix) if record else path
                return read_table(path, schema.names).cast(schema)
        except (RunError, ValueError, pa.ArrowException) as error:
            logger.warning("%s is damaged: its rows are made again (%s)", path, error)
        return schema.empty_table()

    def commit(self, extra: Mapping[str, str]) -> None:
        """Write the rows of all items, in order, then the record (``extra``: ``Run.inputs``); drop the journal."""
        self.journal.close()
        found = chain(self._rejected.to_pylist(), self._accepted.to_pylist(), self.journal.rows())
        by_key = {(row["id"], row["input_hash"]): row for row in found}  # the last of each key
        rows = [by_key[item.key] for item in self.items]
        accepted = pa.Table.from_pylist([row for row in rows if "reason" not in row], self._stage.schema)
        rejected = pa.Table.from_pylist([row for row in rows if "reason" in row], REJECTED_SCHEMA)
        sums = {name: sum(row[name] or 0 for row in rows) for name in SUMS}
        dropped = Counter(chain.from_iterable(row.get("dropped") or () for row in rows))  # items of accepted rows
        retries, reasons = self.journal.retries, Counter(rejected["reason"].to_pylist())
        counts = {"accepted": len(accepted), "rejected": dict(sorted(reasons.items()))}
        counts |= {"requests": sums.pop("attempts") + retries.total(), "retries": dict(sorted(retries.items()))}
        counts |= sums | ({"dropped": dict(dropped)} if dropped else {})
        self._run.commit(self._stage, self._number, len(accepted), parquet(accepted), rejected, extra, counts)
        self.journal.path.unlink(missing_ok=True)

    def reopen_rejected(self, reasons: Collection[str] | None) -> int:
        """Make rejected rows (of these reasons; None: all) due again; return how many. The journal says so before the
        record is removed, so a kill in between loses nothing."""
        done, again = {*self.journal.finished, *_keys(self._accepted)}, self.journal.again
        kept = zip(_keys(self._rejected), self._rejected.to_pylist(), strict=True)
        rows = [row | again.get(key, {}) for key, row in kept if key not in done] + self.journal.rows()
        rows = [row for row in rows if "reason" in row and (reasons is None or row["reason"] in reasons)]
        for row in rows:
            spent = {name: row[name] or 0 for name in SUMS}
            self.journal.append({"again": {"id": row["id"], "input_hash": row["input_hash"], **spent}})
        self.journal.close()
        if rows:
            self._run.reopen(self._stage, self._number)
        return len(rows)


def _keys(table: pa.Table) -> Iterable[Key]:
    return zip(table["id"].to_pylist(), table["input_hash"].to_pylist(), strict=True)


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
                        found = {len(str(item.values)): item for item in (*shard.todo, *self.extremes)}
                        self.extremes = [found[max(found)], found[min(found)]]
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
        if rows := [row for shard in records for row in run.rejected(stage, shard).to_pylist()]:
            self._fail("no row was accepted", Counter(row["reason"] for row in rows), rows[0])

    def _fail(self, what: str, reasons: Mapping[str, int], row: Row) -> None:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
        said = f"The answer to row {row['id']} ({row['reason']}) was {(row['raw'] or '')[:500]!r}"
        advice = f"{ADVICE.get(row['reason'], OTHER_ADVICE)}; then the same command requests the rejected rows again"
        raise StageFailed(f"stage '{self.task.stage.name}': {what} ({counts}). {said}. {advice}")

"""What the imported stages share: how one is begun, sealed shard by shard and accounted for, and where rows wait that
belong to shards in no order."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pyarrow as pa

from ..ask import Row
from ..files import guarded
from ..records import IMPORTED_REJECTED_SCHEMA
from ..rundir import RunDir
from ..sealing import ArrowRows
from .reader import ReleasedFile, ReleasedRow, read_rows

MODEL = "Qwen2.5-72B-Instruct (as its authors say)"
_EXAMPLES = 5  # of each defect
WAITING_BYTES = 64_000_000

Report = dict[str, Any]


class Tally:
    """The rows of one kind of file: how many were taken in, and how many have which defect, with the first of them."""

    def __init__(self) -> None:
        self.rows = self.rejected = 0
        self.defects, self.other_keys = Counter[str](), Counter[str]()
        self.examples: defaultdict[str, list[Report]] = defaultdict(list)

    def add(self, row: ReleasedRow, defect: str | None, rejected: bool) -> None:
        """Counts a row."""
        self.rows += 1
        self.rejected += rejected
        self.other_keys.update(row.other_keys)
        if defect:
            self.defects[defect] += 1
            if len(self.examples[defect]) < _EXAMPLES:
                self.examples[defect].append({"file": row.file, "row": row.number, "id": row.id})

    def report(self) -> Report:
        """As JSON values; ``other_keys`` counts the keys of rows that the format does not have, which are left out."""
        return {
            "rows": self.rows,
            "taken_in": self.rows - self.rejected,
            "rejected": self.rejected,
            "defects": dict(self.defects.most_common()),
            "examples": dict(self.examples),
            "other_keys": dict(sorted(self.other_keys.items())),
        }


class Spools:
    """Rows on their way to shards, in no order: appended to a file a shard, where a stage's journal would lie.

    Such a file counts for nothing: an import that was killed begins it anew.

    Args:
        run: the run directory.
        stages: the rows' stages.
    """

    def __init__(self, run: RunDir, stages: Sequence[str]) -> None:
        self.run = run
        self._lines: defaultdict[tuple[str, int], list[bytes]] = defaultdict(list)
        self._begun: set[tuple[str, int]] = set()
        self._bytes = 0
        for stage in stages:
            for path in run.journal_path(stage, 0).parent.glob("*.jsonl"):
                path.unlink()

    def add(self, stage: str, shard: int, row: Row) -> None:
        """Appends a row; it may wait in memory.

        Raises:
            RunError: the files cannot be written.
        """
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        self._lines[stage, shard].append(line)
        self._begun.add((stage, shard))
        self._bytes += len(line)
        if self._bytes > WAITING_BYTES:
            self.flush()

    def shards(self, stage: str) -> list[int]:
        """The shards of a stage that have rows here."""
        return sorted(shard for name, shard in self._begun if name == stage)

    def take(self, stage: str, shard: int) -> list[Row]:
        """The rows of a shard in the order in which they came, once they are flushed."""
        path = self.run.journal_path(stage, shard)
        return [orjson.loads(line) for line in path.open("rb")] if path.exists() else []

    def remove(self, stage: str, shard: int) -> None:
        """Removes the rows of a shard that has been sealed."""
        path = self.run.journal_path(stage, shard)
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # of a stage that has rejected rows alone

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            RunError: the files cannot be written.
        """
        for (stage, shard), lines in self._lines.items():
            path = self.run.journal_path(stage, shard)

            def append() -> None:
                path.parent.mkdir(parents=True, exist_ok=True)  # noqa: B023
                with path.open("ab") as file:  # noqa: B023
                    file.writelines(lines)  # noqa: B023

            guarded(path, append)
        self._lines.clear()
        self._bytes = 0


def rows_of(files: Sequence[ReleasedFile], kind: str) -> Iterator[ReleasedRow]:
    """The rows of all files of a kind, one after the other.

    Raises:
        OriginalError: see ``original.read_rows``.
    """
    for file in files:
        if file.kind == kind:
            yield from read_rows(file.path)


def count_of(files: Sequence[ReleasedFile], kind: str) -> int:
    """How many rows these are."""
    return sum(file.rows for file in files if file.kind == kind)


def begin_stage(run: RunDir, stage: str, settings: dict[str, Any]) -> None:
    """Opens or resumes an imported stage.

    Raises:
        RunError: it was begun otherwise.
    """
    run.begin(stage, settings | {"model": {"id": MODEL, "sha": None}})
    run.note(stage, servers=[], demonstration=False)


def seal_rows(
    run: RunDir,
    stage: str,
    shard: int,
    schema: pa.Schema | None,
    taken: Sequence[Row],
    rejected: Sequence[Row],
    faults: Counter[str],
) -> None:
    """Seals a shard of rows taken in and of rejected ones; both get the model's name.

    Args:
        run: the run directory.
        stage: the shard's.
        shard: its number.
        schema: of the rows taken in; None for a stage that has none.
        taken: those rows.
        rejected: the others, with ``reason`` and ``raw``.
        faults: by reason, how many of ``taken`` the checks would not let in.

    Raises:
        RunError: the files cannot be written.
    """
    reasons = Counter(row["reason"] for row in rejected)
    run.seal_tables(
        stage,
        shard,
        None if schema is None else _table(schema, taken),
        _table(IMPORTED_REJECTED_SCHEMA, rejected),
        rejected_by_reason=dict(sorted(reasons.items())),
        checks=dict(sorted(faults.items())),
    )
    pa.default_memory_pool().release_unused()


def close_stage(run: RunDir, stage: str) -> dict[str, int]:
    """Notes the balance of a stage whose shards are all sealed; returns what its checks say, commonest first."""
    faults, accepted, rejected = Counter[str](), 0, 0
    for shard in run.sealed(stage):
        record = run.record(stage, shard)
        faults.update(record["checks"])
        accepted += record["rows"]
        rejected += sum(record["rejected_by_reason"].values())
    balance = {"items": accepted + rejected, "accepted": accepted, "rejected": rejected, "pending": 0}
    run.note(stage, balance=balance)
    return dict(faults.most_common())


def _table(schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    table = ArrowRows(schema)
    for row in rows:
        table.add(row | {"model": MODEL})
    return table.table()

"""A shard in progress = its finished rows + its journal.

The journal (``00000.jsonl``) is append-only, one JSON object a line:

- ``{"row": {...}, "retries": {...}}``: a finished row, and the causes for which its requests were sent again; a
  rejected row has a ``reason``;
- ``{"again": {...}}``: the rejected row of this id is due again, after so many ``attempts`` and tokens.

A line reaches the operating system before the next request is sent, so a killed process loses no answer, and the disk
at most ``SYNC_S`` later. A torn last line is dropped. Memory holds where the lines are, not what they say.
"""

import errno
import io
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from ..errors import RunError
from ..files import explained, parquet, read_table, sha256
from ..rows import REJECTED_SCHEMA, Row
from ..stages import Stage
from ..store import Run

logger = logging.getLogger(__name__)

SYNC_S = 1.0
TOKENS = ("prompt_tokens", "completion_tokens", "thinking_tokens")
SUMS = ("attempts", *TOKENS)  # columns that add up when a rejected row is asked again
ACCEPTED, REJECTED = "", ".rejected.parquet"  # suffixes of a shard's files, as ``Run.file`` takes them
Key = tuple[str, int]  # id and input_hash: a row is finished only for the input that it was made from


class Journal:
    """An append-only JSONL file. Reading it changes nothing; the first ``append`` cuts off a torn last line.

    Attributes:
        finished: where the line of each finished row begins, in bytes.
        again: attempts and tokens so far of each row that is due again.
        retries: requests that were sent again, by cause.
        size: bytes of whole lines.

    Raises:
        RunError: a line other than a torn last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[Key, int] = {}
        self.again: dict[Key, Row] = {}
        self.retries, self.size = Counter[str](), 0
        self._file: io.FileIO | None = None
        self._synced = 0.0
        lines = path.open("rb") if path.exists() else io.BytesIO()
        with lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.endswith(b"\n"):
                        self._note(orjson.loads(line), len(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise RunError(
                        f"{path}, line {number} is damaged ({error!r}). Delete that line and give the same command "
                        "again: only its row is requested again"
                    ) from error

    def _note(self, line: Mapping[str, Any], size: int) -> None:
        row = line["row"] if "row" in line else line["again"]
        key = (row["id"], row["input_hash"])
        self.finished.pop(key, None)
        self.again.pop(key, None)
        if "row" in line:
            self.finished[key] = self.size
        else:
            self.again[key] = row
        self.retries.update(line.get("retries", {}))
        self.size += size

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line (see the module).

        Raises:
            RunError: the disk is full or the file cannot be written; no half line is left behind.
        """
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        with explained(self.path):
            if self._file is None:
                self._file = io.FileIO(self.path, "ab")
                self._file.truncate(self.size)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self.size)
                raise
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self._note(line, len(data))

    def rows(self, keys: Iterable[Key]) -> list[Row]:
        """Return the finished rows of these keys, in their order."""
        with self.path.open("rb") if self.finished else io.BytesIO() as file:
            return [orjson.loads(file.readline())["row"] for key in keys if file.seek(self.finished[key]) >= 0]

    def close(self) -> None:
        """Sync and close the file, if it was written to."""
        file, self._file = self._file, None
        if file is not None:
            with file, explained(self.path):
                os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Item:
    """What one row is about.

    Attributes:
        id: of the row.
        input_hash: ``text_hash`` of the text that the row is made from.
        values: whatever the task needs to write its requests.
    """

    id: str
    input_hash: int
    values: dict[str, Any]

    @property
    def key(self) -> Key:
        """What a row of this item must agree with."""
        return self.id, self.input_hash


class UnfinishedShard:
    """A shard that is due. A row of its journal is preferred to an accepted row, and that to a rejected one.

    Files of a shard whose record is gone count if they can be read; files that differ from the record do not.

    Args:
        run: the run.
        stage: the shard's.
        number: the shard's.
        items: everything that must end as a row or a rejected row, in order.

    Attributes:
        todo: the items without a row.
        waiting: how many of them have still none.
        has_accepted: whether the shard has an accepted row.

    Raises:
        RunError: the journal or the record is damaged.
    """

    def __init__(self, run: Run, stage: Stage, number: int, items: Sequence[Item] = ()) -> None:
        self._run, self._stage, self._number, self.items = run, stage, number, items
        self.journal = Journal(run.file(stage, number, ".jsonl"))
        self._tables = {ACCEPTED: self._read(ACCEPTED, stage.schema), REJECTED: self._read(REJECTED, REJECTED_SCHEMA)}
        self._places = {suffix: _places(table) for suffix, table in self._tables.items()}
        kept = (self._places[REJECTED].keys() | self._places[ACCEPTED].keys()) - self.journal.again.keys()
        done = kept | self.journal.finished.keys()
        self.todo = [item for item in items if item.key not in done]
        self.waiting = len(self.todo)
        journaled = self.journal.rows(self.journal.finished)
        self.has_accepted = len(self._tables[ACCEPTED]) > 0 or any("reason" not in row for row in journaled)

    def _read(self, suffix: str, schema: pa.Schema) -> pa.Table:
        """Return the rows of one of the shard's files; none if it is missing or damaged."""
        path, record = self._run.file(self._stage, self._number, suffix), self._run.record(self._stage, self._number)
        try:
            if not path.is_file() or (record and path.name not in record.files):
                return schema.empty_table()
            if record and sha256(path) != record.files[path.name]["sha256"]:
                raise RunError("its sha256 is not that of the record")
            return read_table(path, schema.names).cast(schema)
        except (RunError, ValueError, pa.ArrowException) as error:
            logger.warning("%s is damaged: its rows are made again (%s)", path, error)
            return schema.empty_table()

    def append(self, row: Row, retries: Mapping[str, int]) -> None:
        """Add the row of an item to the journal, and the retries that it took."""
        self.journal.append({"row": row, **({"retries": retries} if retries else {})})
        self.waiting -= 1

    def commit(self, extra: Mapping[str, str]) -> None:
        """Write the rows of all items, in their order; then the record; remove the journal last.

        Args:
            extra: see ``Run.inputs``.

        Raises:
            RunError: the files cannot be written.
        """
        self.journal.close()
        fresh: dict[str, list[Row]] = {ACCEPTED: [], REJECTED: []}
        order: dict[str, list[int]] = {ACCEPTED: [], REJECTED: []}  # places in the old table, then in the fresh rows
        journaled = iter(self.journal.rows(item.key for item in self.items if item.key in self.journal.finished))
        for key in (item.key for item in self.items):
            if key in self.journal.finished:
                row = next(journaled)
                suffix = REJECTED if "reason" in row else ACCEPTED
                order[suffix].append(len(self._tables[suffix]) + len(fresh[suffix]))
                fresh[suffix].append(row)
            else:
                suffix = ACCEPTED if key in self._places[ACCEPTED] else REJECTED
                order[suffix].append(self._places[suffix][key])
        accepted, rejected = (
            pa.concat_tables([table, _arrow(fresh[suffix], table.schema)]).take(pa.array(order[suffix], pa.int64()))
            for suffix, table in self._tables.items()
        )
        sums = {name: sum(pc.sum(table[name]).as_py() or 0 for table in (accepted, rejected)) for name in SUMS}
        counts = {
            "accepted": len(accepted),
            "rejected": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
            "requests": sums.pop("attempts") + self.journal.retries.total(),
            "retries": dict(sorted(self.journal.retries.items())),
            **sums,
        }
        self._run.commit(self._stage, self._number, len(accepted), parquet(accepted), rejected, extra, counts)
        self.journal.path.unlink(missing_ok=True)

    def reopen_rejected(self, reasons: Collection[str] | None) -> int:
        """Make rejected rows (of these reasons; None: all) due again; return how many.

        The journal says so before the record is removed, so a kill in between loses nothing.
        """
        rows = self.journal.rows(self.journal.finished)
        for row in self._tables[REJECTED].to_pylist():
            key = (row["id"], row["input_hash"])
            if key not in self.journal.finished and key not in self._places[ACCEPTED]:
                rows.append(row | self.journal.again.get(key, {}))
        rows = [row for row in rows if "reason" in row and (reasons is None or row["reason"] in reasons)]
        for row in rows:
            spent = {name: row[name] or 0 for name in SUMS}
            self.journal.append({"again": {"id": row["id"], "input_hash": row["input_hash"], **spent}})
        self.journal.close()
        if rows:
            self._run.reopen(self._stage, self._number)
        return len(rows)


def _places(table: pa.Table) -> dict[Key, int]:
    keys = zip(table["id"].to_pylist(), table["input_hash"].to_pylist(), strict=True)
    return {key: place for place, key in enumerate(keys)}


def _arrow(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Turn rows into a table by way of JSON: faster than Arrow's conversion of Python objects."""
    tables = [schema.empty_table()]
    for start in range(0, len(rows), 1_000):
        text = b"\n".join(map(orjson.dumps, rows[start : start + 1_000]))
        reading = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        tables.append(pj.read_json(io.BytesIO(text), read_options=reading, parse_options=parsing).select(schema.names))
    return pa.concat_tables(tables)

"""A shard in progress = its finished rows + its journal.

The journal (``00000.jsonl``) is append-only, one JSON object a line:

- ``{"row": {...}, "retries": {...}}``: a finished row, and its requests that were sent again, by cause. A rejected row
  has a ``reason``;
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
SUMS = ("attempts", *TOKENS)  # columns that add up when a rejected row is requested again
ACCEPTED, REJECTED = "", ".rejected.parquet"  # suffixes of a shard's files, as ``Run.file`` takes them
Key = tuple[str, int]  # id and input_hash: a row is finished only for the input that it was made from


@dataclass(frozen=True, slots=True)
class Item:
    """What one row is about: its id, the ``text_hash`` of what it is made from, and what its requests need."""

    id: str
    input_hash: int
    values: dict[str, Any]

    @property
    def key(self) -> Key:
        """What a row of this item must agree with."""
        return self.id, self.input_hash


class Journal:
    """An append-only JSONL file. Reading it changes nothing; the first ``append`` cuts off a torn last line.

    Attributes:
        finished: where the line of each finished row begins, in bytes.
        again: attempts and tokens so far of each row that is due again.
        retries: requests that were sent again, by cause.

    Raises:
        RunError: a line other than a torn last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[Key, int] = {}
        self.again: dict[Key, Row] = {}
        self.retries = Counter[str]()
        self._size = 0  # bytes of whole lines
        self._file: io.FileIO | None = None
        self._synced = 0.0
        with explained(path), path.open("rb") if path.exists() else io.BytesIO() as lines:
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
        key = _key(row)
        self.finished.pop(key, None)
        self.again.pop(key, None)
        if "row" in line:
            self.finished[key] = self._size
        else:
            self.again[key] = row
        if "retries" in line:
            self.retries.update(line["retries"])
        self._size += size

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line (see the module).

        Raises:
            RunError: the disk is full or the file cannot be written; no half line is left behind.
        """
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        with explained(self.path):
            if self._file is None:
                self._file = io.FileIO(self.path, "ab")
                self._file.truncate(self._size)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self._size)
                raise
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self._note(line, len(data))

    def rows(self) -> list[Row]:
        """Return the finished rows."""
        found = []
        with self.path.open("rb") if self.finished else io.BytesIO() as file:
            for start in self.finished.values():
                file.seek(start)
                found.append(orjson.loads(file.readline())["row"])
        return found

    def close(self) -> None:
        """Sync and close the file, if it was written to."""
        file, self._file = self._file, None
        if file is not None:
            with file, explained(self.path):
                os.fsync(file.fileno())


class UnfinishedShard:
    """A shard that is due. A row of its journal is preferred to an accepted row, and that to a rejected one.

    Files of a shard whose record is gone count if they can be read; files that differ from the record do not.

    Attributes:
        items: everything that must end as a row or a rejected row, in order.
        todo: the items without a row.
        waiting: how many of them have still none.
        has_accepted: whether the shard has an accepted row.

    Raises:
        RunError: the journal or the record is damaged.
    """

    def __init__(self, run: Run, stage: Stage, number: int, items: Sequence[Item] = ()) -> None:
        self._run, self._stage, self._number, self.items = run, stage, number, items
        self.journal = Journal(run.file(stage, number, ".jsonl"))
        schemas = {REJECTED: REJECTED_SCHEMA, ACCEPTED: stage.schema}
        self._tables = {suffix: self._read(suffix, schema) for suffix, schema in schemas.items()}
        kept = {key for table in self._tables.values() for key in _keys(table)} - self.journal.again.keys()
        done = kept | self.journal.finished.keys()
        self.todo = [item for item in items if item.key not in done]
        self.waiting = len(self.todo)
        journaled = any("reason" not in row for row in self.journal.rows())
        self.has_accepted = journaled or len(self._tables[ACCEPTED]) > 0

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
        """Write the rows of all items, in their order, then the record (``extra``: ``Run.inputs``); drop the journal.

        Raises:
            RunError: the files cannot be written.
        """
        self.journal.close()
        fresh = {ACCEPTED: list[Row](), REJECTED: list[Row]()}
        side = {key: suffix for suffix, table in self._tables.items() for key in _keys(table)}
        for row in self.journal.rows():
            suffix = side[_key(row)] = REJECTED if "reason" in row else ACCEPTED
            fresh[suffix].append(row)
        tables = {}
        for suffix, kept in self._tables.items():
            table = pa.concat_tables([kept, _arrow(fresh[suffix], kept.schema)])
            places = {key: place for place, key in enumerate(_keys(table))}  # of rows with the same key, the last
            order = [places[item.key] for item in self.items if side[item.key] == suffix]
            tables[suffix] = table.take(pa.array(order, pa.int64()))
        sums = {name: sum(pc.sum(table[name]).as_py() or 0 for table in tables.values()) for name in SUMS}
        accepted, rejected = tables[ACCEPTED], tables[REJECTED]
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
        done = self.journal.finished.keys() | set(_keys(self._tables[ACCEPTED]))
        kept = (row for row in self._tables[REJECTED].to_pylist() if _key(row) not in done)
        rows = [row | self.journal.again.get(_key(row), {}) for row in kept] + self.journal.rows()
        rows = [row for row in rows if "reason" in row and (reasons is None or row["reason"] in reasons)]
        for row in rows:
            spent = {name: row[name] or 0 for name in SUMS}
            self.journal.append({"again": {"id": row["id"], "input_hash": row["input_hash"], **spent}})
        self.journal.close()
        if rows:
            self._run.reopen(self._stage, self._number)
        return len(rows)


def _key(row: Row) -> Key:
    return row["id"], row["input_hash"]


def _keys(table: pa.Table) -> Iterable[Key]:
    return zip(table["id"].to_pylist(), table["input_hash"].to_pylist(), strict=True)


def _arrow(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Turn rows into a table by way of JSON: faster than Arrow's conversion of Python objects."""
    tables = [schema.empty_table()]
    for start in range(0, len(rows), 1_000):
        text = b"\n".join(map(orjson.dumps, rows[start : start + 1_000]))
        reading = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        tables.append(pj.read_json(io.BytesIO(text), read_options=reading, parse_options=parsing).select(schema.names))
    return pa.concat_tables(tables)

"""From a journal to a sealed shard, and back. A shard that is opened again becomes a journal that holds all that
stays, and is then an unfinished shard like any other, so that what opens it may be killed as well."""

import io
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from .ask import BulkTask, I, Row
from .files import seal
from .journal import Journal, Record
from .records import MAX_SHARD_ROWS, REJECTED_SCHEMA
from .rundir import RunDir

SEAL_ROWS = 1_000  # rows that are turned into Arrow at a time


def seal_shard(run: RunDir, task: BulkTask[I], shard: int, items: list[I], journal: Journal) -> None:
    """Writes the rows of a closed journal, which has the end of all ``items``, in the order of these; removes it.

    Captions that were sealed before keep their places, and others follow them: later stages refer to places. Nothing
    refers to those of conversations, which so lie in the order of their captions however often a shard was opened.

    Raises:
        RunError: the files cannot be written.
    """
    spent = run.unsealed(task.stage).get(shard, {})
    requests, retries = spent.get("requests", 0), Counter(spent.get("retries", {}))
    tokens = Counter(prompt_tokens=0, completion_tokens=0)
    accepted, rejected, reasons = ArrowRows(task.columns), ArrowRows(REJECTED_SCHEMA), Counter[str]()
    places = journal.places if task.source == "seeds" else {}
    ordered = sorted(items, key=lambda item: places.get(item.id, MAX_SHARD_ROWS))
    for record in journal.records(item.id for item in ordered):
        row = record["row"]
        if "reason" in row:
            rejected.add(row)
            reasons[row["reason"]] += 1
        else:
            accepted.add(row)
        requests += record.get("requests", 0)
        retries.update(record.get("retries", {}))
        for key in ("prompt_tokens", "completion_tokens"):
            tokens[key] += row[key]
    run.seal_tables(
        task.stage,
        shard,
        accepted.table(),
        rejected.table(),
        rejected_by_reason=dict(sorted(reasons.items())),
        requests=requests,
        retries=dict(sorted(retries.items())),
        **tokens,
        **({"kept": len(places)} if places else {}),  # first rows, in their places
    )
    del accepted, rejected
    pa.default_memory_pool().release_unused()  # it would keep what the largest shard took
    note_balance(run, task)
    journal.path.unlink()  # the last thing: a journal that is still there tells of a kill before


def finish_sealing(run: RunDir, task: BulkTask[Any]) -> None:
    """Does what a kill left undone between the record of a sealed shard and the end of ``seal_shard``."""
    journals = [run.journal_path(task.stage, shard) for shard in run.sealed(task.stage)]
    if left := [path for path in journals if path.exists()]:
        note_balance(run, task)
    for path in left:
        path.unlink()


def note_balance(run: RunDir, task: BulkTask[Any]) -> dict[str, int]:
    """Notes and returns where the items of a stage are (see ``balance_of``)."""
    balance = balance_of(run, task.stage, sum(map(task.count, run.sealed(task.source))))
    run.note(task.stage, balance=balance)
    return balance


def balance_of(run: RunDir, stage: str, items: int | None) -> dict[str, int]:
    """Where the items of a stage are: ``items`` = ``accepted`` + ``rejected`` + ``pending``; ``items`` None means that
    all have ended."""
    records = [*(run.record(stage, shard) for shard in run.sealed(stage)), *run.unsealed(stage).values()]
    accepted = sum(record["rows"] for record in records)
    rejected = sum(sum(record["rejected_by_reason"].values()) for record in records)
    items = accepted + rejected if items is None else items
    return {"items": items, "accepted": accepted, "rejected": rejected, "pending": items - accepted - rejected}


def rejected_rows(run: RunDir, stage: str, shard: int) -> list[Row]:
    """The rejected rows of a sealed shard.

    Raises:
        RunError: their file is gone or has changed.
    """
    if not run.record(stage, shard)["rejected_by_reason"]:
        return []
    rows: list[Row] = pq.ParquetFile(run.verified(stage, run.rejected_path(stage, shard))).read().to_pylist()
    return rows


def open_again(
    run: RunDir,
    stage: str,
    shard: int,
    again: Callable[[Row], bool] = lambda row: False,
    reject: Callable[[Row], Row | None] = lambda row: None,
) -> None:
    """Turns a sealed shard back into a journal.

    Args:
        run: the run directory.
        stage: the shard's.
        shard: its number.
        again: which rejected rows are to be asked again.
        reject: for an accepted row that is to be rejected after all, the ``reason`` and other columns of a rejected
            row; None for one that stays. Rows that stay then close up, so no later stage may refer to their places.

    Raises:
        RunError: the shard's files are gone or have changed, or the journal cannot be written.
    """
    lines: list[Record] = []
    rejected: list[Row] = []
    for row in run.table(stage, shard).to_pylist():
        if why := reject(row):
            rejected.append({name: row.get(name) for name in REJECTED_SCHEMA.names} | why)
        else:
            lines.append({"id": row["id"], "row": row, "place": len(lines)})
    accepted = len(lines)
    for row in rejected_rows(run, stage, shard):
        if again(row):
            lines.append({key: row[key] for key in ("id", "attempts", "prompt_tokens", "completion_tokens")})
        else:
            rejected.append(row)
    _reopen(run, stage, shard, lines, accepted, rejected)


def open_what_is_left(run: RunDir, stage: str, shard: int, accepted: bool, rejected: bool) -> None:
    """Turns a sealed shard of which a file is lost, or obsolete, back into a journal of the rest; the items of what is
    lost are asked about anew.

    Args:
        run: the run directory.
        stage: the shard's.
        shard: its number.
        accepted: its accepted rows stay, in their places.
        rejected: its rejected rows stay.

    Raises:
        RunError: what is to stay is gone or has changed, or the journal cannot be written.
    """
    kept = run.table(stage, shard).to_pylist() if accepted else []
    lines = [{"id": row["id"], "row": row, "place": place} for place, row in enumerate(kept)]
    _reopen(run, stage, shard, lines, len(lines), rejected_rows(run, stage, shard) if rejected else [])


def _reopen(run: RunDir, stage: str, shard: int, lines: list[Record], accepted: int, rejected: list[Row]) -> None:
    """Writes the journal of a shard that was sealed; then it is unfinished.

    Args:
        run: the run directory.
        stage: the shard's.
        shard: its number.
        lines: of accepted rows and of those to be asked again.
        accepted: how many are accepted.
        rejected: rows that stay rejected.
    """
    lines = lines + [{"id": row["id"], "row": row} for row in rejected]
    content = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
    seal(run.journal_path(stage, shard), lambda target: target.write_bytes(content))
    reasons = Counter(row["reason"] for row in rejected)
    run.unseal(stage, shard, rows=accepted, rejected_by_reason=dict(reasons))


def seal_again(run: RunDir, task: BulkTask[Any], shards: Iterable[int]) -> None:
    """Seals opened shards of which nothing is to be asked.

    Raises:
        RunError: the files cannot be written.
    """
    for shard in shards:
        with Journal(run.journal_path(task.stage, shard)) as journal:
            pass
        seal_shard(run, task, shard, task.load(shard), journal)


class ArrowRows:
    """Rows on their way into an Arrow table, as JSON: Arrow's own reader is faster than its conversion of Python
    objects, which also imports pandas (60 MB)."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._lines, self._tables = schema, list[bytes](), list[pa.Table]()

    def add(self, row: Row) -> None:
        """Adds a row; columns that it lacks are null."""
        self._lines.append(orjson.dumps(row))
        if len(self._lines) == SEAL_ROWS:
            self._convert()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._lines:
            self._convert()
        return pa.concat_tables(self._tables or [pa.Table.from_batches([], self._schema)])

    def _convert(self) -> None:
        content = b"\n".join(self._lines)
        self._lines = []
        reading = pj.ReadOptions(use_threads=False, block_size=len(content) + 1)
        parsing = pj.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="error")
        self._tables.append(pj.read_json(io.BytesIO(content), read_options=reading, parse_options=parsing))

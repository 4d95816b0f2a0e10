"""One shard of rows of text: its columns, its counts, and whom its ids belong to. All by Arrow and numpy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..records import MAX_SHARD_ROWS
from .faults import Fault, first_wrong, record_fault

_ID = r"^[0-9]{10}$"
_TOKENS = ("prompt_tokens", "completion_tokens")


def read_table(path: Path) -> pa.Table:
    """All rows of a Parquet file.

    Raises:
        OSError, pa.ArrowException: it is none.
    """
    with pq.ParquetFile(path) as file:  # not read_table, which takes 50 MB of its own
        return file.read(use_threads=False)


def schema_faults(name: str, found: pa.Schema, wanted: pa.Schema) -> list[Fault]:
    """Columns that are missing, too many, or of another type."""
    if found.equals(wanted):
        return []
    columns = [f"{field.name} {field.type}" for field in wanted if field not in list(found)]
    others = [f"{field.name} {field.type}" for field in found if field not in list(wanted)]
    if not (columns or others):
        columns, others = wanted.names, found.names  # in another order
    return [
        Fault(name, f"has other columns: {', '.join(others) or 'none'} in place of {', '.join(columns) or 'none'}")
    ]


def numbers_of(ids: pa.ChunkedArray) -> np.ndarray:
    """Ids as integers, int64 [n]; -1 for one that is no ten digits."""
    sound = pc.fill_null(pc.match_substring_regex(ids, _ID), False)
    return np.asarray(pc.cast(pc.if_else(sound, ids, "-1"), pa.int64()), np.int64)


def id_faults(name: str, ids: pa.ChunkedArray, shard: int | None) -> list[Fault]:
    """Ids that are none, are not of this shard, or are there twice; ``shard`` None takes those of all shards."""
    numbers = numbers_of(ids)
    faults = first_wrong(name, numbers < 0, lambda row: f"the id {ids[row].as_py()!r} is no ten digits")
    if shard is not None:
        foreign = (numbers >= 0) & (numbers // MAX_SHARD_ROWS != shard)
        faults += first_wrong(name, foreign, lambda row: f"the id {ids[row]} is not of shard {shard}")
    return faults + twice_faults(name, numbers)


def twice_faults(name: str, numbers: np.ndarray) -> list[Fault]:
    """Ids, int64 [n], that an earlier row has, too."""
    again = np.ones(len(numbers), bool)
    again[np.unique(numbers, return_index=True)[1]] = False
    return first_wrong(name, again & (numbers >= 0), lambda row: f"the id {numbers[row]:010d} is there a second time")


def count_faults(
    at: tuple[str | int, ...], record: Mapping[str, Any], table: pa.Table, rejected: pa.Table | None
) -> list[Fault]:
    """The counts of a shard's record, which stands in the manifest at ``at``, against the rows."""
    found: dict[str, Any] = {"rows": len(table)}
    if "rejected_by_reason" in record:
        reasons = pc.value_counts(rejected["reason"]).to_pylist() if rejected is not None else []
        found["rejected_by_reason"] = dict(sorted((entry["values"], entry["counts"]) for entry in reasons))
    for key in _TOKENS:
        if key in record:
            tables = [part for part in (table, rejected) if part is not None]
            found[key] = sum(pc.sum(part[key]).as_py() or 0 for part in tables)
    return [
        record_fault((*at, key), record.get(key), value) for key, value in found.items() if record.get(key) != value
    ]


def seed_faults(name: str, shard: int, seeds: pa.Table) -> list[Fault]:
    """Ids of seeds: those of shard and row, in order."""
    wrong = numbers_of(seeds["id"]) != shard * MAX_SHARD_ROWS + np.arange(len(seeds))
    return first_wrong(name, wrong, lambda row: f"the id is {seeds['id'][row]}, and should be {shard:05d}{row:05d}")


def order_faults(name: str, table: pa.Table, kept: int) -> list[Fault]:
    """Rows out of the seeds' order. The first ``kept`` rows were there when the shard was sealed before, and rows that
    were asked again follow them. Where that is not recorded, their attempts tell them."""
    numbers = numbers_of(table["id"])
    late = np.zeros(len(numbers), bool)
    late[kept:] = numbers[kept:] < np.maximum.accumulate(numbers[kept:])
    if not kept:
        late &= np.asarray(pc.fill_null(table["attempts"], 2)) < 2
    return first_wrong(name, late, lambda row: f"the id {numbers[row]:010d} is out of order")


def caption_faults(
    name: str, seeds: pa.Table, captions: pa.Table, rejected: pa.Table | None, imported: bool
) -> list[Fault]:
    """Captions and rejected rows together are the seeds, each once; and a caption is of its seed."""
    numbers, faults = numbers_of(captions["id"]), list[Fault]()
    lost = numbers_of(rejected["id"]) if rejected is not None else numbers[:0]
    wanted = numbers_of(seeds["id"])
    both = np.isin(numbers, lost)
    faults += first_wrong(name, both, lambda row: f"the id {numbers[row]:010d} is also among the rejected rows")
    missing = np.setdiff1d(wanted, np.concatenate([numbers, lost]))
    if len(missing):
        faults.append(
            Fault(name, f"{len(missing)} seeds, the first {missing[0]:010d}, are neither captions nor rejected rows")
        )
    known = np.isin(numbers, wanted)
    faults += first_wrong(name, ~known, lambda row: f"the id {numbers[row]:010d} is that of no seed")
    if known.all() and not imported:
        rows = pa.array(numbers % MAX_SHARD_ROWS)
        for column in ("seed", "source"):
            differ = differs(captions[column], seeds[column].take(rows))
            faults += first_wrong(name, differ, f"its {column} is not that of its id")
    return faults


def conversation_faults(
    name: str, shard: int, task: str, table: pa.Table, rejected: pa.Table | None, captions: pa.Table
) -> list[Fault]:
    """Conversations refer to a caption of this shard by its row and have its id; rejected ones to one by its id."""
    rows, homes = np.asarray(table["caption_row"]), np.asarray(table["caption_shard"])
    faults = first_wrong(name, homes != shard, lambda row: f"caption_shard is {homes[row]}, and should be {shard}")
    outside = (rows < 0) | (rows >= len(captions))
    faults += first_wrong(name, outside, lambda row: f"caption_row is {rows[row]}; there are {len(captions)} captions")
    if not outside.any():
        ids = captions["id"].take(table["caption_row"])
        faults += first_wrong(
            name,
            differs(ids, table["id"]),
            lambda row: f"the id is {table['id'][row]}; caption_row {rows[row]} has the caption {ids[row]}",
        )
    others = differs(table["task"], task)
    faults += first_wrong(name, others, lambda row: f"the task is {table['task'][row]}, and should be {task}")
    turns = np.asarray(pc.fill_null(pc.list_value_length(table["conversations"]), 0))
    faults += first_wrong(name, (turns < 2) | (turns % 2 > 0), lambda row: f"the conversation has {turns[row]} turns")
    if rejected is not None:
        strange = ~np.isin(numbers_of(rejected["id"]), numbers_of(captions["id"]))
        what = "the rejected id {} is that of no caption"
        faults += first_wrong(f"rejected/{name}", strange, lambda row: what.format(rejected["id"][row]))
    return faults


def verdict_faults(name: str, table: pa.Table, rejected: pa.Table | None, conversations: pa.Table) -> list[Fault]:
    """Verdicts are of turns that there are, one each."""
    turns = dict(zip(numbers_of(conversations["id"]).tolist(), item_counts(conversations).tolist(), strict=True))
    owners, numbers = numbers_of(table["conversation"]), np.asarray(table["turn"])
    most = np.array([turns.get(owner, 0) for owner in owners.tolist()])
    wrong = (numbers < 0) | (numbers >= most)
    faults = first_wrong(name, wrong, lambda row: f"turn {numbers[row]} of {table['conversation'][row]} is not there")
    ids = pc.binary_join_element_wise(table["conversation"], pc.cast(table["turn"], pa.string()), ".")
    differ = differs(ids, table["id"])
    faults += first_wrong(name, differ, lambda row: f"the id is {table['id'][row]}, and should be {ids[row]}")
    ended = pa.concat_tables([part.select(["id"]) for part in (table, rejected) if part is not None])
    if (found := pc.count_distinct(ended["id"]).as_py()) != len(ended) or found != sum(turns.values()):
        faults.append(Fault(name, f"{len(ended)} rows of {found} turns have ended; there are {sum(turns.values())}"))
    return faults


def differs(found: pa.ChunkedArray, wanted: Any) -> np.ndarray:
    """Where two columns, or a column and a value, are not equal, bool [n]; null equals nothing."""
    return np.asarray(pc.fill_null(pc.not_equal(found, wanted), True))


def item_counts(conversations: pa.Table) -> np.ndarray:
    """How many questions each conversation has, int64 [n]."""
    return np.asarray(pc.fill_null(pc.list_value_length(conversations["conversations"]), 0), np.int64) // 2

"""The original's instruction files as the stages ``instructions/<task>``, joined with the captions by their id.

Their rows come in no order, and those of a shard must lie together: they are spooled to a file a shard first.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from .. import checks
from ..ask import Row
from ..config import TASKS
from ..instructions import stage_of
from ..progress import progress
from ..records import IMPORTED_INSTRUCTION_SCHEMA, MAX_SHARD_ROWS
from ..rundir import RunDir
from .defects import CaptionIndex, answer_words, instruction_defect, task_of, turn_items
from .reader import ReleasedFile, ReleasedRow
from .shards import Report, Spools, Tally, begin_stage, close_stage, count_of, rows_of, seal_rows

_BAR_WORDS = 5  # width of a bar of the histogram


def import_instructions(
    run: RunDir, files: Sequence[ReleasedFile], index: CaptionIndex, settings: dict[str, Any], homeless: str
) -> Report:
    """Seals the conversations of all tasks, as far as they are not sealed yet.

    Args:
        run: a run whose captions are imported.
        files: of the release.
        index: of the captions.
        settings: the import's fingerprint.
        homeless: the stage in which rows are rejected that have no caption or no readable conversation, so no task.

    Returns:
        Rows, defects, what the checks say, and how long the open answers are: two humps beside ``task_of``'s bound
        mean that it parts the two open tasks; one hump, that it does not.

    Raises:
        RunError: the files cannot be written.
    """
    tally, words, homeless_rows = Tally(), Counter[int](), 0
    for stage in map(stage_of, TASKS):
        begin_stage(run, stage, settings)
    spools = Spools(run, [homeless, *map(stage_of, TASKS)])
    seen: dict[str, set[int]] = {task: set() for task in TASKS}
    with progress("instructions", count_of(files, "instructions"), 0, "row") as bar:
        for row in rows_of(files, "instructions"):
            task = task_of(row.turns) if row.turns else None
            if task is None or row.id is None or row.id not in index:
                defect = instruction_defect(row, task, index, seen=False)
                tally.add(row, defect, True)
                shard = homeless_rows // settings["shard_rows"]
                spools.add(homeless, shard, {"original_id": row.id, "reason": defect, "raw": row.raw()})
                homeless_rows += 1
            else:
                _spool(spools, row, task, index, seen[task], tally, settings["defects"])
            if row.turns and task != "multiple_choice":
                words[int(answer_words(turn_items(row.turns)) // _BAR_WORDS)] += 1
            bar.update()
    spools.flush()
    _seal(run, spools, homeless)
    found = {}
    for stage in map(stage_of, TASKS):
        faults = close_stage(run, stage)
        found[stage] = {"rows": run.stage(stage)["balance"]["accepted"], "checks": faults}
        run.note(stage, statistics=asdict(checks.answer_statistics(_items(run, stage))))
    bars = {f"{bar * _BAR_WORDS} to {(bar + 1) * _BAR_WORDS}": words[bar] for bar in sorted(words)}
    return tally.report() | {"stages": found, "open_answers_by_words": bars}


def _spool(
    spools: Spools, row: ReleasedRow, task: str, index: CaptionIndex, seen: set[int], tally: Tally, defects: str
) -> None:
    """A conversation about a known caption; its id follows when the captions are at hand."""
    shard, place = index.place(row.id or "")
    number = shard * MAX_SHARD_ROWS + place
    defect = instruction_defect(row, task, index, number in seen)
    drop = defect is not None and defects == "drop"
    tally.add(row, defect, drop)
    line: Row = {"original_id": row.id, "caption_row": place}
    if drop:
        line |= {"reason": defect, "raw": row.raw()}
    else:
        seen.add(number)
        line |= {"task": task, "conversations": row.turns, "caption_shard": shard}
    spools.add(stage_of(task), shard, line)


def _seal(run: RunDir, spools: Spools, homeless: str) -> None:
    shards = run.sealed("captions")
    with progress("instructions, sealing", len(shards), 0, "shard") as bar:
        for shard in shards:
            captions = run.table("captions", shard).select(["id", "caption"])
            ids, texts = (column.to_pylist() for column in captions.columns)
            for task in TASKS:
                stage = stage_of(task)
                if shard not in run.sealed(stage):
                    rows = [line | {"id": ids[line["caption_row"]]} for line in spools.take(stage, shard)]
                    taken = [row for row in rows if "reason" not in row]
                    faults = Counter(filter(None, (_fault(row, texts[row["caption_row"]]) for row in taken)))
                    seal_rows(run, stage, shard, IMPORTED_INSTRUCTION_SCHEMA, taken, _rejected(rows), faults)
                spools.remove(stage, shard)
            bar.update()
    for shard in spools.shards(homeless):
        seal_rows(run, homeless, shard, None, (), spools.take(homeless, shard), Counter())
        spools.remove(homeless, shard)


def _rejected(rows: Sequence[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "caption_row"} for row in rows if "reason" in row]


def _fault(row: Row, caption: str) -> str | None:
    """The reason for which the checks of generated conversations would refuse one, or None."""
    answer = orjson.dumps({"QA Pairs": turn_items(row["conversations"])}).decode()
    return checks.instruction_items(answer, "stop", caption, row["task"], checks.LIMITS[row["task"]])[1]


def _items(run: RunDir, stage: str) -> Iterator[checks.Item]:
    """The items of all conversations of a stage."""
    for shard in run.sealed(stage):
        for turns in run.table(stage, shard)["conversations"].to_pylist():
            yield from turn_items(turns)

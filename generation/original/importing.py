"""The original's released text as a run: its files become the stages ``seeds``, ``captions``, ``instructions/<task>``.

An id is, as ever, shard and row: row r of the pre-training files, counted on from file to file in the order given, is
row r % shard_rows of seed shard r // shard_rows. The original's own id is the column ``original_id``. The release has
no seeds, prompts or token counts: these are null. Nothing is written before all files have been read to their end, and
the seeds are sealed before any caption, so that no later stage takes a part for the whole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from .. import checks
from ..ask import Row
from ..errors import OriginalError, RunError
from ..progress import progress
from ..records import IMPORTED_CAPTION_SCHEMA, MAX_SHARD_ROWS, MAX_SHARDS, SEED_SCHEMA, row_id
from ..rundir import RunDir
from .defects import CaptionIndex, caption_defect
from .instructions import import_instructions
from .reader import ReleasedFile, ReleasedRow, survey
from .shards import Report, Tally, begin_stage, close_stage, count_of, rows_of, seal_rows

STAGE = "import"
SOURCE = "unicorn_original"
LICENSE = "not given; see the release, Yu2020/Unicorn"


def import_original(
    run: RunDir,
    paths: Sequence[Path],
    defects: Literal["drop", "keep"] = "drop",
    shard_rows: int = 10_000,
    license: str = LICENSE,
) -> Report:
    """Makes a run of the original's files, or goes on where that was stopped.

    Args:
        run: a new run directory, or one that the same import was begun in.
        paths: the pre-training file and, if wanted, the instruction files, in any order.
        defects: rows with a defect are rejected, or kept as far as a run can hold them: a caption must be text, a
            conversation a list of turns, and an instruction must be about a caption that was taken in.
        shard_rows: rows of the pre-training file that make a shard.
        license: under which the text may be used, for the card.

    Returns:
        Rows, defects with their first examples, and what the checks say of the rows taken in; the manifest has it too.

    Raises:
        OriginalError: a file cannot be read, or is not what it should be.
        RunError: the run holds something else, or cannot be written.
    """
    if not 0 < shard_rows <= MAX_SHARD_ROWS:
        raise RunError(f"--shard-rows {shard_rows} must lie in 1..{MAX_SHARD_ROWS}")
    if "seeds" in run.manifest["stages"] and STAGE not in run.manifest["stages"]:
        raise RunError(f"{run.path} holds a run that was generated; choose another --run-dir for the import")
    files = _survey(paths)
    facts = {file.path.name: {key: value for key, value in asdict(file).items() if key != "path"} for file in files}
    settings = {"imported": facts, "shard_rows": shard_rows, "defects": defects, "license": license}
    if "report" not in run.begin(STAGE, settings):
        _seeds(run, count_of(files, "captions"), settings)
        index = CaptionIndex()
        report = {"captions": _captions(run, files, index, settings)}
        if count_of(files, "instructions"):
            report["instructions"] = import_instructions(run, files, index, settings, STAGE)
        run.note(STAGE, report=report)
    result: Report = run.stage(STAGE)["report"]
    return result


def _survey(paths: Sequence[Path]) -> list[ReleasedFile]:
    """Every file, read to its end."""
    names = [path.name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OriginalError(f"{', '.join(twice)} given more than once; files are told apart by their names")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise OriginalError(f"{', '.join(missing)}: no such file")
    with progress("reading", sum(path.stat().st_size for path in paths), 0, "B") as bar:
        files = [survey(path, bar.update) for path in paths]
    if not count_of(files, "captions"):
        raise OriginalError(
            f"none of {', '.join(names)} is the pre-training file, in most of whose first rows the conversation is "
            "one exchange that ends in the caption; name that file too: the conversations are about its captions"
        )
    return files


def _seeds(run: RunDir, rows: int, settings: dict[str, Any]) -> None:
    """One seed a row of the pre-training files, its text unknown."""
    size, license = settings["shard_rows"], settings["license"]
    shards = -(-rows // size)
    if shards > MAX_SHARDS:
        raise RunError(f"{rows} rows make {shards} shards of {size}; raise --shard-rows")
    run.begin("seeds", settings)
    run.note("seeds", sources={SOURCE: {"license": license}})
    for shard in sorted({*range(shards)} - {*run.sealed("seeds")}):
        count = min(size, rows - shard * size)
        columns = [[row_id(shard, row) for row in range(count)], [None] * count, [SOURCE] * count, [license] * count]
        run.seal_tables("seeds", shard, pa.table(columns, SEED_SCHEMA), None)
    run.note("seeds", complete=True)


def _captions(run: RunDir, files: Sequence[ReleasedFile], index: CaptionIndex, settings: dict[str, Any]) -> Report:
    """Fills the index and seals what is not sealed yet."""
    tally, rows = Tally(), rows_of(files, "captions")
    begin_stage(run, "captions", settings)
    done = set(run.sealed("captions"))
    with progress("captions", count_of(files, "captions"), 0, "row") as bar:
        for shard in run.sealed("seeds"):
            part = list(islice(rows, settings["shard_rows"]))
            taken, rejected = _sort_out(part, shard, index, tally, settings["defects"])
            if shard not in done:
                seal_rows(run, "captions", shard, IMPORTED_CAPTION_SCHEMA, taken, rejected, _faults(taken))
            bar.update(len(part))
    return tally.report() | {"checks": close_stage(run, "captions")}


def _sort_out(
    part: list[ReleasedRow], shard: int, index: CaptionIndex, tally: Tally, defects: str
) -> tuple[list[Row], list[Row]]:
    """The rows of a shard that are taken in, and those that are rejected."""
    taken: list[Row] = []
    rejected: list[Row] = []
    for number, row in enumerate(part):
        defect = caption_defect(row, index)
        own = {"id": row_id(shard, number), "original_id": row.id}
        if row.caption is None or row.turns is None or (defect and defects == "drop"):
            tally.add(row, defect, True)
            rejected.append(own | {"reason": defect, "raw": row.raw()})
            continue
        tally.add(row, defect, False)
        if row.id is not None:
            index.add(row.id, row.caption, shard, len(taken))
        human = row.turns[0]["value"]
        plain = [{"from": "human", "value": human}, {"from": "gpt", "value": row.caption}]
        own |= {"caption": row.caption, "instruction": human, "source": SOURCE}
        taken.append(own | ({} if row.turns == plain else {"conversations": row.turns}))
    return taken, rejected


def _faults(rows: Sequence[Row]) -> Counter[str]:
    """By reason, how many captions the checks of generated ones would refuse; ``lost_seed`` cannot be judged."""
    return Counter(fault for row in rows if (fault := checks.caption_fault(row["caption"], "")))

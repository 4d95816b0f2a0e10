"""Check everything that a run or a built data set holds, and let ``run`` make again what is broken.

Files are compared with their records, records with each other, and rows with the rows they were made from. A stage
that is not finished is reported and is not a fault. Nothing is written without ``fix``, which removes the records and
files of bad shards: they are then due, and the same ``run`` makes them.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .errors import DatasetError, EmbeddingError, RunError
from .files import read_json, read_table, sha256
from .logs import counted
from .records import Record
from .rows import row_id, text_hash
from .stages import (
    CAPTION_JUDGEMENTS,
    CAPTIONS,
    INSTRUCTIONS,
    JUDGEMENTS,
    SEEDS,
    STAGES,
    TEXT_EMBEDDINGS,
    Stage,
    image_embeddings,
)
from .store import Run
from .vectors import VectorShard, check_unit

# Files of a run that need no record: descriptions, shards in progress, logs, the report.
_OTHER_FILES = re.compile(r"run\.json|(cluster|report)/.*|.*/(stage\.json|sessions\.jsonl|\d{5}\.[a-z.]+)")
_HUB_FILES = re.compile(r"\..*|.*/\..*")  # .gitattributes, and the .cache of a download
_SHOWN = 50


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        path: the file.
        what: what is wrong with it, with the values found and expected.
        shard: its stage and number, if removing the shard's record mends it.
    """

    path: Path
    what: str
    shard: tuple[Stage, int] | None = None


def verify_path(path: Path, fix: bool = False) -> str:
    """Check a run directory or a built data set.

    Args:
        path: either.
        fix: remove the records and files of a run's bad shards.

    Returns:
        A summary, if nothing is wrong or everything was fixed.

    Raises:
        RunError: something in a run is wrong; every fault is listed.
        DatasetError: something in a built data set is wrong; or it cannot be told what ``path`` is.
    """
    if (path / "run.json").is_file():
        faults, summary = _check_run(path)
        error: type[RunError | DatasetError] = RunError
        remedy = f"`python -m generation verify {path} --fix` removes what is bad; then `run` makes it again"
    elif (path / "manifest.json").is_file():
        faults, summary = _check_built(path)
        error, remedy = DatasetError, "build the data set again, or download it again"
    else:
        raise DatasetError(f"{path} is neither a run (no run.json) nor a built data set (no manifest.json)")
    if not faults:
        return summary
    listed = "\n".join(f"  {fault.path}: {fault.what}" for fault in faults[:_SHOWN])
    listed += f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    fixable = {fault.shard for fault in faults if fault.shard} if fix else set()
    for stage, shard in sorted(fixable, key=str):
        _remove(Run(path), stage, shard, faults)
    if fix and all(fault.shard for fault in faults):
        done = f"Removed {len(fixable)} shards. Now run `python -m generation run --run-dir {path}`"
        return f"{len(faults)} faults:\n{listed}\n{done}"
    raise error(f"{path} has {len(faults)} faults:\n{listed}\nTo repair: {remedy}")


def _remove(run: Run, stage: Stage, shard: int, faults: list[Fault]) -> None:
    """Make a shard due: remove its record, and those of its files that are bad."""
    run.reopen(stage, shard)
    bad = {fault.path for fault in faults if fault.shard == (stage, shard)}
    for path in bad | ({run.file(stage, shard)} if stage.schema is None else set()):
        path.unlink(missing_ok=True)


# Runs


def _check_run(path: Path) -> tuple[list[Fault], str]:
    run = Run(path)
    methods = sorted(file.name for file in (path / "image_embeddings").glob("*") if file.is_dir())
    stages = [*STAGES, *(image_embeddings(method) for method in methods)]
    faults: list[Fault] = []
    records: dict[Stage, dict[int, Record]] = {}
    for stage in stages:
        records[stage], broken = _records(run, stage)
        faults += broken
    shards = [(stage, shard, record) for stage in stages for shard, record in records[stage].items()]
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda one: _check_files(run, *one), shards)
        for found in counted(checked, "verify: files", "shard", len(shards)):
            faults += found
    bad = {fault.shard for fault in faults}
    known = {run.directory(stage) / name for stage, _, record in shards for name in record.files}
    known |= set((path / "transfer").glob("*.safetensors"))
    faults += [
        Fault(file, "unknown file; move it out of the run")
        for file in sorted(path.rglob("*"))
        if file.is_file() and file not in known and not file.name.startswith(".")
        if not _OTHER_FILES.fullmatch(str(file.relative_to(path)))
    ]
    sound = [(stage, shard) for stage, shard, _ in shards if (stage, shard) not in bad]
    for stage, shard in counted(sound, "verify: rows", "shard"):
        if stage.source is None or ((stage.source, shard) in sound and not run.is_stale(stage, shard)):
            faults += _check_rows(run, stage, shard)
    lines = [f"{path}: no fault found"]
    for stage in stages:
        sources = records.get(stage.source, {}) if stage.source else records[stage]
        due = sum(shard not in records[stage] or run.is_stale(stage, shard) for shard in sources)
        if records[stage]:
            rows = sum(record.rows for record in records[stage].values())
            lines.append(f"  {stage.name:<34} {rows:>11,} rows" + (f", {due} shards due" if due else ""))
    return faults, "\n".join(lines)


def _records(run: Run, stage: Stage) -> tuple[dict[int, Record], list[Fault]]:
    found, faults = {}, []
    for shard in run.shards(stage):
        try:
            record = run.record(stage, shard)
        except RunError as error:
            faults.append(Fault(run.file(stage, shard, ".json"), str(error), (stage, shard)))
        else:
            assert record is not None
            found[shard] = record
    return found, faults


def _check_files(run: Run, stage: Stage, shard: int, record: Record) -> list[Fault]:
    faults = []
    for name, facts in record.files.items():
        path = run.directory(stage) / name
        if problem := _file_problem(path, facts):
            faults.append(Fault(path, problem, (stage, shard)))
    return faults


def _file_problem(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != facts["bytes"]:
        return f"{size} bytes, recorded {facts['bytes']}"
    found = sha256(path)
    return None if found == facts["sha256"] else f"sha256 {found}, recorded {facts['sha256']}"


def _check_rows(run: Run, stage: Stage, shard: int) -> list[Fault]:
    """Check the rows of a shard whose files are sound, against the shard they were made from."""
    path, record = run.file(stage, shard), run.record(stage, shard)
    assert record is not None
    try:
        if stage.schema is None:
            problems = list(_vector_problems(run, stage, shard, record))
        else:
            table = read_table(path)
            problems = [] if len(table) == record.rows else [f"{len(table)} rows, recorded {record.rows}"]
            problems += list(_table_problems(run, stage, shard, table))
    except (RunError, EmbeddingError, pa.ArrowException, KeyError) as error:
        problems = [str(error)]
    return [Fault(path, problem, (stage, shard)) for problem in problems]


def _table_problems(run: Run, stage: Stage, shard: int, table: pa.Table) -> Iterator[str]:
    assert stage.schema is not None
    if not table.schema.equals(stage.schema):
        yield f"columns {table.schema.names}, expected {stage.schema.names}"
        return
    ids = table["id"].to_pylist()
    if doubled := len(ids) - len(set(ids)):
        yield f"{doubled} ids occur twice"
    if stage is SEEDS:
        if ids != [row_id(shard, row) for row in range(len(ids))]:
            yield "the ids are not those of its rows"
        return
    assert stage.source is not None
    texts = _source_texts(run, stage.source, shard)
    rejected = run.rejected(stage, shard)
    ended = ids + (rejected["id"].to_pylist() if rejected is not None else [])
    if stage is CAPTIONS and sorted(ended) != sorted(texts):
        missing = len(set(texts) - set(ended))
        yield f"{missing} seeds are neither captions nor rejected, {len(ended) + missing - len(texts)} rows too many"
    if stage in (CAPTION_JUDGEMENTS, *JUDGEMENTS.values()):
        unknown = [id for id in ids if id.partition("/")[0] not in texts]
    else:
        hashes = dict(zip(ids, table["input_hash"].to_pylist(), strict=True))
        unknown = [id for id in ids if id not in texts or hashes[id] != text_hash(texts[id] or "")]
    if unknown:
        yield f"{len(unknown)} rows were made from other rows than {stage.source.name} holds, such as id {unknown[0]}"
    if stage in INSTRUCTIONS.values():
        yield from _conversation_problems(ids, table["conversations"].to_pylist())


def _conversation_problems(ids: list[str], conversations: list[list[dict[str, str]]]) -> Iterator[str]:
    for id, turns in zip(ids, conversations, strict=True):
        speakers = [turn["from"] for turn in turns]
        images = [turn["value"].count("<image>") for turn in turns]
        if not turns or speakers != ["human", "gpt"] * (len(turns) // 2) or images[:1] != [1] or sum(images) != 1:
            yield f"id {id}: turns are not human and gpt in turn, with <image> once, in the first"


def _source_texts(run: Run, source: Stage, shard: int) -> dict[str, str]:
    """Return the text of each row of a shard by id: what the stage after it was made from."""
    column = {"seeds": "seed", "captions": "caption"}.get(source.name)
    table = run.table(source, shard, ["id", column] if column else ["id"])
    return dict(zip(table["id"].to_pylist(), table[column or "id"].to_pylist(), strict=True))


def _vector_problems(run: Run, stage: Stage, shard: int, record: Record) -> Iterator[str]:
    opened = VectorShard(run.file(stage, shard))
    if len(opened) != record.rows:
        yield f"{len(opened)} rows, recorded {record.rows}"
    if stage is TEXT_EMBEDDINGS:
        texts = _source_texts(run, CAPTIONS, shard)
        expected: Any = (list(texts), [text_hash(text) for text in texts.values()])
        check_unit(opened.vectors, opened.path)
        if not bool((opened.vectors.double().sum(0) - opened.sum).abs().max() < 1e-6 if len(opened) else True):
            yield "the stored sum is not that of its rows"
    else:
        source = VectorShard(run.file(TEXT_EMBEDDINGS, shard))
        expected = (source.ids, source.input_hashes)
    if (opened.ids, opened.input_hashes) != expected:
        yield "its rows are not, in order, those of the shard it was made from"


# Built data sets


def _check_built(path: Path) -> tuple[list[Fault], str]:
    files: dict[str, dict[str, Any]] = read_json(path / "manifest.json")["files"]
    faults = []
    with ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: _file_problem(path / name, files[name]), files)
        for name, problem in zip(files, counted(problems, "verify: files", "file", len(files)), strict=True):
            faults += [Fault(path / name, problem)] if problem else []
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    extra = sorted(name for name in found - files.keys() if not _HUB_FILES.fullmatch(name))
    tables = [path / name for name in files if name.endswith(".parquet") and (path / name).is_file()]
    rows = 0 if faults else sum(_count_rows(table) for table in tables)
    notes = f", {len(extra)} files of others ({', '.join(extra[:3])})" if extra else ""
    return faults, f"{path}: no fault found in {len(files)} files, {rows:,} rows in all configs{notes}"


def _count_rows(path: Path) -> int:
    table = read_table(path, ["id"])
    if pc.count_distinct(table["id"]).as_py() != len(table) and "471k" not in str(path):
        raise DatasetError(f"{path}: ids occur twice; build the data set again")
    return len(table)

"""Check everything that a run or a built data set holds, and let ``run`` make again what is broken.

Files are compared with their records, records with each other, and rows with the rows they were made from. A stage
that is not finished is reported and is not a fault.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from .errors import DatasetError, EmbeddingError, RunError
from .files import read_json
from .logs import counted
from .stages import CAPTIONS, STAGES, TEXT_EMBEDDINGS, Stage, image_embeddings, row_id, text_hash
from .store import Record, Run, damage, read_table
from .transfer import METHODS, Statistics
from .transfer.stage import statistics_file
from .vectors import VectorShard, check_unit

# Files of a run that need no record: descriptions, shards in progress, logs, the report.
_OTHER_FILES = re.compile(r"run\.json|(cluster|report)/.*|.*/(stage\.json|sessions\.jsonl|\d{5}\.[a-z.]+)")
_SHOWN = 50
Shard = tuple[Stage, int]
File = tuple[Path, dict[str, Any], Shard | None]


class Fault(NamedTuple):
    """Something that is wrong with a file, and its shard, if it belongs to one; ``fix`` leaves ``unknown`` files."""

    path: Path
    what: str
    shard: Shard | None = None
    unknown: bool = False


def verify_path(path: Path, fix: bool = False) -> str:
    """Check a run directory or a built data set; return a summary if nothing is wrong or everything was fixed: ``fix``
    removes bad shards and statistics of a run, but not unknown files. A RunError or DatasetError lists every fault."""
    if (path / "run.json").is_file():
        faults, summary = _check_run(Run(path))
        error: type[RunError | DatasetError] = RunError
        remedy = f"To repair: `python -m generation verify {path} --fix` removes what is bad, and `run` makes it again"
    elif (path / "manifest.json").is_file():
        faults, summary = _check_built(path)
        error, remedy, fix = DatasetError, "To repair: build the data set again, or download it again", False
    else:
        raise DatasetError(f"{path} is neither a run (no run.json) nor a built data set (no manifest.json)")
    if not faults:
        return summary
    bad = [fault for fault in faults if not fault.unknown]
    lines = [f"{path} has {len(faults)} faults:", *(f"  {fault.path}: {fault.what}" for fault in faults[:_SHOWN])]
    lines += [f"  ... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    for fault in bad if fix else ():
        if fault.shard:
            Run(path).reopen(*fault.shard)
        fault.path.unlink(missing_ok=True)
    if fix:
        removed = f"Removed {len({fault.shard or fault.path for fault in bad})} shards or statistics files"
        remedy = f"{removed}. Now run `python -m generation run --run-dir {path}`"
    lines += [remedy] if bad else []
    if left := len(faults) - len(bad):
        lines.append(f"Left to you: move {left} unknown files out of the run, or delete them")
    elif fix:
        return "\n".join(lines)
    raise error("\n".join(lines))


def _check_files(files: Sequence[File]) -> list[Fault]:
    """Compare files with the size and sha256 that are recorded of them."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda file: damage(*file[:2]), files)
        pairs = zip(files, counted(found, "verify: files", "file", len(files)), strict=True)
        return [Fault(path, what, shard) for (path, _, shard), what in pairs if what]


def _check_run(run: Run) -> tuple[list[Fault], str]:
    methods = sorted(file.name for file in (run.path / "image_embeddings").glob("*") if file.is_dir())
    stages = [*STAGES, *map(image_embeddings, methods)]
    faults, records, files = list[Fault](), dict[Shard, Record](), list[File]()
    for key in [(stage, shard) for stage in stages for shard in run.shards(stage)]:
        try:
            if record := run.record(*key):
                records[key] = record
                files += [(run.directory(key[0]) / name, facts, key) for name, facts in record.files.items()]
        except RunError as fault:
            faults.append(Fault(run.file(*key, ".json"), str(fault), key))
    faults += _check_files(files)
    known = {file for file, _, _ in files} | {statistics_file(run, method) for method in METHODS}
    for path in sorted(known & set((run.path / "transfer").glob("*"))):
        try:
            Statistics.load(path)
        except EmbeddingError as error:
            faults.append(Fault(path, str(error)))
    for path in sorted(run.path.rglob("*")):
        expected = path in known or _OTHER_FILES.fullmatch(str(path.relative_to(run.path)))
        if path.is_file() and not expected and not path.name.startswith("."):
            faults.append(Fault(path, "unknown file", unknown=True))
    sound = records.keys() - {fault.shard for fault in faults}
    for stage, shard in counted([key for key in records if key in sound], "verify: rows", "shard"):
        if (stage.source is None or (stage.source, shard) in sound) and not run.is_due(stage, shard):
            try:
                problems = list(_row_problems(run, stage, shard, records[stage, shard]))
            except (RunError, EmbeddingError, pa.ArrowException, KeyError) as error:
                problems = [str(error)]
            faults += [Fault(run.file(stage, shard), problem, (stage, shard)) for problem in problems]
    lines = [f"{run.path}: no fault found"]
    for stage in [] if faults else stages:
        if made := run.records(stage):
            rows, due = sum(record.rows for record in made.values()), len(run.due(stage))
            lines.append(f"  {stage.name:<34} {rows:>11,} rows" + (f", {due} shards due" if due else ""))
    return faults, "\n".join(lines)


def _row_problems(run: Run, stage: Stage, shard: int, record: Record) -> Iterator[str]:
    """Check the rows of a shard whose files are sound, against the shard they were made from."""
    if stage.schema is None:
        yield from _vector_problems(run, stage, shard, record)
        return
    table = read_table(run.file(stage, shard))
    if len(table) != record.rows:
        yield f"{len(table)} rows, recorded {record.rows}"
    if not table.schema.equals(stage.schema):
        yield f"columns {table.schema.names}, expected {stage.schema.names}"
        return
    ids = table["id"].to_pylist()
    if doubled := len(ids) - len(set(ids)):
        yield f"{doubled} ids occur twice"
    if stage.source is None:
        if ids != [row_id(shard, row) for row in range(len(ids))]:
            yield "the ids are not those of its rows"
        return
    texts = _source_texts(run, stage.source, shard)
    ended = ids + run.rejected(stage, shard)["id"].to_pylist()
    if stage is CAPTIONS and sorted(ended) != sorted(texts):
        missing = len(set(texts) - set(ended))
        yield f"{missing} seeds are neither captions nor rejected, {len(ended) + missing - len(texts)} rows too many"
    if stage.command == "judge":  # its hashes are of what was judged, which may have been rejected for its verdict
        judged = {*texts, *run.rejected(stage.source, shard)["id"].to_pylist()}
        unknown = [id for id in ids if id.partition("/")[0] not in judged]
    else:
        rows = zip(ids, table["input_hash"].to_pylist(), strict=True)
        unknown = [id for id, hashed in rows if id not in texts or hashed != text_hash(texts[id] or "")]
    if unknown:
        yield f"{len(unknown)} rows were made from other rows than {stage.source.name} holds, such as id {unknown[0]}"
    conversations = table["conversations"].to_pylist() if stage.command == "instructions" else []
    for id, turns in zip(ids, conversations, strict=False):
        speakers = [turn["from"] for turn in turns]
        images = [turn["value"].count("<image>") for turn in turns]
        if not turns or speakers != ["human", "gpt"] * (len(turns) // 2) or images[:1] != [1] or sum(images) != 1:
            yield f"id {id}: turns are not human and gpt in turn, with <image> once, in the first"


def _source_texts(run: Run, source: Stage, shard: int) -> dict[str, str]:
    """Return the text of each row of a shard by id: what the stage after it was made from."""
    column = {"seeds": "seed", "captions": "caption"}.get(source.name, "id")
    table = run.table(source, shard, ["id", column])
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


def _vector_problems(run: Run, stage: Stage, shard: int, record: Record) -> Iterator[str]:
    opened = VectorShard(run.file(stage, shard))
    if len(opened) != record.rows:
        yield f"{len(opened)} rows, recorded {record.rows}"
    if stage is TEXT_EMBEDDINGS:
        texts = _source_texts(run, CAPTIONS, shard)
        expected = list(texts), [text_hash(text) for text in texts.values()]
        check_unit(opened.vectors, opened.path)
        if not bool(((opened.vectors.double().sum(0) - opened.sum).abs() < 1e-6).all()):
            yield "the stored sum is not that of its rows"
    else:
        source = VectorShard(run.file(TEXT_EMBEDDINGS, shard))
        expected = source.ids, source.input_hashes
    if (opened.ids, opened.input_hashes) != expected:
        yield "its rows are not, in order, those of the shard it was made from"


def _check_built(path: Path) -> tuple[list[Fault], str]:
    files: Any = read_json(path / "manifest.json").get("files")
    try:
        known = ("bytes", "sha256")
        listed: list[File] = [(path / name, {key: facts[key] for key in known}, None) for name, facts in files.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path / 'manifest.json'} is not a manifest of files; download it again") from error
    faults, rows = _check_files(listed), 0
    for name in [] if faults else [name for name in files if name.endswith(".parquet")]:
        table = read_table(path / name, ["id", "task"])  # a caption has one conversation a task
        rows += len(table)
        if len(table.group_by(table.column_names).aggregate([])) != len(table):
            faults.append(Fault(path / name, "ids occur twice"))
    return faults, f"{path}: no fault found in {len(files)} files, {rows:,} rows in all configs"

"""Which stages a run has, what they are made from, and which files may lie in its directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RunError
from ..records import (
    CAPTION_SCHEMA,
    IMPORTED_CAPTION_SCHEMA,
    IMPORTED_INSTRUCTION_SCHEMA,
    IMPORTED_REJECTED_SCHEMA,
    INSTRUCTION_SCHEMA,
    JUDGEMENT_SCHEMA,
    REJECTED_SCHEMA,
    SEED_SCHEMA,
)
from ..rundir import RunDir
from .faults import ASIDE, MANIFEST

TEXTS = ("seeds", "captions", "instructions", "judgements")  # stages of Parquet shards
SCRATCH = ".repair"  # folder of a run in which seeds are made again
# Folders of a run that hold no part of it: what was moved aside, reports, tasks of a cluster, seeds made again.
_OTHERS = (ASIDE, "report", "tasks", SCRATCH)
_SOURCES = {
    "captions": "seeds",
    "instructions": "captions",
    "text_embeddings": "captions",
    "image_embeddings": "text_embeddings",
}
_COMMANDS = {"text_embeddings": "embed", "image_embeddings": "transfer", "judgements": "instructions --judge URL"}
_SCHEMAS = {
    "seeds": SEED_SCHEMA,
    "captions": CAPTION_SCHEMA,
    "instructions": INSTRUCTION_SCHEMA,
    "judgements": JUDGEMENT_SCHEMA,
}
_IMPORTED = {"captions": IMPORTED_CAPTION_SCHEMA, "instructions": IMPORTED_INSTRUCTION_SCHEMA}


def kind_of(stage: str) -> str:
    """The first part of a stage's folder: ``instructions`` of ``instructions/multiple_choice``."""
    return stage.split("/")[0]


def source_of(stage: str) -> str | None:
    """The stage whose shards a stage is made from, one for one; None for one that has no such stage."""
    if kind_of(stage) == "judgements":
        return f"instructions/{stage.split('/')[1]}"
    return _SOURCES.get(kind_of(stage))


def command_of(stage: str) -> str:
    """The sub-command that makes a stage."""
    return _COMMANDS.get(kind_of(stage), kind_of(stage))


def schema_of(run: RunDir, stage: str, rejected: bool = False) -> pa.Schema:
    """The columns of a stage's Parquet shards, or of their rejected rows."""
    imported = run.imported(stage) is not None
    if rejected:
        return IMPORTED_REJECTED_SCHEMA if imported else REJECTED_SCHEMA
    return (_IMPORTED if imported else {}).get(kind_of(stage)) or _SCHEMAS[kind_of(stage)]


def due(run: RunDir, stage: str) -> list[int]:
    """The shards that a stage still has to make, as far as they are known."""
    source = source_of(stage)
    return run.due(stage, source) if source else []


def is_finished(run: RunDir, stage: str) -> bool:
    """Whether nothing of a stage is left to be made."""
    record = run.stage(stage)
    if stage == "seeds":
        return bool(record.get("complete"))
    if source := source_of(stage):
        above = source if source != "text_embeddings" else "captions"
        begun = all(name in run.manifest["stages"] for name in (source, above))
        return begun and is_finished(run, source) and not due(run, stage)
    return "report" in record if stage == "import" else True


def place_of(name: str) -> tuple[str, int, bool]:
    """Of a shard's file: its stage, its number, and whether it holds the rejected rows."""
    parts = Path(name).parts
    rejected = parts[0] == "rejected"
    return "/".join(parts[rejected:-1]), int(Path(name).stem), rejected


def files_by_shard(run: RunDir) -> dict[int, dict[str, str]]:
    """By number of the shard: its recorded files, each with its stage."""
    found: dict[int, dict[str, str]] = {}
    for stage, record in run.manifest["stages"].items():
        for name in record["files"]:
            if not name.startswith("transfer/"):
                found.setdefault(place_of(name)[1], {})[name] = stage
    return dict(sorted(found.items()))


def statistics_file(stage: str) -> str:
    """Where the statistics of ``image_embeddings/<method>`` lie."""
    return f"transfer/{stage.split('/')[1]}.safetensors"


def unsealed(run: RunDir, stage: str) -> list[int]:
    """The shards that a stage has not sealed, those included that are not due yet, since its source lacks them."""
    return sorted(set(run.sealed("seeds")) - set(run.sealed(stage)))


def unfinished_files(run: RunDir) -> Iterator[str]:
    """Files that may be there, or half written, and count for nothing yet: those of shards that are not sealed."""
    for stage in run.manifest["stages"]:
        paths = [
            place(stage, shard)
            for shard in unsealed(run, stage)
            for place in (run.shard_path, run.rejected_path, run.journal_path)
        ]
        if stage.startswith("image_embeddings/") and unsealed(run, stage):
            paths.append(run.path / statistics_file(stage))
        for path in paths:
            yield from (str(one.relative_to(run.path)) for one in (path, path.with_name(f".{path.name}.tmp")))


def unknown_files(run: RunDir) -> list[str]:
    """Files of the run's directory that neither the manifest knows nor an unfinished stage may have."""
    stages = run.manifest["stages"]
    known = {MANIFEST, ".lock", *(name for record in stages.values() for name in record["files"])}
    known.update(unfinished_files(run))
    open_stages = tuple(
        f"{stage}/" for stage in ("seeds", "import") if stage in stages and not is_finished(run, stage)
    )
    imports = "import/" in open_stages  # its rows wait in files of all stages
    return [
        name
        for name in names_in(run.path, _OTHERS)
        if name not in known and not name.startswith(open_stages) and not (imports and name.endswith(".jsonl"))
    ]


def names_in(directory: Path, but: tuple[str, ...] = ()) -> list[str]:
    """All files below a directory, relative to it, in order, without some of its folders."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in names if Path(name).parts[0] not in but or "/" not in name)


def check_records(manifest: dict[str, Any], path: Path) -> None:
    """Makes sure that a manifest can be used to look at files at all.

    Raises:
        RunError: a stage or a file has no record of the right form; names it.
    """
    stages = manifest["stages"]
    for stage, record in stages.items():
        if not isinstance(record, dict) or not all(
            isinstance(record.get(key), dict) for key in ("fingerprint", "files")
        ):
            raise RunError(_malformed(path, stage, record))
        for name, facts in record["files"].items():
            check_file_record(name, facts, path)


def check_file_record(name: str, facts: Any, path: Path) -> None:
    """Makes sure that a file's record says how large it is, how many rows it has, and its sha256.

    Raises:
        RunError: it does not.
    """
    wanted = {"bytes": int, "rows": int, "sha256": str}
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key, 0), kind) for key, kind in wanted.items()):
        raise RunError(_malformed(path, name, facts))
    if not {"bytes", "sha256"} <= facts.keys():
        raise RunError(_malformed(path, name, facts))


def _malformed(path: Path, name: str, facts: Any) -> str:
    return (
        f"{path / MANIFEST}: the record of {name} is damaged ({json.dumps(facts)[:100]}), so that nothing can be held "
        "against it; restore the manifest from a copy"
    )

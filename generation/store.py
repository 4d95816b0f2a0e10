"""The run directory (its files: docs/verify.md), and the one rule that says which shards are due.

A shard is due if its record is missing or names other inputs than there are now: that rule is resume, extend, retry
and re-transfer. Processes that make different shards share no file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic.dataclasses import dataclass

from . import __version__
from .config import Recipe
from .errors import RunError
from .files import Write, explained, now, read_json, sha256, write_atomically, write_json
from .recipe import parse_recipe
from .stages import REJECTED_SCHEMA, SEEDS, STAGES, Stage

FORMAT = 2
REJECTED = ".rejected.parquet"


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard."""

    rows: int  # in its data file
    files: dict[str, dict[str, Any]]  # ``bytes`` and ``sha256`` of each of its files, by name
    inputs: dict[str, str]  # what it was made from: sha256 of upstream files by path in the run, and further values
    counts: dict[str, Any] = field(default_factory=dict)  # figures of the stage: tokens, ``rejected`` by reason


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two mappings, in words: ``captions.prompt: 'a' -> 'b'``."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


def damage(path: Path, facts: Mapping[str, Any]) -> str | None:
    """Return how a file differs from the size and sha256 that are recorded of it, or None."""
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != facts["bytes"]:
        return f"{size} bytes, recorded {facts['bytes']}"
    if (found := sha256(path)) != facts["sha256"]:
        return f"sha256 {found}, recorded {facts['sha256']}"
    return None


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or refuse it by a RunError (``pq.read_table`` would load the data set machinery, 50 MB)."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def parquet(table: pa.Table) -> Write:
    """Return the function that writes a table as a Parquet file."""
    return lambda path: pq.write_table(table, path, compression="zstd")


class Run:
    """A run directory and its recipe: the one that is given, or else the one that ``run.json`` remembers.

    ``create`` makes the directory if it does not exist; with ``extend``, the seeds' settings may differ from those the
    run was begun with. A RunError says that it is not a run directory, or that the recipe differs in what a stage was
    begun with.
    """

    def __init__(self, path: Path, recipe: Recipe | None = None, create: bool = False, extend: bool = False) -> None:
        self.path, file = path, path / "run.json"
        self._verified: set[Path] = set()
        described: dict[str, Any] = {"format": FORMAT, "code": __version__, "created": now()}
        described |= {"recipe": recipe.model_dump(mode="json")} if recipe else {}
        if not file.is_file():
            if not create or recipe is None:
                remedy = "Create one with `python -m generation run --config RECIPE --run-dir DIR`"
                raise RunError(f"Not a run directory: {path} (no run.json). {remedy}")
            write_json(file, described, exclusive=True)
        found = read_json(file)
        if found.get("format") != FORMAT:
            raise RunError(f"{file} has format {found.get('format')!r}; this version of the code reads {FORMAT}")
        if not isinstance(found.get("recipe"), dict) or "created" not in found:
            raise RunError(f"{file} holds no recipe or no time of creation; restore it, or choose another --run-dir")
        remembered, self.created = parse_recipe(found["recipe"], str(file)), str(found["created"])
        self.recipe = recipe or remembered
        if self.recipe != remembered:
            for stage in STAGES:
                begun = self.facts(stage)
                if begun and not ((extend and stage is SEEDS) or "imported" in begun["identity"]):
                    self._compare(stage, begun["settings"], self.recipe.settings(stage.name))
            write_json(file, described | {"created": self.created})

    def _compare(self, stage: Stage, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        if moved := changes(old, new):
            extend = " To add seeds to this run, give --extend." if stage is SEEDS else ""
            fault = f"stage '{stage.name}' was begun with other settings: {'; '.join(moved)}"
            raise RunError(f"{self.path}: {fault}. Restore them, or choose another --run-dir.{extend}")

    def directory(self, stage: Stage) -> Path:
        """Return the directory of a stage."""
        return self.path / stage.name

    def begin(self, stage: Stage, identity: Mapping[str, Any] | None = None, replace: bool = False) -> None:
        """Write what a stage is begun with, or compare it with what another process or session wrote.

        ``identity`` decides the rows besides the recipe: prompt and its hash, model, encoder. A RunError says that the
        settings or the identity differ, unless ``replace`` overwrites them.
        """
        file, own = self.directory(stage) / "stage.json", {"settings": self.recipe.settings(stage.name)}
        own["identity"] = dict(identity or {})
        described = {"stage": stage.name, "begun": now(), "code": __version__, **own}
        if not write_json(file, described, exclusive=True):
            old = self.facts(stage)
            if replace:
                write_json(file, described | {"begun": old["begun"]})
            for key in () if replace else own:
                self._compare(stage, old[key], own[key])

    def facts(self, stage: Stage) -> dict[str, Any]:
        """Return the content of ``stage.json``; empty if the stage is not begun."""
        file = self.directory(stage) / "stage.json"
        facts = read_json(file) if file.exists() else {}
        if facts and not all(isinstance(facts.get(key), dict) for key in ("settings", "identity")):
            raise RunError(f"{file} holds no settings or identity of its stage; restore it, or begin another run")
        return facts

    def log_session(self, stage: Stage, facts: Mapping[str, Any]) -> None:
        """Append one line to the sessions of a stage."""
        path = self.directory(stage) / "sessions.jsonl"
        with explained(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now(), **facts}, sort_keys=True) + "\n")

    def sessions(self, stage: Stage) -> list[dict[str, Any]]:
        """Return the lines of ``log_session``, without a last line that a kill has torn."""
        path, found = self.directory(stage) / "sessions.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return [session for session in found if isinstance(session, dict)]

    def file(self, stage: Stage, shard: int, suffix: str = "") -> Path:
        """Return the path of a shard's data file, or with ``suffix`` (``.json``) of another file of it."""
        return self.directory(stage) / f"{shard:05d}{suffix or stage.suffix}"

    def shards(self, stage: Stage) -> list[int]:
        """Return the numbers of the shards that have a record, in order."""
        return sorted(int(file.stem) for file in self.directory(stage).glob("[0-9]*.json") if file.stem.isdigit())

    def record(self, stage: Stage, shard: int) -> Record | None:
        """Return the record of a shard, or None if it has none; a RunError says that it cannot be read."""
        file = self.file(stage, shard, ".json")
        if not file.exists():
            return None
        with suppress(TypeError, ValueError):  # pydantic's ValidationError is a ValueError
            record = Record(**read_json(file))
            known = all(facts.keys() >= {"bytes", "sha256"} for facts in record.files.values())
            if known and self.file(stage, shard).name in record.files:
                return record
        raise RunError(f"{file} is not a record; `python -m generation verify {self.path} --fix` removes it")

    def records(self, stage: Stage) -> dict[int, Record]:
        """Return the records of all finished shards, in order."""
        return {shard: record for shard in self.shards(stage) if (record := self.record(stage, shard))}

    def inputs(self, stage: Stage, shard: int, extra: Mapping[str, str] | None = None) -> dict[str, str] | None:
        """Return what the shard would be made from now, or None if its upstream shard is not finished.

        ``extra`` holds further values that the rows depend on and that may change, such as the task's fraction.
        """
        if stage.source is None:
            return dict(extra or {})
        upstream, file = self.record(stage.source, shard), self.file(stage.source, shard)
        if upstream is None:
            return None
        return {f"{stage.source.name}/{file.name}": str(upstream.files[file.name]["sha256"]), **(extra or {})}

    def is_due(self, stage: Stage, shard: int, extra: Mapping[str, str] | None = None) -> bool:
        """Return whether a shard is to be made: a file of it is missing, or it was made from other inputs than now.
        Without ``extra``, only the upstream shard is compared."""
        record, inputs = self.record(stage, shard), self.inputs(stage, shard, extra)
        if record is None or inputs is None or not inputs.items() <= record.inputs.items():
            return True
        return not all((self.directory(stage) / name).is_file() for name in record.files)

    def due(self, stage: Stage, extra: Mapping[str, str] | None = None) -> list[int]:
        """Return the shards of a stage that are due, of those whose upstream shard is finished."""
        upstream = self.shards(stage.source) if stage.source else []
        return [shard for shard in upstream if self.is_due(stage, shard, extra)]

    @contextmanager
    def claim(self, stage: Stage, shard: int | None = None, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold a shard, or with None the whole stage, against other processes; yield whether that succeeded."""
        path = self.directory(stage) / f".{'stage' if shard is None else f'{shard:05d}'}.lock"
        lock = FileLock(path, mode=0o666)
        with explained(path), suppress(Timeout):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_s)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def commit(
        self, stage: Stage, shard: int, rows: int, write: Write, rejected: pa.Table | None = None,
        extra: Mapping[str, str] | None = None, counts: Mapping[str, Any] | None = None,
    ) -> Record:  # fmt: skip
        """Finish a shard: write its files, then its record.

        ``write`` makes the data file of so many ``rows``, and an older file of rejected rows is removed if there are
        none now; for ``extra`` see ``inputs``. A RunError says that the files cannot be written, or that the upstream
        shard is not finished.
        """
        inputs = self.inputs(stage, shard, extra)
        if inputs is None:
            raise RunError(f"{self.file(stage, shard)}: its input is not finished; give that stage's command again")
        path, aside = self.file(stage, shard), self.file(stage, shard, REJECTED)
        files = {}
        self.reopen(stage, shard)  # a record never names files that were replaced
        if rejected:  # first, so that a row which moves aside is always in a file
            files[aside.name] = write_atomically(aside, parquet(rejected))
        files[path.name] = write_atomically(path, write)
        record = Record(rows, files, inputs, dict(counts or {}))
        write_json(self.file(stage, shard, ".json"), asdict(record))
        if aside.name not in files:
            aside.unlink(missing_ok=True)
        self._verified |= {self.directory(stage) / name for name in files}
        return record

    def reopen(self, stage: Stage, shard: int) -> None:
        """Make a finished shard due, its rows kept: remove its record."""
        self.file(stage, shard, ".json").unlink(missing_ok=True)

    def verified(self, stage: Stage, shard: int, suffix: str = "") -> Path:
        """Return the path of a finished shard's file, once its bytes are known to be those of the record; a RunError
        says that it has no record, is missing or was changed."""
        path, record = self.file(stage, shard, suffix), self.record(stage, shard)
        if record is None or path.name not in record.files:
            raise RunError(f"{path} has no record; finish stage '{stage.command}' first")
        if path not in self._verified and (what := damage(path, record.files[path.name])):
            remedy = f"`python -m generation verify {self.path} --fix` and then the same command make it again"
            raise RunError(f"{path}: {what}; {remedy}")
        self._verified.add(path)
        return path

    def table(self, stage: Stage, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of a finished shard."""
        return read_table(self.verified(stage, shard), columns)

    def rejected(self, stage: Stage, shard: int) -> pa.Table:
        """Return the rejected rows of a finished shard."""
        record = self.record(stage, shard)
        if record and self.file(stage, shard, REJECTED).name in record.files:
            return read_table(self.verified(stage, shard, REJECTED))
        return REJECTED_SCHEMA.empty_table()

    def require(self, stage: Stage, extra: Mapping[str, str] | None = None) -> dict[int, Record]:
        """Return the records of a stage; a RunError says that it has none, or that some of its shards are due."""
        records = self.records(stage) if self.facts(stage).get("finished", True) else {}  # seeds say when they are
        due = self.due(stage, extra)
        if not records or due:
            total = len(records.keys() | set(due))
            fault = f"stage '{stage.name}' is not complete ({total - len(due)} of {total} shards)"
            remedy = f"Run `python -m generation {stage.command} --run-dir {self.path}`"
            raise RunError(f"{self.path}: {fault}. {remedy}")
        return records

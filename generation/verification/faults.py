"""What can be wrong, and where."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..files import file_sha256

MANIFEST = "manifest.json"
ASIDE = "damaged"  # folder of a run that broken files are moved to

Kind = Literal[
    "file",  # it must be made again
    "record",  # the file is whole, what the manifest says of it or of its stage is wrong
    "unknown",  # the manifest does not know the file
    "journal",  # an unfinished shard's journal has a damaged line
]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        file: relative to the directory.
        what: what is wrong, with the value found and the value recorded.
        row: from 0, the first one that is wrong; in a journal the line, from 1. None where it is the file as a whole.
        kind: what is at fault.
        stage: whose record, for the kind ``record``.
        shard: its number, likewise; None for the stage's totals.
    """

    file: str
    what: str
    row: int | None = None
    kind: Kind = "file"
    stage: str = ""
    shard: int | None = None

    def __str__(self) -> str:
        name = {None: "", "journal": "line"}.get(self.kind if self.row is not None else None, "row")
        return f"{self.file}{f', {name} {self.row}' if name else ''}: {self.what}"


@dataclass
class Findings:
    """All that was found.

    Attributes:
        path: the directory.
        holds: a ``run`` or a ``built`` data set.
        remedy: the command that mends the faults.
        faults: in the order of the files.
        notes: what is no fault and yet worth knowing, such as a stage that is unfinished.
        files, bytes: how many were read.
    """

    path: Path
    holds: Literal["run", "built"]
    remedy: str
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": str(self.path),
            "holds": self.holds,
            "whole": not self.faults,
            "files": self.files,
            "bytes": self.bytes,
            "faults": [asdict(fault) | {"remedy": self.remedy} for fault in self.faults],
            "notes": self.notes,
        }


def command(*arguments: object) -> str:
    """A command of this project, as people type it."""
    return f"python -m generation {' '.join(shlex.quote(str(argument)) for argument in arguments)}"


def file_fault(directory: Path, name: str, record: dict[str, Any]) -> Fault | None:
    """Holds a file's size and sha256 against its record."""
    path = directory / name
    if not path.is_file():
        return Fault(name, "is gone")
    size = path.stat().st_size
    if (found := file_sha256(path)) != record["sha256"]:
        return Fault(name, f"was changed: {size} bytes, sha256 {found}; recorded {record['bytes']}, {record['sha256']}")
    if size != record["bytes"]:
        return Fault(name, f"has {size} bytes; recorded {record['bytes']}", kind="record")
    return None


def first_wrong(file: str, wrong: np.ndarray, what: Callable[[int], str]) -> list[Fault]:
    """One fault for all rows that are wrong alike.

    Args:
        file: theirs.
        wrong: bool [n].
        what: what is wrong, of the first of them.
    """
    if not (count := int(wrong.sum())):
        return []
    row = int(wrong.argmax())
    others = f" (and {count - 1} rows more)" if count > 1 else ""
    return [Fault(file, what(row) + others, row)]

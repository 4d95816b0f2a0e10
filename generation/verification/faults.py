"""What can be wrong, and where."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
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
        at: for the kind ``record``: where in the manifest the wrong value stands, key by key.
        value: likewise, the right value.
    """

    file: str
    what: str
    row: int | None = None
    kind: Kind = "file"
    at: tuple[str | int, ...] = ()
    value: Any = None

    def __str__(self) -> str:
        unit = "line" if self.kind == "journal" else "row"
        return f"{self.file}{'' if self.row is None else f', {unit} {self.row}'}: {self.what}"


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
            "faults": [
                {"file": fault.file, "row": fault.row, "what": fault.what, "kind": fault.kind, "remedy": self.remedy}
                for fault in self.faults
            ],
            "notes": self.notes,
        }


def command(*arguments: object) -> str:
    """A command of this project, as people type it."""
    return f"python -m generation {' '.join(shlex.quote(str(argument)) for argument in arguments)}"


def record_fault(at: tuple[str | int, ...], found: Any, right: Any, why: str = "the rows make") -> Fault:
    """A wrong value in the manifest.

    Args:
        at: where it stands.
        found: the value there.
        right: what it should be.
        why: what says so.
    """
    key = ".".join(map(str, at))
    return Fault(MANIFEST, f"{key} is {found!r}, but {why} {right!r}", None, "record", at, right)


def file_fault(directory: Path, name: str, record: dict[str, Any], at: tuple[str | int, ...]) -> Fault | None:
    """Holds a file's size and sha256 against its record, which stands in the manifest at ``at``."""
    path = directory / name
    if not path.is_file():
        return Fault(name, "is gone")
    size, recorded = path.stat().st_size, record["sha256"]
    if (found := file_sha256(path)) != recorded:
        return Fault(name, f"was changed: {size} bytes, sha256 {found}; recorded {record['bytes']} bytes, {recorded}")
    if size != record["bytes"]:
        return record_fault((*at, "bytes"), record["bytes"], size, "the file has")
    return None


def first_wrong(file: str, wrong: np.ndarray, what: str | Callable[[int], str]) -> list[Fault]:
    """One fault for all rows that are wrong alike.

    Args:
        file: theirs.
        wrong: bool [n].
        what: what is wrong, or gives it for the row that is the first of them.
    """
    if not (count := int(wrong.sum())):
        return []
    row = int(wrong.argmax())
    others = f" (and {count - 1} rows more)" if count > 1 else ""
    return [Fault(file, (what if isinstance(what, str) else what(row)) + others, row)]

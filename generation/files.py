"""Files that are there whole or not at all, and errors of the file system that say what to do."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import RunError
from .progress import SOON_S, progress

T = TypeVar("T")
_LARGE = 1 << 28  # bytes; hashing fewer takes no time worth a bar
_CHUNK = 1 << 20  # bytes


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    if (size := path.stat().st_size) < _LARGE:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(f"sha256 {path.name}", size, 0, "B", SOON_S) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """A file's size in bytes and its sha256, as manifests record them."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def check_unchanged(path: Path, sha256: str, made: str, remedy: str) -> None:
    """Holds a file against its recorded hash.

    Args:
        path: the file.
        sha256: what is recorded.
        made: how it was made, such as ``sealed``, for the message.
        remedy: what to do, for the message.

    Raises:
        RunError: it is gone, or was changed.
    """
    if not path.is_file():
        raise RunError(f"{path} is gone; {remedy}")
    if (found := file_sha256(path)) != sha256:
        raise RunError(f"{path} was changed after it was {made}: sha256 {found}, recorded {sha256}; {remedy}")


def mending(directory: Path) -> str:
    """What to do where a file of a run or of a built data set is gone or was changed, for messages."""
    return f"`python -m generation verify {directory}` lists all that is wrong, and `repair` mends it"


def seal(path: Path, write: Callable[[Path], object]) -> dict[str, Any]:
    """Has ``write`` make a file that is there whole or not at all; returns its size in bytes and its sha256."""
    temporary = path.with_name(f".{path.name}.tmp")

    def make() -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _sync(temporary)
        facts = file_facts(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
        return facts

    try:
        return guarded(path, make)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def seal_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Writes a table as Parquet that is there whole or not at all; returns its rows, size in bytes and sha256."""
    return seal(path, lambda target: pq.write_table(table, target, compression="zstd")) | {"rows": len(table)}


def guarded(path: Path, act: Callable[[], T]) -> T:
    """``act()``, with the operating system's refusals told as a ``RunError`` that names the path."""
    try:
        return act()
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. Nothing already made is lost: mend the cause and "
            "give the same command again"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

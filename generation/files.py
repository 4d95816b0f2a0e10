"""Files that are there whole or not at all, and errors of the file system that say what to do."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import RunError
from .progress import SOON_S, progress

T = TypeVar("T")
_LARGE = 1 << 28  # bytes; hashing fewer takes no time worth a bar
_CHUNK = 1 << 20  # bytes
_LOOK_S = 0.1  # between two tries to lock


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


def seal_json(path: Path, value: Any) -> dict[str, Any]:
    """Writes a JSON value that is there whole or not at all; returns its size in bytes and its sha256."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return seal(path, lambda target: target.write_text(text, encoding="utf-8"))


@contextmanager
def locked(path: Path, what: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keeps every other process, on this machine or on one that shares the file system, from the same block.

    Args:
        path: the lock file; made if need be.
        what: what it protects, for messages.
        wait_s: how long to wait for a process that holds it.

    Raises:
        RunError: another process holds it, or the file cannot be written.
    """
    descriptor = guarded(what, lambda: os.open(path, os.O_CREAT | os.O_RDWR, 0o644))
    give_up = time.monotonic() + wait_s
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= give_up:
                raise RunError(f"{what} is in use by another process; wait for it, or stop it")
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file; nothing is written to find out."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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

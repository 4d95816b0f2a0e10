"""Files that are there completely or not at all, and errors of the file system that say what to do."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from .errors import RunError, SeedError

Write = Callable[[Path], object]  # writes a file at the path that it is given
_UMASK = os.umask(0)
os.umask(_UMASK)


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a RunError says that the file cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, as ``object_pairs_hook``; a ValueError says that a key occurs twice (json keeps one)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key '{key}' occurs twice in one object")
    return found


def open_text(path: Path) -> TextIO:
    """Open a file of UTF-8; an OSError or ValueError says why it cannot be read, or that it is a pipe or device."""
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):
        raise ValueError("it is not a regular file")
    return path.open(encoding="utf-8-sig")


def read_lines(path: Path, what: str) -> list[str]:
    """Read a .txt file (UTF-8) of one entry a line, none blank, or refuse it by a SeedError."""
    try:
        with open_text(path) as file:
            lines = [line.strip() for line in file.read().removesuffix("\n").split("\n")]
    except (OSError, ValueError) as error:
        raise SeedError(f"{what} {path} cannot be read: {error}") from error
    if path.suffix.lower() != ".txt":
        raise SeedError(f"{what} {path} must be a .txt file with one entry a line")
    if not all(lines):
        raise SeedError(f"{what} {path}, line {lines.index('') + 1} is blank; give one entry a line")
    return lines


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals in the block into a ``RunError`` that names the path."""
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:  # pyarrow encodes names as UTF-8
        remedy = "Nothing already made is lost: remove the cause and give the same command again"
        raise RunError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}. {remedy}") from error


def write_atomically(path: Path, write: Write) -> dict[str, Any]:
    """Have ``write`` make a file that is there completely or not at all; return its size and sha256, or a RunError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.chmod(temporary, 0o666 & ~_UMASK)  # some writers make 0600
            _sync(temporary)
            facts = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            os.replace(temporary, path)
            _sync(path.parent)
            return facts
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any], exclusive: bool = False) -> bool:
    """Write a JSON object atomically; with ``exclusive``, only if the file does not exist. Return whether it did."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    written = path.with_name(f".{path.name}.{os.getpid()}.new") if exclusive else path
    write_atomically(written, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if not exclusive:
        return True
    try:
        os.link(written, path)  # fails if the name exists, unlike rename
    except OSError:
        if path.exists():
            return False  # else a file system without hard links
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

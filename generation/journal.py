"""The journal of one unfinished shard: an append-only JSONL file, one line an id that has ended.

A line reaches the operating system before the next request is asked, so a killed process loses no answer; it reaches
the disk at most ``SYNC_SECONDS`` later. A torn last line (the machine died in mid-write) is dropped on opening. Memory
holds where each line lies, not what it says.
"""

import errno
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from .errors import RunError
from .files import guarded

SYNC_SECONDS = 1.0

Record = dict[str, Any]


class Journal:
    """Opens a journal, replays it, and appends to it.

    A record holds ``id`` and, once the id has ended, ``row``; an id without ``row`` is one to be asked ``again``. The
    records of a shard that was sealed before and opened again also hold the ``place`` of their row in it.

    Attributes:
        answered: where the line of each ended id begins, in bytes.
        again: the records of the ids that are to be asked again.
        places: of the rows that were sealed before.

    Raises:
        RunError: a line before the last is no JSON object with an ``id``, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise RunError(
                f"cannot open {path}: {error.strerror}; mend the cause and run the command again"
            ) from error
        self.answered: dict[str, int] = {}
        self.again: dict[str, Record] = {}
        self.places: dict[str, int] = {}
        self._size = self._replay()
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, record: Record) -> None:
        """Adds the record of one id: JSON values, text without lone surrogates.

        Raises:
            RunError: the disk is full or the file cannot be written; no half line is left behind.
        """
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._size)
            raise RunError(
                f"cannot write {self.path}: {error.strerror}. Every line before is kept: mend the cause and give the "
                "same command again"
            ) from error
        self._note(record, self._size)
        self._size += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
            self._synced = time.monotonic()

    def records(self, ids: Iterable[str]) -> Iterator[Record]:
        """The records of ended ids, in the order of ``ids``."""
        with self.path.open("rb") as file:
            for id in ids:
                file.seek(self.answered[id])
                yield orjson.loads(file.readline())

    def close(self) -> None:
        """Syncs and closes the file."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()

    def _note(self, record: Record, start: int) -> None:
        if "row" in record:
            self.answered.setdefault(record["id"], start)
            if "place" in record:
                self.places[record["id"]] = record["place"]
        else:
            self.again[record["id"]] = record

    def _sync(self) -> None:
        guarded(self.path, lambda: os.fsync(self._file.fileno()))

    def _replay(self) -> int:
        """Notes all whole lines, cuts off a torn one, and returns how many bytes are left."""
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self._file.truncate(start)
                    break
                try:
                    self._note(_parsed(line), start)
                except (ValueError, KeyError, TypeError) as error:
                    raise RunError(
                        f"{self.path}, line {number} is damaged ({error!r}); delete that line and run the command "
                        "again: its row will be asked anew"
                    ) from error
                start += len(line)
        return start


def damaged_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a journal, from 1, that opening it would refuse, each with the reason; it is left as it is."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                _parsed(line)
            except (ValueError, KeyError, TypeError) as error:
                if line.endswith(b"\n"):  # else it was torn, and its row is asked again
                    yield number, repr(error)


def _parsed(line: bytes) -> Record:
    record: Record = orjson.loads(line)
    record["id"]
    return record

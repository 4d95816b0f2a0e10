"""The journal of one unfinished shard: an append-only JSONL file, one line an answered id.

A line reaches the operating system before the next request is asked, so a killed process loses no answer; it reaches
the disk at most ``SYNC_SECONDS`` later. A torn last line (the machine died in mid-write) is dropped on opening.
"""

import errno
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import RunError
from .files import guarded

SYNC_SECONDS = 1.0


class Journal:
    """Opens a journal, replays it into ``answered`` (id -> record), and appends to it.

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
        self.answered = self._replay()
        self._size = path.stat().st_size
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, record: dict[str, Any]) -> None:
        """Adds the record of one id. The record must hold ``id``.

        Raises:
            RunError: the disk is full or the file cannot be written; no half line is left behind.
        """
        line = json.dumps(record, ensure_ascii=True).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._size)
            raise RunError(
                f"cannot write {self.path}: {error.strerror}. Every line before is kept: mend the cause and give the "
                "same command again"
            ) from error
        self._size += len(line)
        self.answered[record["id"]] = record
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
            self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes the file."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()

    def _sync(self) -> None:
        guarded(self.path, lambda: os.fsync(self._file.fileno()))

    def _replay(self) -> dict[str, dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        answered: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                answered.setdefault(record["id"], record)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{self.path}, line {number} is damaged ({error!r}); delete that line and run the command again: "
                    "its row will be asked anew"
                ) from error
        return answered

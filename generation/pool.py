"""Texts by the hundred thousand: in a temporary file, with 30 bytes of each in memory, drawn by what is in them.

A draw depends on the text (or its image) alone (``records.draw``), so that the n lowest draws are a sample that no
other source moves, and that grows by texts when n grows. Texts whose draw is already too high are not even written,
so that a sample of n out of a stream of N takes space of the order of n (log N/n), not of N.
"""

import os
from array import array
from collections import Counter
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .records import draw

ROW = np.dtype(
    [
        ("choice", np.uint64),  # the lowest are drawn; of equal ones one is
        ("order", np.uint64),  # in which they come; equal for equal texts of one source, and for no others
        ("start", np.uint64),  # of the text in the file
        ("bytes", np.uint32),
        ("source", np.uint16),
    ]
)
Rows = NDArray[Any]  # of ROW
_FIELDS = 4
_LEAST_BLOCK = 100_000  # rows that wait before the lowest are looked for


class Texts:
    """UTF-8 texts, one after the other in a file.

    Args:
        file: empty, open for reading and writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.end = file, 0

    def add(self, text: str) -> tuple[int, int]:
        """Writes a text; returns where it starts, and its bytes."""
        encoded = text.encode("utf-8", "surrogatepass")
        self.file.write(encoded)
        start, self.end = self.end, self.end + len(encoded)
        return start, len(encoded)

    def of(self, row: Any) -> str:
        """The text of a row, once ``flush`` was called after its writing."""
        return os.pread(self.file.fileno(), int(row["bytes"]), int(row["start"])).decode("utf-8", "surrogatepass")

    def flush(self) -> None:
        """Makes all texts readable."""
        self.file.flush()


class Pool:
    """The captions of one source that are drawn.

    Args:
        texts: where they are written.
        name: of the source.
        number: of the source.
        random_seed: of the draws.
        limit: how many are drawn; None takes all.

    Attributes:
        dropped: how many were not taken, by reason: ``repeated``, ``same_image``, ``over_limit``.
    """

    def __init__(self, texts: Texts, name: str, number: int, random_seed: int, limit: int | None = None) -> None:
        self.texts, self.name, self.number, self.random_seed, self.limit = texts, name, number, random_seed, limit
        self.dropped: Counter[str] = Counter()
        self._rows = np.empty(0, ROW)
        self._waiting = array("Q")
        self._bound: int | None = None  # the highest choice that can still be drawn

    def add(self, text: str, group: str | None = None) -> None:
        """Takes in a caption; with a group, one caption of each group is drawn, whatever their number."""
        key = ("group", group) if group is not None else (text,)
        choice = draw(self.random_seed, self.name, *key)
        if self._bound is not None and choice > self._bound:
            self.dropped["over_limit"] += 1
            return
        self._waiting.extend((choice, draw(self.random_seed, "order", self.name, text), *self.texts.add(text)))
        if len(self._waiting) >= _FIELDS * max(_LEAST_BLOCK, len(self._rows)):
            self._settle()

    def drawn(self) -> Rows:
        """The rows that are drawn, in no order; ``dropped`` is final after it."""
        self._settle()
        # Two images may have the same caption.
        rows = self._rows[np.lexsort((self._rows["choice"], self._rows["order"]))]
        repeats = np.r_[False, rows["order"][1:] == rows["order"][:-1]][: len(rows)]
        self.dropped["repeated"] += int(repeats.sum())
        kept: Rows = rows[~repeats]
        return kept

    def _settle(self) -> None:
        """Keeps, of all rows so far, the first of each choice, and of these the lowest."""
        waiting = np.frombuffer(self._waiting, np.uint64).reshape(-1, _FIELDS)
        rows = np.empty(len(self._rows) + len(waiting), ROW)
        rows[: len(self._rows)] = self._rows
        fresh = rows[len(self._rows) :]
        for place, field in enumerate(("choice", "order", "start", "bytes")):
            fresh[field] = waiting[:, place]
        fresh["source"] = self.number
        rows = rows[np.lexsort((rows["order"], rows["choice"]))]
        again = np.r_[False, rows["choice"][1:] == rows["choice"][:-1]][: len(rows)]
        repeated = again & np.r_[False, rows["order"][1:] == rows["order"][:-1]][: len(rows)]
        self.dropped["repeated"] += int(repeated.sum())
        self.dropped["same_image"] += int(again.sum() - repeated.sum())
        rows = rows[~again]
        if self.limit is not None and len(rows) >= self.limit:
            self.dropped["over_limit"] += len(rows) - self.limit
            rows = rows[: self.limit]
            self._bound = int(rows["choice"][-1])
        self._rows, self._waiting = rows, array("Q")

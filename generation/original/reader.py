"""The released files of the original (Yu2020/Unicorn on the Hub), read row by row.

Two kinds, both one JSON list of rows in LLaVA's format (paper, section on the data sets):

    {"id": "0010278167", "caption": "...", "conversations": [{"from": "human", "value": "<image>\\n..."},
                                                            {"from": "gpt", "value": "..."}, ...]}

The pre-training file has one exchange a row, whose answer is the caption; an instruction file has several, and its
``id`` is that of the caption they are about. ijson reads them: 270,000 rows of 1.4 kB a second on one core, in the
memory of one chunk. One thing it does not give back: an unpaired escape ``\\ud800``, which is no text, becomes ``?``.
"""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ijson

from ..errors import OriginalError

CHUNK_BYTES = 1 << 20
_PEEKED = 1000  # rows by which a file's kind is told
_ROW_KEYS = frozenset(("id", "caption", "conversations"))
_TURN_KEYS = frozenset(("from", "value"))

Turn = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ReleasedFile:
    """One file of the release, read once from end to end.

    Attributes:
        path: where it lies.
        kind: ``captions`` (pre-training) or ``instructions``.
        rows: how many it holds.
        bytes: its size.
        sha256: of its bytes, in hexadecimal.
    """

    path: Path
    kind: Literal["captions", "instructions"]
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReleasedRow:
    """One row, with None for what is not of its type.

    Attributes:
        file: the file's name.
        number: of the row in it, from 0.
        id: the original's; a number is given as its digits.
        caption: the text.
        turns: of the conversation, at least one.
        value: the row as JSON gave it.
    """

    file: str
    number: int
    id: str | None
    caption: str | None
    turns: list[Turn] | None
    value: Any

    @property
    def other_keys(self) -> set[str]:
        """Keys that the format does not have."""
        return self.value.keys() - _ROW_KEYS if isinstance(self.value, dict) else set()

    def raw(self) -> str:
        """The row as JSON."""
        return json.dumps(self.value, ensure_ascii=False, default=float)  # ijson gives fractions as decimals


def survey(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> ReleasedFile:
    """Reads a file to its end, so that all that its JSON can have wrong is seen before anything is made of it.

    Raises:
        OriginalError: see ``read_values``; or it holds no row.
    """
    digest, rows, described, size = hashlib.sha256(), 0, 0, 0

    def seen(chunk: bytes) -> None:
        nonlocal size
        digest.update(chunk)
        size += len(chunk)
        on_bytes(len(chunk))

    for value in read_values(path, seen):
        if rows < _PEEKED:
            described += _describes(read_row(path.name, rows, value))
        rows += 1
    if not rows:
        raise OriginalError(f"{path} holds an empty list; give the file as it was released")
    kind: Literal["captions", "instructions"] = "captions" if 2 * described > min(rows, _PEEKED) else "instructions"
    return ReleasedFile(path=path, kind=kind, rows=rows, bytes=size, sha256=digest.hexdigest())


def read_values(path: Path, on_chunk: Callable[[bytes], object] = lambda chunk: None) -> Iterator[Any]:
    """The values of a file's one JSON list, in its order, whatever they are.

    Args:
        path: the file: UTF-8, with or without a byte order mark.
        on_chunk: is given the bytes as they are read.

    Raises:
        OriginalError: it cannot be read, is not UTF-8, no JSON, no list or broken off; names the byte or the row.
    """
    found = ijson.sendable_list()
    parser = ijson.items_coro(found, "item")
    rows = 0
    try:
        with path.open("rb") as file:
            for number, chunk in enumerate(iter(lambda: file.read(CHUNK_BYTES), b"")):
                on_chunk(chunk)
                parser.send(chunk if number else _opening(path, chunk))
                yield from found
                rows += len(found)
                del found[:]
            if not file.tell():
                raise OriginalError(f"{path} is empty; fetch it again")
        parser.send(b"")
    except StopIteration:
        yield from found
    except OSError as error:
        raise OriginalError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        yield from found  # the whole rows before the fault
        raise _broken(path, rows + len(found), error) from error


def read_rows(path: Path) -> Iterator[ReleasedRow]:
    """The rows of a file, as far as they have their types.

    Raises:
        OriginalError: see ``read_values``.
    """
    for number, value in enumerate(read_values(path)):
        yield read_row(path.name, number, value)


def read_row(file: str, number: int, value: Any) -> ReleasedRow:
    """One value of the list as a row."""
    fields = value if isinstance(value, dict) else {}
    id, caption, turns = fields.get("id"), fields.get("caption"), fields.get("conversations")
    return ReleasedRow(
        file,
        number,
        id if id is None or isinstance(id, str) else json.dumps(id, default=float),
        caption if isinstance(caption, str) else None,
        turns if isinstance(turns, list) and turns and all(map(_is_turn, turns)) else None,
        value,
    )


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.keys() == _TURN_KEYS and set(map(type, turn.values())) == {str}


def _describes(row: ReleasedRow) -> bool:
    """Whether its conversation is one exchange that ends in the caption."""
    turns, caption = row.turns or (), row.caption or ""
    return len(turns) == 2 and turns[1]["value"].strip() == caption.strip()


def _opening(path: Path, chunk: bytes) -> bytes:
    """The first chunk without its UTF-8 byte order mark, once it is known to begin a list."""
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in chunk[:4]:
        raise OriginalError(f"{path}, byte 0: the file is UTF-16 or UTF-32; convert it to UTF-8")
    chunk = chunk.removeprefix(codecs.BOM_UTF8)
    if (first := chunk.lstrip()[:1]) not in (b"[", b""):
        what = "an object (JSON Lines perhaps)" if first == b"{" else f"{first!r}"
        raise OriginalError(f"{path} must be one JSON list of rows, but begins with {what}; give the released file")
    return chunk


def _broken(path: Path, row: int, error: Exception) -> OriginalError:
    """What is wrong with the file after so many whole rows."""
    message = str(error).split("\n")[0].removeprefix("b'")
    if (offset := _not_utf8(path)) is not None:
        return OriginalError(f"{path}, row {row}, byte {offset}: not UTF-8; fetch the file again")
    if isinstance(error, UnicodeDecodeError):
        return OriginalError(f"{path}, row {row}: an escape such as \\udc00 without its pair is no text; remove it")
    if "premature EOF" in message or "UTF8" in message:  # the latter within a character, since all others are whole
        size = path.stat().st_size
        return OriginalError(f"{path}, row {row}: the file breaks off at byte {size}, within its list; fetch it again")
    return OriginalError(f"{path}, row {row}: no JSON ({message}); fetch the file again")


def _not_utf8(path: Path) -> int | None:
    """The first byte that is not UTF-8, counted from 0, or None; a character that the file's end cuts off is none."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return offset - waiting + error.start
            offset += len(chunk)
    return None

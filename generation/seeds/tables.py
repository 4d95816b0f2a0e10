"""Rows of the files that users bring: .txt (one text a line), .jsonl, .json, .csv, .tsv, .parquet.

A row is read exactly as it is written or reported as a ``BadRow``; nothing is guessed. The readers of pandas and
``datasets`` merge lines at stray quotes, shift columns at stray commas, turn ids into numbers, and keep the last of
two equal keys. Text is UTF-8; any other byte becomes a lone surrogate, so that one broken row does not hide the rest.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SeedError

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BATCH_ROWS = 1000
_FOREIGN = {  # first bytes, in lower case, of files that are often given another name
    (b"\x1f\x8b", b"bzh91ay&sy", b"\xfd7zxz", b"\x28\xb5\x2f\xfd", b"pk\x03\x04"): "compressed data; unpack it first",
    (
        b"%pdf-",
        b"{\\rtf",
        b"sqlite format",
        b"arrow1",
    ): "a document, database or Arrow file; export it as text or Parquet",
    (b"version https://git-lfs",): "a Git LFS pointer in place of the data; fetch them with `git lfs pull`",
    (b"<!doctype", b"<html", b"<head", b"<!--", b"<?xml"): "a web page, such as a login page; download the file again",
    (b"404: not found", b"entry not found", b"access denied"): "a server's error message; download the file again",
    (b"par1",): "Parquet data; rename it to .parquet",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: a reason code for the counts, and what is wrong with it, in words."""

    reason: str
    detail: str


Cells = list[Any] | BadRow


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, Cells]]:
    """Yield the rows of a file: where each is (``line 7``, counted from 1), and its values in ``columns``.

    Args:
        path: the file; the suffix of this name decides the format, whatever it links to.
        columns: names of the columns, of which a row of JSON may lack all but the first; .txt has one, ``text``.

    Raises:
        SeedError: the file cannot be read, is not what its name says, has no rows, or lacks a column.
    """
    unit, rows = "row" if path.suffix.lower() in (".json", ".parquet") else "line", 0
    try:
        for rows, (number, cells) in enumerate(_reader(path, columns, _check(path)), 1):  # noqa: B007
            yield f"{unit} {number}", cells
    except (OSError, pa.ArrowException, ValueError, OverflowError, RecursionError, csv.Error) as error:
        raise SeedError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise SeedError(f"{path} holds no rows")


def _check(path: Path) -> bytes:
    """Return the first bytes of a file, or refuse it for what they say."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SeedError(f"{path} must end with one of {', '.join(SUFFIXES)}")
    if path.is_symlink() and not path.exists():
        raise SeedError(f"{path} is a link to {path.readlink()}, which does not exist; download the file again")
    if not path.is_file():
        what = "is not a file: name one file" if path.exists() else "does not exist"
        raise SeedError(f"{path} {what} (paths in a recipe are relative to the recipe)")
    with path.open("rb") as file:
        head = file.read(65536)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if not start:
        raise SeedError(f"{path} is empty")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic) and (suffix != ".parquet" or magic != (b"par1",)):
            raise SeedError(f"{path} holds {what}")
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    if suffix != ".parquet" and (marked or 0 in head[:4]):
        wide = "UTF-32" if head[:4].count(0) > (1 if marked else 2) else "UTF-16"
        wide += "" if marked else "LE" if head[0] else "BE"
        raise SeedError(f"{path} is {wide}; convert it: iconv -f {wide} -t UTF-8 {path.name} > utf8{path.suffix}")
    return head


def _reader(path: Path, columns: list[str], head: bytes) -> Iterator[tuple[int, Cells]]:
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".json"):
        yield from _parquet(path, columns) if suffix == ".parquet" else _json(path, columns)
        return
    # Old Mac files end lines with CR; elsewhere a CR inside a line is part of it.
    newline = "\r" if b"\r" in head and b"\n" not in head else "\n"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        if suffix == ".txt":
            _positions(path, ["text"], columns)
            bad = BadRow("malformed", "holds a carriage return; convert all line ends to LF")
            for number, line in enumerate(lines, 1):
                yield number, bad if "\r" in line[:-2] and newline == "\n" else [line]
        else:
            yield from _jsonl(path, columns, lines) if suffix == ".jsonl" else _csv(path, columns, lines)


def _csv(path: Path, columns: list[str], lines: Iterable[str]) -> Iterator[tuple[int, Cells]]:
    """Read CSV as RFC 4180 has it, or TSV, which has no quoting. Blank lines are not rows."""
    csv.field_size_limit(2**31 - 1)
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    reader = csv.reader(lines, strict=True, **tabs)
    header = next(reader)
    positions = _positions(path, header, columns)
    while True:
        first, cells = reader.line_num + 1, list[str]()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a stray quote may have swallowed lines: each counts
            bad = BadRow("malformed", f"is not valid CSV ({error}); write a quote inside a quoted field twice")
            yield from ((number, bad) for number in range(first, max(first, reader.line_num) + 1))
        if len(cells) == len(header):
            yield first, [cells[position] for position in positions]
        elif cells:
            extra = f", such as {cells[len(header)]!r}" if len(cells) > len(header) else ""
            remedy = "put fields with commas into quotes, and remove stray separators"
            yield (
                first,
                BadRow("malformed", f"has {len(cells)} fields{extra}, where the header has {len(header)}; {remedy}"),
            )


def _positions(path: Path, header: list[str], columns: list[str]) -> list[int]:
    for column in columns:
        if (count := header.count(column)) != 1:
            known = f"its columns: {', '.join(header)[:1000]}"
            first = " (the first line must name the columns)" if path.suffix.lower() in (".csv", ".tsv") else ""
            raise SeedError(f"{path} has {f'{count} columns' if count else 'no column'} '{column}'; {known}{first}")
    return [header.index(column) for column in columns]


def _jsonl(path: Path, columns: list[str], lines: Iterable[str]) -> Iterator[tuple[int, Cells]]:
    """Read one JSON object a line. Blank lines are not rows."""

    def values() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line, object_pairs_hook=_unique)
                except (ValueError, RecursionError) as error:
                    yield number, BadRow("malformed", f"is not JSON ({error}): {line[:80]!r}")

    yield from _objects(path, values(), columns)


def _json(path: Path, columns: list[str]) -> Iterator[tuple[int, Cells]]:
    """Read a list of objects (at the top, or as in COCO's files under one key), columns, or JSON lines."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from _jsonl(path, columns, text.split("\n"))
        return
    if isinstance(data, dict):
        tables = [rows for rows in data.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        tables = [rows for rows in tables if columns[0] in rows[0]]
        series = [data[column] for column in columns if isinstance(data.get(column), list | dict)]
        series = [list(part.values()) if isinstance(part, dict) else part for part in series]
        if len(tables) == 1:
            data = tables[0]
        elif len(series) == len(columns):
            if len({len(part) for part in series}) > 1:
                raise ValueError(f"columns {', '.join(columns)} have {[len(part) for part in series]} values")
            data = [dict(zip(columns, row, strict=True)) for row in zip(*series, strict=True)]
    yield from _objects(path, enumerate(data if isinstance(data, list) else [data], 1), columns)


def _objects(path: Path, rows: Iterable[tuple[int, Any]], columns: list[str]) -> Iterator[tuple[int, Cells]]:
    seen: dict[str, None] = {}
    for number, value in rows:
        if isinstance(value, BadRow):
            yield number, value
        elif not isinstance(value, dict):
            yield number, BadRow("malformed", f"holds {str(value)[:80]!r}, not an object with the key '{columns[0]}'")
        elif columns[0] not in value:
            yield number, BadRow("no_column", f"has no column '{columns[0]}'; its columns: {', '.join(value)[:1000]}")
        else:
            seen |= dict.fromkeys(value)
            yield number, [value.get(column) for column in columns]
    if seen:
        _positions(path, list(seen), columns)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' occurs twice in one object")
    return found


def _parquet(path: Path, columns: list[str]) -> Iterator[tuple[int, Cells]]:
    number = 0
    with pq.ParquetFile(path) as file:
        _positions(path, file.schema_arrow.names, columns)
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            for cells in zip(*(_values(batch.column(column)) for column in columns), strict=True):
                yield (number := number + 1), list(cells)


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; for strings that are not UTF-8, which Parquet permits, their bytes."""
    values = []
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for value in column:
            try:
                values.append(value.as_py())
            except UnicodeDecodeError as error:
                values.append(error.object)
    return values

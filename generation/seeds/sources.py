"""What sources of seeds give: rows of the files that users bring (.txt of one text a line, .jsonl, .json, .csv, .tsv,
.parquet) and of the Hub; labels of fine-grained classes in templates of their domain (paper, Unicorn-1.2M-Seed). A row
is read as it is written or reported as a ``BadRow``: pandas and ``datasets`` merge lines at stray quotes, shift
columns at stray commas, turn ids into numbers. A byte that is not UTF-8 becomes a lone surrogate of its row."""

import csv
import glob
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow.parquet as pq

from ..config import SLOTS, CaptionFile, DomainFile, Domains, HubCaptions, Recipe
from ..errors import SeedError
from ..files import read_lines, unique_keys
from ..limits import SEED_ROWS
from ..recipe import read_yaml, validate
from ..stages import stable_hash

_BY_LINE = (".txt", ".jsonl", ".csv", ".tsv")
_SUFFIXES = (*_BY_LINE, ".json", ".parquet")
_FOREIGN = read_yaml(Path(__file__).with_name("foreign.yaml"), "first bytes of files")
MAX_CHARACTERS = 20_000  # of a caption
_BROKEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = " \ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_JSON = re.compile(r"""[\[{]\s*["'\[{].*[\]}]""", re.S)


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    reason: str  # a code for the counts
    detail: str


Rows = Iterator[tuple[int, list[Any] | BadRow]]  # numbered from 1; a list has one value a column


def read_rows(source: CaptionFile | HubCaptions, directory: Path) -> Iterator[tuple[str, list[Any] | BadRow]]:
    """Yield where each row of a source is, such as ``a.csv, line 7``, with its captions, and its group if it has one.
    A path is relative to ``directory``; its suffix decides the format. A SeedError says that the source cannot be
    read, is not what its name says, has no rows or lacks a column."""
    columns, number = [source.column, *filter(None, [source.group_column])], 0
    try:
        if isinstance(source, CaptionFile):
            path = directory / source.path
            where, unit = str(path), "line" if path.suffix.lower() in _BY_LINE else "row"
            rows = _file_rows(path, columns)
        else:
            place = {"split": source.split, "revision": source.revision}
            where, unit = f"data set {source.dataset} (config {source.config}, split {source.split}, ", "row"
            where += f"revision {source.revision})"
            from datasets import load_dataset

            stream = load_dataset(source.dataset, source.config, streaming=True, **place).with_format("arrow")
            rows = _arrow_rows(where, stream.iter(SEED_ROWS), columns)
        for number, cells in rows:
            yield f"{where}, {unit} {number}", cells
    except SeedError:
        raise
    except Exception as error:  # whatever pyarrow, csv, json or the Hub's client raise
        raise SeedError(f"{where} cannot be read: {error}") from error
    if not number:
        raise SeedError(f"{where} holds no rows")


def _file_rows(path: Path, columns: list[str]) -> Rows:
    """Yield the rows of a file, or refuse it for its name, its kind or its first bytes."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise SeedError(f"{path} must end with one of {', '.join(_SUFFIXES)}")
    if not path.is_file():
        what = "is not a file: name one file" if path.exists() else "does not exist"
        if path.is_symlink() and not path.exists():
            what = f"is a link to {path.readlink()}, which does not exist; download the file again"
        raise SeedError(f"{path} {what} (paths in a recipe are relative to the recipe)")
    with path.open("rb") as file:
        head = file.read(65536)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower().decode("latin-1")
    if not start:
        raise SeedError(f"{path} is empty")
    for what, beginnings in _FOREIGN.items():
        if start.startswith(tuple(beginnings)) and (suffix != ".parquet" or beginnings != ["par1"]):
            raise SeedError(f"{path} holds {what}")
    if suffix == ".parquet":
        with pq.ParquetFile(path) as table:
            _require(path, table.schema_arrow.names, columns)
            yield from _arrow_rows(path, table.iter_batches(SEED_ROWS, columns=columns, use_threads=False), columns)
        return
    wide = json.detect_encoding(head).upper().replace("-LE", "LE").replace("-BE", "BE")
    if not wide.startswith("UTF-8"):
        raise SeedError(f"{path} is {wide}; convert it: iconv -f {wide} -t UTF-8 {path.name} > utf8{path.suffix}")
    # Old Mac files end lines with CR; elsewhere a CR inside a line is part of it.
    newline = "\r" if b"\r" in head and b"\n" not in head else "\n"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        if suffix == ".txt":
            _require(path, ["text"], columns[1:])
            bad = BadRow("malformed", "holds a carriage return; convert all line ends to LF")
            yield from enumerate((bad if "\r" in line.rstrip("\r\n") else [line] for line in lines), 1)
        else:
            yield from (_csv_rows if suffix in (".csv", ".tsv") else _json_rows)(path, columns, lines)


def _require(what: object, header: list[str], columns: list[str]) -> None:
    """Refuse a header that does not hold each of the columns once."""
    for column in columns:
        if (count := header.count(column)) != 1:
            first = " (the first line must name the columns)" if str(what).lower().endswith((".csv", ".tsv")) else ""
            fault = f"{count} columns '{column}'" if count else f"no column '{column}'"
            raise SeedError(f"{what} has {fault}; its columns: {', '.join(header)[:1000]}{first}")


def _csv_rows(path: Path, columns: list[str], lines: TextIO) -> Rows:
    """Read CSV as RFC 4180 has it, or TSV, which has no quoting. Blank lines are not rows."""
    csv.field_size_limit(2**31 - 1)
    odd, remedy = re.compile(r'\s+".*"\s*', re.S), "remove the blank before the quote"  # it begins no quoted field
    reader = csv.reader(lines, strict=True)
    if path.suffix.lower() == ".tsv":
        odd, remedy = re.compile(r'"[^"]*(?:""[^"]*)+"'), "TSV has no quoting: write each quote once"
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    header = next(filter(None, reader))
    _require(path, header, columns)
    positions = [header.index(column) for column in columns]
    while True:
        first, fault = reader.line_num + 1, ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a stray quote may have swallowed lines: each counts
            bad = BadRow("malformed", f"is not valid CSV ({error}); write a quote inside a quoted field twice")
            yield from ((number, bad) for number in range(first, max(first, reader.line_num) + 1))
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            extra = "".join(f", such as {cell!r}" for cell in cells[len(header) :][:1])
            fault = f"has {len(cells)} fields{extra}, where the header has {len(header)}; put fields with commas into "
            fault += "quotes, remove stray separators"
        elif cells[1:] == header[1:] and cells[0].removeprefix("\ufeff") == header[0]:
            fault = "is the header again, as in joined files; remove it"
        elif quoted := next(filter(odd.fullmatch, cells), None):
            fault = f"holds {quoted[:80]!r}; {remedy}"
        yield first, BadRow("malformed", fault) if fault else [cells[position] for position in positions]


def _json_rows(path: Path, columns: list[str], lines: TextIO) -> Rows:
    """Read JSON objects; each of the columns must be in one of them, and the first in all."""
    seen = dict[str, None]()
    for number, value in _json_lines(lines) if path.suffix.lower() == ".jsonl" else _json(lines.read(), columns):
        if isinstance(value, dict) and columns[0] in value:
            seen |= dict.fromkeys(value)
            yield number, [value.get(column) for column in columns]
        elif isinstance(value, dict):
            yield number, BadRow("no_column", f"has no column '{columns[0]}'; its columns: {', '.join(value)[:1000]}")
        elif isinstance(value, BadRow):
            yield number, value
        else:
            yield number, BadRow("malformed", f"holds {str(value)[:80]!r}, not an object with the key '{columns[0]}'")
    if seen:
        _require(path, list(seen), columns)


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Read one JSON value a line. Blank lines are not rows."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line.removeprefix("\ufeff"), object_pairs_hook=unique_keys)
            except (ValueError, RecursionError) as error:
                yield number, BadRow("malformed", f"is not JSON ({error}): {line[:80]!r}")


def _json(text: str, columns: list[str]) -> Iterable[tuple[int, Any]]:
    """Read a list of objects (at the top, or as in COCO's files under one key), columns, or JSON lines."""
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _json_lines(text.split("\n"))
    if isinstance(data, dict):
        lists = [part for part in data.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
        tables = [part for part in lists if columns[0] in part[0]]
        series: list[Any] = [data.get(column) for column in columns]
        series = [dict(enumerate(part)) if isinstance(part, list) else part for part in series]
        if len(tables) == 1:
            data = tables[0]
        elif all(isinstance(part, dict) for part in series):
            if any(part.keys() != series[0].keys() for part in series):
                raise ValueError(f"columns {', '.join(columns)} have {list(map(len, series))} values, or other keys")
            data = [{column: part[key] for column, part in zip(columns, series, strict=True)} for key in series[0]]
    return enumerate(data if isinstance(data, list) else [data], 1)


def _arrow_rows(what: object, tables: Iterable[Any], columns: list[str]) -> Rows:
    number = 0
    for table in tables:
        _require(what, table.schema.names, columns)
        for row in zip(*map(table.column, columns), strict=True):
            cells = list[Any]()
            for value in row:
                try:
                    cells.append(value.as_py())
                except UnicodeDecodeError as error:  # Parquet permits strings that are not UTF-8
                    cells.append(error.object.decode(errors="surrogateescape"))
            yield (number := number + 1), cells


def row_captions(cells: list[Any] | BadRow, column: str) -> tuple[list[str | BadRow], str | None]:
    """Return the captions of a row, one or those of one image, and what names that image."""
    if isinstance(cells, BadRow):
        return [cells], None
    value, group = cells[0], cells[-1] if len(cells) > 1 else None
    image = None if group is None or group != group or not str(group).strip() else str(group)
    if not isinstance(value, list):
        return [_caption(value, column)], image
    if len(value) > 2 and all(isinstance(part, str) and part.isascii() and len(part.split()) == 1 for part in value):
        detail = f"column '{column}' holds {value!r:.100}, a list of words and not of captions; join them by blanks"
        return [BadRow("not_text", detail)], image
    return [_caption(text, column) for text in value or [None]], image or "\x1f".join(map(str, value))


def _caption(value: Any, column: str) -> str | BadRow:
    """Return a caption, its white space single blanks, or why the value is none."""
    shown = f"column '{column}' holds {value!r:.100}"
    text = " ".join(value.split()).strip(_INVISIBLE) if isinstance(value, str) else ""
    if value is None or value != value or (isinstance(value, str) and not text):
        return BadRow("empty", f"{shown}, no caption")
    if not isinstance(value, str):
        return BadRow("not_text", f"{shown}, which is not text")
    if (found := _BROKEN.search(value)) and "\udc80" <= found[0] <= "\udcff":
        remedy = "convert the file to UTF-8, from Latin-1 by iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        return BadRow("not_utf8", f"{shown}; byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8: {remedy}")
    if found:
        return BadRow("control_character", f"{shown}, with the character {found[0]!r}")
    if len(text) > MAX_CHARACTERS:
        return BadRow("too_long", f"{shown} and so on, {len(text):,} characters; at most {MAX_CHARACTERS:,}")
    if _JSON.fullmatch(text):
        return BadRow("json", f"{shown}, JSON source text; read the file as .jsonl or .json, or name another column")
    return text


def read_domain(path: Path) -> DomainFile:
    """Read and check a domain file; ``labels`` of the result are filled, wherever they were."""
    what = f"domain file {path}"
    domain = validate(DomainFile, read_yaml(path, "domain file"), what)
    labels = domain.labels or tuple(read_lines(path.parent / str(domain.labels_file), f"labels_file of {what}"))
    return domain.model_copy(update={"labels": labels})


def read_domains(recipe: Recipe) -> Iterator[tuple[str, list[str], dict[str, Any], list[str]]]:
    """Yield what each domain file of a recipe gives: a source's name, files, facts (license, origin) and texts."""
    if not (wanted := recipe.seeds.domains):
        return
    for pattern in wanted.files:
        paths = sorted(recipe.path(name) for name in glob.glob(pattern, root_dir=recipe.directory))
        if not paths:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        for path in paths:
            domain = read_domain(path)
            name, files = f"domain_{domain.domain}", [domain.labels_file] if domain.labels_file else []
            files = [str(path), *(str(path.parent / file) for file in files)]
            texts = list(_texts(domain, wanted, (recipe.random_seed, name)))
            yield name, files, {"license": domain.license, "labels": domain.source}, texts


def _texts(domain: DomainFile, wanted: Domains, key: tuple[object, ...]) -> Iterator[str]:
    """Yield labels x templates, as many of both as are wanted, drawn by the stable hash of ``key`` and the text."""
    import inflect

    english = inflect.engine()
    labels = sorted(set(domain.labels or ()), key=lambda label: stable_hash(*key, label))
    for label in labels[: wanted.labels_per_domain]:
        forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
        templates = sorted(set(domain.templates), key=lambda one: stable_hash(*key, label, one))
        for template in templates[: wanted.templates_per_label]:
            slot = next(slot for slot in SLOTS if slot in template)
            text = " ".join(template.replace(slot, forms[slot]).split())
            yield text[0].upper() + text[1:]

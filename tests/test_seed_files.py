"""Files of seeds: rows read = rows of the file, every caption is in the file, or an error says what, where and why."""

import csv
import gzip
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.config import CaptionFile
from generation.errors import RecipeError, RunError, SeedError, UnicornError
from generation.files import write_atomically
from generation.seeds.sources import BadRow, read_rows
from generation.store import parquet
from tests.test_seeds import CASES, account, lines, make, source, texts

SIX = [
    *("A brown dog sleeps on a striped rug.", "A grey cat looks out of the window."),
    *("A boy waits for the bus in the rain.", "A red kite flies over the beach."),
    *("Two men carry a ladder down the street.", "A horse stands beside a wooden fence."),
]
NUMBERS = itertools.count()
EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, *columns: str) -> list[Any]:
    column, group = (*(columns or ("text",)), None)[:2]
    source = CaptionFile(name="own", license="MIT", path=str(path), column=column or "", group_column=group)
    return [cells for _, cells in read_rows(source, Path())]


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def seeds(path: Path, **options: Any) -> list[str]:
    return sorted(texts(make(path.parent / f"made{next(NUMBERS)}", [source(path, **options)])))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UnicornError) as caught:
        make(path.parent / f"made{next(NUMBERS)}", [source(path, **options)])
    return str(caught.value)


# The cases of /work/shared/cases/files (10 is in test_recipe.py, the deep JSON in test_original.py)


def test_case_02_stray_commas_are_refused_by_row_and_field(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.csv", "caption,image", *(f"{text},{row}.jpg," for row, text in enumerate(SIX)))
    for options in ({}, {"filters": {}}):
        message = refusal(path, column="caption", **options)
        assert f"{path}, line 2: has 3 fields, such as '', where the header has 2" in message
    lines(path, "caption,image", *(f"{text},{row}.jpg" for row, text in enumerate(SIX)), "A dog, asleep,6.jpg")
    assert "line 8: has 3 fields, such as '6.jpg'" in refusal(path, column="caption")
    assert seeds(path, column="caption", filters={}) == sorted(SIX)
    assert account(make(tmp_path, [source(path, column="caption", filters={})]))["dropped"] == {"malformed": 1}


def test_cases_03_04_08_20_what_is_read(tmp_path: Path) -> None:
    captions = [SIX[0], '"the old pier at dusk with a boat', *SIX[1:3], 'a sign that says "open"', 'the end"', SIX[3]]
    path = lines(tmp_path / "a.tsv", "caption\turl", *(f"{text}\thttp://x/{row}" for row, text in enumerate(captions)))
    assert seeds(path, column="caption") == sorted(captions)  # TSV has no quoting
    found = seeds(lines(tmp_path / "a.jsonl", json.dumps({"text": SIX[0]}), json.dumps({"text": SIX[1:3]})))
    assert len(found) == 2 and SIX[0] in found and (SIX[1] in found) != (SIX[2] in found)
    path, blob = tmp_path / "train.csv", lines(tmp_path / "6f1ed002ab", "caption", *SIX)
    path.symlink_to(blob.name)  # as in the Hub's cache: the given name decides
    assert seeds(path, column="caption") == sorted(SIX)
    blob.unlink()
    assert "is a link to 6f1ed002ab, which does not exist" in refusal(path)
    assert seeds(lines(tmp_path / "CAPTIONS.CSV", "caption", *SIX), column="caption") == sorted(SIX)
    assert seeds(lines(tmp_path / "B.TXT", *SIX), column="caption") == sorted(SIX)


def test_case_09_a_row_without_a_group_is_a_group_of_its_own_and_ids_stay_text(tmp_path: Path) -> None:
    rows = [f"{text},{id}" for text, id in zip(SIX, ["7", "", " ", "", "007", ""], strict=True)]
    path = lines(tmp_path / "a.csv", "caption,id", *rows)
    assert seeds(path, column="caption", group_column="id") == sorted(SIX)
    table = pa.table({"text": SIX, "id": [1.0, None, float("nan"), None, float("nan"), 1.0]})
    pq.write_table(table, tmp_path / "b.parquet")
    assert len(seeds(tmp_path / "b.parquet", group_column="id")) == 5


def test_case_20_all_dropped_for_their_type_or_by_filters(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": [text.encode() for text in SIX]}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", column="caption", filters={})
    assert "6 of 6 captions are dropped (6 not_text)" in message
    assert "row 1: column 'caption' holds b'A brown" in message
    assert "6 too_short" in refusal(lines(tmp_path / "b.txt", *SIX), filters={"words": [20, 30]})


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv"])
def test_byte_order_marks_and_all_line_ends_are_read(tmp_path: Path, suffix: str, end: str, mark: bytes) -> None:
    rows = [json.dumps({"text": text}) if suffix == "jsonl" else text for text in SIX]
    rows = ["text", *rows] if suffix in ("csv", "tsv") else rows
    for last in ("", end):
        path = put(tmp_path / f"a.{suffix}", mark + (end.join(rows) + last).encode())
        assert [cells[0].strip() for cells in read(path)] == SIX


IDS = [1, "1x", 1.5, 2**60, "", None]
OBJECTS = [{"text": text, "id": id} for text, id in zip(SIX, IDS, strict=True)]
FILES: dict[str, bytes | str] = {
    "list.json": json.dumps(OBJECTS),
    "columns.json": json.dumps({"id": IDS, "text": SIX}),
    "pandas.json": json.dumps({"text": dict(enumerate(SIX)), "id": {5 - row: row for row in range(6)}}),
    "coco.json": json.dumps({"images": [{"id": 1}], "annotations": OBJECTS}),
    "lines.json": "\n".join(map(json.dumps, OBJECTS)),
    "joined.jsonl": "\n".join(f"\ufeff{json.dumps(row)}" for row in OBJECTS),
    "blank.csv": "\ufeff\n\ntext,id\n" + "".join(f"{text},\n" for text in SIX),
    "quoted.csv": '\ufeff"text","my\nid",id\n' + "".join(f'"{text}","",="00{row}"\n' for row, text in enumerate(SIX)),
    "latin.csv": b"text,id\n" + b"".join(text.encode() + b",\xe9%d\n" % row for row, text in enumerate(SIX)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_other_programs_write_them(tmp_path: Path, name: str) -> None:
    assert seeds(put(tmp_path / name, FILES[name]), group_column="id") == sorted(SIX)
    if name == "pandas.json":
        assert read(tmp_path / name, "text", "id") == [[text, 5 - row] for row, text in enumerate(SIX)]


def test_odd_names_and_values_are_read_as_they_are(tmp_path: Path) -> None:
    for name in ("c [v2]*", "a::b", "hf:x y", "%41 #?", "\u540d\u524d"):
        assert read(lines(tmp_path / f"{name}.txt", *SIX)) == [[f"{text}\n"] for text in SIX]
    values = ["null", "NaN", "NA", "None", "-", "007", "1e5", "=1+1", "#hash", "\u2028x\u2028y", "x\x85y", "x\x0cy"]
    assert read(lines(tmp_path / "a.csv", "text", *values)) == [[value] for value in values]
    rows = [{"text": "x", "score": float("nan")}, {"text": "y", "deep": {"a": [1]}}, {"text": "z" * 10**6}]
    assert len(read(lines(tmp_path / "a.jsonl", *map(json.dumps, rows)))) == 3
    long = put(tmp_path / "b.csv", f"text,image\nA dog.,{'x' * 10**6}\n")
    assert read(long) == [["A dog."]]
    assert read(put(tmp_path / "c.csv", "text\nA dog.\n\nA cat.\n")) == [["A dog."], ["A cat."]]


text_strategy = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\t\0"), min_size=1)


@EASY
@given(st.lists(text_strategy, min_size=1), st.sampled_from([".txt", ".tsv", ".csv", ".jsonl", ".json", ".parquet"]))
def test_rows_read_are_those_of_the_file(tmp_path: Path, rows: list[str], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": rows}), path)
    elif suffix == ".csv":
        rows = [f"{text}\n,\r{text}" for text in rows]
        buffer = io.StringIO(newline="")
        csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("id", "text"), *((text, text) for text in rows)])
        put(path, buffer.getvalue())
    elif suffix in (".jsonl", ".json"):
        objects = [json.dumps({"text": text}, ensure_ascii=False) for text in rows]
        put(path, "\n".join(objects) if suffix == ".jsonl" else f"[{','.join(objects)}]")
    else:
        lines(path, *["text"][: suffix == ".tsv"], *rows)
        rows[0] = rows[0].removeprefix("\ufeff") if suffix == ".txt" else rows[0]
    try:
        assert [cells[0].removesuffix("\n") for cells in read(path)] == rows
    except SeedError as error:
        assert suffix in (".txt", ".tsv", ".csv") and any(word in str(error) for word in ("holds", "is empty", "UTF-"))


@EASY
@given(st.binary(max_size=300), st.sampled_from(["txt", "csv", "tsv", "jsonl", "json", "parquet"]), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str, filters: bool) -> None:
    path = put(tmp_path / f"a.{suffix}", b"text\n" * (suffix[0] in "ct") + content)
    try:
        found = seeds(path, **({"filters": {}} if filters else {}))
    except UnicornError as error:
        assert str(path) in str(error) or "no caption became a seed" in str(error)
    else:
        decoded = " ".join(content.decode("utf-8-sig").split()) if suffix == "txt" and not filters else ""
        assert all(text in f"text {decoded}" for text in found if decoded)


REFUSED: list[tuple[str, bytes | str | None, str]] = [
    *map(tuple, CASES["refused"]),
    ("none.txt", None, "does not exist"),
    ("a.csv.gz", gzip.compress(b"text\nx\n", mtime=0), "must end with one of"),
    ("a.json", "[" * 100_000 + "]" * 100_000, "cannot be read: maximum recursion depth"),
    ("a.jsonl", '{"text": "A"}\n' + '{"text": ' * 50_000 + "\n", "line 2: is not JSON (maximum recursion"),
    ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1: is not JSON (Exceeds the limit"),
    ("a.txt", b"A dog.\nA caf\xe9.\n", "line 2: column 'text' holds 'A caf\\udce9.\\n'; byte 0xe9"),
    ("a.txt", "x" * 30_000, "30,000 characters; at most 20,000"),
    ("a.txt", b"PAR1\x15\x04", "holds Parquet data; rename it to .parquet"),
    ("a.jsonl", gzip.compress(b"{}", mtime=0), "holds compressed data; unpack it first"),
    ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "holds a document or database"),
]
for known, suffix in itertools.product(("UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32"), ("jsonl", "txt", "csv", "json")):
    remedy = f"is {known}; convert it: iconv -f {known} -t UTF-8 a.{suffix}"
    REFUSED.append((f"a.{suffix}", f'{{"text": "{SIX[0]}"}}\n'.encode(known), remedy))


@pytest.mark.parametrize(("name", "content", "words"), REFUSED)
def test_refusals_name_file_row_and_value(tmp_path: Path, name: str, content: bytes | str | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        put(path, content)
    message = refusal(path, **({"group_column": "id"} if "[1]" in words + str(content)[:40] else {}))
    assert "seed source 'own'" in message and str(path) in message
    assert words in message


def test_directories_pipes_and_columns_of_groups_are_checked(tmp_path: Path) -> None:
    (tmp_path / "dir.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("dir.csv", "pipe.txt", "zero.txt"):
        assert "is not a file" in refusal(tmp_path / name)
    assert "does not exist" in refusal(tmp_path / "a\0.txt")
    with pytest.raises(RecipeError, match=r"the directory '.*caf\\udce9' is not UTF-8; rename it"):
        make(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(RunError, match="caf.* surrogates not allowed"):
        write_atomically(tmp_path / os.fsdecode(b"caf\xe9.parquet"), parquet(pa.table({"text": SIX})))
    for pipe in ("../pipe.txt", "/dev/zero"):
        assert "not a regular file" in refusal(lines(tmp_path / "a.txt", *SIX), filters={"blocked_words": pipe})
    with pytest.raises(RecipeError, match="cannot read domain file .*: it is not a regular file"):
        make(tmp_path / "domain", domains={"files": ["../pipe.*"]})
    times = pa.array([2**62, 5], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["A", "B"], "time": times}), tmp_path / "a.parquet")
    assert "cannot be read: date value out of range" in refusal(tmp_path / "a.parquet", group_column="time")
    for name, content in (("a.csv", "text,id\nA,1\n"), ("a.jsonl", '{"text": "A", "id": 1}\n'), ("a.txt", "A\n")):
        message = refusal(put(tmp_path / name, content), group_column="image")
        assert "has no column 'image'; its columns: text" in message


def test_one_bad_row_of_many_is_dropped_with_its_reason_where_a_filter_is_set(tmp_path: Path, caplog: Any) -> None:
    good = [json.dumps({"text": text}) for text in SIX]
    bad = ["{", '{"text": "A", "text": "B"}', '{"alt": "A"}', '{"text": 7}', '{"text": null}']
    path = put(tmp_path / "a.jsonl", "\n".join([*good, *bad]).encode() + b'\n{"text": "caf\xe9"}\n')
    run = make(tmp_path, [source(path, filters={})])
    assert sorted(texts(run)) == sorted(SIX)
    assert account(run)["dropped"] == {"malformed": 2, "no_column": 1, "not_text": 1, "empty": 1, "not_utf8": 1}
    assert account(run)["read"] == 12
    assert f"dropped as not_utf8: {path}, line 12: column 'text' holds 'caf\\udce9'; byte 0xe9" in caplog.text
    quoted = lines(tmp_path / "b.csv", "text", *SIX, '"a stray quote', "swallows", 'two "lines')
    assert [isinstance(cells, BadRow) for cells in read(quoted)] == [False] * 6 + [True] * 3


def test_parquet_may_be_empty_and_hold_strings_that_are_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "a.parquet holds no rows" in refusal(tmp_path / "a.parquet")
    broken = pa.array([b"A dog.", b"caf\xe9", b"A cat.", b"A hen."]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2, 3, 4], broken)
    for column in (broken, lists):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        message = refusal(tmp_path / "a.parquet")
        assert "row 2: column 'text' holds 'caf\\udce9'; byte 0xe9 is not UTF-8" in message
        assert len(seeds(tmp_path / "a.parquet", filters={"words": [1, 9]})) == 3

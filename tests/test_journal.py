"""The journal: what was answered survives kills, torn writes and full disks; what is damaged is named."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.errors import RunError
from generation.journal import Journal

ROOT = Path(__file__).parent.parent

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=("Cs",)))
    | st.sampled_from(["\n", "\r\n", "\u2028", "\x00🦄"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab\n"'), inner, max_size=3),
    max_leaves=6,
)
records = st.lists(
    st.builds(lambda number, row: {"id": f"{number:010d}", "row": row}, st.integers(0, 999), values),
    max_size=8,
    unique_by=lambda record: record["id"],
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)


def replay(path: Path) -> list[dict[str, Any]]:
    with Journal(path) as journal:
        return list(journal.records(journal.answered))


def row(number: int) -> dict[str, Any]:
    return {"id": f"{number:010d}", "row": {"caption": f"A dog {number}."}}


@settings(deadline=None)
@given(rows=records, more=values, data=st.data())
def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(
    rows: list[dict[str, Any]], more: Any, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.jsonl"
        write(path, rows)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)), label="cut")
        path.write_bytes(content[:cut])
        whole = rows[: content[:cut].count(b"\n")]
        last = {"id": "new", "row": more}

        with Journal(path) as journal:
            assert list(journal.records(journal.answered)) == whole
            journal.append(last)
            assert list(journal.answered) == [record["id"] for record in [*whole, last]]

        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*whole, last]
        assert replay(path) == [*whole, last]


@settings(deadline=None)
@given(rows=records)
def test_each_record_is_one_line_of_json(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.jsonl"
        write(path, rows)
        content = path.read_bytes()
    assert [json.loads(line) for line in content.splitlines()] == rows
    assert content.count(b"\n") == len(content.splitlines()) == len(rows)


def test_a_new_journal_is_empty_and_answers_by_id(tmp_path: Path) -> None:
    with Journal(tmp_path / "00000.jsonl") as journal:
        assert journal.answered == {}
        journal.append(row(7))
        assert list(journal.records(["0000000007"])) == [row(7)] == [json.loads(journal.path.read_bytes())]


def test_an_append_reaches_the_file_before_the_next(tmp_path: Path) -> None:
    with Journal(tmp_path / "00000.jsonl") as journal:
        for number in range(5):
            journal.append(row(number))
            assert len(journal.path.read_bytes().splitlines()) == number + 1


def test_closing_twice_is_allowed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "00000.jsonl")
    journal.append(row(0))
    journal.close()
    journal.close()
    assert replay(journal.path) == [row(0)]


def test_ids_that_are_to_be_asked_again_and_places_in_a_shard_sealed_before_are_kept(tmp_path: Path) -> None:
    again = {"id": "0000000001", "attempts": 3}
    with Journal(tmp_path / "00000.jsonl") as journal:
        journal.append(row(0) | {"place": 4})
        journal.append(again)
    with Journal(tmp_path / "00000.jsonl") as journal:
        assert list(journal.answered) == ["0000000000"]
        assert journal.again == {"0000000001": again}
        assert journal.places == {"0000000000": 4}
        journal.append(row(1))
    with Journal(tmp_path / "00000.jsonl") as journal:
        assert list(journal.answered) == ["0000000000", "0000000001"]


def test_an_id_answered_twice_keeps_its_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "00000.jsonl"
    path.write_text('{"id": "a", "row": 1}\n{"id": "a", "row": 2}\n', encoding="utf-8")
    assert replay(path) == [{"id": "a", "row": 1}]


@pytest.mark.parametrize(
    "line",
    [b"", b'{"id": "b", "row"', b'{"row": {}}', b"[]", b'"id"', b"null", b"7", b"\xff", b"\x00\x00", b'{"id": []}'],
    ids=repr,
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_is_refused_with_file_and_number(tmp_path: Path, line: bytes, number: int) -> None:
    path = tmp_path / "00000.jsonl"
    lines = [json.dumps(row(other)).encode() for other in range(2)]
    lines.insert(number - 1, line)
    content = b"".join(whole + b"\n" for whole in lines)
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        Journal(path)
    assert f"{path}, line {number} is damaged" in str(caught.value)
    assert path.read_bytes() == content


def test_deleting_the_damaged_line_as_told_mends_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "00000.jsonl"
    write(path, [row(number) for number in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b":", b";")
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="line 2 is damaged .* delete that line"):
        Journal(path)
    path.write_bytes(lines[0] + lines[2])
    assert replay(path) == [row(0), row(2)]


@pytest.mark.parametrize("name", [".", "missing/00000.jsonl", "file/00000.jsonl"])
def test_a_journal_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot open") as caught:
        Journal(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


DISK_FULL = """
import json, resource, signal, sys
from pathlib import Path
from generation.errors import RunError
from generation.journal import Journal

path, limit = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
journal, number, refused = Journal(path), 0, []
while len(refused) < 3:
    try:
        journal.append({"id": f"{number:010d}", "row": "x" * 20})
        number += 1
    except RunError as error:
        assert f"{number:010d}" not in journal.answered
        refused.append((str(error), path.read_bytes().count(b"\\n"), path.read_text()[-1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append({"id": "after", "row": ""})
journal.close()
print(json.dumps([number, refused]))
"""


LINE = len('{"id":"0000000000","row":""}\n') + 20


@pytest.mark.parametrize("limit", [8 * LINE, 8 * LINE + 1, 9 * LINE - 1], ids=["at an end", "first byte", "last byte"])
def test_a_full_disk_leaves_no_half_line_and_loses_none(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "00000.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, path, str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    written, refused = json.loads(done.stdout)
    assert written == limit // LINE
    for message, lines, end in refused:
        assert message.startswith(f"cannot write {path}: ")
        assert (lines, end) == (written, "\n")
    assert [record["id"] for record in replay(path)] == [f"{number:010d}" for number in range(written)] + ["after"]


APPENDING = """
import itertools, sys
from pathlib import Path
from generation.journal import Journal

with Journal(Path(sys.argv[1])) as journal:
    for number in itertools.count(len(journal.answered)):
        journal.append({"id": f"{number:010d}", "row": "x" * 2000})
        print(number, flush=True)
"""


def test_a_killed_process_loses_no_line_that_it_had_reported(tmp_path: Path) -> None:
    path = tmp_path / "00000.jsonl"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDING, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout as output:
            lines = [output.readline() for _ in range(200)]
            process.kill()
            lines += output.readlines()
        process.wait(timeout=30)
        reported = [int(line) for line in lines if line.endswith("\n")]
        ids = [record["id"] for record in replay(path)]
        assert ids == [f"{number:010d}" for number in range(len(ids))]
        assert len(reported) >= 200
        assert reported[-1] < len(ids) <= reported[-1] + 2

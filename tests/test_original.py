"""The reader of the original's files, and what it finds wrong with files and rows."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.errors import OriginalError
from generation.original import reader as original
from generation.original.defects import CaptionIndex, caption_defect, instruction_defect, task_of, turn_items
from generation.original.reader import read_row, read_values, survey
from tests.synthetic_release import caption_of, caption_row, choice_row, open_row, original_id, reasoning_row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(4, 40)
)
def test_any_list_is_read_back_as_it_was_written(
    rows: list[Any], ascii_only: bool, indent: Any, mark: bool, chunk: int
) -> None:
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(original, "CHUNK_BYTES", chunk)
        path = Path(folder) / "rows.json"
        path.write_text(text, encoding="utf-8-sig" if mark else "utf-8")
        assert list(read_values(path)) == rows


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_give_rows_or_a_clear_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        path.write_bytes(content)
        try:
            list(read_values(path))
        except OriginalError as error:
            assert str(path) in str(error)


BROKEN = {
    "empty": (b"", r"is empty"),
    "truncated in a row": (b'[{"id": "1"}, {"id": "2", "cap', r"row 1: the file breaks off at byte 30"),
    "truncated between rows": (b'[{"id": "1"},', r"row 1: the file breaks off at byte 13"),
    "truncated in a character": ('[{"id": "é'.encode()[:-1], r"row 0: the file breaks off at byte 10"),
    "an object": (b'{"id": "1"}\n{"id": "2"}', r"must be one JSON list of rows, but begins with an object"),
    "a string": (b'"rows"', r"must be one JSON list of rows, but begins with b'\"'"),
    "utf-16": ('[{"id": "1"}]'.encode("utf-16"), r"byte 0: the file is UTF-16"),
    "utf-16 without a mark": ("[1]".encode("utf-16-le"), r"byte 0: the file is UTF-16"),
    "not utf-8": (b'[{"id": "1"}, {"id": "\xff"}]', r"row 1, byte 22: not UTF-8"),
    "a surrogate's bytes": (b'[1, "\xed\xa0\x80"]', r"row 1, byte 5: not UTF-8"),
    "not utf-8, over two chunks": (b'["ab\xe2\x82x"]', r"row 0, byte 4: not UTF-8"),
    "half a pair": (b'["\\udc00"]', r"row 0: an escape such as \\udc00 without its pair"),
    "no comma": (b'[{"id": "1"} {"id": "2"}]', r"row 1: no JSON \(parse error: after array element"),
    "nan": (b"[1, NaN]", r"row 1: no JSON \(lexical error"),
    "two lists": (b"[1][2]", r"row 1: no JSON \(parse error: trailing garbage"),
    "a raw control character": (b'["a\x01b"]', r"row 0: no JSON \(lexical error: invalid character inside string"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_broken_file_is_refused_with_its_row_or_byte(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original, "CHUNK_BYTES", chunk)
    content, message = BROKEN[name]
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(OriginalError, match=rf"bad\.json.*{message}"):
        list(read_values(tmp_path / "bad.json"))


def test_a_file_that_cannot_be_read_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OriginalError, match="cannot be read: Is a directory"):
        list(read_values(tmp_path))
    (tmp_path / "none.json").write_text(" [] ")
    with pytest.raises(OriginalError, match=r"none\.json holds an empty list"):
        survey(tmp_path / "none.json")


def with_turn(row: dict[str, Any], place: int, **turn: Any) -> dict[str, Any]:
    row["conversations"][place] |= turn
    return row


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    del row[key]
    return row


def as_turns(row: dict[str, Any], turns: Any) -> dict[str, Any]:
    return row | {"conversations": turns}


MORE = [{"from": "human", "value": "And what else?"}, {"from": "gpt", "value": "A path."}]
CAPTION_DEFECTS: dict[str, list[Callable[[dict[str, Any]], Any]]] = {
    "not_an_object": [lambda row: "a text", lambda row: None, lambda row: [row]],
    "conversations_malformed": [
        lambda row: without(row, "conversations"),
        lambda row: as_turns(row, []),
        lambda row: as_turns(row, "Describe"),
        lambda row: as_turns(row, ["<image>", row["caption"]]),
        lambda row: with_turn(row, 1, value=None),
        lambda row: with_turn(row, 1, weight=0),
    ],
    "caption_not_text": [lambda row: without(row, "caption"), lambda row: row | {"caption": ["a"]}],
    "id_missing": [lambda row: without(row, "id"), lambda row: row | {"id": None}],
    "id_odd": [lambda row: row | {"id": 278167}, lambda row: row | {"id": "278167"}, lambda row: row | {"id": ""}],
    "id_duplicate": [lambda row: row | {"id": original_id(0)}],
    "caption_empty": [lambda row: with_turn(row | {"caption": " \n"}, 1, value=" \n")],
    "speaker_unknown": [lambda row: with_turn(row, 1, **{"from": "assistant"})],
    "turns_out_of_order": [
        lambda row: as_turns(row, row["conversations"][::-1]),
        lambda row: as_turns(row, row["conversations"][:1]),
    ],
    "turn_empty": [lambda row: with_turn(row, 0, value="<image>\n"), lambda row: with_turn(row, 1, value="")],
    "image_missing": [lambda row: with_turn(row, 0, value="Describe it.")],
    "image_several": [lambda row: with_turn(row, 0, value="<image>\n<image>\nDescribe it.")],
    "image_misplaced": [lambda row: with_turn(with_turn(row, 0, value="Describe."), 1, value="<image> A boat.")],
    "several_exchanges": [lambda row: as_turns(row, row["conversations"] + MORE)],
    "gpt_not_caption": [lambda row: with_turn(row, 1, value=row["caption"] + " ")],
}


def index_of(*numbers: int) -> CaptionIndex:
    index = CaptionIndex()
    for row, number in enumerate(numbers):
        index.add(original_id(number), caption_of(number), 0, row)
    return index


@pytest.mark.parametrize("code", CAPTION_DEFECTS)
def test_each_defect_of_a_caption_row_has_its_code(code: str) -> None:
    assert caption_defect(read_row("f", 0, caption_row(1)), index_of(0)) is None
    for damage in CAPTION_DEFECTS[code]:
        assert caption_defect(read_row("f", 0, damage(caption_row(1))), index_of(0)) == code


INSTRUCTION_DEFECTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not_an_object": lambda row: 5,
    "conversations_malformed": lambda row: as_turns(row, {}),
    "id_missing": lambda row: without(row, "id"),
    "caption_unknown": lambda row: row | {"id": original_id(9)},
    "caption_not_text": lambda row: without(row, "caption"),
    "caption_differs": lambda row: row | {"caption": row["caption"] + " "},
    "speaker_unknown": lambda row: with_turn(row, 3, **{"from": "system"}),
    "turns_out_of_order": lambda row: as_turns(row, [*row["conversations"], row["conversations"][1]]),
    "image_several": lambda row: with_turn(row, 2, value=row["conversations"][2]["value"] + "\n<image>"),
    "not_four_options": lambda row: with_turn(row, 2, value="Where?\nA: here\nB: there\nC: elsewhere"),
    "answer_not_an_option": lambda row: with_turn(row, 3, value="E"),
}


@pytest.mark.parametrize("code", INSTRUCTION_DEFECTS)
def test_each_defect_of_an_instruction_row_has_its_code(code: str) -> None:
    assert instruction_defect(read_row("f", 0, choice_row(1)), "multiple_choice", index_of(0, 1), False) is None
    damaged = read_row("f", 0, INSTRUCTION_DEFECTS[code](choice_row(1)))
    task = task_of(damaged.turns) if damaged.turns else None
    assert instruction_defect(damaged, task, index_of(0, 1), False) == code


def test_an_odd_id_that_is_known_and_a_second_conversation_of_a_task_are_defects() -> None:
    index = CaptionIndex()
    index.add("7", caption_of(1), 0, 0)
    assert (
        instruction_defect(read_row("f", 0, open_row(1) | {"id": 7}), "question_answering", index, False) == "id_odd"
    )
    row = read_row("f", 0, open_row(1))
    assert instruction_defect(row, "question_answering", index_of(1), True) == "id_duplicate"


def test_the_task_is_told_by_form() -> None:
    assert task_of(choice_row(0)["conversations"]) == "multiple_choice"
    assert task_of(open_row(0)["conversations"]) == "question_answering"
    assert task_of(reasoning_row(0)["conversations"]) == "complex_reasoning"


@pytest.mark.parametrize("mark", [": ", ". ", ") "])
def test_options_are_read_in_the_usual_spellings(mark: str) -> None:
    options = "\n".join(f"{letter}{mark}{text}" for letter, text in zip("ABCD", "wxyz", strict=True))
    turns = [{"from": "human", "value": f"<image>\nWhich one?\n{options}"}, {"from": "gpt", "value": "B "}]
    options_read = dict(zip("ABCD", "wxyz", strict=True))
    assert turn_items(turns) == [{"Question": "Which one?", "Options": options_read, "Answer": "B"}]


def test_the_first_caption_of_an_id_counts() -> None:
    index = index_of(3, 4)
    index.add(original_id(3), "another", 1, 7)
    assert index.place(original_id(3)) == (0, 0)
    assert index.holds(original_id(3), caption_of(3))
    assert not index.holds(original_id(3), "another")

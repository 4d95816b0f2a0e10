"""The files that the authors released, as a run: what is taken, rejected, counted and refused."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from generation import original
from generation.errors import RunError, SeedError
from generation.original import import_release
from generation.stages import CAPTIONS, INSTRUCTIONS, SEEDS, TASKS, row_id
from generation.store import Run
from generation.verify import verify_path
from tests.runs import make_run

Row = dict[str, Any]
CHOICES = "A: a rusty bucket\nB: a fishing rod\nC: a glass bottle\nD: an open book"


def released_id(number: int) -> str:
    return f"{(7919 * number + 278167) % 10**8:010d}"


def row(number: int, *turns: str) -> Row:
    """A row whose conversation consists of ``turns``; without any it is a sound row of the pre-training file."""
    caption = (
        f"A red boat lies on a calm lake under a pale sky with a few thin clouds. Soft light falls from the left and "
        f"draws long shadows over the short grass in front, where house {number} stands with a wooden door and three "
        "small windows. A narrow path leads from the door down to the water, and a rusty bucket lies at its edge. "
        "Behind the house a row of tall dark trees closes the view."
    )
    said = turns or ("<image>\nDescribe the picture in detail.", caption)
    speakers = ("human", "gpt") * len(said)
    conversations = [{"from": who, "value": text} for who, text in zip(speakers, said, strict=False)]
    return {"id": released_id(number), "caption": caption, "conversations": conversations}


def choice(number: int) -> Row:
    return row(number, f"<image>\nWhat lies at the edge?\n{CHOICES}", "A", f"What is rusty?\n{CHOICES}", "A")


def answers(number: int, answer: str) -> Row:
    return row(number, "Where does the path lead?\nA: one line is no list of options\n<image>", answer)


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    long = "It leads down to the water because the door opens to the lake and somebody fetches water there every day."
    conversations = [choice(3), answers(15, "Down to the water."), answers(4, long), choice(19)]
    return [write(tmp_path / "i.json", conversations), write(tmp_path / "p.json", [row(n) for n in range(20)])]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original, "SHARD_ROWS", 8)
    monkeypatch.setattr(original, "_CHUNK", 100)  # characters: no row fits


def test_every_row_is_taken_as_it_was_released(files: list[Path], tmp_path: Path) -> None:
    report = import_release(files, tmp_path / "run", license="CC-BY-4.0")
    run = Run(tmp_path / "run")
    captions = [one for shard in range(3) for one in run.table(CAPTIONS, shard).to_pylist()]
    assert [one["id"] for one in captions] == [row_id(n // 8, n % 8) for n in range(20)]
    released = [(one["id"], one["caption"]) for one in json.loads(files[1].read_text())]
    assert [(one["original_id"], one["caption"]) for one in captions] == released
    made = {task: [o for n in range(3) for o in run.table(INSTRUCTIONS[task], n).to_pylist()] for task in TASKS}
    expected = {"multiple_choice": [3, 19], "question_answering": [15], "complex_reasoning": [4]}
    for task, rows in made.items():
        assert [one["original_id"] for one in rows] == [released_id(number) for number in expected[task]]
    assert made["multiple_choice"][0]["conversations"] == choice(3)["conversations"]
    assert "captions: 20 rows, 20 taken, 0 rejected" in report and "conversations: 4 rows, 4 taken" in report
    assert run.facts(SEEDS)["identity"]["license"] == "CC-BY-4.0"
    assert "no fault found" in verify_path(run.path)


CAPTION_DEFECTS: dict[str, Any] = {  # what a row is instead, or other values of its keys
    "not_an_object": [],
    "conversations_malformed": {"conversations": []},
    "caption_not_text": {"caption": 7},
    "character_broken": {"caption": "A \ud83d boat."},
    "id_missing": {"id": None},
    "id_odd": {"id": "12"},
    "id_duplicate": {"id": released_id(0)},
    "speaker_unknown": {"conversations": [{"from": "user", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
    "turns_out_of_order": {"conversations": row(0)["conversations"][::-1]},
    "caption_empty": {"caption": " "},
    "turn_empty": {"conversations": row(0, "<image>", "x")["conversations"]},
    "image_missing": {"conversations": row(0, "What?", "x")["conversations"]},
    "image_several": {"conversations": row(0, "<image> What? <image>", "x")["conversations"]},
    "image_misplaced": {"conversations": row(0, "What?", "x", "<image> And?", "y")["conversations"]},
    "several_exchanges": {"conversations": row(0, "<image> What?", "x", "And?", "y")["conversations"]},
    "gpt_not_caption": {"conversations": row(0, "<image> What?", "x")["conversations"]},
}


@pytest.mark.parametrize("keep", [False, True])
def test_defects_are_counted_and_rejected_or_kept(keep: bool, tmp_path: Path) -> None:
    rows: list[Any] = [row(n) for n in range(40)]
    rows += [row(n) | damage if damage else damage for n, damage in enumerate(CAPTION_DEFECTS.values(), 100)]
    different = choice(2) | {"caption": "Another caption."}
    three, letter = row(5, "<image>\nWhat?\nA: a\nB: b\nC: c", "A"), row(6, f"<image>\nWhat?\n{CHOICES}", "E")
    conversations = [choice(1), choice(1), choice(999), different, three, letter, choice(7)]
    paths = [write(tmp_path / "p.json", rows), write(tmp_path / "i.json", conversations)]
    report = import_release(paths, tmp_path / "run", keep)
    for code in (*CAPTION_DEFECTS, "caption_unknown", "caption_differs", "not_four_options", "answer_not_an_option"):
        assert f"| {code} | " in report
    run = Run(tmp_path / "run")
    rejected = [one for shard in run.shards(CAPTIONS) for one in run.rejected(CAPTIONS, shard).to_pylist()]
    fatal = {"not_an_object", "conversations_malformed", "caption_not_text", "character_broken"}
    assert Counter(one["reason"] for one in rejected) == dict.fromkeys(fatal if keep else CAPTION_DEFECTS, 1)
    for one in rejected:
        assert json.loads(one["raw"]) == rows[int(one["id"][:5]) * 8 + int(one["id"][5:])]
    kept = sum(len(run.table(INSTRUCTIONS["multiple_choice"], shard)) for shard in run.shards(CAPTIONS))
    assert kept == (5 if keep else 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "row 0: it must be one JSON list"),
        (b"[]", "holds an empty list"),
        (b'{"id": 1}\n{"id": 2}', "it must be one JSON list of rows but begins with"),
        (b"[{}, {", "row 1: Expecting"),
        (b"[{}, 1", "row 2: the list does not end"),
        (b"[{}] x", "row 1: Expecting"),
        (b"[{}, {\xff}]", "it is not UTF-8; convert it"),
        ("[{}]".encode("utf-16"), "it is not UTF-8; convert it"),
        (b"[" * 200_000, "recursion"),
        (b"<html>", "it must be one JSON list"),
        (b"[{}, 1, null]", "none of .* is the pre-training file"),
        (b'[{"id": 1, "id": 2}]', "row 0: key 'id' occurs twice"),
        (None, "row 0: it is not a regular file"),
    ],
)
def test_files_that_are_not_released_ones_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content) if content is not None else os.mkfifo(path)
    with pytest.raises(SeedError, match=message):
        import_release([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_import_goes_on_and_another_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=r"p\.json, .*p\.json have the same name"):
        import_release([*files, files[1]], tmp_path / "run")
    import_release(files, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = run.records(CAPTIONS)
    run.reopen(CAPTIONS, 1)  # as a kill leaves it
    import_release(files, tmp_path / "run")
    assert Run(tmp_path / "run").records(CAPTIONS) == before
    write(files[1], [row(n) for n in range(5)])
    with pytest.raises(RunError, match=r"imported\.p\.json"):
        import_release(files, tmp_path / "run")
    with pytest.raises(RunError, match="begun with other settings"):
        import_release(files, make_run(tmp_path / "other").path)

"""Files in the layout of the original's release, with text of our own."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_SCENES = ("a red boat on a calm lake", "two brown dogs beside a stone wall", "a tall green tree on a bare hill")


def caption_of(number: int) -> str:
    """A caption of some 60 words that passes the checks."""
    scene = _SCENES[number % len(_SCENES)]
    return (
        f"The picture shows {scene} under a pale sky with a few thin clouds drifting towards the far horizon. Soft "
        f"light falls from the left side and draws long shadows over the short grass in front, where house {number} "
        "stands with a wooden door and three small windows. A narrow path leads from the door down to the water, and "
        "a rusty bucket has been left at its edge."
    )


def original_id(number: int) -> str:
    """The original's ids are ten digits, in no order of ours."""
    return f"{(7919 * number + 278167) % 10**8:010d}"


def caption_row(number: int) -> Row:
    """A sound row of the pre-training file."""
    turns = [("human", "<image>\nDescribe the picture in detail."), ("gpt", caption_of(number))]
    return _row(number, turns)


def choice_row(number: int) -> Row:
    """A sound multiple-choice row."""
    options = "A: a rusty bucket\nB: a fishing rod\nC: a glass bottle\nD: an open book"
    return _row(
        number,
        [
            ("human", f"<image>\nWhat has been left at the edge of the path?\n{options}"),
            ("gpt", "A"),
            (
                "human",
                "Where does the soft light fall from?\nA: above\nB: the right side\nC: behind\nD: the left side",
            ),
            ("gpt", "D"),
        ],
    )


def open_row(number: int) -> Row:
    """A sound row of question answering."""
    turns = [
        ("human", "Where does the path lead?\n<image>"),
        ("gpt", "Down to the water."),
        ("human", "What lies at its edge?"),
        ("gpt", "A rusty bucket."),
    ]
    return _row(number, turns)


def reasoning_row(number: int) -> Row:
    """A sound row of complex reasoning."""
    answer = (
        "The shadows are long, and long shadows need a low sun. The light comes from the left side, so the sun stands "
        "low on that side of the picture, which points to an early or a late hour of the day."
    )
    return _row(number, [("human", "<image>\nWhat does the light tell of the hour of the day?"), ("gpt", answer)])


def write_json(path: Path, rows: Any) -> Path:
    """The file as it is released: one JSON list."""
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_release(folder: Path, captions: int = 20) -> list[Path]:
    """A pre-training file and an instruction file about two thirds of its captions, each task in another order."""
    rows = [caption_row(number) for number in range(captions)]
    instructions = [choice_row(number) for number in reversed(range(captions)) if number % 3 == 0]
    instructions += [open_row(number) for number in range(captions) if number % 3 == 1]
    instructions += [reasoning_row(number) for number in range(captions) if number % 6 == 0]
    return [write_json(folder / "pretrain.json", rows), write_json(folder / "instructions.json", instructions)]


def _row(number: int, turns: list[tuple[str, str]]) -> Row:
    conversation = [{"from": speaker, "value": value} for speaker, value in turns]
    return {"id": original_id(number), "caption": caption_of(number), "conversations": conversation}

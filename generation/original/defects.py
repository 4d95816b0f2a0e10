"""What is wrong with a row of the original's files, and which task its conversation is of: pure functions.

A row has one reason code, the first that applies; each function names its codes in the order in which it looks.
"""

import hashlib
import re
from array import array
from itertools import pairwise

from ..checks import LETTERS, Item
from .reader import ReleasedRow, Turn

IMAGE = "<image>"
LONG_ANSWER_WORDS = 20.0  # see ``task_of``
_ID = re.compile(r"[0-9]{10}")
_OPTION = re.compile(r"\(?([A-Z])[:.)]\s*(.*)")


class CaptionIndex:
    """Where the captions lie that were taken in, by the original's id."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._shards, self._rows, self._digests = array("i"), array("i"), array("Q")

    def __contains__(self, id: str | None) -> bool:
        return id in self._numbers

    def add(self, id: str, caption: str, shard: int, row: int) -> None:
        """Remembers a caption, unless one of the same id is there: the first counts."""
        if id not in self._numbers:
            self._numbers[id] = len(self._shards)
            self._shards.append(shard)
            self._rows.append(row)
            self._digests.append(_digest(caption))

    def place(self, id: str) -> tuple[int, int]:
        """Shard of the captions, and row in it."""
        number = self._numbers[id]
        return self._shards[number], self._rows[number]

    def holds(self, id: str, caption: str) -> bool:
        """Whether the caption of that id is this one."""
        return self._digests[self._numbers[id]] == _digest(caption)


def caption_defect(row: ReleasedRow, index: CaptionIndex) -> str | None:
    """The first thing wrong with a row of the pre-training file, or None.

    Codes: ``not_an_object``; ``conversations_malformed`` (no list of ``{"from": text, "value": text}``, or an empty
    one); ``caption_not_text``; ``id_missing``; ``id_odd`` (not a string of ten digits); ``id_duplicate``;
    ``caption_empty``; those of ``turns_defect``; ``several_exchanges``; ``gpt_not_caption``.
    """
    if fault := _shape_defect(row):
        return fault
    assert row.turns is not None
    return (
        ("caption_not_text" if row.caption is None else None)
        or ("id_missing" if row.id is None else None)
        or ("id_odd" if _is_odd(row) else None)
        or ("id_duplicate" if row.id in index else None)
        or ("caption_empty" if row.caption is not None and not row.caption.strip() else None)
        or turns_defect(row.turns)
        or ("several_exchanges" if len(row.turns) > 2 else None)
        or ("gpt_not_caption" if row.turns[1]["value"] != row.caption else None)
    )


def instruction_defect(row: ReleasedRow, task: str | None, index: CaptionIndex, seen: bool) -> str | None:
    """The first thing wrong with a row of an instruction file, or None.

    Args:
        row: the row.
        task: of its conversation; None if that cannot be read.
        index: of the captions taken in.
        seen: whether the caption has had a conversation of that task.

    Codes: ``not_an_object``; ``conversations_malformed``; ``id_missing``; ``caption_unknown`` (no caption of that id
    was taken in); ``id_odd``; ``id_duplicate`` (in the same task); ``caption_not_text``; ``caption_differs`` (from
    that of the same id in the pre-training file); those of ``turns_defect``; and, for multiple choice,
    ``not_four_options`` and ``answer_not_an_option``.
    """
    if fault := _shape_defect(row):
        return fault
    if row.id is None:
        return "id_missing"
    if row.id not in index:
        return "caption_unknown"
    assert row.turns is not None
    return (
        ("id_odd" if _is_odd(row) else None)
        or ("id_duplicate" if seen else None)
        or ("caption_not_text" if row.caption is None else None)
        or ("caption_differs" if not index.holds(row.id, row.caption or "") else None)
        or turns_defect(row.turns)
        or (_options_defect(turn_items(row.turns)) if task == "multiple_choice" else None)
    )


def turns_defect(turns: list[Turn]) -> str | None:
    """The first thing wrong with the form of a conversation, or None.

    Codes: ``speaker_unknown``; ``turns_out_of_order`` (not human and gpt in alternation, gpt last); ``turn_empty``;
    ``image_missing``; ``image_several``; ``image_misplaced`` (in another turn than the first).
    """
    speakers = [turn["from"] for turn in turns]
    if not {"human", "gpt"}.issuperset(speakers):
        return "speaker_unknown"
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        return "turns_out_of_order"
    if not all(turn["value"].replace(IMAGE, "").strip() for turn in turns):
        return "turn_empty"
    images = [turn["value"].count(IMAGE) for turn in turns]
    if sum(images) != 1:
        return "image_several" if sum(images) else "image_missing"
    return None if images[0] else "image_misplaced"


def task_of(turns: list[Turn]) -> str:
    """The task of a conversation by its form, since the released rows do not name it.

    Most questions with options below them: ``multiple_choice``. Else ``complex_reasoning`` if an answer has 20 words
    or more on average (longer than one common sentence: the paper asks for step-by-step reasoning there and for short
    answers in the other task), and ``question_answering`` otherwise. The bound is ours, not the paper's.
    """
    items = turn_items(turns)
    if 2 * sum("Options" in item for item in items) > len(items):
        return "multiple_choice"
    return "complex_reasoning" if answer_words(items) >= LONG_ANSWER_WORDS else "question_answering"


def answer_words(items: list[Item]) -> float:
    """Mean number of words of an answer."""
    return sum(len(item["Answer"].split()) for item in items) / max(1, len(items))


def turn_items(turns: list[Turn]) -> list[Item]:
    """The items of a conversation, as ``generation.checks`` know them: each a human turn that gpt answers. Two or more
    lines such as ``A: ...``, ``A. ...`` or ``A) ...`` are a question's options."""
    items = []
    for human, gpt in pairwise(turns):
        if (human["from"], gpt["from"]) == ("human", "gpt"):
            lines = [line.strip() for line in human["value"].replace(IMAGE, "").split("\n")]
            options = {match[1]: match[2] for line in lines if (match := _OPTION.fullmatch(line))}
            item: Item = {"Question": "\n".join(filter(None, lines)), "Answer": gpt["value"].strip()}
            if len(options) > 1:
                asked = "\n".join(line for line in lines if line and not _OPTION.fullmatch(line))
                item |= {"Question": asked, "Options": options}
            items.append(item)
    return items


def _options_defect(items: list[Item]) -> str | None:
    if any(tuple(item.get("Options", ())) != LETTERS for item in items):
        return "not_four_options"
    return "answer_not_an_option" if any(item["Answer"] not in LETTERS for item in items) else None


def _shape_defect(row: ReleasedRow) -> str | None:
    if not isinstance(row.value, dict):
        return "not_an_object"
    return "conversations_malformed" if row.turns is None else None


def _is_odd(row: ReleasedRow) -> bool:
    return not isinstance(row.value["id"], str) or not _ID.fullmatch(row.value["id"])


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())

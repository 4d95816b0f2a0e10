"""What makes an answer acceptable: pure functions that return a reason code, or the accepted content.

A caption is one finished paragraph of plain English that keeps to its seed (``dense``). An instruction answer is JSON
with sound items: different questions that the scene answers (``items``). Rules see the form, invented facts and changed
attributes; whether an answer is true is for the judge (``generation/judge.py``).
"""

from .dense import CAPTION_CODES, caption_fault, finish
from .items import (
    ANSWER_CODES,
    LETTERS,
    QUESTION_TYPES,
    Item,
    Shown,
    Source,
    groundedness,
    item_fault,
    leaks,
    question_type,
    read_object,
    sound_items,
)
from .text import shingles

__all__ = [
    "ANSWER_CODES",
    "CAPTION_CODES",
    "LETTERS",
    "QUESTION_TYPES",
    "Item",
    "Shown",
    "Source",
    "caption_fault",
    "finish",
    "groundedness",
    "item_fault",
    "leaks",
    "question_type",
    "read_object",
    "shingles",
    "sound_items",
]

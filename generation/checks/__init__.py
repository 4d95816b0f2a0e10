"""What makes an answer acceptable: pure functions that give a reason code, or the accepted content.

A caption is one finished paragraph of plain English prose about its seed (``captions``). An instruction answer is
valid JSON (``reader``), whose items ask different questions that the caption alone answers (``instructions``,
``sources``, ``measures``). What one item cannot show, such as right answers that crowd on B, is counted over many
(``statistics``).
"""

from .captions import CAPTION_CODES, CaptionLimits, caption_fault, finish
from .instructions import (
    ANSWER_CODES,
    LETTERS,
    LIMITS,
    InstructionLimits,
    Item,
    add_items,
    groundedness,
    instruction_items,
    item_fault,
    schema_fault,
)
from .reader import READER_CODES, read_json
from .sources import Source, read_source
from .statistics import AnswerStatistics, ItemFacts, answer_statistics, chi_square_p, item_facts

__all__ = [
    "ANSWER_CODES",
    "CAPTION_CODES",
    "LETTERS",
    "LIMITS",
    "READER_CODES",
    "AnswerStatistics",
    "CaptionLimits",
    "InstructionLimits",
    "Item",
    "ItemFacts",
    "Source",
    "add_items",
    "answer_statistics",
    "caption_fault",
    "chi_square_p",
    "finish",
    "groundedness",
    "instruction_items",
    "item_facts",
    "item_fault",
    "read_json",
    "read_source",
    "schema_fault",
]

"""Figures over many items: what no single item shows, because each is sound and only the set leans."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .instructions import LETTERS, Item
from .words import tokens, word_set

_KINDS = {
    **{word: word for word in ("what", "which", "where", "when", "why", "how", "who")},
    **{"whose": "who", "whom": "who"},
}
_CLOSED = word_set(
    """
    is are was were do does did has have had can could will would should may might must
    """
)


@dataclass(frozen=True, kw_only=True)
class AnswerStatistics:
    """Counts over a set of items.

    Args:
        items: all items seen.
        letters: how often each letter is the right answer (multiple choice).
        letters_p: chi-square p of those counts against equal ones; small means that the letters crowd. 1.0 for none.
        longest_right: the share of multiple-choice items whose longest option is the right one; 0.25 is chance.
        question_kinds: items by the first question word; ``yes_no`` begin with a verb, ``other`` have neither.
    """

    items: int
    letters: dict[str, int]
    letters_p: float
    longest_right: float
    question_kinds: dict[str, int]


def answer_statistics(items: Iterable[Item]) -> AnswerStatistics:
    """Counts items that passed their checks, in one pass and bounded memory.

    Where several options are the longest, each counts its part, so that chance stays exactly 1 in 4.
    """
    letters, kinds = Counter[str](), Counter[str]()
    longest_right = 0.0
    for item in items:
        kinds[question_kind(item["Question"])] += 1
        if "Options" in item:
            letters[item["Answer"]] += 1
            sizes = {letter: len(option) for letter, option in item["Options"].items()}
            longest = [letter for letter, size in sizes.items() if size == max(sizes.values())]
            longest_right += (item["Answer"] in longest) / len(longest)
    counts = [letters[letter] for letter in LETTERS]
    return AnswerStatistics(
        items=kinds.total(),
        letters=dict(zip(LETTERS, counts, strict=True)),
        letters_p=chi_square_p(counts),
        longest_right=longest_right / max(1, letters.total()),
        question_kinds=dict(kinds.most_common()),
    )


def question_kind(question: str) -> str:
    """Its first question word (``how many`` apart from ``how``), ``yes_no`` or ``other``."""
    words = tokens(question.lower())
    found = next((place for place, word in enumerate(words) if word in _KINDS), None)
    if found is not None:
        counts = words[found] == "how" and words[found + 1 : found + 2] in (["many"], ["much"])
        return "how many" if counts else _KINDS[words[found]]
    return "yes_no" if words and words[0] in _CLOSED else "other"


def chi_square_p(counts: list[int]) -> float:
    """How likely four counts are to differ at least this much, were all four equally likely.

    The survival function of chi-square with 3 degrees of freedom in closed form: Abramowitz and Stegun, Handbook of
    Mathematical Functions, 26.4.4 (odd degrees), where twice the normal tail is erfc(sqrt(x / 2)).

    >>> round(chi_square_p([250, 250, 250, 250]), 3), round(chi_square_p([200, 320, 240, 240]), 8)
    (1.0, 1.14e-06)
    """
    expected = sum(counts) / len(counts)
    if not expected:
        return 1.0
    x = sum((count - expected) ** 2 for count in counts) / expected
    return math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)

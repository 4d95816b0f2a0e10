"""Figures over many items: what no single item shows, because each is sound and only the set leans."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .instructions import LETTERS, Item, groundedness
from .sources import Source, leaks
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


@dataclass(frozen=True, kw_only=True)
class ItemFacts:
    """What one item adds to the figures of a set: the inputs of ``generation/metrics/instruction_quality``.

    Args:
        letter: the right option, A to D; empty for an open question.
        kind: see ``question_kind``.
        leak: whether it speaks of the caption.
        groundedness: of its answer, see ``groundedness``.
        longest_right: the chance to be right by taking a longest option; 0 for an open question.
    """

    letter: str
    kind: str
    leak: bool
    groundedness: float
    longest_right: float


def item_facts(item: Item, source: Source) -> ItemFacts:
    """The facts of one item that has the shape of its task.

    Args:
        item: with ``Question``, ``Answer`` and, for multiple choice, ``Options``.
        source: of the caption that it is about (see ``read_source``).
    """
    options = item.get("Options", {})
    right = options.get(item["Answer"], item["Answer"])
    together = "\n".join([item["Question"], *(options.values() or [right])])
    return ItemFacts(
        letter=item["Answer"] if options else "",
        kind=question_kind(item["Question"]),
        leak=leaks(together, set(tokens(together.lower())), source),
        groundedness=groundedness(item["Question"], right, source),
        longest_right=_longest_right(item) if options else 0.0,
    )


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
            longest_right += _longest_right(item)
    counts = [letters[letter] for letter in LETTERS]
    return AnswerStatistics(
        items=kinds.total(),
        letters=dict(zip(LETTERS, counts, strict=True)),
        letters_p=chi_square_p(counts),
        longest_right=longest_right / max(1, letters.total()),
        question_kinds=dict(kinds.most_common()),
    )


def _longest_right(item: Item) -> float:
    """The chance that the right option is hit by taking a longest one."""
    sizes = {letter: len(option) for letter, option in item["Options"].items()}
    longest = [letter for letter, size in sizes.items() if size == max(sizes.values())]
    return (item["Answer"] in longest) / len(longest)


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

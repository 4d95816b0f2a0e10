"""Facts that a text may get wrong and a rule can see: numbers, colours, measurements, lettering and names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from .text import ENGLISH, FUNCTION_WORDS, UNITS, pattern, stem, stems, tokens

Kinds = Mapping[str, frozenset[str]]  # word -> the values that it may stand for


def _kinds(name: str) -> Kinds:
    pairs = [(word, value) for value, words in ENGLISH[name].items() for word in (value, *str(words).split())]
    return {word: frozenset(value for other, value in pairs if other == word) for word, _ in pairs}


COLOURS, NUMBERS, _IMPLIED = map(_kinds, ("colours", "numbers", "implied"))
# A seed's "a couple" and "gold" may become other words; these may not.
_PLAIN = {"gray", *ENGLISH["colours"], *ENGLISH["numbers"], *filter(str.isdigit, NUMBERS)}
FRAMING, _NOT_COUNTED = (frozenset(ENGLISH[name].split()) for name in ("framing", "not_counted"))
_is_plural = re.compile("|".join([".*s", *ENGLISH["plurals"].split()])).fullmatch
_NEAR = 6  # words between a value and its noun, at most

# A bird stands on two feet, and a street has four yards: after a spelt number these units need a word of measuring.
_AMBIGUOUS = frozenset(("foot", "yard", "pound", "degree"))
NAMED, QUOTED, _LETTERING = map(pattern, ("named", "quoted", "lettering"))
_MEASURE, _MEASURES_ON = map(pattern, ("measure", "measures_on"))


def values(words: Iterable[str], kinds: Kinds) -> frozenset[str]:
    """Return the values of one kind that the words may stand for."""
    return frozenset[str]().union(*(kinds[word] for word in kinds.keys() & words))


def changes(seed: Sequence[str], said: Sequence[str], kinds: Kinds) -> bool:
    """Return whether a text lacks a plain colour or count of its seed, or gives the seed's nouns another one."""
    held = values(said, kinds) | values(said, _IMPLIED)
    for place, word in enumerate(seed):
        value = kinds.get(word, frozenset())
        digits = kinds is NUMBERS and not value & held and re.fullmatch("[0-9]{1,4}", word)  # clock, score or year
        if not value and not digits:
            continue
        after = list(takewhile(lambda other: other not in FUNCTION_WORDS, seed[place + 1 :]))
        if kinds is NUMBERS and not _NOT_COUNTED.isdisjoint([*seed[max(0, place - 1) : place], *after]):
            continue
        counts = value and word in _PLAIN and (kinds is COLOURS or any(map(_is_plural, after[:3])))
        if counts and (not value & held or disagrees(value, stems(after), said, kinds)):
            return True
        if digits and word.lstrip("0") not in {"", "1", *(other.lstrip("0") for other in said)}:
            return True
    return False


def disagrees(value: frozenset[str], nouns: set[str], words: Sequence[str], kinds: Kinds) -> bool:
    """Return whether a text's ``words`` give some noun (stems) another value of one kind, and never this one."""
    found = False
    for place in [number for number, word in enumerate(words) if stem(word) in nouns]:
        if value & values(words[max(0, place - _NEAR) : place + _NEAR + 1], kinds):
            return False
        # "two of the men" does not count all men
        before = takewhile(lambda other: other not in FUNCTION_WORDS, words[max(0, place - 3) : place][::-1])
        found |= not kinds.keys().isdisjoint(before)
    return found


def subject(phrase: Iterable[str]) -> set[str]:
    """Return the words of a phrase that may name what it is about: after a number, only plurals."""
    named = set(phrase) - NUMBERS.keys() - COLOURS.keys()
    return set(filter(_is_plural, named)) or named if not NUMBERS.keys().isdisjoint(phrase) else named


def measures(text: str) -> set[tuple[str, str]]:
    """Return the measurements in a text, each a number and a unit: ``10-inch`` and ``ten inches`` are the same."""
    found = set[tuple[str, str]]()
    likely = not UNITS.keys().isdisjoint(tokens(text)) or re.search("[0-9]", text)  # of few texts
    for digits, spelt, unit, after, feet in _MEASURE.findall(text.lower()) if likely else ():
        unsure = len(unit) == 1 or (UNITS.get(unit) in _AMBIGUOUS and not _MEASURES_ON.match(after))
        if digits or feet or not unsure:
            number = re.sub(r",(?=\d{3})", "", digits or feet or spelt).rstrip(".,/")
            found.add((next(iter(NUMBERS.get(number, [number.replace("one", "1")]))), UNITS.get(unit, "foot")))
    return found


def lettering(text: str) -> list[set[str]]:
    """Return the words of each piece of lettering that a text quotes."""
    return [set(words) for found in QUOTED.findall(text) + _LETTERING.findall(text) if (words := tokens(found))]

"""Facts that a text may get wrong and a rule can see: numbers, colours, measurements, lettering and names."""

import re
from collections.abc import Iterable, Mapping

from .words import ENGLISH, FUNCTION_WORDS, stem, stems, tokens

Kinds = Mapping[str, frozenset[str]]  # word -> the values that it may stand for


def _kinds(name: str) -> Kinds:
    lines = {value: {value, *str(words).split()} for value, words in ENGLISH[name].items()}
    words = frozenset().union(*lines.values())
    return {word: frozenset(value for value, named in lines.items() if word in named) for word in words}


COLOURS, NUMBERS = _kinds("colours"), _kinds("numbers")
# A seed's "a couple" and "gold" may become other words; these may not.
_PLAIN = {"gray", *ENGLISH["colours"], *ENGLISH["numbers"], *filter(str.isdigit, NUMBERS)}
_NOT_COUNTED, _PLURALS = (frozenset(ENGLISH[name].split()) for name in ("not_counted", "plurals"))
_NEAR = 6  # words between a value and its noun, at most

_UNITS = {name: unit for unit, names in ENGLISH["units"].items() for name in (unit, *names.split())}
_UNIT = (
    rf"({'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})(?!\w)(?![\s-]*(?:angle|turn|view|arc|bend))"
)
_MEASURE = re.compile(
    rf"(?:(\d[\d.,/]*)(?:\s*(?:-|–|to)\s*\d[\d.,/]*)?[\s-]*|\b({'|'.join(ENGLISH['spelt_numbers'].split())})[\s-]+){_UNIT}"
    r"(?=([^.?!\n]{0,30}))|\b(\d+)\s?['′’]\s?\d+\s?[\"″”]"
)
_DIGIT = re.compile("[0-9]")
# A bird stands on two feet, and a street has four yards: after a spelt number these units need a word of measuring.
_AMBIGUOUS = frozenset(("foot", "yard", "pound", "degree"))
_MEASURES_ON = re.compile(
    r"[\s-]*(?:tall|long|wide|high|deep|thick|away|apart|above|below|across|from|off|of|in (?:height|length))\b"
)

_QUOTED = re.compile(r"[\"“][^\"“”]{2,80}[\"”]|(?<=\s)['‘][A-Z][^'‘’]{1,60}['’](?=[\s.,;])")
_LETTERING = re.compile(r"\b(?:reads?|reading|labell?ed|spells|spelling|the words?)\s+([A-Z]{2,}(?:\s[A-Z]{2,})*)\b")
_NAMED = re.compile(
    r"\b(?:named|nicknamed)\s+([A-Z][a-z]+)|"
    r"\b(?:them|man|woman|boy|girl|child|player|driver|rider|friend|owner|dog|cat),\s+([A-Z][a-z]+),"
)


def values(words: Iterable[str], kinds: Kinds) -> frozenset[str]:
    """Return the values of one kind that the words may stand for."""
    return frozenset().union(*(kinds[word] for word in words if word in kinds))


def disagrees(said: frozenset[str], nouns: set[str], words: list[str], kinds: Kinds) -> bool:
    """Return whether a text gives some noun another value and never the one that is ``said``.

    Args:
        said: values of one kind, such as {"red"}.
        nouns: stems of the words that they belong to.
        words: of the text that is compared.
        kinds: ``COLOURS`` or ``NUMBERS``.
    """
    other = False
    for place in [number for number, word in enumerate(words) if stem(word) in nouns]:
        if said & values(words[max(0, place - _NEAR) : place + _NEAR + 1], kinds):
            return False
        for word in words[max(0, place - 3) : place][::-1]:
            if word in FUNCTION_WORDS:  # "two of the men" does not count all men
                break
            other |= word in kinds
    return other


def demands(seed: list[str], kinds: Kinds) -> list[tuple[str, set[str]]]:
    """Return the plain colours or counts of a seed, each with the stems of the words that it belongs to."""
    found = []
    for place, word in enumerate(seed):
        if word in kinds and word in _PLAIN:
            end = next((n for n in range(place + 1, len(seed)) if seed[n] in FUNCTION_WORDS), len(seed))
            after = seed[place + 1 : end]
            if kinds is COLOURS or (any(map(_is_plural, after[:3])) and _NOT_COUNTED.isdisjoint(after)):
                found.append((word, stems(after)))
    return found


def subject(phrase: list[str]) -> set[str]:
    """Return the words of a phrase that may name what it is about: after a number, only plurals."""
    named = set(phrase) - NUMBERS.keys() - COLOURS.keys()
    return set(filter(_is_plural, named)) or named if not NUMBERS.keys().isdisjoint(phrase) else named


def _is_plural(word: str) -> bool:
    return word.endswith("s") or word in _PLURALS


def measures(text: str) -> set[tuple[str, str]]:
    """Return the measurements in a text, each a number and a unit: ``10-inch`` and ``ten inches`` are the same."""
    found: set[tuple[str, str]] = set()
    if _UNITS.keys().isdisjoint(tokens(text)) and not _DIGIT.search(text):  # most texts
        return found
    for digits, spelt, unit, after, feet in _MEASURE.findall(text.lower()):
        unsure = len(unit) == 1 or (_UNITS.get(unit) in _AMBIGUOUS and not _MEASURES_ON.match(after))
        if digits or feet or not unsure:
            number = (digits or feet or spelt).rstrip(".,/")
            found.add((next(iter(NUMBERS.get(number, [number.replace("one", "1")]))), _UNITS.get(unit, "foot")))
    return found


def lettering(text: str) -> list[set[str]]:
    """Return the words of each piece of lettering that a text quotes."""
    return [set(words) for found in _QUOTED.findall(text) + _LETTERING.findall(text) if (words := tokens(found))]


def names(text: str) -> set[str]:
    """Return the personal names that a text introduces as such."""
    return {name.lower() for found in _NAMED.findall(text) for name in found if name}

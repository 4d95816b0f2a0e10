"""Facts that a text may get wrong and a rule can see: numbers, colours, measurements, lettering and names."""

import re
from collections.abc import Iterable, Mapping

from .words import FUNCTION_WORDS, stem, tokens

Kinds = Mapping[str, frozenset[str]]  # word -> the values it can stand for


def _kinds(lines: str) -> Kinds:
    found: dict[str, frozenset[str]] = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        value, words = line.split(": ")
        for word in [value, *words.split()]:
            found[word] = found.get(word, frozenset()) | {value}
    return found


COLOURS = _kinds(
    """
    red: reddish crimson scarlet maroon burgundy ruby vermilion
    orange: orangish amber copper coppery terracotta tangerine rusty
    yellow: yellowish gold golden amber mustard lemon blond blonde
    green: greenish olive emerald turquoise teal lime jade greenery
    blue: bluish navy azure turquoise teal cobalt indigo cyan
    purple: purplish violet lavender lilac magenta mauve plum indigo
    pink: pinkish magenta salmon fuchsia
    brown: brownish tan chestnut bronze chocolate copper mahogany russet sepia auburn tawny
    black: blackish blackened ebony charcoal monochrome
    white: whitish whitewashed ivory cream monochrome
    grey: gray greyish grayish silver silvery charcoal slate monochrome
    beige: tan cream khaki
    """
)
NUMBERS = _kinds(
    """
    two: 2 both pair couple twin twins double
    three: 3 trio triple
    four: 4 quartet
    five: 5 quintet
    six: 6
    seven: 7
    eight: 8
    nine: 9
    ten: 10
    eleven: 11
    twelve: 12 dozen
    """
)
_PLAIN_NUMBERS = NUMBERS.keys() - set("both pair couple twin twins double trio triple quartet quintet dozen".split())
_PLAIN_COLOURS = {value for values in COLOURS.values() for value in values} | {"gray"}
# "10 best beaches", "five years": numbers that no picture shows.
_NOT_COUNTED = frozenset(
    """
    best top tips ways things ideas reasons places facts steps days years hours minutes months weeks seconds times
    pieces inches feet metres meters miles pounds dollars degrees points stars parts sizes views
    """.split()
)
_PLURALS = frozenset("men women people children mice geese sheep fish deer cacti".split())
_NEAR = 6  # words between a value and its noun, at most

_UNITS = {
    name: names.split()[0]
    for names in """
    inch inches; foot feet ft; yard yards; mile miles; mm millimetre millimetres millimeter millimeters;
    cm centimetre centimetres centimeter centimeters; m metre metres meter meters;
    km kilometre kilometres kilometer kilometers; acre acres hectare hectares; l litre litres liter liters;
    ml millilitre millilitres milliliter milliliters; gallon gallons; oz ounce ounces; lb lbs pound pounds;
    kg kilo kilos kilogram kilograms; g gram grams; ton tons tonne tonnes; degree degrees ° °c °f celsius fahrenheit;
    km/h kph mph knots
    """.split(";")
    for name in names.split()
}
_SPELT = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand"
)
_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_NOT_A_MEASURE = r"(?![\w])(?![\s-]*(?:angle|turn|view|arc|rotation|panorama|bend))"
_MEASURE = re.compile(
    rf"(\d[\d.,/]*)(?:\s*(?:-|–|to)\s*\d[\d.,/]*)?[\s-]*({_NAMES}){_NOT_A_MEASURE}|"
    rf"\b({_SPELT})[\s-]+({_NAMES}){_NOT_A_MEASURE}(?=([^.?!\n]{{0,30}}))|\b(\d+)\s?['′’]\s?\d+\s?[\"″”]"
)
# A bird stands on two feet, and a street has four yards: after a spelt number these units need a word of measuring.
_AMBIGUOUS = frozenset(("foot", "yard", "lb", "degree"))
_MEASURES_ON = re.compile(
    r"[\s-]*(?:tall|long|wide|high|deep|thick|away|apart|above|below|across|from|off|in (?:height|length)|of)\b"
)
_DIGITS = {"1": "one"} | {word: value for word, values in NUMBERS.items() for value in values if word.isdigit()}

_QUOTED = re.compile(r"[\"“]([^\"“”]{2,80})[\"”]")
_LETTERING = re.compile(r"\b(?:reads?|reading|labell?ed|spells|spelling|the words?)\s+([A-Z]{2,}(?:\s[A-Z]{2,})*)\b")
_NAMED = re.compile(
    r"\b(?:named|called|nicknamed)\s+([A-Z][a-z]+)|"
    r"\b(?:them|man|woman|boy|girl|child|player|driver|rider|friend|owner|dog|cat),\s+([A-Z][a-z]+),"
)


def values(words: Iterable[str], kinds: Kinds) -> frozenset[str]:
    """Return the values of one kind that the words can stand for."""
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
        before = next((n for n in (1, 2, 3) if n > place or words[place - n] in FUNCTION_WORDS), 4)
        other |= any(word in kinds for word in words[place + 1 - before : place])
    return other


def demands(seed: list[str], kinds: Kinds) -> list[tuple[str, set[str]]]:
    """Return the plain colours or counts of a seed, each with the stems of the words that it belongs to."""
    plain = _PLAIN_COLOURS if kinds is COLOURS else _PLAIN_NUMBERS
    found = []
    for place, word in enumerate(seed):
        if word in plain:
            end = next((n for n in range(place + 1, len(seed)) if seed[n] in FUNCTION_WORDS), len(seed))
            after = seed[place + 1 : end]
            counts = any(noun.endswith("s") or noun in _PLURALS for noun in after[:3]) and _NOT_COUNTED.isdisjoint(
                after
            )
            if kinds is COLOURS or counts:
                found.append((word, set(map(stem, after))))
    return found


def measures(text: str) -> set[tuple[str, str]]:
    """Return the measurements in a text, each a number and a unit: ``10-inch`` and ``ten inches`` are the same."""
    found = set()
    for digits, unit, spelt, spelt_unit, after, feet in _MEASURE.findall(text.lower()):
        if feet:
            found.add((_number(feet), "foot"))
        elif digits:
            found.add((_number(digits), _UNITS[unit]))
        elif len(spelt_unit) > 1 and (_UNITS[spelt_unit] not in _AMBIGUOUS or _MEASURES_ON.match(after)):
            found.add((spelt, _UNITS[spelt_unit]))
    return found


def _number(digits: str) -> str:
    digits = digits.rstrip(".,/")
    return _DIGITS.get(digits, digits)


def lettering(text: str) -> list[set[str]]:
    """Return the words of each piece of lettering that a text quotes."""
    return [set(tokens(found)) for found in _QUOTED.findall(text) + _LETTERING.findall(text) if tokens(found)]


def names(text: str) -> set[str]:
    """Return the personal names that a text introduces as such."""
    return {name.lower() for found in _NAMED.findall(text) for name in found if name}

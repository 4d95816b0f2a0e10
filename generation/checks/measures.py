"""Measurements in a text: a number with a unit of length, area, volume, weight, speed or temperature."""

import re
from collections.abc import Iterable

from .words import stem

_UNITS = {
    name: unit
    for unit, names in {
        "inch": "inch inches",
        "foot": "foot feet ft",
        "yard": "yard yards",
        "mile": "mile miles",
        "mm": "mm millimetre millimetres millimeter millimeters",
        "cm": "cm centimetre centimetres centimeter centimeters",
        "m": "m metre metres meter meters",
        "km": "km kilometre kilometres kilometer kilometers",
        "acre": "acre acres hectare hectares",
        "litre": "l litre litres liter liters",
        "ml": "ml millilitre millilitres milliliter milliliters",
        "gallon": "gallon gallons",
        "ounce": "oz ounce ounces",
        "pound": "lb lbs pound pounds",
        "kg": "kg kilo kilos kilogram kilograms",
        "g": "g gram grams",
        "ton": "ton tons tonne tonnes",
        "degree": "° °c °f degree degrees celsius fahrenheit",
        "km/h": "km/h kph mph knots",
    }.items()
    for name in names.split()
}
_UNIT_NAMES = frozenset(_UNITS)
_SPELT_NUMBERS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand"
)
_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
# Of lower-cased text. A number may be a range or a fraction; one letter alone is no unit after a number word.
_DIGITS = re.compile(rf"(\d[\d.,/]*)(?:\s*(?:-|–|to)\s*\d[\d.,/]*)?[\s-]*({_NAMES})(?![\w])")
_SPELT = re.compile(rf"\b({_SPELT_NUMBERS})[\s-]+({_NAMES})(?!\w)(?=([^.?!\n]{{0,30}}))")
_FEET_AND_INCHES = re.compile(r"\b(\d+)\s?['′’]\s?\d+\s?[\"″”]")
_DIGIT = re.compile(r"[0-9]")
# A scene's creatures stand on two feet, and its gardens are four yards.
_AMBIGUOUS = frozenset(("foot", "yard", "pound", "degree"))
_MEASURES_ON = re.compile(
    r"[\s-]*(?:tall|long|wide|high|deep|thick|away|apart|above|below|across|from|off|in (?:height|length)|of)\b"
)


def measures(text: str, words: Iterable[str]) -> set[tuple[str, str]]:
    """The measurements in ``text``, each a number and a unit, so that ``10-inch`` and ``ten inches`` are the same.

    A spelt number before *feet*, *yards*, *pounds* or *degrees* counts only where the text goes on to measure, because
    a bird too stands on two feet. ``words`` are the text's, by which most texts are passed over.
    """
    lowered, found = text.lower(), set()
    if _DIGIT.search(text):
        found = {(_number(match[1]), _UNITS[match[2]]) for match in _DIGITS.finditer(lowered)}
        found |= {(_number(match[1]), "foot") for match in _FEET_AND_INCHES.finditer(lowered)}
    if not _UNIT_NAMES.isdisjoint(words):
        for match in _SPELT.finditer(lowered):
            unit = _UNITS[match[2]]
            if len(match[2]) > 1 and (unit not in _AMBIGUOUS or _MEASURES_ON.match(match[3])):
                found.add((stem(match[1]), unit))
    return found


def _number(digits: str) -> str:
    """As its word where there is a short one: the stem of ``10`` is that of ``ten``."""
    return stem(digits.rstrip(".,/"))

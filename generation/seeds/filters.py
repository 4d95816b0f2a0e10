"""Which open-domain captions (alt text of the web) may be seeds: one reason code each, the cheap ones first.

Language is decided by function words of seven languages, a heuristic of ours that needs no model: a caption without
any ("red sports car") counts as English, and further languages in Latin letters may pass.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ..config import Filters
from ..recipe import read_yaml

_MIN_LATIN = 0.75  # share of Latin letters among characters that are not white space
_MIN_SIGNS = 3  # of five
_PHONE_DIGITS = 9  # a date has eight

_WORDS = read_yaml(Path(__file__).with_name("filters.yaml"), "word lists")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+")
_LINK = re.compile(
    r"https?:/|\bwww\.|\b[\w-]+\.(?:com|org|net|edu|gov|info|biz|co\.uk|de|fr|ru|it|es|nl|io|tv|me)\b(?!\.\w)", re.I
)
_MARKUP = re.compile(r"</?[a-z!][^<>]*>|&(?:[a-z]{2,8}|#x?[0-9a-f]{2,6});|\[/?[a-z]{1,6}(?:=[^\]]*)?]|\{\{|\}\}", re.I)
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+\.\w|(?<!\w)@\w{2,}")  # e-mail, and the name of an account
_NUMBER = re.compile(r"\+?\(?\d(?:[ ().\-/]{0,2}\d){6,}")
_SHORT_PHONE = re.compile(r"\d{3}[-. ]\d{4}")
_BOILERPLATE = re.compile(rf"\b(?:{'|'.join(_WORDS['boilerplate'])})\b|©|®|™|\|", re.I)
_ENGLISH, _OTHER, _OTHER_OR_NAME = (
    frozenset(_WORDS[key].split()) for key in ("english", "foreign", "foreign_or_names")
)
_LISTING = re.compile(r"[,;|/•·]|\s[-–—]\s")


def reject(text: str, settings: Filters, blocked: Iterable[str] = ()) -> str | None:
    """Return the first reason why a caption (its white space single blanks) cannot be a seed, or None.

    ``blocked`` are words and phrases that it must not hold, as ``plain_words`` makes them.
    """
    if not text:
        return "empty"
    if not settings.words[0] <= (count := text.count(" ") + 1) <= settings.words[1]:
        return "too_short" if count < settings.words[0] else "too_long"
    numbers = [found[0] for found in _NUMBER.finditer(text)]  # of telephones or cards, if they are long
    long = any(sum(map(str.isdigit, found)) >= _PHONE_DIGITS or _SHORT_PHONE.fullmatch(found) for found in numbers)
    if long or ("@" in text and _ADDRESS.search(text)):
        return "personal"
    for reason, pattern in (("link", _LINK), ("markup", _MARKUP), ("boilerplate", _BOILERPLATE)):
        if pattern.search(text):
            return reason
    plain = plain_words(text)
    if any(entry in plain for entry in blocked):
        return "blocked_word"
    if sum(map(len, _LATIN.findall(text))) < _MIN_LATIN * (len(text) - text.count(" ")):
        return "alphabet"
    words = plain.split()
    if settings.language == "en":
        other = sum(word in _OTHER for word in words) + sum(word in _OTHER_OR_NAME for word in words) // 2
        if other > sum(word in _ENGLISH for word in words):
            return "language"
    count = max(1, len(words))
    signs = (  # of a caption
        0.1 <= sum(word in _ENGLISH for word in words) / count <= 0.75,  # function words
        len(_LISTING.findall(text)) / count <= 0.25,  # else it is a list
        sum(word[0].isupper() for word in _WORD.findall(text)[1:]) / max(1, count - 1) <= 0.5,
        len(set(words)) / count >= 0.7,
        sum(any(map(str.isdigit, word)) for word in words) / count <= 0.2,
    )
    return "unlike_caption" if sum(signs) < _MIN_SIGNS else None


def plain_words(text: str) -> str:
    """Return the case-folded words of a text between single blanks, one at each end: whole words are found in it."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "

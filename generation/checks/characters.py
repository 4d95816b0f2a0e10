"""What is wrong with a text before any word of it is understood: its characters, mark-up in it, mashed keys."""

import re
from functools import lru_cache

# Control characters, what a decoder could not read, and marks that turn or hide the letters beside them.
_BAD_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ue000-\uf8ff\ufeff"
    "\ufff0-\uffff]"
)
_SIGN = re.compile(r"[*_<`|\[\]{}&]")  # one of these is in all that the next two find; most texts have none
_MARKUP = re.compile(r"[*_]{2}\w|</?[a-z][^<>]{0,200}>|```|<\||\]\(|&(?:[a-z]{2,6}|#\d+);", re.IGNORECASE)
_LIST_MARK = r"\s*(?:[#*\-•|]+|\d+[.)])\s"
_LISTED_FIRST, _LISTED_LATER = re.compile(_LIST_MARK), re.compile("\n" + _LIST_MARK)
_SCRAPS = re.compile(r"[{}\[\]]")
_MOJIBAKE = re.compile(  # UTF-8 that was read as Windows-1252: é as Ã©, ’ as â€™
    "[ÃÂ][\u00a0-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
    "|â€|ï¿½|ðŸ"
)
_SYMBOLS = re.compile(r"[#$%^~=+@\\/|<>_*&]{2}")
_NOT_LATIN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")
# Neighbours that English words do not have, and runs of consonants that they hardly ever have.
_UNSPEAKABLE = re.compile(
    r"[bcdfghjklmnpqrstvwxz]{6}|j[bcdfghjklmnpqrstvwxz]|q[abcdefghjklmnopqrstvwxyz]|v[bcdfghjkmnpqtwxz]|"
    r"[bcdfghjklmpqsvwz]x|[bcfghjklmpqvwxz]z[bcdfgjkmnpqrstvwx]|[cfghjklmpqvwxz]j|x[dgjkmnrvz]|z[bfjnqrvx]"
)


def has_bad_characters(text: str) -> bool:
    """Whether there are control characters, unreadable ones, or marks that turn or hide their neighbours."""
    return not (text.isascii() and text.isprintable()) and bool(_BAD_CHARACTERS.search(text))


def has_markup(text: str, *, in_json: bool = False) -> bool:
    """Whether there are tags, links, entities, lists, headings or emphasis of HTML or Markdown.

    ``in_json`` adds brackets: small models write those of JSON into its strings.
    """
    if _SIGN.search(text) and (_MARKUP.search(text) or (in_json and _SCRAPS.search(text))):
        return True
    return "://" in text or bool(_LISTED_FIRST.match(text) or _LISTED_LATER.search(text))


def is_mojibake(text: str) -> bool:
    """Whether its characters were decoded by the wrong table."""
    return not text.isascii() and bool(_MOJIBAKE.search(text))


def foreign_letters(text: str) -> int:
    """How many letters are of no Latin alphabet."""
    return 0 if text.isascii() else len(_NOT_LATIN.findall(text))


def symbol_runs(text: str) -> int:
    """How often two signs that prose hardly uses stand side by side."""
    return len(_SYMBOLS.findall(text))


@lru_cache(maxsize=1 << 16)
def is_unspeakable(word: str) -> bool:
    """Whether a lower-cased word has letters side by side as mashed keys have, and English has not.

    >>> [word for word in ("textile", "watchstrap", "qwrtzx", "asdfjkl") if is_unspeakable(word)]
    ['watchstrap', 'qwrtzx', 'asdfjkl']
    """
    return bool(_UNSPEAKABLE.search(word))

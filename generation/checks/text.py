"""What is wrong with any text, caption or item: characters, mark-up, language, loops, talk about the task."""

import re
from collections import Counter
from collections.abc import Iterable
from operator import eq

from .words import FUNCTION_WORDS, sentences, tokens

# Control characters, what a decoder could not read, and marks that turn or hide the letters next to them.
_BAD_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ue000-\uf8ff\ufeff"
    "\ufff0-\uffff]|"
    # Mojibake, UTF-8 that was read as Windows-1252: é as Ã©, ’ as â€™
    "[ÃÂ][\u00a0-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]|â€|ï¿½|ðŸ"
)
# HTML, Markdown, entities, links, and the tokens and fields of chat templates.
_MARKUP = re.compile(
    r"[*_]{2}\w|</?[a-z][^<>]{0,200}>|```|<\||\]\(|&(?:[a-z]{2,6}|#\d+);|://|\[/?inst\]|\{\w+\}|^\s*[#*\-•|]+\s|"
    r"^\s*\d+[.)]\s|\bstep \d+:|[:.] \(?1[.)] .* \(?2[.)] ",
    re.IGNORECASE | re.MULTILINE,
)
_SCRAPS = re.compile(r"[{}\[\]]")
_NOT_LATIN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]{2,}")
# Words of other languages that English sentences lack, names aside.
_FOREIGN = frozenset(
    """
    el los las una unos unas del por para sus está están que como muy und der das ein eine einen mit auf dem den ist
    sind von zu des les une dans sur avec est sont aux du qui et il della nel che sono uma com não os em é y
    """.split()
)
_SENTENCE_MIN = 8  # words; shorter sentences say little about their language
_FUNCTION_SHARE_MIN = 0.12  # of the words of a sentence
_FOREIGN_SHARE = 0.12
_ENDED = re.compile(r"[.!?][\"')\]’”»]*$")
_ABBREVIATED = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|St|Mt|Prof|vs|e\.g|i\.e|cf)\.$")
_REPEATS = ((6, 3), (12, 2))  # a run of so many words that occurs so often is a loop
_REPEATED_WORDS = 4  # a sentence of so many words that occurs twice is a loop
_SHINGLE = 8  # words in a row that two texts do not share by chance

_REFUSAL = re.compile(
    r"\bi (?:cannot|can not|can['’]t|could not|couldn['’]t|do not|don['’]t|won['’]t|apologize)\b|"
    r"\bi (?:must|have to) decline\b|\b(?:i|we)['’](?:d rather not|re sorry)\b|\bmy (?:training|apologies)\b|"
    r"\bi(?: am|['’]m) (?:sorry|afraid|unable|not (?:able|comfortable|allowed))\b|\bno image was\b|"
    r"\b(?:against|violates?) (?:my|our) \w+|\bunable to (?:provide|write|help|assist|fulfil|comply)|"
    r"\b(?:not enough|insufficient|without|no) (?:\w+ )?(?:information|context)\b|(?:be|this) inappropriate\b|"
    r"\b(?:more|further|additional) (?:information|context|details)\b[^.]{0,90}\b(?:needed|required|necessary)\b|"
    r"\btoo (?:general|vague|ambiguous|short|brief) to\b|(?:^|[.!?]\s)\W*(?:sorry|unfortunately), (?:but |i\b)|"
    r"\b(?:it is )?(?:not possible|impossible) to (?:write|describe|give|provide|produce|say)\b"
)
_TASK = r"(?:caption|description|sentence|paragraph|prompt|seed)s?"
# The writer, its reader and their task. Captions on posters and sentences on labels are scenes and stay.
_META = re.compile(
    r"(?:^|[.!?]\s)\W*(?:(?:sure|certainly|absolutely|of course|okay|ok|great)(?: thing)?\s*[,!.:–—-]|let['’]s\b)|"
    r"\bi(?:['’](?:m|ve|ll|d)| am| have| will| would| hope| can| could| wrote| added)\b|\b(?:shall|should) i\b|"
    r"\ban? ai\b|\blanguage model\b|\bhere(?: is|['’]s) (?:an?|the|your|my|one)\b|\bhere goes\b|\blet me know\b|"
    r"\bfeel free to\b|\bwould you like\b|\byou (?:asked|wanted|requested|provided)\b|\bhope (?:this|that|it) helps\b|"
    r"\bbelow you will\b|\byour (?:request|prompt|seed|text|sentence|caption)\b|\b\d+ words\b|\bword count\b|"
    r"\bnote that\b|\bas (?:requested|instructed|an ai)\b|"
    rf"\b(?:this|your|given|provided|original|above|following|expanded|revised|rewritten|short) (?:\w+ )?(?:{_TASK}|text)"
    rf"(?!\w)|\b{_TASK} (?:provided|given|above)\b|\bin (?:this|the) (?:caption|description)\b(?! (?:below|under|of))|"
    rf"\bthe {_TASK},? (?:that |which )?(?:says?|speaks?|states?|mentions?|describes?|asks?|does|is (?:too|about)|has)\b|"
    rf"\b(?:agrees?|consistent|accordance|line|faithful|according|keeping|fits?|match(?:es)?|based|true|follows?) "
    rf"(?:\w+ )?the (?:\w+ )?{_TASK}\b|"
    rf"(?:^|[.!?]\s)\W*(?:\w+ )?(?:{_TASK}|title|assistant|user|output|answer|note)\s*:"
)
_MOOD = re.compile(
    r"(?:^|[.!?]\s)(?:overall|in summary|in conclusion|all in all|in short|to sum up),|"
    r"\b(?:conveys?|evok(?:es?|ing)|exud(?:es?|ing)|testament to|breathtaking|magical|timeless|heartwarming|"
    r"whispers?|tender(?:ly)? embrac\w+|symphony of|longing|nostalgi\w+|serenity|tranquil(?:l?ity)?|melanchol\w+)\b|"
    r"\b(?:sense|feeling|mood|atmosphere|aura|air) of (?!depth|scale|motion|movement|space|perspective|height|distance|"
    r"speed|order|symmetry|rhythm|balance|volume|the|a\b)\w+|"
    r"\b(?:she|he|they|who|it) (?:\w+ly )?(?:feels?|hopes?|thinks?|wonders?|dreams?|remembers?|longs?|yearns?|wishes|"
    r"believes?)\b(?! (?:up|out|over|under|around))|\blike (?:a|an) (?:silent|gentle|tender|secret|forgotten|whispered)\b"
)


def has_bad_characters(text: str) -> bool:
    """Return whether there are control characters, unreadable ones, or marks that turn or hide their neighbours."""
    return not (text.isascii() and text.isprintable()) and bool(_BAD_CHARACTERS.search(text))


def has_markup(text: str, in_json: bool = False) -> bool:
    """Return whether there is HTML, Markdown, a list, or a token of a chat template.

    ``in_json`` adds brackets: small models write those of JSON into its strings.
    """
    return bool(_MARKUP.search(text) or (in_json and _SCRAPS.search(text)))


def is_foreign(text: str, source: str) -> bool:
    """Return whether a part of the text is not English; letters of other scripts may come from ``source``."""
    if not text.isascii() and any(found not in source for found in _NOT_LATIN.findall(text)):
        return True
    for words in sentences(text):
        if len(words) >= _SENTENCE_MIN:
            foreign = sum(word in _FOREIGN for word in words)
            known = sum(word in FUNCTION_WORDS for word in words)
            if known < _FUNCTION_SHARE_MIN * len(words) or foreign >= max(3, _FOREIGN_SHARE * len(words)):
                return True
    return False


def is_finished(text: str) -> bool:
    """Return whether a text ends with a sentence's end."""
    end = text.rstrip()[-12:]
    return bool(_ENDED.search(end)) and not _ABBREVIATED.search(end)


def loops(text: str) -> bool:
    """Return whether a run of words follows itself twice, or a long run or a whole sentence occurs again."""
    words = tokens(text)
    fours = set(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(fours) >= len(words) - 3:  # true of most texts, and of none that loops
        return False
    if any(b"\x01" * max(4, 2 * size) in bytes(map(eq, words, words[size:])) for size in range(1, 6)):
        return True
    if any(max(Counter(_runs(words, size)).values(), default=0) >= times for size, times in _REPEATS):
        return True
    long = [tuple(sentence) for sentence in sentences(text) if len(sentence) >= _REPEATED_WORDS]
    return len(set(long)) < len(long)


def talk_fault(text: str) -> str | None:
    """Return ``refusal``, ``meta_talk`` (about the task instead of the scene) or ``mood`` (feelings, poetry, summary)."""
    lowered = text.lower()
    if _REFUSAL.search(lowered):
        return "refusal"
    if _META.search(lowered):
        return "meta_talk"
    return "mood" if _MOOD.search(lowered) else None


def shingles(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Return all runs of ``_SHINGLE`` words of the texts: what a prompt shows and no answer may repeat."""
    return frozenset(run for text in texts for run in _runs(tokens(text), _SHINGLE))


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))

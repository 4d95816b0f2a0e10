"""Words as the checks see them, by the lists and patterns of ``english.yaml``; and what may be wrong with any text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from operator import eq
from pathlib import Path

from ..recipe import read_yaml

Words = tuple[str, ...]  # words in a row

ENGLISH = read_yaml(Path(__file__).with_name("english.yaml"), "word lists")
FUNCTION_WORDS = frozenset(ENGLISH["function_words"].split())
UNITS = {name: unit for unit, names in ENGLISH["units"].items() for name in (unit, *names.split())}
_PARTS = ENGLISH["parts"] | {
    "UNIT": "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True)),
    "NUMBER": "|".join(["one", *ENGLISH["numbers"]]),
    "PERSON": "|".join(ENGLISH["people"].split()),
}
_SAME = {variant: head for head, variants in ENGLISH["same"].items() for variant in variants.split()}
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_GAP = re.compile(r"[.!?][\"')\]’”»]*\s+")


def pattern(name: str) -> re.Pattern[str]:
    """Return one of the ``patterns``, its ``parts`` replaced."""
    joined = "|".join(ENGLISH["patterns"][name])
    for _ in range(2):  # parts hold parts
        joined = re.sub("|".join(_PARTS), lambda part: f"(?:{_PARTS[part[0]]})", joined)
    return re.compile(joined, re.MULTILINE)


@lru_cache(maxsize=64)  # each check of a text asks for them
def sentences(text: str) -> tuple[Words, ...]:
    """Return the words of each sentence, without sentences that have none."""
    found = map(_TOKEN.findall, _SENTENCE_GAP.split(text.lower()))
    return tuple(tuple(words) for words in found if words)


@lru_cache(maxsize=64)
def tokens(text: str) -> Words:
    """Return the lower-cased words of a text, without the marks between them; ``snow-covered`` is two.

    >>> tokens("The potter's 'snow-covered' yard isn't empty.")
    ('the', "potter's", 'snow', 'covered', 'yard', "isn't", 'empty')
    """
    return tuple(chain.from_iterable(sentences(text)))


def stems(words: Iterable[str]) -> set[str]:
    """Return the stems of lower-cased words."""
    return set(map(stem, words))


def content(words: Iterable[str]) -> set[str]:
    """Return the stems of the words that say something about one scene in particular."""
    return stems(set(words) - FUNCTION_WORDS) - _GENERAL


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return a crude stem: words that differ in a plural, verb, adverb or -y ending share it. Not for reading.

    >>> [stem(word) for word in ("berries", "berry", "running", "glasses", "sandy", "strings", "men")]
    ['ber', 'ber', 'run', 'glas', 'sand', 'string', 'man']
    """
    word = word.removesuffix("'s").removesuffix("’s")
    word = _SAME.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = re.sub("(?<=ss|ch|sh|zz)es$|(?<=x)es$|s$", "", re.sub("ies$", "ys", word))
        word = _SAME.get(word, word)
    if ending := re.search("(?:ing|ed|ly)$", word):
        left = word[: ending.start()]
        if len(left) >= 3 and re.search("[aeiouy]", left):  # "string" keeps its ending
            word = left
    word = re.sub("[eyi]$", "", word) if len(word) > 3 else word  # carrie, sand-y, happi
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


_GENERAL = frozenset(stems(ENGLISH["general"].split()))

_NOT_LATIN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]{2,}")
_FOREIGN, _IN_NAMES = (frozenset(ENGLISH[name].split()) for name in ("foreign_words", "foreign_in_names"))
_SENTENCE_MIN, _LIST_MAX = 8, 30  # words; shorter sentences say little about their language, and some are lists
_SHARE = 0.12  # of a sentence's words: fewer function words, or more words of other languages, are not English
_ENDED = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\bMt)(?<!\be\.g)[.!?][\"')\]’”»]*$")
_REPEATS = ((6, 3), (12, 2))  # a run of so many words that occurs so often is a loop
_REPEATED_WORDS = 4  # a sentence of so many words that occurs twice is a loop
_BAD_CHARACTERS, _MARKUP = pattern("bad_characters"), pattern("markup")
_TRIGGERS = {code: frozenset(words.split()) for code, words in ENGLISH["triggers"].items()}
_TALK = {code: pattern(code) for code in _TRIGGERS}


def form_faults(text: str, source: str) -> Iterator[tuple[str, object]]:
    """Yield whether a text has bad characters, mark-up, or parts that are not English. Mark-up is HTML, Markdown,
    lists, and tokens of chat templates. Letters of other scripts may come from ``source``."""
    yield "bad_characters", not (text.isascii() and text.isprintable()) and _BAD_CHARACTERS.search(text)
    yield "markup", _MARKUP.search(text.lower())
    yield "not_english", not text.isascii() and any(found not in source for found in _NOT_LATIN.findall(text))
    for words in sentences(text):
        foreign, known = (sum(map(listed.__contains__, words)) for listed in (_FOREIGN, FUNCTION_WORDS))
        signs = foreign or len(words) >= _LIST_MAX or not _IN_NAMES.isdisjoint(words) or not "".join(words).isascii()
        few_known, many_foreign = signs and known < _SHARE * len(words), foreign >= max(3, _SHARE * len(words))
        yield "not_english", len(words) >= _SENTENCE_MIN and (few_known or many_foreign)


def is_finished(text: str) -> bool:
    """Return whether a text ends with a sentence's end."""
    return bool(_ENDED.search(text.rstrip()[-12:]))


def loops(text: str) -> bool:
    """Return whether a run of words follows itself twice, or a long run or a whole sentence occurs again."""
    words = tokens(text)
    if len(set(shingles([text], 4))) >= len(words) - 3:  # true of most texts, and of none that loops
        return False
    if any(b"\x01" * max(4, 2 * size) in bytes(map(eq, words, words[size:])) for size in range(1, 6)):
        return True
    if any(max(Counter(shingles([text], size)).values(), default=0) >= times for size, times in _REPEATS):
        return True
    long = [sentence for sentence in sentences(text) if len(sentence) >= _REPEATED_WORDS]
    return len(set(long)) < len(long)


def talk_fault(text: str) -> str | None:
    """Return ``refusal``, ``meta_talk`` (of the task, not the scene), ``mood`` (feelings, summary) or None."""
    lowered, words = text.lower(), set(tokens(text))
    likely = (code for code in _TALK if not words.isdisjoint(_TRIGGERS[code]))
    return next((code for code in likely if _TALK[code].search(lowered)), None)


def shingles(texts: Iterable[str], size: int = 8) -> list[Words]:
    """Return all runs of so many words in each text. Two texts do not share one of eight words by chance."""
    parts = [[tokens(text)[start:] for start in range(size)] for text in texts]
    return [run for part in parts for run in zip(*part, strict=False)]

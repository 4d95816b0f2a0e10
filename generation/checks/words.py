"""Words as the checks see them: tokens, sentences, stems, and the word lists and patterns of ``english.yaml``."""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..recipe import read_yaml

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
def tokens(text: str) -> tuple[str, ...]:
    """Return the lower-cased words of a text, without the marks between them; ``snow-covered`` is two.

    >>> tokens("The potter's 'snow-covered' yard isn't empty.")
    ('the', "potter's", 'snow', 'covered', 'yard', "isn't", 'empty')
    """
    return tuple(_TOKEN.findall(text.lower()))


def sentences(text: str) -> list[tuple[str, ...]]:
    """Return the words of each sentence, without sentences that have none."""
    return [tuple(words) for sentence in _SENTENCE_GAP.split(text.lower()) if (words := _TOKEN.findall(sentence))]


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

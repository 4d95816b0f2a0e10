"""Texts as the checks see them, by the lists and patterns of ``english.yaml``: words, faults of any text, facts that a
rule can see, and whether a text is a dense caption of its seed: one finished paragraph about the same things."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby, takewhile
from operator import eq
from pathlib import Path

from ..recipe import read_yaml

Words = tuple[str, ...]  # words in a row
Kinds = Mapping[str, frozenset[str]]  # word -> the values that it may stand for

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


_SENTENCE_END = re.compile(r"[.!?][\"')\]’”»]*(?=\s|$)")
_LONG_STRING = 45  # characters without a space
_LOST_SHARE = 1 / 3  # of the seed's content words, or one of them, may be lacking; faithful captions lack fewer
_MONOCHROME = frozenset(("black", "white", "grey", "monochrome", "shades"))


def finish(text: str, finish_reason: str) -> str:
    """Return ``text`` without outer spaces; if it was cut for length, up to its last finished sentence."""
    text = text.strip()
    if finish_reason != "length":
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return next((text[:end] for end in ends[::-1] if is_finished(text[:end])), "")


def caption_fault(
    text: str, seed: str, min_words: int = 51, max_words: int = 483, shown: frozenset[Words] = frozenset()
) -> str | None:
    """Return the reason code for which ``text`` is not a dense caption of ``seed``, or None. The bounds, in words
    between spaces, are the paper's (appendix D). ``shown`` are the ``shingles`` of the prompt."""
    return next((code for code, found in _faults(text, seed, min_words, max_words, shown) if found), None)


def _faults(text: str, seed: str, low: int, high: int, shown: frozenset[Words]) -> Iterator[tuple[str, object]]:
    words = text.split()
    yield "empty", not words
    yield "bad_characters", max(map(len, words)) > _LONG_STRING
    yield "too_long", len(words) > high or len(text) > high * _LONG_STRING  # before any pattern sees it
    talk = talk_fault(QUOTED.sub("", text))  # lettering may say anything
    yield "refusal", talk == "refusal"
    yield "meta_talk", talk == "meta_talk"
    yield from form_faults(text, seed)
    yield "several_paragraphs", "\n" in text.strip()
    yield "too_short", len(words) < low
    yield "unfinished", not is_finished(text)
    yield "loop", loops(text)
    yield "mood", talk == "mood" and talk_fault(seed) != "mood"
    yield "repeats_prompt", not shown.isdisjoint(shingles([text]))
    # What follows is how a caption may depart from its seed, as far as rules can see.
    said, asked = tokens(text), tokens(seed)
    runs = (tuple(run) for grammar, run in groupby(asked, FUNCTION_WORDS.__contains__) if not grammar)
    phrases = [run for run in runs if FRAMING.isdisjoint(run)]  # without "a good photo of"
    yield "lost_lettering", any(not quoted <= set(said) for quoted in lettering(seed))
    held, wanted = stems(said), content({*chain(*phrases)} - NUMBERS.keys() - COLOURS.keys())
    yield "lost_seed", len(wanted - held) > max(len(wanted) > 1, _LOST_SHARE * len(wanted))
    yield "lost_subject", not held & next(filter(None, map(content, map(subject, phrases))), held)
    yield "changed_number", changes(asked, said, NUMBERS)
    in_grey = "black and white" in seed.lower() and not _MONOCHROME.isdisjoint(said)
    yield "changed_colour", not in_grey and changes(asked, said, COLOURS)
    yield "invented_lettering", any(not quoted <= set(asked) for quoted in lettering(text))
    yield "invented_measurement", not measures(text) <= measures(seed)
    yield "invented_name", any(name.lower() not in {"", *asked} for found in NAMED.findall(text) for name in found)

"""Whether a text is a dense caption of its seed: one finished paragraph of plain English about the same things."""

import re
from collections import Counter
from dataclasses import dataclass
from operator import eq

from .characters import foreign_letters, has_bad_characters, has_markup, is_mojibake, is_unspeakable, symbol_runs
from .words import FUNCTION_WORDS, GENERAL, sentences, stems, tokens, word_set

CAPTION_CODES = (
    *("empty", "bad_characters", "garbled", "refusal", "meta_talk", "markup", "several_paragraphs"),
    *("too_short", "too_long", "not_english", "unfinished", "loop", "lost_seed"),
)

_SENTENCE_END = re.compile(r"[.!?][\"')\]’”»]*(?=\s|$)")
_ENDED = re.compile(r"[.!?][\"')\]’”»]*$")
# After these a full stop ends no sentence.
_ABBREVIATED = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|St|Mt|Prof|vs|e\.g|i\.e|cf)\.$")

# Words for the task that no scene needs; they are meta-talk unless the seed holds them too.
_TASK_WORDS = word_set("caption captions description descriptions paragraph paragraphs sentence sentences")
# One of these words is in every text that the pattern below finds, so that few texts are searched.
_REFUSAL_WORDS = word_set(
    "i i'm i’m i'd i’d we're we’re my our sorry unfortunately unable enough content image inappropriate"
)
_REFUSAL = re.compile(
    r"\bi (?:cannot|can not|can['’]t|could not|couldn['’]t|do not|don['’]t|won['’]t|apologize)\b|"
    r"\bi (?:must|have to) decline\b|\b(?:i|we)['’](?:d rather not|re sorry)\b|"
    r"\bmy training\b|\bbe inappropriate\b|\bthis content\b|\bno image was\b|\bmy apologies\b|"
    r"\bi(?: am|['’]m) (?:sorry|afraid|unable|not (?:able|comfortable|allowed))\b|"
    r"\b(?:against|violates?) (?:my|our) \w+|\bnot enough (?:information|context|detail)|"
    r"\bunable to (?:provide|write|help|assist|fulfil|comply)|(?:^|[.!?]\s)\W*(?:sorry|unfortunately), (?:but |i\b)"
)
# The writer, its reader and their task; openings and headings at the start of any sentence.
_ADDRESS_WORDS = word_set(
    """
    i i'm i’m i've i’ve i'll i’ll i'd i’d my you your sure certainly absolutely course okay ok great let let's let’s
    here here's here’s feel hope ai language
    """
)
_ADDRESS = re.compile(
    r"(?:^|[.!?]\s)\W*(?:(?:sure|certainly|absolutely|of course|okay|ok|great)(?: thing)?\s*[,!.:–—-]|let['’]s\b)|"
    r"\bi(?:['’](?:m|ve|ll|d)| am| have| will| would| hope| can| could| wrote| added)\b|\b(?:shall|should) i\b|"
    r"\ban? ai\b|\blanguage model\b|\bhere(?: is|['’]s) (?:an?|the|your|my|one)\b|\bhere goes\b|\blet me know\b|"
    r"\bfeel free to\b|\bwould you like\b|\byou (?:asked|wanted|requested|provided)\b|\bdoes this \w+ for you\b|"
    r"\bhope (?:this|that|it) helps\b|\bbelow you will\b|\byour (?:request|prompt|seed|text)\b"
)
_OUTPUT_WORDS = word_set(
    "prompt passage text version words word note summary requested instructed request above account"
)
_OUTPUT = re.compile(
    r"\b\d+ words\b|\bword count\b|\bnote that\b|\bin summary\b|\bas (?:requested|instructed)\b|"
    r"\bthis (?:request|account)\b|\bthe (?:prompt|above (?:is|was|account|text)|passage (?:above|below)(?! the))\b|"
    r"\b(?:this|above|given|following) (?:passage|text)\b|\b(?:expanded|revised|rewritten) (?:version|text)\b"
)
_HEADING = re.compile(
    r"(?:^|[.!?]\s)\W*(?:\w+ )?"
    r"(?:caption|description|sentence|prompt|paragraph|note|assistant|user|output|answer|title)s?\s*:"
)
# Where the seed holds one of _TASK_WORDS itself.
_OF_TASK = re.compile(
    r"\b(?:this|your|above|below|given|following|original|expanded|revised|rewritten) (?:\w+ )?"
    r"(?:caption|description|sentence|paragraph)s?\b"
)
_END = 12  # characters by which an end is known
_UNSPEAKABLE_MAX = 3  # words; proper names and abbreviations are one or two
_SYMBOL_RUNS_MAX = 3
_LONG_WORD = 30  # letters; the longest words of plain English have about 20
_LONG_STRING = 45  # characters without a blank
_LETTERS_FROM = 200  # characters; shorter texts say little about their letters
_FUNCTION_FROM = 25  # words; shorter texts say little about their language
_REPEATS = ((6, 3), (12, 2))  # a run of so many words, seen so often, is a loop
_SENTENCE_WORDS = 4  # a sentence of so many words, seen twice, is a loop


@dataclass(frozen=True, kw_only=True)
class CaptionLimits:
    """From where on a caption is refused.

    Args:
        min_words: words between blanks; the paper's shortest caption (appendix D).
        max_words: likewise; the paper's longest.
        min_seed_share: of the seed's content words that the caption must hold, by their stems; faithful captions hold
            over 0.8, those of another scene under 0.2.
        min_function_share: of a caption's words, in each half, that must be English function words; English prose has
            over 0.35, German or Spanish under 0.1.
        min_letter_share: of the characters other than blanks that must be letters of words; prose has over 0.88.
    """

    min_words: int = 51
    max_words: int = 483
    min_seed_share: float = 0.5
    min_function_share: float = 0.2
    min_letter_share: float = 0.8


def finish(text: str, finish_reason: str) -> str:
    """``text`` without blanks at its ends; when it was cut for length, up to its last finished sentence."""
    text = text.strip()
    if finish_reason != "length":
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return next((text[:end] for end in reversed(ends) if _is_finished(text[max(0, end - _END) : end])), "")


def caption_fault(text: str, seed: str, limits: CaptionLimits = CaptionLimits()) -> str | None:
    """The one of ``CAPTION_CODES`` for which ``text`` is no dense caption of ``seed``, or None.

    Codes: ``empty``; ``bad_characters`` (control, invisible, turning or unreadable ones); ``garbled`` (mojibake,
    mashed keys, hardly any letters); ``refusal``; ``meta_talk`` (of the task instead of the scene); ``markup``;
    ``several_paragraphs``; ``too_short``; ``too_long``; ``not_english``; ``unfinished``; ``loop`` (a repeated
    sentence or run of words); ``lost_seed`` (too few of the seed's content words).
    """
    words = text.split()
    if not words:
        return "empty"
    if has_bad_characters(text):
        return "bad_characters"
    if len(words) > limits.max_words:
        return "too_long"
    lowered = text.lower()
    plain = tokens(lowered)
    return (
        _script_fault(text, words, plain, limits)
        or _talk_fault(lowered, set(plain), seed)
        or _form_fault(text, words, limits)
        or ("not_english" if not _reads_english(plain, limits.min_function_share) else None)
        or ("unfinished" if not _is_finished(text) else None)
        or ("loop" if loops(text, plain) else None)
        or ("lost_seed" if seed_share(seed, plain) < limits.min_seed_share else None)
    )


def seed_share(seed: str, caption_words: list[str]) -> float:
    """The share of the seed's content words whose stems are among the caption's; 1.0 for a seed without any."""
    content = stems(set(tokens(seed.lower())) - FUNCTION_WORDS) - GENERAL
    return len(content & stems(caption_words)) / len(content) if content else 1.0


def _script_fault(text: str, words: list[str], plain: list[str], limits: CaptionLimits) -> str | None:
    """Whether these are letters of English words at all."""
    letters = sum(map(len, filter(str.isalpha, plain)))
    if foreign_letters(text) > 0.1 * letters:
        return "not_english"
    if (
        max(map(len, plain), default=0) > _LONG_WORD
        or max(map(len, words)) > _LONG_STRING
        or is_mojibake(text)
        or sum(map(is_unspeakable, plain)) >= _UNSPEAKABLE_MAX
        or symbol_runs(text) >= _SYMBOL_RUNS_MAX
    ):
        return "garbled"
    few_letters = len(text) >= _LETTERS_FROM and letters < limits.min_letter_share * sum(map(len, words))
    return "garbled" if few_letters else None


def _talk_fault(lowered: str, words: set[str], seed: str) -> str | None:
    if not words.isdisjoint(_REFUSAL_WORDS) and _REFUSAL.search(lowered):
        return "refusal"
    of_task = _TASK_WORDS & words
    if (
        (of_task and (not stems(of_task) <= stems(tokens(seed.lower())) or _OF_TASK.search(lowered)))
        or (not words.isdisjoint(_ADDRESS_WORDS) and _ADDRESS.search(lowered))
        or (not words.isdisjoint(_OUTPUT_WORDS) and _OUTPUT.search(lowered))
        or (":" in lowered and _HEADING.search(lowered))
    ):
        return "meta_talk"
    return None


def _form_fault(text: str, words: list[str], limits: CaptionLimits) -> str | None:
    if has_markup(text):
        return "markup"
    if "\n" in text.strip():
        return "several_paragraphs"
    return "too_short" if len(words) < limits.min_words else None


def _reads_english(plain: list[str], min_share: float) -> bool:
    """Whether both halves hold the function words of English; a text may change its language in the middle."""
    if len(plain) < _FUNCTION_FROM:
        return True
    middle = len(plain) // 2
    return all(
        sum(map(FUNCTION_WORDS.__contains__, half)) >= min_share * len(half)
        for half in (plain[:middle], plain[middle:])
    )


def _is_finished(text: str) -> bool:
    end = text.rstrip()[-_END:]
    return bool(_ENDED.search(end)) and not _ABBREVIATED.search(end)


def loops(text: str, plain: list[str]) -> bool:
    """Whether a run of words follows itself twice, a long run comes again, or a whole sentence does."""
    fours = set(zip(plain, plain[1:], plain[2:], plain[3:], strict=False))
    if len(fours) >= len(plain) - 3:  # so it is in most captions, and in none that loops
        return False
    for size in range(1, 6):
        if b"\x01" * max(4, 2 * size) in bytes(map(eq, plain, plain[size:])):
            return True
    if any(max(Counter(_runs(plain, size)).values(), default=0) >= times for size, times in _REPEATS):
        return True
    long = [tuple(words) for words in sentences(text) if len(words) >= _SENTENCE_WORDS]
    return len(set(long)) < len(long)


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))

"""Whether a text is a dense caption of its seed: one finished paragraph of plain English about the same things."""

import re

from .facts import COLOURS, NUMBERS, Kinds, demands, disagrees, lettering, measures, names, subject, values
from .text import has_bad_characters, has_markup, is_finished, is_foreign, loops, shingles, talk_fault
from .words import ENGLISH, FUNCTION_WORDS, content, stems, tokens

CAPTION_CODES = (
    *("empty", "bad_characters", "refusal", "meta_talk", "markup", "several_paragraphs", "too_short", "too_long"),
    *("not_english", "unfinished", "loop", "mood", "repeats_prompt", "lost_seed", "lost_subject", "changed_number"),
    *("changed_colour", "lost_lettering", "invented_lettering", "invented_measurement", "invented_name"),
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]’”»]*(?=\s|$)")
_LONG_STRING = 45  # characters without a space
_SEED_SHARE = 0.5  # of the seed's content words; faithful captions hold over 0.8, those of other scenes under 0.2
_FRAMING = frozenset(ENGLISH["framing"].split())
_MONOCHROME = frozenset(("black", "white", "grey", "monochrome", "shades"))


def finish(text: str, finish_reason: str) -> str:
    """Return ``text`` without outer spaces; if it was cut for length, up to its last finished sentence."""
    text = text.strip()
    if finish_reason != "length":
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return next((text[:end] for end in reversed(ends) if is_finished(text[:end])), "")


def caption_fault(
    text: str,
    seed: str,
    min_words: int = 51,
    max_words: int = 483,
    shown: frozenset[tuple[str, ...]] = frozenset(),
) -> str | None:
    """Return the one of ``CAPTION_CODES`` for which ``text`` is not a dense caption of ``seed``, or None.

    Codes that need a word: ``bad_characters`` (control characters, mojibake, endless strings); ``meta_talk`` (about
    the task); ``not_english`` (in whole or in part); ``mood`` (feelings, poetry, summary); ``lost_seed`` (too few of
    the seed's words), ``lost_subject`` (none of those that it begins with); ``changed_...`` and ``lost_lettering``
    (what the seed says), ``invented_...`` (what it does not say).

    Args:
        text: the answer.
        seed: the sentence that it must describe.
        min_words: between spaces; the default is the paper's shortest caption (appendix D).
        max_words: likewise the longest.
        shown: ``shingles`` of the prompt.
    """
    words = text.split()
    if not words:
        return "empty"
    if max(map(len, words)) > _LONG_STRING or has_bad_characters(text):
        return "bad_characters"
    if len(words) > max_words or len(text) > max_words * _LONG_STRING:  # before any pattern sees it
        return "too_long"
    talk = talk_fault(text)
    faults = {
        str(talk): talk in ("refusal", "meta_talk"),
        "markup": has_markup(text),
        "several_paragraphs": "\n" in text.strip(),
        "too_short": len(words) < min_words,
        "not_english": is_foreign(text, seed),
        "unfinished": not is_finished(text),
        "loop": loops(text),
        "mood": talk == "mood" and talk_fault(seed) != "mood",
    }
    fault = next((code for code, found in faults.items() if found), None)
    return fault or _unfaithful(text, seed, shown)


def _unfaithful(text: str, seed: str, shown: frozenset[tuple[str, ...]]) -> str | None:
    """Return how a caption departs from its seed, as far as rules can see."""
    said, asked = tokens(text), tokens(seed)
    held, phrases = stems(said), _phrases(asked)
    wanted = content({word for phrase in phrases for word in phrase} - NUMBERS.keys() - COLOURS.keys())
    subjects = (content(subject(phrase)) for phrase in phrases)
    colours = [] if "black and white" in seed.lower() and not _MONOCHROME.isdisjoint(said) else demands(asked, COLOURS)
    faults = {
        "repeats_prompt": bool(shown and shingles([text]) & shown),
        "lost_seed": len(wanted & held) < _SEED_SHARE * len(wanted),
        "lost_subject": not held & next(filter(None, subjects), held),
        "changed_number": any(
            _changed(NUMBERS[word], nouns, said, NUMBERS) for word, nouns in demands(asked, NUMBERS)
        ),
        "changed_colour": any(_changed(COLOURS[word], nouns, said, COLOURS) for word, nouns in colours),
        "lost_lettering": any(not quoted <= set(said) for quoted in lettering(seed)),
        "invented_lettering": any(not quoted <= set(asked) for quoted in lettering(text)),
        "invented_measurement": not measures(text) <= measures(seed),
        "invented_name": not names(text) <= set(asked),
    }
    return next((code for code, found in faults.items() if found), None)


def _changed(value: frozenset[str], nouns: set[str], said: list[str], kinds: Kinds) -> bool:
    return not value & values(said, kinds) or disagrees(value, nouns, said, kinds)


def _phrases(seed: list[str]) -> list[list[str]]:
    """Return the seed's words between its function words, without phrases about the picture ("a good photo of")."""
    found: list[list[str]] = [[]]
    for word in seed:
        if word in FUNCTION_WORDS:
            found.append([])
        else:
            found[-1].append(word)
    return [phrase for phrase in found if phrase and _FRAMING.isdisjoint(phrase)]

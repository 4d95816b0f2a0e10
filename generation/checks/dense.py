"""Whether a text is a dense caption of its seed: one finished paragraph of plain English about the same things."""

import re

from .facts import COLOURS, NUMBERS, demands, disagrees, lettering, measures, names, values
from .text import has_bad_characters, has_markup, is_finished, is_foreign, loops, shingles, talk_fault
from .words import FUNCTION_WORDS, content, stems, tokens

CAPTION_CODES = (
    *("empty", "bad_characters", "refusal", "meta_talk", "markup", "several_paragraphs", "too_short", "too_long"),
    *("not_english", "unfinished", "loop", "mood", "repeats_prompt", "lost_seed", "lost_subject", "changed_number"),
    *("changed_colour", "lost_lettering", "invented_lettering", "invented_measurement", "invented_name"),
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]’”»]*(?=\s|$)")
_LONG_STRING = 45  # characters without a space
_SEED_SHARE = 0.5  # of the seed's content words; faithful captions hold over 0.8, those of other scenes under 0.2
_FRAMING = frozenset("photo photograph picture image view shot closeup close illustration screenshot photos".split())
_MONOCHROME = {"black", "white", "grey", "monochrome", "shades"}


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

    Codes: ``empty``; ``bad_characters`` (control characters, mojibake, endless strings); ``refusal``; ``meta_talk``
    (about the task); ``markup``; ``several_paragraphs``; ``too_short``; ``too_long``; ``not_english`` (in whole or in
    part); ``unfinished``; ``loop``; ``mood`` (feelings, poetry, summary); ``repeats_prompt``; ``lost_seed`` (too few of
    the seed's words); ``lost_subject`` (not one of its first); ``changed_number``, ``changed_colour``,
    ``lost_lettering`` (what the seed says); ``invented_lettering``, ``invented_measurement``, ``invented_name`` (what it
    does not say).

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
    if has_bad_characters(text) or max(map(len, words)) > _LONG_STRING:
        return "bad_characters"
    if len(words) > max_words:
        return "too_long"
    talk = talk_fault(text)
    if talk in ("refusal", "meta_talk"):
        return talk
    if has_markup(text):
        return "markup"
    if "\n" in text.strip():
        return "several_paragraphs"
    if len(words) < min_words:
        return "too_short"
    if is_foreign(text, seed):
        return "not_english"
    if not is_finished(text):
        return "unfinished"
    if loops(text):
        return "loop"
    return talk or ("repeats_prompt" if shown and shingles([text]) & shown else None) or _unfaithful(text, seed)


def _unfaithful(text: str, seed: str) -> str | None:
    """Return how a caption departs from its seed, as far as rules can see."""
    said, asked = tokens(text), tokens(seed)
    held, phrases = stems(said), _phrases(asked)
    wanted = content(word for phrase in phrases for word in phrase)
    if wanted and len(wanted & held) < _SEED_SHARE * len(wanted):
        return "lost_seed"
    subjects = (content(set(phrase) - NUMBERS.keys() - COLOURS.keys()) for phrase in phrases)
    if not held & next(filter(None, subjects), held):
        return "lost_subject"
    for code, kinds in (("changed_number", NUMBERS), ("changed_colour", COLOURS)):
        present = values(said, kinds)
        if kinds is COLOURS and "black and white" in seed.lower() and not _MONOCHROME.isdisjoint(said):
            continue
        for word, nouns in demands(asked, kinds):
            if not kinds[word] & present or disagrees(kinds[word], nouns, said, kinds):
                return code
    if any(not quoted <= set(said) for quoted in lettering(seed)):
        return "lost_lettering"
    if any(not quoted <= set(asked) for quoted in lettering(text)):
        return "invented_lettering"
    if not measures(text) <= measures(seed):
        return "invented_measurement"
    return "invented_name" if not names(text) <= set(asked) else None


def _phrases(seed: list[str]) -> list[list[str]]:
    """Return the seed's words between its function words, without phrases about the picture ("a good photo of")."""
    found: list[list[str]] = [[]]
    for word in seed:
        if word in FUNCTION_WORDS:
            found.append([])
        else:
            found[-1].append(word)
    return [phrase for phrase in found if phrase and _FRAMING.isdisjoint(phrase)]

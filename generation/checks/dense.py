"""Whether a text is a dense caption of its seed: one finished paragraph of plain English about the same things."""

import re
from collections.abc import Iterator
from itertools import chain, groupby

from .facts import COLOURS, FRAMING, NAMED, NUMBERS, QUOTED, changes, lettering, measures, subject
from .text import FUNCTION_WORDS, Words, content, form_faults, is_finished, loops, shingles, stems, talk_fault, tokens

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

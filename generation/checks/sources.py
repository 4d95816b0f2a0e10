"""What the checks need to know of a caption, read once for all items, and whether an item speaks of the caption."""

import re
from dataclasses import dataclass
from itertools import chain

from .measures import measures
from .words import sentences, stems, tokens, word_set

# Words for the writing that the reader never sees. None of them is needed to ask about a scene without writing.
_LEAK_WORDS = word_set(
    """
    caption captions captioned text texts textual description descriptions described describes passage passages
    paragraph paragraphs sentence sentences excerpt excerpts narrative narrator narration mentioned mentions
    stated specified summary phrase phrases
    """
)
_WRITING = r"(?:caption|text|description|passage|paragraph|sentence|excerpt|narrative)s?"
# Where the scene itself holds such a word, these still speak of the caption.
_REFERENCE = re.compile(
    rf"\b(?:according to|based on|as \w+ in|given in|inferred from) (?:the|this) (?:\w+ )?{_WRITING}\b"
    rf"|\b(?:the|this) {_WRITING} (?:says? that|states?|mentions?|describes?|tells? us|suggests?|implies|imply|"
    rf"indicates?|provides?|gives?|does not|doesn't)\b"
    rf"|\b(?:described|mentioned|stated)\b (?:in|by) (?:the|this) {_WRITING}\b"
    rf"|\b(?:subject|topic|theme|content|point|writer|author) of (?:the|this) {_WRITING}\b"
    r"|\b(?:this|the given|the above) (?:caption|description|paragraph|excerpt)s?\b"
)
# Honest words by themselves, which speak of the source only in company.
_COMPANY_WORDS = word_set(
    "information context details story prompt account article written said word statement write author text"
)
_IN_COMPANY = re.compile(
    r"\b(?:given|provided|available) (?:information|context|details|prompt|statement)\b|"
    r"\b(?:information|context|details) (?:\w+ )?(?:given|provided|available)\b|"
    r"\b(?:in|from|by|per|does|to) (?:the|this) (?:story|prompt|account|article|statement|write-up)\b|"
    r"\bas (?:written|said)\b|\bis said (?:about|of)\b|\bsaid to be\b|\bword is used\b|\bwrite-?up\b|"
    r"\bthe author (?:\w+s|describe|say|mention|use|think|emphasi[sz]e)\b|\b(?:provided|given) text\b|\btext alone\b"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A caption as the checks of its items see it.

    Args:
        caption: its text.
        stems: of all its words.
        sentences: the words of each.
        openings: of the sentences, see ``opening``.
    """

    caption: str
    stems: frozenset[str]
    sentences: frozenset[tuple[str, ...]]
    openings: frozenset[tuple[str, ...]]


def read_source(caption: str) -> Source:
    """Reads a caption once for all items."""
    whole = sentences(caption)
    return Source(
        caption=caption,
        stems=frozenset(stems(set(chain.from_iterable(whole)))),
        sentences=frozenset(map(tuple, whole)),
        openings=frozenset(map(opening, whole)),
    )


def opening(words: list[str]) -> tuple[str, ...]:
    """The words by which a text may be told to begin like a sentence of a caption."""
    return tuple(words[:3])


def leaks(text: str, words: set[str], source: Source) -> bool:
    """Whether a text of these words speaks of the caption: by a word that the scene lacks, or by how it uses one."""
    named = _LEAK_WORDS & words
    if named and (not stems(named) <= source.stems or _REFERENCE.search(text.lower())):
        return True
    return not _COMPANY_WORDS.isdisjoint(words) and bool(_IN_COMPANY.search(text.lower()))


def invents_measurement(text: str, words: set[str], source: Source) -> bool:
    """Whether a text of these words measures what the caption does not."""
    found = measures(text, words)
    return bool(found) and not found <= measures(source.caption, tokens(source.caption.lower()))

"""What the checks need to know of a caption, read once for all items, and whether an item speaks of the caption."""

import re
from dataclasses import dataclass

from .measures import measures
from .words import sentences, stems, tokens, word_set

# Words for the writing that the reader never sees. None of them is needed to ask about a scene without writing.
_LEAK_WORDS = word_set(
    """
    caption captions captioned text texts textual description descriptions described describes passage passages
    paragraph paragraphs sentence sentences excerpt excerpts narrative mentioned mentions stated
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


@dataclass(frozen=True, kw_only=True)
class Source:
    """A caption as the checks of its items see it.

    Args:
        stems: of all its words.
        sentences: as ``words.normal`` gives them.
        openings: of the sentences, see ``opening``.
        measures: see ``measures.measures``.
    """

    stems: frozenset[str]
    sentences: frozenset[str]
    openings: frozenset[str]
    measures: frozenset[tuple[str, str]]


def read_source(caption: str) -> Source:
    """Reads a caption once for all items."""
    words = tokens(caption.lower())
    whole = sentences(caption)
    return Source(
        stems=frozenset(stems(words)),
        sentences=frozenset(whole),
        openings=frozenset(opening(sentence.split()) for sentence in whole),
        measures=frozenset(measures(caption, words)),
    )


def opening(words: list[str]) -> str:
    """The words by which a text may be told to begin like a sentence of a caption."""
    return " ".join(words[:3])


def leaks(text: str, words: set[str], source: Source) -> bool:
    """Whether a text of these words speaks of the caption: by a word that the scene lacks, or by how it uses one."""
    named = _LEAK_WORDS & words
    return bool(named) and (not stems(named) <= source.stems or bool(_REFERENCE.search(text.lower())))

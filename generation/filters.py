"""Which captions of an open-domain source may be seeds: pure functions, one reason code each, the cheap ones first.

They are meant for alt text from the web. Nothing is repaired: there is more text than is needed, and a caption that
was cut to size is no longer what somebody wrote.

The language is told by function words of seven languages, a heuristic of ours: it needs no model, no download and no
dependency, and a caption of ten words nearly always holds some. German, French, Spanish, Italian, Portuguese and Dutch
are told from English; other scripts fall to ``min_letters``; what has no function word at all ("red sports car") is
taken for English, and other languages in Latin letters may pass. It was not compared with a trained model.

Measured on the 1,026 bundled captions: none is dropped at the default settings (tests/test_filters.py).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from .config import Filters
from .errors import SeedError

REASONS = (
    "empty",
    "too_short",
    "too_long",
    "personal",
    "link",
    "markup",
    "boilerplate",
    "blocked_word",
    "alphabet",
    "language",
    "unlike_caption",
)

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+")
_LINK = re.compile(
    r"https?:/|\bwww\.|\b[\w-]+\.(?:com|org|net|edu|gov|info|biz|co\.uk|de|fr|ru|it|es|nl|io|tv|me)\b(?!\.\w)", re.I
)
_MARKUP = re.compile(
    r"</?[a-z!][^<>]*>|&(?:[a-z]{2,8}|#x?[0-9a-f]{2,6});|\[/?[a-z]{1,6}(?:=[^\]]*)?\]|\{\{|\}\}", re.I
)
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+\.\w|(?<!\w)@\w{2,}")  # e-mail, and the name of an account
_NUMBER = re.compile(r"\+?\(?\d(?:[ ().\-/]{0,2}\d){6,}")
_SHORT_PHONE = re.compile(r"\d{3}[-. ]\d{4}")
_PHONE_DIGITS = 9  # a date has eight
# What stands in alt text and is in no scene; words such as "logo", "banner" and "for sale" are left to scenes.
_BOILERPLATE = re.compile(
    r"""\b(?:
      stock[ ](?:photos?|photography|images?|vectors?|illustrations?|footage|pictures?) | royalty[ -]?free
    | shutterstock | getty[ ]?images | istock(?:photo)? | alamy | dreamstime | deposit[ ]?photos | pinterest
    | click[ ](?:here|to|on|for|image|the[ ](?:image|photo|picture)) | download(?:able|s)?
    | (?:hd|4k|desktop|free|phone|mobile|iphone|android)[ ](?:background|wallpaper)s?
    | (?:image|photo|picture)s?[ ](?:may[ ]contain|credits?|courtesy|source|copyright|gallery|not[ ]available|\d+)
    | photo(?:s|graphs?)?[ ]by | file[ ]?photo | all[ ]rights[ ]reserved | copyright(?:ed)?
    | untitled | thumbnail | placeholder | favicon | clip[ ]?art | vectors? | no[ ]description[ ]available | alt[ ]text
    | (?:img|dsc|dscn|dscf|pict|image|photo)[_-]?\d{2,} | [\w-]+\.(?:jpe?g|png|gif|webp|svg|bmp|tiff?)
    | \d{2,5}[ ]?[x×][ ]?\d{2,5}(?:[ ]?px)? | (?:read|learn)[ ]more | view[ ](?:more|larger|full|all) | full[ -]size
    | free[ ]shipping | buy[ ](?:now|online) | add[ ]to[ ]cart | best[ ]price | sold[ ]out | in[ ]stock | posted[ ]by
    | sponsored | subscribe | (?:previous|next)[ ](?:image|photo|post|page) | product[ ](?:image|photo|code)
    | hd[ ]quality | hi[ -]?res
    )\b | ©|®|™|\|""",
    re.I | re.X,
)
_ENGLISH_WORDS = """
    a an the of in on at with and to from by for is are its his her their this that these under over near into onto
    through behind beside between above below against across along around while as who which out up down off after
    before during has have being next some two three it he she they there or
"""
_FOREIGN_WORDS = """
    der das dem den und mit ein eine einem einer eines im auf von für ist sind zum zur beim vor nicht bei aus
    les des une dans avec sur du est et aux pour sous chez ses au qui
    los las una con del por para que su y entre sobre desde muy
    il gli della delle dello nel nella di che sono alla dei degli sul sulla
    um uma com da dos das não ao na pelo pela seu
    het een met op te bij naar voor uit zijn aan
"""
_ENGLISH, _FOREIGN = frozenset(_ENGLISH_WORDS.split()), frozenset(_FOREIGN_WORDS.split())
_FOREIGN_OR_NAMES = frozenset({"de", "la", "el", "le", "en", "lo", "un"})  # "Rio de Janeiro": two of them count as one
_LISTING = re.compile(r"[,;|/•·]|\s[-–—]\s")


def reject(text: str, settings: Filters, blocked: "BlockedWords | None" = None) -> str | None:
    """The first of ``REASONS`` for which a caption is no seed; None if it may be one.

    Args:
        text: the caption, white space already single.
        settings: the bounds.
        blocked: words that it must not hold.

    >>> reject("A brown dog sleeps on a striped rug.", Filters())
    >>> reject("Ein brauner Hund schläft auf dem Teppich.", Filters())
    'language'
    >>> reject("Brown dog sleeping on a rug - stock photo", Filters())
    'boilerplate'
    """
    if not text:
        return "empty"
    count = text.count(" ") + 1
    if count < settings.min_words:
        return "too_short"
    if count > settings.max_words:
        return "too_long"
    if personal(text):
        return "personal"
    if _LINK.search(text):
        return "link"
    if _MARKUP.search(text):
        return "markup"
    if _BOILERPLATE.search(text):
        return "boilerplate"
    words = _WORD.findall(text)
    plain = [word.casefold() for word in words]
    if blocked is not None and blocked.hit(plain):
        return "blocked_word"
    if latin_share(text) < settings.min_letters:
        return "alphabet"
    if settings.language == "en" and not looks_english(plain):
        return "language"
    if likeness(text, words) < settings.min_likeness:
        return "unlike_caption"
    return None


def personal(text: str) -> bool:
    """Whether a text holds an e-mail address, the name of an account, or what may be a telephone or card number.

    >>> personal("Call 555-0199 for a tour"), personal("Summer fair, 12 05 2010"), personal("me@example.org")
    (True, False, True)
    """
    if "@" in text and _ADDRESS.search(text):
        return True
    for found in _NUMBER.finditer(text):
        digits = sum(character.isdigit() for character in found[0])
        if digits >= _PHONE_DIGITS or _SHORT_PHONE.fullmatch(found[0]):
            return True
    return False


def latin_share(text: str) -> float:
    """The share of Latin letters among the characters that are no white space, 0 to 1; 0 for none."""
    visible = len(text) - text.count(" ")
    return sum(map(len, _LATIN.findall(text))) / visible if visible else 0.0


def looks_english(words: list[str]) -> bool:
    """Whether case-folded words hold no more function words of six other languages than of English.

    >>> looks_english("la rambla de barcelona".split()), looks_english("red sports car".split())
    (False, True)
    """
    english = sum(word in _ENGLISH for word in words)
    foreign = sum(word in _FOREIGN for word in words) + sum(word in _FOREIGN_OR_NAMES for word in words) // 2
    return foreign <= english


def likeness(text: str, words: list[str] | None = None) -> float:
    """How much a text looks like a caption, 0 to 1: the share of five signs that it shows.

    The signs: a tenth to three quarters of its words are function words; it is no list (at most one separator for four
    words); at most half of its words after the first are capitalised; 70 % of its words are distinct; at most a fifth
    of them hold a digit.

    >>> likeness("A brown dog sleeps on a striped rug."), likeness("beach, sea, sand, sun, holiday")
    (1.0, 0.6)
    >>> likeness("Canon EOS 5D Mark III 24-105mm Kit")
    0.4
    """
    words = _WORD.findall(text) if words is None else words
    if not words:
        return 0.0
    count = len(words)
    plain = [word.casefold() for word in words]
    glue = sum(word in _ENGLISH for word in plain) / count
    capitals = sum(word[0].isupper() for word in words[1:]) / max(1, count - 1)
    signs = (
        0.1 <= glue <= 0.75,
        len(_LISTING.findall(text)) / count <= 0.25,
        capitals <= 0.5,
        len(set(plain)) / count >= 0.7,
        sum(any(map(str.isdigit, word)) for word in words) / count <= 0.2,
    )
    return sum(signs) / len(signs)


class BlockedWords:
    """Words and phrases of a list that the user gives, such as slurs; found as whole words, whatever their case.

    Args:
        entries: the words and phrases; empty ones and lines that begin with # are left out.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        found = [_WORD.findall(entry.casefold()) for entry in entries if not entry.lstrip().startswith("#")]
        self.words = frozenset(words[0] for words in found if len(words) == 1)
        self.phrases = tuple(f" {' '.join(words)} " for words in found if len(words) > 1)

    def hit(self, words: list[str]) -> bool:
        """Whether the case-folded ``words`` hold one of the list."""
        if not self.words.isdisjoint(words):
            return True
        joined = f" {' '.join(words)} " if self.phrases else ""
        return any(phrase in joined for phrase in self.phrases)


def read_blocked_words(path: Path) -> BlockedWords:
    """Reads a list of words, one word or phrase a line, UTF-8.

    Raises:
        SeedError: the file cannot be read, or holds no word.
    """
    try:
        blocked = BlockedWords(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        raise SeedError(f"blocked_words {path} cannot be read: {error}") from error
    if not (blocked.words or blocked.phrases):
        raise SeedError(f"blocked_words {path} holds no word; give one word or phrase a line, or leave the key out")
    return blocked

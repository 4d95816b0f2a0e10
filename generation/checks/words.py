"""Words as the checks see them: tokens, sentences, crude stems, and the word lists that several checks share."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_GAP = re.compile(r"[.!?][\"')\]”’»]*\s+")
_BLANK = {code: " " for code in range(128) if not chr(code).isalnum() and chr(code) not in "'\n"}
_OUTER_APOSTROPHE = re.compile(r"(?<![a-z0-9])'+|'+(?![a-z0-9])|''+")
_VOWELS = frozenset("aeiouy")


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written as prose is."""
    return frozenset(text.split())


# English words that carry grammar; they make up 35 to 50 % of English prose and about a tenth of its neighbours'.
FUNCTION_WORDS = word_set(
    """
    a about above across after against all along also although am among an and another any are aren't around as
    at away be because been before behind being below beneath beside between beyond both but by can cannot could
    did do does doesn't don't down during each either else every few for from further had has have having he her
    here hers him himself his how however i if in inside into is isn't it its it's itself just like many may me
    might more most much must my near neither next no nor not now of off on once one onto only or other our out
    outside over own past per quite rather s same several shall she should since so some still such than that
    the their theirs them themselves then there these they this those though through to together too toward
    towards under underneath until up upon us very via was wasn't we were what when where whether which while
    who whom whose why will with within without would yes yet you your
    """
)

# One word on the left stands for all on the right: irregular forms, and names of colours and small numbers.
_SAME = {
    variant: head
    for line in """
    man: men | woman: women | child: children | person: people persons | foot: feet | tooth: teeth | mouse: mice
    goose: geese | leaf: leaves | wolf: wolves | knife: knives | shelf: shelves | loaf: loaves | calf: calves
    scarf: scarves | hoof: hooves | half: halves | wood: wooden | fish: fisherman fishermen fishing | sea: ocean
    stand: stood | sit: sat | run: ran running | hold: held | wear: wore worn dressed | lie: lay lain lying
    lean: leant
    rise: rose risen | fall: fell fallen | see: saw seen | take: took taken | give: gave given | go: went gone goes
    come: came | make: made | break: broke broken | drive: drove driven | ride: rode ridden | write: wrote written
    eat: ate eaten | drink: drank drunk | sleep: slept | keep: kept | leave: left | carry: carries carried
    throw: threw thrown | catch: caught | build: built | bring: brought | blow: blew blown | grow: grew grown
    fly: flew flown | swim: swam | hang: hung | wind: wound | tie: tied tying | feed: fed | lead: led | shine: shone
    hide: hid hidden | shake: shook shaken | freeze: froze frozen | bend: bent | tear: tore torn | sew: sewn
    grey: gray greyish grayish | red: crimson scarlet reddish | yellow: yellowish | gold: golden | blue: bluish navy
    green: greenish | brown: brownish | white: whitish | purple: violet | colour: color | metre: meter
    two: 2 pair couple twice double | three: 3 trio triple | four: 4 | five: 5 | six: 6 | seven: 7 | eight: 8
    nine: 9 | ten: 10 | eleven: 11 | twelve: 12 dozen | single: 1
    """.replace("\n", "|").split("|")
    if line.strip()
    for head, variants in [line.split(":")]
    for head in [head.strip()]
    for variant in variants.split()
}


def tokens(lowered: str) -> list[str]:
    """The words of a lower-cased text, without the marks between them; ``snow-covered`` is two.

    >>> tokens("the potter's 'snow-covered' yard isn't, as it were, empty.")
    ['the', "potter's", 'snow', 'covered', 'yard', "isn't", 'as', 'it', 'were', 'empty']
    """
    return _blanked(lowered).split() if lowered.isascii() else _TOKEN.findall(lowered)


def tokens_of_each(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in any case; as ``tokens`` one by one, but faster."""
    together = "\n".join(texts).lower()
    if not together.isascii() or together.count("\n") >= len(texts):
        return [tokens(text.lower()) for text in texts]
    return [line.split() for line in _blanked(together).split("\n")]


def _blanked(lowered: str) -> str:
    """An ASCII text with blanks for all but letters, digits, line ends and apostrophes within words.

    Five times as fast as the pattern, with the same words.
    """
    blanked = lowered.translate(_BLANK)
    if "'" not in blanked:
        return blanked
    return _OUTER_APOSTROPHE.sub(" ", blanked)


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence of a text, those without a word left out."""
    return [words for words in tokens_of_each(_SENTENCE_GAP.split(text)) if words]


def stems(words: Iterable[str]) -> set[str]:
    """The stems of lower-cased words."""
    return set(map(stem, words))


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A crude stem: words that differ in a plural, verb, adverb or -y ending share it. Not for reading.

    >>> [stem(word) for word in ("berries", "berry", "running", "glasses", "sandy", "strings", "men")]
    ['ber', 'ber', 'run', 'glas', 'sand', 'string', 'man']
    """
    word = word.removesuffix("'s").removesuffix("’s")
    word = _SAME.get(word, word)
    word = _SAME.get(singular := _singular(word), singular)
    for ending in ("ing", "ed", "ly"):
        if _may_lose(word, ending):
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] in "ey":
        word = word[:-1]
    if len(word) > 3 and word[-1] == "i":  # carried, happily
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _may_lose(word: str, ending: str) -> bool:
    """Whether at least three letters with a vowel are left: ``string`` keeps its ending."""
    left = word[: -len(ending)]
    return word.endswith(ending) and len(left) >= 3 and not _VOWELS.isdisjoint(left)


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "ches", "shes", "zzes")) else word[:-1]


# What may be said of any picture: words of inference and of its parts. They ground nothing and need no ground.
GENERAL = frozenset(
    stems(
        word_set(
            """
        likely probably possibly perhaps maybe suggest indicate imply show mean appear seem look possible
        probable evidence clue sign hint reason cause result therefore thus hence conclude conclusion means
        expect explain effect due allow help prevent support need want use make do come go get fall lie wear
        become remain visible clearly together time one photo photograph picture image view scene part side
        front back top bottom left right middle centre center foreground background colour shape size
        material kind type sort number thing object item area place position someone somebody person people
        none true person's
        """
        )
    )
)

# Colours and small numbers: one that the scene holds somewhere does not ground the noun that it stands with.
ATTRIBUTES = frozenset(
    stems(
        word_set(
            """
        red orange yellow green blue purple pink brown black white grey beige turquoise gold silver two
        three four five six seven eight nine ten eleven twelve single first second third
        """
        )
    )
)

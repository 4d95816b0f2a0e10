"""Words as the checks see them: tokens, sentences, crude stems, and the word lists that several checks share."""

import re
from collections.abc import Iterable
from functools import lru_cache

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_GAP = re.compile(r"[.!?][\"')\]”’»]*\s+")

# English words that carry grammar: 35 to 50 % of English prose, under 15 % of text in other languages.
FUNCTION_WORDS = frozenset(
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
    """.split()
)

# One word on the left stands for all on the right: irregular forms, and different words for the same thing.
_SAME = {
    variant: head
    for line in """
    man: men guy | woman: women lady | child: children kid | foot: feet | tooth: teeth | mouse: mice
    goose: geese | leaf: leaves | wolf: wolves | knife: knives | shelf: shelves | loaf: loaves | calf: calves
    scarf: scarves | hoof: hooves | half: halves | wood: wooden | fish: fisherman fishermen fishing | sea: ocean
    stand: stood | sit: sat seated | run: ran running | hold: held | wear: wore worn dressed | lie: lay lain lying
    lean: leant | rise: rose risen | fall: fell fallen | see: saw seen | take: took taken | give: gave given
    go: went gone goes | come: came | make: made | break: broke broken | drive: drove driven | ride: rode ridden
    write: wrote written | eat: ate eaten | drink: drank drunk | sleep: slept | keep: kept | leave: left
    carry: carries carried | throw: threw thrown | catch: caught | build: built | bring: brought | blow: blew blown
    grow: grew grown | fly: flew flown | swim: swam | hang: hung | wind: wound | tie: tied tying | feed: fed
    lead: led | shine: shone | hide: hid hidden | shake: shook shaken | freeze: froze frozen | bend: bent
    tear: tore torn | sew: sewn | metre: meter | colour: color | cosy: cozy | bike: bicycle bicycles bikes
    plane: airplane airplanes aircraft | dog: puppy puppies | cat: kitten kittens | doughnut: donut donuts
    motorcycle: motorbike motorbikes | sofa: couch couches | car: automobile automobiles | photo: photograph
    cactus: cacti | bride: brides | tv: television televisions | phone: smartphone smartphones cellphone
    """.replace("\n", "|").split("|")
    if line.strip()
    for head, variants in [line.strip().split(":")]
    for variant in variants.split()
}


def tokens(text: str) -> list[str]:
    """Return the lower-cased words of a text, without the marks between them; ``snow-covered`` is two.

    >>> tokens("The potter's 'snow-covered' yard isn't empty.")
    ['the', "potter's", 'snow', 'covered', 'yard', "isn't", 'empty']
    """
    return _TOKEN.findall(text.lower())


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence, without sentences that have none."""
    return [words for sentence in _SENTENCE_GAP.split(text) if (words := tokens(sentence))]


def stems(words: Iterable[str]) -> set[str]:
    """Return the stems of lower-cased words."""
    return set(map(stem, words))


def content(words: Iterable[str]) -> set[str]:
    """Return the stems of the words that say something about one scene in particular."""
    return stems(set(words) - FUNCTION_WORDS) - GENERAL


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return a crude stem: words that differ in a plural, verb, adverb or -y ending share it. Not for reading.

    >>> [stem(word) for word in ("berries", "berry", "running", "glasses", "sandy", "strings", "men")]
    ['ber', 'ber', 'run', 'glas', 'sand', 'string', 'man']
    """
    word = word.removesuffix("'s").removesuffix("’s")
    word = _SAME.get(word, word)
    word = _SAME.get(singular := _singular(word), singular)
    for ending in ("ing", "ed", "ly"):
        left = word.removesuffix(ending)
        if left != word and len(left) >= 3 and re.search("[aeiouy]", left):  # "string" keeps its ending
            word = left
            break
    for ending in ("e", "y", "i"):  # carrie, sand-y, happi
        if len(word) > 3:
            word = word.removesuffix(ending)
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "ches", "shes", "zzes")) else word[:-1]


# Words that fit any picture: inference, and the parts and framing of pictures. They neither ground nor need ground.
GENERAL = frozenset(
    map(
        stem,
        """
    likely probably possibly perhaps maybe suggest indicate imply show mean appear seem look possible probable
    evidence clue sign hint reason cause result therefore thus hence conclude conclusion means expect explain effect
    due allow help prevent support need want use make do come go get fall lie wear become remain visible clearly time
    photo photograph picture image view scene part side front back top bottom left right middle centre center
    foreground background colour shape size material kind type sort breed number thing object item area place position
    someone somebody person people none true happen close closeup shot illustration screenshot portrait drawing
    painting vector stock group bunch couple pair variety set lot collection row series various good style
    """.split(),
    )
)

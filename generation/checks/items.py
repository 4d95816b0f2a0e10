"""Which items of an instruction answer are sound: questions that a look at the scene answers."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from .facts import COLOURS, NUMBERS, disagrees, measures, values
from .text import has_bad_characters, has_markup, is_finished, is_foreign, loops
from .words import FUNCTION_WORDS, content, sentences, stem, stems, tokens

Item = dict[str, Any]  # {"Question": ..., "Answer": ...}, and "Options" in multiple choice

LETTERS = ("A", "B", "C", "D")
ITEM_CODES = (
    *(
        "schema",
        "not_four_options",
        "answer_not_an_option",
        "empty",
        "bad_characters",
        "markup",
        "not_english",
        "leak",
    ),
    *("not_a_question", "duplicate_question", "contradiction", "repeats_prompt", "options_not_distinct"),
    *("refers_to_options", "no_answer", "first_person", "copied", "loop", "unfinished", "too_short", "given_away"),
    *("invented_measurement", "ungrounded"),
)
ANSWER_CODES = ("cut_off", "not_json", *ITEM_CODES, "too_few_items")

# An item with so many content words, of which the caption holds hardly any, is about another scene.
_MIN_GROUNDED, _MIN_CONTENT = 0.05, 6
_MAX_CHARACTERS = 200_000  # an answer of 1,024 tokens has under 10,000
_MIN_REASONING = 10  # words of a reasoned answer
_LENGTH_RATIO, _LONGER_BY = 1.8, 12  # a right option so much longer than all others, in characters, gives itself away
_COPIED_WORDS = 5  # a sentence of so many words is not hit upon by chance

# Talk about the text behind the scene: words that need no reference, and words that a scene with writing may have.
_SOURCE = r"(?:caption|description|passage|paragraph|sentence|excerpt|narrative|text|prompt|account|article|story)s?"
_LEAK = re.compile(
    rf"\b(?:according to|based on|as \w+ in|given in|inferred from|(?:described|mentioned|stated|said|specified) (?:in|by)|"
    rf"(?:subject|topic|theme|content|point|writer|author) of) (?:the|this) (?:\w+ )?{_SOURCE}\b(?! (?:on|of) the)|"
    rf"\b(?:the|this) (?:given |above )?{_SOURCE} (?:says? that|states?|mentions?|describes?|tells? us|suggests?|implies|"
    r"imply|indicates?|provides?|does not|doesn't)\b|"
    r"\b(?:mentioned|unmentioned|stated|unstated|specified|unspecified)\b|\bas (?:described|said|written|told|noted)\b|"
    r"\b(?:this|the given|the above|the provided) (?:caption|description|text|passage|paragraph|excerpt|sentence)s?\b|"
    r"\b(?:given|provided|available) (?:information|context|details|text|description|prompt|statement)\b|"
    r"\b(?:information|context|details) (?:\w+ )?(?:given|provided|available)\b|\bis said (?:about|of|to)\b|"
    r"\bthe (?:author|narrator|writer) (?:\w+s|describe|say|mention|use|think)\b|\btext alone\b|"
    r"\bthe described (?:scene|image|picture)\b"
)
_WRITTEN = re.compile(
    r"\b(?:captions?|captioned|descriptions?|passages?|paragraphs?|sentences?|excerpts?|narrat\w+|texts?|textual|"
    r"summary|phrases?)\b"
)
# With writing in the scene a question may ask about it.
_WRITING = stems(
    "text letter lettering word sign label newspaper page book poster print read write inscription".split()
) | (stems("screen caption board headline banner plaque screenshot comic terminal menu ticket map chart logo".split()))
_REFERS = re.compile(
    r"^\(?[A-D][.):]\s|\b[A-D],? (?:and|or|&) [A-D]\b|\boptions? [A-D]\b|"
    r"(?i:\b(?:all|none|both|neither|either|any|each) (?:of )?(?:the |these |those )?"
    r"(?:above|below|options|answers|choices)\b|^(?:all|none|any|some) of (?:these|those)\W*$)",
    re.MULTILINE,
)
_NO_ANSWER = re.compile(
    r"\b(?:cannot|can't|can not|could not|impossible to) (?:be )?(?:determined?|told|said|known|answered?|tell|say|know)\b|"
    r"^(?:it is |it's )?(?:unknown|unclear|not (?:clear|known|given|provided|shown|specified))\W*$"
)
_FIRST_PERSON = re.compile(
    r"\b(?:i|i'm|i’m|i'd|i’d|i've|i’ve|my|me)\b|^(?:sure|certainly|of course|great|well|okay|let's|let’s|here is|"
    r"here's|good question)\b[ ,!]|\byou(?:r|'re|’re)?\b"
)
_WH_WORDS = frozenset("what which who whose whom where when why how".split())
_SAYS_NOTHING = frozenset(
    "a an the is are was were be it its that this these those they he she there do does of".split()
)
_DANGLING = frozenset("the a an is are was were and or but because which that to with for of".split())

# Question types in the order in which they are looked for.
_TYPES = {
    "hypothesis": r"\bif\b|\bwould\b|\bwithout\b",
    "before_after": r"\bnext\b|\bbefore\b|\bafter(?:wards)?\b|\bhappened\b|\bwill\b|\bgoing to\b|\bled to\b|\bhappen\b",
    "reason": r"\bwhy\b|\breasons?\b|\bcaused?s?\b|\bwhat (?:makes|made)\b|\bcome from\b",
    "purpose": r"\bused? (?:for|of)\b|\bpurpose\b|\bmeant\b|\bserves?\b|^what (?:is|are) .* for\b|\bfunction\b",
    "conclusion": r"\bconclu|\binfer|\bruled out\b|\bsigns\b|\bsuggests?\b|\bindicates?\b|\bshows?\b|\bevidence\b|"
    r"\bhow can\b|\btell(?:s)?\b|\b(?:likely|probably)\b|\bdeduc|\bdepend",
    "comparison": r"\bdiffer|\bmore\b.*\bor\b|\bfewer\b|\bcompared?\b|\bin common\b|\bresemble|\balike\b|\bthan\b|\bsimilar|\bboth\b|\bshare\b",
    "count": r"\bhow many\b|\bhow much\b|\bnumber of\b",
    "lettering": r"\bwritten\b|\bprinted\b|\bread\b|\bletter|\bwords?\b|\btext\b|\bsay\b",
    "position": r"\bwhere\b|\bwhich side\b|\bin relation to\b|\bplaced\b|\blocated\b|^what (?:is|are|stands?|lies?) "
    r"(?:in front|behind|next|under|above|on|near|between|in)\b",
    "action": r"\bdoing\b|\bdo(?:es)? .* do\b",
    "attribute": r"\bcolou?rs?\b|\bshaped?\b|\bmaterials?\b|\bmade (?:of|from)\b|\blooks? like\b|\bpattern\b|\btexture\b|"
    r"\bsize\b",
    "person": r"\bwho\b|\bwhose\b|\bwhom\b|\bwear",
    "yes_no": r"^(?:is|are|was|were|do|does|did|has|have|had|can|could)\b",
    "object": r"\bwhat\b|\bwhich\b",
}
QUESTION_TYPES = (*_TYPES, "other")


@dataclass(frozen=True)
class Source:
    """A caption, read once for all its items."""

    caption: str
    words: list[str] = field(init=False)
    stems: set[str] = field(init=False)
    sentences: set[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tokens(self.caption))
        object.__setattr__(self, "stems", stems(self.words))
        object.__setattr__(self, "sentences", set(map(tuple, sentences(self.caption))))


class Shown:
    """What a prompt shows a model: its question types, and the items of its examples. No answer may repeat it."""

    def __init__(self, types: Iterable[str] = (), items: Iterable[Item] = ()) -> None:
        self.types = [f" {' '.join(tokens(name))} " for name in types]
        self.items = {(_key(item["Question"]), _right(item).lower()) for item in items}

    def repeated_by(self, item: Item) -> bool:
        """Return whether an item is one of the examples, a whole question type, or a list of types."""
        question = f" {' '.join(tokens(item['Question']))} "
        held = [name for name in self.types if name in question]
        long = [name for name in held if len(name.split()) >= 5]
        return bool(long) or len(held) >= 3 or (_key(item["Question"]), _right(item).lower()) in self.items


def sound_items(
    text: str, finish_reason: str, caption: str, task: str, shown: Shown, kept: Collection[Item] = ()
) -> tuple[list[Item], list[str]]:
    """Return the sound items of an answer, and the reason codes of the others (``ANSWER_CODES``).

    Args:
        text: what the model wrote.
        finish_reason: ``length`` means that the answer is cut off.
        caption: what the answer must follow from.
        task: ``multiple_choice`` items have options.
        shown: what the prompt shows.
        kept: items of earlier answers about the same caption; their questions may not be asked again.
    """
    if finish_reason == "length":
        return [], ["cut_off"]
    answer = read_object(text)
    if answer is None:
        return [], ["not_json"]
    items = answer.get("QA Pairs")
    if not isinstance(items, list) or len(answer) != 1:
        return [], ["schema"]
    source, asked, dropped = Source(caption), {_key(item["Question"]): item for item in kept}, []
    sound: list[Item] = []
    for item in items:
        if fault := item_fault(item, task, source, shown):
            dropped.append(fault)
        elif (earlier := asked.get(_key(item["Question"]))) is None:
            asked[_key(item["Question"])] = item
            sound.append(item)
        elif stems(tokens(_right(item))) == stems(tokens(_right(earlier))) or earlier not in sound:
            dropped.append("duplicate_question")
        else:  # two answers to one question: the one whose words the caption holds is more likely right
            dropped.append("contradiction")
            if groundedness("", _right(item), source) > groundedness("", _right(earlier), source):
                sound[sound.index(earlier)] = item
    return sound, dropped


def read_object(text: str) -> dict[str, Any] | None:
    """Return the one JSON object in a text, or None; prose or a Markdown fence around it is skipped."""
    start = text.find("{")
    if start < 0 or len(text) > _MAX_CHARACTERS or text.lstrip().startswith("["):
        return None
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "{" not in text[end:] else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def item_fault(item: Any, task: str, source: Source, shown: Shown = Shown()) -> str | None:
    """Return the first of ``ITEM_CODES`` for which one item is not sound by itself, or None."""
    if fault := _shape_fault(item, task):
        return fault
    options, question, right = item.get("Options", {}), item["Question"], _right(item)
    texts = [question, *(options.values() or [right])]
    together = "\n".join(texts)
    if not all(map(tokens, texts)):
        return "empty"
    if has_bad_characters(together):
        return "bad_characters"
    if has_markup(together, in_json=True):
        return "markup"
    if any(is_foreign(text, source.caption) for text in texts):
        return "not_english"
    if leaks(together, source):
        return "leak"
    if len(tokens(question)) < 3 or not question.rstrip(" \t\n\"'”’)").endswith("?"):
        return "not_a_question"
    if shown.repeated_by(item):
        return "repeats_prompt"
    fault = _options_fault(options, right) if options else _open_fault(right, task, source)
    if fault:
        return fault
    if _is_copy(question, source) or (not options and _is_copy(right, source)):
        return "copied"
    if _in_question(question, right, list(options.values())):
        return "given_away"
    if not measures(together) <= measures(source.caption):
        return "invented_measurement"
    if _contradicts(question, right, source):
        return "contradiction"
    enough = len(content(tokens(question) + tokens(right))) >= _MIN_CONTENT
    return "ungrounded" if enough and groundedness(question, right, source) < _MIN_GROUNDED else None


def leaks(text: str, source: Source) -> bool:
    """Return whether a text speaks of the caption instead of the scene."""
    lowered = text.lower()
    if _LEAK.search(lowered):
        return True
    named = {found for word in _WRITTEN.findall(lowered) if (found := stem(word)) not in source.stems}
    return bool(named) and _WRITING.isdisjoint(source.stems)


def groundedness(question: str, answer: str, source: Source) -> float:
    """Return the share of the content words of question and answer that the caption holds, by their stems.

    1.0 if there is no content word, as in *Is it? Yes.* It sees invented things, not wrong answers: an option out of
    the same scene is as grounded as the right one.
    """
    wanted = content(tokens(question) + tokens(answer))
    return len(wanted & source.stems) / len(wanted) if wanted else 1.0


def question_type(question: str) -> str:
    """Return which of ``QUESTION_TYPES`` a question is, by its words.

    >>> [question_type(q) for q in ("How many dogs are there?", "Why is it wet?", "What is the rod used for?")]
    ['count', 'reason', 'purpose']
    """
    lowered = question.lower()
    return next((name for name, pattern in _TYPES.items() if re.search(pattern, lowered)), "other")


def _right(item: Item) -> str:
    """Return the text of the right answer."""
    return str(item.get("Options", {}).get(item["Answer"], item["Answer"]))


def _key(question: str) -> tuple[str, ...]:
    """Return what two questions share that ask the same: their words without articles and forms of *be*."""
    return tuple(word for word in tokens(question) if word not in _SAYS_NOTHING)


def _shape_fault(item: Any, task: str) -> str | None:
    keys = {"Question", "Answer"} | ({"Options"} if task == "multiple_choice" else set())
    if not isinstance(item, dict) or item.keys() != keys or not isinstance(item["Question"], str):
        return "schema"
    if task != "multiple_choice":
        return None if isinstance(item["Answer"], str) else "schema"
    options = item["Options"]
    if not isinstance(options, dict) or not all(isinstance(option, str) for option in options.values()):
        return "schema"
    if options.keys() != set(LETTERS):
        return "not_four_options"
    return None if item["Answer"] in LETTERS else "answer_not_an_option"


def _options_fault(options: dict[str, str], right: str) -> str | None:
    said = [tuple(stem(word) for word in tokens(option) if word not in _SAYS_NOTHING) for option in options.values()]
    if len(set(said)) < len(said):
        return "options_not_distinct"
    if any(map(_REFERS.search, options.values())):
        return "refers_to_options"
    if _NO_ANSWER.search(right.lower()):
        return "no_answer"
    wrong = max(len(option) for option in options.values() if option != right)
    return "given_away" if len(right) > _LENGTH_RATIO * wrong and len(right) >= wrong + _LONGER_BY else None


def _open_fault(answer: str, task: str, source: Source) -> str | None:
    words = tokens(answer)
    if _NO_ANSWER.search(answer.lower()):
        return "no_answer"
    if _FIRST_PERSON.search(re.sub(r"[\"“].*?[\"”]", "", answer.lower())):
        return "first_person"
    if loops(answer):
        return "loop"
    if task == "complex_reasoning":
        if len(words) < _MIN_REASONING:
            return "too_short"
        return None if is_finished(answer) else "unfinished"
    return "unfinished" if words[-1] in _DANGLING and not is_finished(answer) else None


def _is_copy(text: str, source: Source) -> bool:
    """Return whether a text consists of whole sentences of the caption."""
    parts = set(map(tuple, sentences(text)))
    return parts <= source.sentences and any(len(part) >= _COPIED_WORDS for part in parts)


def _in_question(question: str, right: str, options: list[str]) -> bool:
    """Return whether the question holds its answer: all its words, or the whole sentence after yes or no."""
    asked, answer = tokens(question), tokens(right)
    if _WH_WORDS.isdisjoint(asked):
        rest = [word for word in answer if word not in FUNCTION_WORDS]
        return (
            answer[0] in ("yes", "no") and len(answer) > 6 and len(rest) >= 3 and set(rest[:]) <= set(asked) | {"yes"}
        )
    if "or" in asked:  # "Is it red or blue?" rightly holds it
        return False
    known = stems(asked) | _SAYS_NOTHING
    return [text for text in options or [right] if known.issuperset(map(stem, tokens(text)))] == [right]


def _contradicts(question: str, right: str, source: Source) -> bool:
    """Return whether a short answer names a colour or count that the caption lacks where it gives another one."""
    lowered = question.lower()
    if match := re.search(r"\bhow many ([^?]*)", lowered):
        kinds, nouns = NUMBERS, stems(tokens(match[1])[:2])
    elif re.search(r"\b(?:what|which) colou?r\b", lowered):
        kinds, nouns = COLOURS, content(set(tokens(question)) - COLOURS.keys())
    else:
        return False
    said = values(tokens(right), kinds)
    absent = bool(said) and not said & values(source.words, kinds)
    return absent and disagrees(said, nouns, source.words, kinds)

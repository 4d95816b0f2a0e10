"""Which items of an instruction answer are sound: questions that a look at the scene answers."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..files import unique_keys
from . import text as rules
from .text import ENGLISH, FUNCTION_WORDS, content, form_faults, pattern, sentences, stem, stems, tokens, values

QA = dict[str, Any]  # {"Question": ..., "Answer": ...}, and "Options" in multiple choice

LETTERS = ("A", "B", "C", "D")

# An item with so many content words, of which the caption holds hardly any, is about another scene.
_MIN_GROUNDED, _MIN_CONTENT = 0.05, 6
_MAX_CHARACTERS = 200_000  # an answer of 1,024 tokens has under 10,000
_MAX_TEXT = 2_000  # characters of a question, option or answer; reasoned answers have about 400
_MIN_REASONING = 10  # words of a reasoned answer
_LENGTH_RATIO, _LONGER_BY = 1.8, 12  # a right option so much longer than all others, in characters, gives itself away
_COPIED_WORDS = 5  # a sentence of so many words is not hit upon by chance

_LEAK, _WRITTEN, _WRITTEN_TOO, _NO_ANSWER, _FIRST_PERSON, _REFERS, _BY_LETTER = map(
    pattern, ("leak", "written", "written_too", "no_answer", "first_person", "refers_to_options", "by_letter")
)
_WRITING = stems(ENGLISH["writing"].split())
_QUOTE, _SCRAPS = re.compile(r"[\"“].*?[\"”]"), re.compile(r"[{}\[\]]")  # scraps of JSON in a text
_WH_WORDS, _SAYS_NOTHING, _DANGLING = (frozenset(ENGLISH[name].split()) for name in ("wh", "says_nothing", "dangling"))
_TYPES = {name: re.compile(found) for name, found in (ENGLISH["question_types"] | {"other": ""}).items()}
QUESTION_TYPES = tuple(_TYPES)


class Scene:
    """A caption, read once for all its items."""

    def __init__(self, caption: str) -> None:
        self.caption, self.words, self.sentences = caption, tokens(caption), set(sentences(caption))
        self.stems = stems(self.words)


class Shown:
    """What a prompt shows a model: its question types, and the items of its examples. No answer may repeat it."""

    def __init__(self, types: Iterable[str] = (), items: Iterable[QA] = ()) -> None:
        self.types = [f" {' '.join(tokens(name))} " for name in types]
        self.items = {(_key(item["Question"]), right_answer(item).lower()) for item in items}


_NOTHING = Shown()


def sound_items(
    text: str, finish_reason: str, caption: str, task: str, shown: Shown = _NOTHING, kept: Collection[QA] = ()
) -> tuple[list[QA], list[str]]:
    """Return the sound items of an answer ``text`` about a caption, and the reason codes of the others. The questions
    of ``kept``, items of earlier answers about the same caption, may not be asked again."""
    if finish_reason == "length":
        return [], ["cut_off"]
    if (answer := read_object(text)) is None:
        return [], ["not_json"]
    if list(answer) != ["QA Pairs"] or not isinstance(answer["QA Pairs"], list):
        return [], ["schema"]
    scene, dropped = Scene(caption), list[str]()
    asked, new = {_key(item["Question"]) for item in kept}, dict[tuple[str, ...], QA]()
    for item in answer["QA Pairs"]:
        if fault := item_fault(item, task, scene, shown):
            dropped.append(fault)
            continue
        key = _key(item["Question"])
        if key in asked or key in new:
            dropped.append("duplicate_question")
        if key not in asked:  # of two answers, the one whose words the caption holds is more likely right
            new[key] = max(new.setdefault(key, item), item, key=lambda one: groundedness("", right_answer(one), scene))
    return list(new.values()), dropped


def read_object(text: str) -> dict[str, Any] | None:
    """Return the one JSON object in a text, or None; prose or a Markdown fence around it is skipped."""
    start, end = text.find("{"), text.rfind("}") + 1
    with suppress(ValueError, RecursionError):
        if 0 <= start < end and len(text) <= _MAX_CHARACTERS and not text.lstrip().startswith("["):
            return dict(json.loads(text[start:end], object_pairs_hook=unique_keys))
    return None


def item_fault(item: Any, task: str, scene: Scene, shown: Shown = _NOTHING) -> str | None:
    """Return the first reason code for which one item is not sound by itself, or None."""
    match item:
        case {"Question": str(), "Answer": str(), **rest} if task != "multiple_choice" and not rest:
            pass
        case {"Question": str(), "Options": dict(options), "Answer": answer, **rest} if task == "multiple_choice":
            if rest or not all(isinstance(option, str) for option in options.values()):
                return "schema"
            if options.keys() != set(LETTERS):
                return "not_four_options"
            if answer not in LETTERS:
                return "answer_not_an_option"
        case _:
            return "schema"
    return next((code for code, found in _faults(item, task, scene, shown) if found), None)


def _faults(item: QA, task: str, scene: Scene, shown: Shown) -> Iterator[tuple[str, object]]:
    question, right, options = item["Question"], right_answer(item), list(item.get("Options", {}).values())
    texts = [question, *(options or [right])]
    together, asked, said = "\n".join(texts), tokens(question), tokens(right)
    yield "too_long", max(map(len, texts)) > _MAX_TEXT  # before any pattern sees it
    yield "empty", not all(map(tokens, texts))
    yield "markup", _SCRAPS.search(together)
    for text in texts:
        yield from form_faults(text, scene.caption)
    yield "leak", leaks(together, scene)
    yield "not_a_question", len(asked) < 3 or not question.rstrip(" \t\n\"'”’)").endswith("?")
    held = [name for name in shown.types if name in f" {' '.join(asked)} "]
    whole = len(held) >= 3 or any(len(name.split()) >= 5 for name in held)  # a list of question types, or a long one
    yield "repeats_prompt", whole or (_key(question), right.lower()) in shown.items
    yield "no_answer", (options or len(said) < 12) and _NO_ANSWER.search(right.lower())
    yield "loop", any(map(rules.loops, options or [right]))
    if options:
        keys = {option: _key(option) for option in options}
        same = len({tuple(map(stem, words)) for words in keys.values()}) < len(options)
        # who wears a lilac cardigan also wears a cardigan
        wider = any(set(words) < set(keys[right]) and words[-1:] == keys[right][-1:] for words in keys.values())
        yield "options_not_distinct", same or (wider and FUNCTION_WORDS.isdisjoint(keys[right]))
        yield "refers_to_options", any(_REFERS.search(one.lower()) or _BY_LETTER.search(one) for one in options)
        wrong = max(len(option) for option in options if option != right)
        yield "given_away", len(right) > _LENGTH_RATIO * wrong and len(right) >= wrong + _LONGER_BY
    else:
        reasoned = task == "complex_reasoning"
        yield "first_person", _FIRST_PERSON.search(_QUOTE.sub("", right.lower()))
        yield "too_short", (reasoned and len(said) < _MIN_REASONING) or {"yes", "no"} >= set(said)
        yield "unfinished", not rules.is_finished(right) and (reasoned or said[-1] in _DANGLING)
    # What follows is what is wrong with an item as seen from its caption.
    parts = [set(sentences(text)) for text in ([question] if options else texts)]
    copied = [part for part in parts if part <= scene.sentences]
    yield "copied", any(len(sentence) >= _COPIED_WORDS for part in copied for sentence in part)
    yield "given_away", _is_given(question, right, options)
    yield "invented_measurement", not rules.measures(together) <= rules.measures(scene.caption)
    quotes = rules.lettering(right) if question_type(question) == "lettering" else []
    yield "invented_lettering", any(not quoted <= set(scene.words) for quoted in quotes)
    yield "contradiction", _contradicts(question, right, scene)
    rich = len(content(asked + said)) >= _MIN_CONTENT
    yield "ungrounded", rich and groundedness(question, right, scene) < _MIN_GROUNDED


def leaks(text: str, scene: Scene) -> bool:
    """Return whether a text speaks of the caption instead of the scene."""
    lowered = text.lower()
    written, written_too = (stems(found.findall(lowered)) - scene.stems for found in (_WRITTEN, _WRITTEN_TOO))
    return bool(_LEAK.search(lowered) or written or (written_too and _WRITING.isdisjoint(scene.stems)))


def groundedness(question: str, answer: str, scene: Scene) -> float:
    """Return the share of the content words of question and answer that the caption holds; 1.0 if they have none."""
    wanted = content(tokens(question) + tokens(answer))
    return len(wanted & scene.stems) / len(wanted) if wanted else 1.0


def question_type(question: str) -> str:
    """Return which of ``QUESTION_TYPES`` a question is, by its words.

    >>> [question_type(q) for q in ("How many dogs are there?", "Why is it wet?", "What is the rod used for?")]
    ['count', 'reason', 'purpose']
    """
    return next(str(name) for name, found in _TYPES.items() if found.search(question.lower()))


def right_answer(item: QA) -> str:
    """Return the text of the right answer: of multiple choice, the right option."""
    return str(item.get("Options", {}).get(item["Answer"], item["Answer"]))


def _key(question: str) -> tuple[str, ...]:
    """Return what two questions share that ask the same: their words without articles and forms of *be*."""
    return tuple(word for word in tokens(question) if word not in _SAYS_NOTHING)


def _is_given(question: str, right: str, options: list[str]) -> bool:
    """Return whether the question holds its answer: all its words, or the whole sentence after yes or no."""
    asked, answer = tokens(question), tokens(right)
    if _WH_WORDS.isdisjoint(asked):
        rest = stems(set(answer[1:]) - FUNCTION_WORDS)
        return answer[0] in ("yes", "no") and len(rest) >= 3 and rest <= stems(asked)
    if "or" in asked:  # "Is it red or blue?" rightly holds it
        return False
    known = stems(asked) | _SAYS_NOTHING
    return [text for text in options or [right] if known.issuperset(map(stem, tokens(text)))] == [right]


def _contradicts(question: str, right: str, scene: Scene) -> bool:
    """Return whether an answer names a colour or count where the caption gives another one."""
    if match := re.search(r"\bhow many ([^?]*)", question.lower()):
        kinds, nouns = rules.NUMBERS, stems(tokens(match[1])[:2])
    elif re.search(r"\b(?:what|which) colou?r\b", question.lower()):
        kinds, nouns = rules.COLOURS, content(set(tokens(question)) - rules.COLOURS.keys())
    else:
        return False
    said = values(tokens(right), kinds)
    return bool(said) and rules.disagrees(said, nouns, scene.words, kinds)

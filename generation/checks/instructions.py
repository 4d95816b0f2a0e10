"""Which items of an instruction answer are sound: questions that a look at the scene answers, and nothing else."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, filterfalse
from types import MappingProxyType
from typing import Any

from .captions import loops
from .characters import has_bad_characters, has_markup
from .reader import READER_CODES, read_json
from .sources import Source, invents_measurement, leaks, opening, read_source
from .words import ATTRIBUTES, FUNCTION_WORDS, GENERAL, sentences, stem, stems, tokens, tokens_of_each, word_set

Item = dict[str, Any]
Key = tuple[str, ...]  # of a question

LETTERS = ("A", "B", "C", "D")
_LETTERS = frozenset(LETTERS)
_OPEN_KEYS = frozenset(("Question", "Answer"))
_CHOICE_KEYS = _OPEN_KEYS | {"Options"}

# Of single items, in the order in which they are looked for.
ITEM_CODES = (
    *("schema", "not_four_options", "answer_not_an_option", "empty", "bad_characters", "markup", "leak"),
    *("not_a_question", "duplicate_question", "options_not_distinct", "refers_to_options", "copied", "loop"),
    *("given_away", "invented_measurement", "ungrounded"),
)
ANSWER_CODES = ("cut_off", *READER_CODES, *ITEM_CODES, "too_few_items")

# Options are shuffled, so none may speak of the others or bear a letter of its own. One of these words is in every
# text that the pattern finds, so that few texts are searched.
_REFERRING = word_set("above below options b c d")
_REFERS = re.compile(
    r"^\(?[A-D][.):]\s|\b[A-D],? (?:and|or|&) [A-D]\b|"
    r"(?i:\b(?:all|none|both|neither|either|any) (?:of )?(?:the )?(?:above|below|(?:these )?options)\b)",
    re.MULTILINE,
)
_COPIED_WORDS = 5  # a sentence of so many words is not hit upon by chance
_LONGER_BY = 12  # characters; below that a longer option does not catch the eye
# What an answer may hold without saying anything that its question does not.
_SAYS_NOTHING = word_set(
    """
    a an the is are was were be it its that this these those they he she there do does of
    """
)
_WH_WORDS = word_set("what which who whose whom where when why how")


@dataclass(frozen=True, kw_only=True)
class InstructionLimits:
    """From where on an answer or an item is refused.

    Args:
        min_items: sound items that an answer must have.
        max_items: sound items that are kept; the surplus is cut.
        min_grounded: of the answer's content words that must come from the caption or the question. Answers about
            another scene hold none to a tenth; worded-anew ones half or more, reasoned ones over 0.36.
        max_length_ratio: how many times as long as the longest wrong option the right one may be.
    """

    min_items: int = 6
    max_items: int = 8
    min_grounded: float = 0.5
    max_length_ratio: float = 1.8


LIMITS: Mapping[str, InstructionLimits] = MappingProxyType(
    {
        "multiple_choice": InstructionLimits(min_grounded=0.6),  # its options name what is there
        "question_answering": InstructionLimits(),
        "complex_reasoning": InstructionLimits(min_items=3, min_grounded=0.35),  # reasoning adds words of its own
    }
)


def instruction_items(
    text: str, finish_reason: str, caption: str, task: str, limits: InstructionLimits
) -> tuple[list[Item], str | None]:
    """The sound items of an answer, and the reason code for which the answer as a whole fails, or None.

    A bad item is dropped, and so are sound ones beyond ``max_items``; the answer fails when fewer than ``min_items``
    are left, by the commonest code of its dropped items.

    Args:
        text: what the model wrote.
        finish_reason: of the server; ``length`` means that the answer is cut off.
        caption: what the answer must follow from.
        task: ``multiple_choice`` or another; its items alone have options.
        limits: see there.

    Codes: those of ``READER_CODES`` and ``ITEM_CODES``, ``cut_off``, ``too_few_items`` (and none dropped).
    """
    items: list[Item] = []
    return items, add_items(items, text, finish_reason, caption, task, limits)


def add_items(
    kept: list[Item], text: str, finish_reason: str, caption: str, task: str, limits: InstructionLimits
) -> str | None:
    """Adds the sound items of an answer to those of earlier answers about the same caption.

    Args:
        kept: sound items, no two with the same question; at most ``max_items`` afterwards.
        text, finish_reason, caption, task, limits: see ``instruction_items``.

    Returns:
        None if there are enough items now; else the reason code of the answer.
    """
    if finish_reason == "length":
        return "cut_off"
    answer, fault = read_json(text)
    if answer is None or not _is_answer(answer):
        return fault or "schema"
    source = read_source(caption)
    faults = Counter[str]()
    asked = {question_key(item["Question"]) for item in kept}
    for item in answer["QA Pairs"]:
        found, key = _fault_and_key(item, task, source, asked, limits)
        if found:
            faults[found] += 1
        elif len(kept) < limits.max_items:
            kept.append(item)
            asked.add(key)
    if len(kept) >= limits.min_items:
        return None
    return faults.most_common(1)[0][0] if faults else "too_few_items"


def schema_fault(answer: Any, task: str) -> str | None:
    """The reason code for which ``answer`` does not match the schema of the task's prompt, item counts aside, or None.

    It says what jsonschema says, some forty times faster. Codes: ``schema``, ``not_four_options``,
    ``answer_not_an_option``.
    """
    if not _is_answer(answer):
        return "schema"
    return next((fault for item in answer["QA Pairs"] if (fault := _shape_fault(item, task))), None)


def item_fault(item: Any, task: str, source: Source, asked: set[Key], limits: InstructionLimits) -> str | None:
    """The first of ``ITEM_CODES`` for which one item is bad, or None.

    Codes: ``schema``; ``not_four_options``; ``answer_not_an_option``; ``empty``; ``bad_characters``; ``markup``;
    ``leak`` (of the words behind the scene); ``not_a_question``; ``duplicate_question``; ``options_not_distinct``;
    ``refers_to_options`` (as *all of the above*, which shuffling would make wrong); ``copied`` (whole sentences of the
    caption); ``loop`` (an answer that repeats itself); ``given_away`` (by its length, or by the question);
    ``invented_measurement``; ``ungrounded``.

    Args:
        item: any JSON value.
        task: see ``instruction_items``.
        source: of the caption.
        asked: the keys of the conversation's questions so far (see ``question_key``).
        limits: see there.
    """
    return _fault_and_key(item, task, source, asked, limits)[0]


def _fault_and_key(
    item: Any, task: str, source: Source, asked: set[Key], limits: InstructionLimits
) -> tuple[str | None, Key]:
    """As ``item_fault``, with the key of the item's question."""
    if fault := _shape_fault(item, task):
        return fault, ()
    options = item["Options"] if task == "multiple_choice" else {}
    question, right = item["Question"], options.get(item["Answer"], item["Answer"])
    texts = (question, *options.values()) if options else (question, right)
    asked_words, *said = tokens_of_each(texts)
    answer_words = said[list(options).index(item["Answer"])] if options else said[0]
    words = set(chain(asked_words, *said))
    together, key = "\n".join(texts), _key(asked_words)
    return (
        _text_fault(together, asked_words, said)
        or ("leak" if leaks(together, words, source) else None)
        or ("not_a_question" if not _is_question(question, asked_words) else None)
        or ("duplicate_question" if key in asked else None)
        or ("options_not_distinct" if len(set(map(tuple, said))) < len(said) else None)
        or ("refers_to_options" if options and _refers(together, words) else None)
        or ("copied" if _is_copied(question, asked_words, source) else None)
        or ("copied" if not options and _is_copied(right, answer_words, source) else None)
        or ("loop" if not options and loops(right, answer_words) else None)
        or ("given_away" if options and _stands_out(right, options, limits.max_length_ratio) else None)
        or ("given_away" if _is_in_question(answer_words, said, asked_words) else None)
        or ("invented_measurement" if invents_measurement(together, words, source) else None)
        or ("ungrounded" if _grounded(asked_words, answer_words, source) < limits.min_grounded else None)
    ), key


def groundedness(question: str, answer: str, source: Source) -> float:
    """The share of an answer's content words that the caption or the question holds too, by their stems.

    Words of grammar and of inference count neither way, nor does a colour or number that is held: it would ground
    *a red kite* in any scene with something red. An answer of nothing else, such as ``Yes``, scores 1.0.
    """
    return _grounded(tokens(question.lower()), tokens(answer.lower()), source)


def question_key(question: str) -> Key:
    """What two questions share that ask the same: their words in order, without articles and forms of *be*."""
    return _key(tokens(question.lower()))


def _key(asked_words: list[str]) -> Key:
    return tuple(filterfalse(_SAYS_NOTHING.__contains__, asked_words))


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and list(answer) == ["QA Pairs"] and isinstance(answer["QA Pairs"], list)


def _shape_fault(item: Any, task: str) -> str | None:
    keys = _CHOICE_KEYS if task == "multiple_choice" else _OPEN_KEYS
    if not isinstance(item, dict) or item.keys() != keys or not isinstance(item["Question"], str):
        return "schema"
    if task != "multiple_choice":
        return None if isinstance(item["Answer"], str) else "schema"
    options = item["Options"]
    if not isinstance(options, dict) or not set(map(type, options.values())) <= {str}:
        return "schema"
    if options.keys() != _LETTERS:
        return "not_four_options"
    return None if item["Answer"] in LETTERS else "answer_not_an_option"


def _text_fault(together: str, asked_words: list[str], said: list[list[str]]) -> str | None:
    """Of the letters, before any word is understood."""
    if not asked_words or not all(said):
        return "empty"
    if has_bad_characters(together):
        return "bad_characters"
    return "markup" if has_markup(together, in_json=True) else None


def _is_question(question: str, asked_words: list[str]) -> bool:
    return len(asked_words) >= 3 and question.rstrip(" \t\n\"'”’)").endswith("?")


def _is_copied(text: str, words: list[str], source: Source) -> bool:
    """Whether it consists of whole sentences of the caption."""
    if opening(words) not in source.openings:
        return False
    parts = set(map(tuple, sentences(text)))
    return parts <= source.sentences and any(len(part) >= _COPIED_WORDS for part in parts)


def _refers(together: str, words: set[str]) -> bool:
    """Whether a question or option speaks of the options by their letters or their order."""
    return not words.isdisjoint(_REFERRING) and bool(_REFERS.search(together))


def _stands_out(right: str, options: dict[str, str], max_ratio: float) -> bool:
    """Whether the right option can be told by its length alone."""
    longest_wrong = max(len(option) for option in options.values() if option != right)
    return len(right) > max_ratio * longest_wrong and len(right) >= longest_wrong + _LONGER_BY


def _is_in_question(answer_words: list[str], said: list[list[str]], asked_words: list[str]) -> bool:
    """Whether the question itself holds the answer, and no other option.

    Not so for *is it red or blue?*, which rightly does.
    """
    if "or" in asked_words or _WH_WORDS.isdisjoint(asked_words):
        return False
    known = stems(asked_words) | _SAYS_NOTHING
    held = [words for words in said if known.issuperset(map(stem, words))]
    return held == [answer_words]


def _grounded(asked_words: list[str], answer_words: list[str], source: Source) -> float:
    content = stems(set(answer_words) - FUNCTION_WORDS) - GENERAL
    foreign = content - source.stems
    if foreign:
        foreign -= stems(asked_words)
    weighed = len(content - ATTRIBUTES | foreign)
    return 1 - len(foreign) / weighed if weighed else 1.0

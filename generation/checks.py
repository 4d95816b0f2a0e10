"""What makes an answer acceptable: pure functions that give a reason code, or the accepted content.

A caption is one finished paragraph of plain prose; a list of instruction items is valid JSON of its schema, whose
items ask different questions, have four distinct options (multiple choice), and never speak of a caption or a text.
"""

import json
import re
from collections import Counter
from typing import Any

from jsonschema import Draft202012Validator

_SENTENCE_END = re.compile(r"[.!?][\"')\]’”»]*(?=\s|$)")
_ENDED = re.compile(_SENTENCE_END.pattern + r"\s*$")
# Of lower-cased text; every caption passes through here, and alternatives that begin with literals are fast.
_META = re.compile(
    r"\b(?:as an ai|language model|i cannot|i can['’]t|i['’]m sorry|i am sorry|here is (?:a|the|your)|"
    r"here['’]s (?:a|the|your)|t(?:he|his) (?:caption|sentence|prompt|description)|"
    r"your (?:caption|sentence|prompt|description))\b"
)
_OBLIGING = re.compile(r"\s*(?:sure|certainly|of course)[,!.]")
_MARKUP = re.compile(r"^\s*([#*\-•]|\d+[.)])\s|\*\*|</?[a-z]+>|```|<\|", re.IGNORECASE | re.MULTILINE)
_JSON_SCRAPS = re.compile(r"[{}\[\]]")  # small models write them into the strings of their JSON
_LEAK = re.compile(r"\b(caption|captions|text|texts|description|descriptions|passage|paragraph)\b", re.IGNORECASE)
_BAD_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")
_LOOP_WORDS = 6  # a run of this many words, seen three times, is a loop

Item = dict[str, Any]


def finish(text: str, finish_reason: str) -> str:
    """``text`` without blanks at its ends; when it was cut for length, up to its last finished sentence."""
    text = text.strip()
    if finish_reason == "length":
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else ""
    return text


def caption_fault(text: str, min_words: int, max_words: int) -> str | None:
    """The reason code for which ``text`` is no dense caption, or None.

    Codes: ``empty``, ``bad_characters``, ``several_paragraphs``, ``markup``, ``meta_talk``, ``too_short``,
    ``too_long``, ``unfinished``, ``loop``.
    """
    words, lowered = text.split(), text.lower()
    tests = {
        "empty": not words,
        "bad_characters": bool(_BAD_CHARACTERS.search(text)),
        "several_paragraphs": "\n" in text.strip(),
        "markup": bool(_MARKUP.search(text)),
        "meta_talk": bool(_META.search(lowered) or _OBLIGING.match(lowered)),
        "too_short": len(words) < min_words,
        "too_long": len(words) > max_words,
        "unfinished": not _ENDED.search(text),
        "loop": _loops(words),
    }
    return next((reason for reason, fails in tests.items() if fails), None)


def instruction_items(
    text: str, finish_reason: str, validator: Draft202012Validator, min_items: int
) -> tuple[list[Item], str | None]:
    """The good items of an answer, and the reason code for which the answer as a whole fails, or None.

    A bad item is dropped; the answer fails when fewer than ``min_items`` are left. Codes: ``cut_off``, ``not_json``,
    ``schema``, or the commonest code of the dropped items: ``empty``, ``bad_characters``, ``markup``,
    ``not_a_question``, ``duplicate_question``, ``options_not_distinct``, ``leak``.
    """
    if finish_reason == "length":
        return [], "cut_off"
    try:
        answer = json.loads(text)
        valid = validator.is_valid(answer)
    except (ValueError, RecursionError):
        return [], "not_json"
    if not valid:
        return [], "schema"
    items, faults = [], Counter[str]()
    asked: set[str] = set()
    for item in answer["QA Pairs"]:
        fault = item_fault(item, asked)
        asked.add(_normal(item["Question"]))
        if fault:
            faults[fault] += 1
        else:
            items.append(item)
    return items, faults.most_common(1)[0][0] if len(items) < min_items else None


def item_fault(item: Item, asked: set[str]) -> str | None:
    """The reason code for which one item is bad, or None; ``asked`` holds the conversation's questions so far."""
    options = list(item.get("Options", {}).values())
    texts = [item["Question"], item["Answer"], *options]
    if not all(map(_normal, texts)):
        return "empty"
    if any(map(_BAD_CHARACTERS.search, texts)):
        return "bad_characters"
    if any(map(_JSON_SCRAPS.search, texts)):
        return "markup"
    if not item["Question"].rstrip().endswith("?") or len(_normal(item["Question"]).split()) < 3:
        return "not_a_question"
    if _normal(item["Question"]) in asked:
        return "duplicate_question"
    if len({_normal(option) for option in options}) < len(options):
        return "options_not_distinct"
    return "leak" if any(map(_LEAK.search, texts)) else None


def _normal(text: str) -> str:
    """Lower case, letters and digits only: what makes two texts the same to a reader."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _loops(words: list[str]) -> bool:
    runs = list(zip(*(words[i:] for i in range(_LOOP_WORDS)), strict=False))
    return len(set(runs)) <= len(runs) - 2 and max(Counter(runs).values()) >= 3

"""What the fake model says: plausible, within the grammar, and a function of the prompt alone."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_tgi_answers import Grammar, answer, content_groups, decode, render_chat, tokenize

WORDS = "a brown dog text caption of the sandy beach, imagery red-ball text-based"
LINES = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS.split(" "))).map(" ".join))
FORBIDDEN = re.compile(r"caption|description|image|\btexts?\b|as an ai", re.IGNORECASE)


def prompt(line: str, prefill: str | None = None) -> str:
    prefilled = [] if prefill is None else [{"role": "assistant", "content": prefill}]
    return render_chat([{"role": "user", "content": f"Write.\n{line}"}, *prefilled])


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_paragraphs_are_plausible(line: str) -> None:
    text = answer(prompt(line))
    assert 70 <= len(text.split()) <= 110 and text.endswith(".") and text[0].isupper()
    assert not FORBIDDEN.search(text) and "\n" not in text and "  " not in text
    assert all(group in text for group in content_groups(line or "Write."))
    assert answer(prompt(line)) == text


def test_content_words() -> None:
    assert content_groups("Write this.\nA text-based caption of the brown dog's ball, on 3 beaches\n") == [
        "brown dog's ball",
        "beaches",
    ]


@pytest.mark.parametrize("prefill", ["The scene shows", "The scene shows ", "A dog sleeps.", ""])
def test_prefill_is_continued(prefill: str) -> None:
    text = answer(prompt("A brown dog on a beach", prefill))
    assert 70 <= len(text.split()) <= 110 and text.endswith(".") and not text.startswith(prefill or "\0")
    assert text.startswith(" ") == (bool(prefill) and not prefill.endswith(" "))
    assert text.strip()[0].islower() == prefill.startswith("The scene")


def test_template_cuts_at_the_assistant() -> None:
    assert prompt("Dog") == "<|im_start|>user\nWrite.\nDog<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("Dog", "It is") == prompt("Dog") + "It is"


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [s for item in (value.values() if isinstance(value, dict) else value) for s in strings(item)]
    return [value] if isinstance(value, str) else []


TEXT = {"type": "string"}
SCHEMAS: list[dict[str, Any]] = [
    {"properties": {"Questions": {"type": "array", "items": TEXT, "minItems": 12, "maxItems": 12}}},
    {
        "properties": {
            "rounds": {"type": "array", "maxItems": 4, "items": {"properties": {"question": TEXT, "b": TEXT}}}
        }
    },
    {
        "properties": {"a": TEXT, "b": {"$ref": "#/$defs/b"}, "c": {"anyOf": [TEXT, {"type": "null"}]}},
        "$defs": {"b": TEXT},
    },
    {"properties": {"n": {"type": "integer", "minimum": 3, "maximum": 4}, "x": {"type": "number"}, "k": {"const": 5}}},
    {"properties": {"f": {"type": "boolean"}, "e": {"enum": ["u", 2, None]}, "o": {"type": "object"}}},
    {"properties": {"s": {"type": "string", "minLength": 90}, "t": {"type": "string", "maxLength": 9}}},
    {
        "properties": {
            "p": {"type": "array", "prefixItems": [TEXT, {"type": "integer"}]},
            "z": {"type": "array", "maxItems": 0},
        }
    },
]


@settings(max_examples=60, deadline=None)
@given(LINES, st.sampled_from(SCHEMAS))
def test_instances_follow_the_schema(line: str, schema: dict[str, Any]) -> None:
    raw = answer(prompt(line), Grammar("json", schema))
    value = json.loads(raw)
    jsonschema.validate(value, schema)
    assert list(value) == list(schema["properties"]) and raw == answer(prompt(line), Grammar("json", schema))
    free = [s for s in strings(value) if s != "u"]
    assert len(set(free)) == len(free) and not any(FORBIDDEN.search(s) for s in free)
    questions = value.get("Questions", []) + [r["question"] for r in value.get("rounds", [])]
    assert all(re.fullmatch(r"[A-Z][a-z]+ .+\?", question) for question in questions)
    assert len({question.split()[0] for question in questions}) > 2 or len(questions) < 12


def test_regex_alternation() -> None:
    assert {answer(prompt(str(n)), Grammar("regex", "(yes|no)")) for n in range(20)} == {"yes", "no"}


@given(st.text())
def test_tokens_give_the_text_back(text: str) -> None:
    assert "".join(tokenize(text)) == text


@pytest.mark.parametrize(
    ("allowed", "stop", "text", "count", "reason"),
    [
        (9, (), "One two three.", 5, "eos_token"),
        (5, (), "One two three.", 5, "length"),  # the EOS falls on the last allowed token
        (2, (), "One two", 2, "length"),
        (9, ("two",), "One two", 2, "stop_sequence"),  # the stop string stays in
        (2, ("two",), "One two", 2, "length"),
    ],
)
def test_decode(allowed: int, stop: tuple[str, ...], text: str, count: int, reason: str) -> None:
    generation = decode("One two three.", allowed, stop)
    assert (generation.text, len(generation.tokens), generation.finish_reason) == (text, count, reason)

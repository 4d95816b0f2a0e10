"""The schema linter, against outlines_core 0.1.14: TGI 3.3's own converter from schema to regular expression."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outlines_core.fsm.json_schema import build_regex_from_schema

from generation.prompts import PROMPTS, load_prompt
from generation.tgi.grammar import schema_faults

STRING = {"type": "string"}


def of(part: Any) -> dict[str, Any]:
    """An object with the one property ``x``."""
    return {"type": "object", "properties": {"x": part}, "required": ["x"]}


def compiles(schema: Any) -> bool:
    try:
        re.compile(build_regex_from_schema(json.dumps(schema)))
    except Exception:
        return False
    return True


WITH_ITEMS = [p.stem for p in sorted(PROMPTS.glob("*.yaml")) if "QA Pairs" in str(load_prompt(p.stem).schema)]


def test_the_judges_schema_is_fine_and_compiles() -> None:
    schema = load_prompt("judge").schema
    assert schema_faults(schema) == []
    regex = re.compile(build_regex_from_schema(json.dumps(schema)))
    assert regex.fullmatch('{"Follows": "yes"}')
    assert not regex.fullmatch('{"Follows": "maybe"}')


@pytest.mark.parametrize("name", WITH_ITEMS)
def test_the_bundled_schemas_are_fine_and_compile(name: str) -> None:
    schema = load_prompt(name).answer_schema(6, 8)
    assert schema_faults(schema) == []
    regex = re.compile(build_regex_from_schema(json.dumps(schema)))
    items = [{"Question": f"What is {n}?", "Answer": "A"} for n in range(6)]
    if "multiple_choice" in name:
        items = [{"Question": q["Question"], "Options": dict.fromkeys("ABCD", "x"), "Answer": "A"} for q in items]
    assert regex.fullmatch(json.dumps({"QA Pairs": items}))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": STRING}, "top level"),
        ([], "top level"),
        ({"type": "object"}, "needs properties"),
        (of({}), "$.x: an empty sub-schema"),
        (of({"description": "no type"}), "$.x: an empty sub-schema"),
        (of({"type": ["string", "null"]}), "use anyOf"),
        (of({"type": "date"}), "type must be one of"),
        (of({"$ref": "#"}), "crashes TGI's router"),
        (of({"allOf": [STRING, STRING]}), "no JSON"),
        (of({"not": STRING}), "$.x: not"),
        (of({"type": "string", "minLength": 3}), "minutes to compile"),
        (of({"type": "string", "maxLength": 3}), "minutes to compile"),
        (of({"type": "string", "pattern": "a+"}), "pasted"),
        (of({"type": "string", "format": "email"}), "$.x: format"),
        (of({"type": "integer", "minimum": 3}), "TGI ignores it"),
        (of({"type": "array"}), "needs items"),
        (of({"type": "array", "items": STRING, "maxItems": 11}), "maxItems 11"),
        (of({"type": "array", "items": STRING, "minItems": 3, "maxItems": 2}), "maxItems 2"),
        (of({"type": "array", "items": STRING, "minItems": 50}), "minItems 50"),
        (of({"type": "array", "items": STRING, "minItems": "two"}), "whole numbers"),
        (of({"type": "array", "items": STRING, "uniqueItems": True}), "uniqueItems"),
        (of({"enum": []}), "at least one value"),
        (of({"enum": [{"a": 1}]}), "only scalars"),
        (of({"const": [1]}), "only scalars"),
        (of({"anyOf": []}), "at least one schema"),
        (of({"anyOf": [STRING, {}]}), "$.x.anyOf[1]"),
        (of({"type": "object", "properties": {"y": STRING}, "required": []}), "$.x: required lacks y"),
        (of(of(STRING) | {"additionalProperties": True}), "additionalProperties must be false"),
        (of(STRING) | {"required": ["x", "z"]}, "required names z"),
        (of(STRING) | {"required": None}, "must be a list"),
        (of({"type": "array", "items": {"type": "array", "items": {}}}), "$.x[*][*]"),
    ],
)
def test_what_tgi_cannot_take_is_named_with_its_path(schema: Any, words: str) -> None:
    assert any(words in fault for fault in schema_faults(schema)), schema_faults(schema)


@pytest.mark.parametrize(
    "part",
    [
        STRING | {"description": "a word"},
        {"type": "integer"},
        {"enum": ["a", "b"]},
        {"const": 3},
        {"anyOf": [STRING, {"type": "null"}]},
        {"type": "array", "items": STRING, "minItems": 2, "maxItems": 2},
        of(of({"type": "boolean"})),
    ],
)
def test_what_tgi_compiles_is_let_through(part: Any) -> None:
    assert schema_faults(of(part)) == []
    assert compiles(of(part))


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab"\\{}', max_size=3)
keywords = st.sampled_from(
    ["minLength", "maxLength", "pattern", "format", "minimum", "not", "$ref", "title", "items", "enum", "const"]
)
leaves = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "x"])}
    ),
    st.dictionaries(keywords, scalars, max_size=2),
    st.fixed_dictionaries({"enum": st.lists(scalars, max_size=3)}),
)


def nested(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from("abc"), parts, max_size=3)
    objects = st.builds(
        lambda props, required: {"type": "object", "properties": props, "required": required},
        properties,
        st.lists(st.sampled_from("abc"), unique=True, max_size=3),
    )
    bounds = st.dictionaries(st.sampled_from(["minItems", "maxItems"]), st.integers(0, 4), max_size=2)
    arrays = st.builds(lambda items, limits: {"type": "array", "items": items, **limits}, parts, bounds)
    return objects | arrays | st.builds(lambda options: {"anyOf": options}, st.lists(parts, max_size=2))


@settings(max_examples=400, deadline=None)
@given(st.recursive(leaves, nested, max_leaves=6))
def test_whatever_passes_the_linter_compiles_in_tgi(part: Any) -> None:
    if not schema_faults(of(part)):
        assert compiles(of(part))


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=8)
)
def test_any_json_is_judged(value: Any) -> None:
    assert isinstance(schema_faults(value), list)
    assert isinstance(schema_faults(of(value)), list)

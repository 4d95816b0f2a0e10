"""The schemas of all prompts against outlines_core 0.1.14, TGI 3.3's own converter of schemas to regular expressions.

Other keywords are ignored by TGI, take minutes to compile or end its router (tgi-facts.md, section 1.5).
"""

import json
import re
from typing import Any

import pytest
from outlines_core.fsm.json_schema import build_regex_from_schema

from generation.prompts import PROMPTS, load_prompt

KNOWN = {"type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "enum"}


def check(schema: dict[str, Any]) -> None:
    assert schema.keys() <= KNOWN
    if "properties" in schema:
        assert schema["required"] == list(schema["properties"]) and schema["additionalProperties"] is False
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        check(inner)
    assert "enum" in schema or schema["type"] in ("object", "array", "string")
    assert schema.get("maxItems", 0) <= 10


@pytest.mark.parametrize("name", [path.stem for path in PROMPTS.glob("*.yaml") if load_prompt(path.stem).json_schema])
def test_tgi_compiles_the_schema_and_its_grammar_takes_good_answers_only(name: str) -> None:
    prompt = load_prompt(name)
    judges = "Right" in str(prompt.json_schema)
    schema: Any = prompt.json_schema if judges else prompt.answer_schema(6, 8)
    check(schema)
    grammar = re.compile(build_regex_from_schema(json.dumps(schema)))
    options: Any = {"Options": dict.fromkeys("ABCD", "x")} if "Options" in str(schema) else {}
    items = [{"Question": "What is it?", **options, "Answer": "A" if options else 'A "dog".'}] * 6
    good, bad = ({"Right": [x]} for x in "AE") if judges else ({"QA Pairs": items[:n]} for n in (6, 5))
    assert grammar.fullmatch(json.dumps(good)) and not grammar.fullmatch(json.dumps(bad))

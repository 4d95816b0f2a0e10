"""What the fake TGI server takes and refuses: the tables of the facts, row by row, over raw HTTP.

Sections are those of the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.fake_tgi import FakeTGI
from tests.test_fake_tgi import BILINGUAL, CHAT, NAMED, OPENAI_FORM, PROMPT, SCHEMA, ask

DESERIALIZE = "Failed to deserialize the JSON body into the target type: "


@pytest.fixture(scope="module")
def tgi() -> Iterator[FakeTGI]:
    with FakeTGI() as server:
        yield server


# ---- section 1.5: every row of the table, and what the schema step refuses


def with_property(schema: Any) -> dict[str, Any]:
    return {"type": "json", "value": {"type": "object", "properties": {"a": schema}}}


GRAMMAR_ROWS: list[tuple[Any, str | None]] = [
    ({"type": "json", "value": SCHEMA}, None),
    ({"type": "json", "value": json.dumps(SCHEMA)}, None),
    ({"type": "json_object", "value": SCHEMA}, None),
    ({"type": "regex", "value": "(yes|no)"}, None),
    ({"type": "json_schema", "value": {**NAMED, "strict": True}}, None),
    ({"type": "json_schema", "value": {"schema": SCHEMA}}, None),
    (BILINGUAL, None),
    (OPENAI_FORM, "missing field `value`"),
    ({"type": "json_object"}, "missing field `value`"),
    ({"type": "text"}, "unknown variant `text`"),
    ({}, "missing field `type`"),
    ({"type": "json_schema", "value": SCHEMA}, "missing field `schema`"),
    ("json", 'invalid type: string "json"'),
    ({"type": "json", "value": {"type": "object"}}, "grammar is not valid: Grammar must have a 'properties' field"),
    ({"type": "json", "value": {"type": "objekt", "properties": {}}}, "grammar is not valid: 'objekt'"),
    ({"type": "json", "value": '{"properties": '}, "grammar is not valid: "),
    ({"type": "json", "value": 5}, "grammar is not supported"),
    (with_property({"type": ["string", "null"]}), "cannot compile regex from schema: "),
    (with_property({"type": "string", "format": "email"}), "cannot compile regex from schema: "),
    (with_property({"not": {"type": "string"}}), "cannot compile regex from schema: "),
    (with_property({"description": "only"}), "cannot compile regex from schema: "),
    (with_property({"enum": ["a", ["b"]]}), "cannot compile regex from schema: "),
    (with_property({"type": "object", "additionalProperties": False}), "cannot compile regex from schema: "),
    (with_property({"$ref": "http://example.com/s.json"}), "cannot compile regex from schema: "),
    (with_property({"$ref": "#/properties/a"}), "cannot compile regex from schema: "),
]


@pytest.mark.parametrize(("grammar", "problem"), GRAMMAR_ROWS)
@pytest.mark.parametrize("route", ["chat", "native"])
def test_response_format_table(tgi: FakeTGI, grammar: Any, problem: str | None, route: str) -> None:
    parameters = {"max_new_tokens": 900, "grammar": grammar}
    path, body = "/v1/chat/completions", CHAT | {"max_tokens": 900, "response_format": grammar}
    if route == "native":
        path, body = "/generate", {"inputs": PROMPT, "parameters": parameters}
    status, headers, raw = ask(tgi, path, body)
    if problem is None:
        answered = json.loads(raw)
        text = answered["generated_text"] if route == "native" else answered["choices"][0]["message"]["content"]
        if grammar["type"] == "regex":
            assert text in ("yes", "no")
        else:
            jsonschema.validate(json.loads(text), SCHEMA)
        return
    assert status == 422
    if problem.startswith(("grammar", "cannot")):
        out = json.loads(raw)
        assert out["error_type"] == "validation" and out["error"].startswith(f"Input validation error: {problem}")
    else:
        where = "response_format" if route == "chat" else "parameters.grammar"
        assert headers["content-type"] == "text/plain; charset=utf-8" and problem in raw.decode()
        assert raw.decode().startswith(DESERIALIZE + where) and re.search(r" at line 1 column \d+$", raw.decode())


def test_grammar_and_tools_and_bad_regex(tgi: FakeTGI) -> None:
    status, _, raw = ask(tgi, "/v1/chat/completions", CHAT | {"response_format": BILINGUAL, "tools": []})
    assert (status, json.loads(raw)["error_type"]) == (422, "tool_error")
    status, _, raw = ask(tgi, "/v1/chat/completions", CHAT | {"response_format": {"type": "regex", "value": "[a-z]+"}})
    assert (status, json.loads(raw)["error_type"]) == (424, "generation")  # only the shard looks at a regex


# ---- sections 1.1, 1.2, 2.1: parameters; a row is an outcome and the settings that bring it about

TEXT, OK = "a serde error", "an answer"  # any other outcome is the start of a validation message
NATIVE_TABLE = {
    OK: """best_of=null temperature=null repetition_penalty=null frequency_penalty=null top_k=null top_p=null
        typical_p=null max_new_tokens=null return_full_text=null truncate=null seed=null top_n_tokens=null grammar=null
        adapter_id=null unknown=null top_p=0.999 frequency_penalty=-2 seed=0 seed=18446744073709551615
        max_new_tokens=100000 stop=["a","b","c","d"] best_of=2&do_sample=true top_n_tokens=5&details=true""",
    TEXT: """do_sample=null stop=null watermark=null details=null decoder_input_details=null stop="end" temperature="1"
        max_new_tokens=-1 seed=-1 seed=1.5 truncate=-1 do_sample=1 grammar="x" stop=[1]""",
    "`temperature` must be strictly positive": "temperature=0 temperature=-1",
    "`top_p` must be > 0.0 and < 1.0": "top_p=1.0 top_p=0",
    "`typical_p` must be > 0.0 and < 1.0": "typical_p=1.0",
    "`top_k` must be strictly positive": "top_k=-1 top_k=0",
    "`repetition_penalty` must be strictly positive": "repetition_penalty=0",
    "`frequency_penalty` must be": "frequency_penalty=2.1",
    "`max_new_tokens` must be strictly positive": "max_new_tokens=0",
    "`stop` supports up to 4 stop sequences. Given: 5": 'stop=["a","b","c","d","e"]',
    "`truncate` must be strictly positive and less than 3072. Given: 0": "truncate=0",
    "`top_n_tokens` must be >= 0 and <= 5. Given: 6": "top_n_tokens=6",
    "`best_of` must be > 0 and <= 2. Given: 3": "best_of=3&do_sample=true",
    "you must use sampling when `best_of` is > 1": "best_of=2",
    "`seed` must not be set when `best_of` > 1": "best_of=2&do_sample=true&seed=1",
}
CHAT_TABLE = {
    OK: """model=null max_tokens=null temperature=null top_p=null frequency_penalty=null presence_penalty=null
        seed=null stop=null logit_bias=null n=null user=null logprobs=null top_logprobs=null tools=null
        response_format=null temperature=0 presence_penalty=0 logit_bias=[0.5] n=3 top_k="any" min_p={} messages=[]
        logprobs=true messages=[{"role":"user","content":[{"type":"text","text":"dog"}]}]""",
    TEXT: """stream=null stream_options=null stop="end" logit_bias={"5":1} messages=null temperature="0" seed=-1
        messages=[{"role":"user","content":null}] messages=[{"content":"dog"}] messages=["dog"]
        messages=[{"role":"user"}] messages=[{"role":"user","content":[{"type":"text"}]}] max_completion_tokens=5""",
    "`temperature` must be strictly positive": "temperature=-1",
    "`top_p` must be > 0.0 and < 1.0": "top_p=1.0",
    "`repetition_penalty` must be strictly positive": "presence_penalty=-2",
    "`top_n_tokens` must be >= 0 and <= 5. Given: 6": "top_logprobs=6",
}


def rows(route: str, table: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(route, settings, outcome) for outcome, cell in table.items() for settings in cell.split()]


@pytest.mark.parametrize(
    ("route", "settings", "outcome"), rows("/generate", NATIVE_TABLE) + rows("/v1/chat/completions", CHAT_TABLE)
)
def test_parameter_tables(tgi: FakeTGI, route: str, settings: str, outcome: str) -> None:
    pairs = (setting.split("=", 1) for setting in settings.split("&"))
    changes = {name: json.loads(value) for name, value in pairs}
    body = CHAT | changes if "chat" in route else {"inputs": PROMPT, "parameters": changes}
    status, headers, raw = ask(tgi, route, body)
    if outcome == OK:
        assert status == 200, raw
    elif outcome == TEXT:
        assert (status, headers["content-type"]) == (422, "text/plain; charset=utf-8")
        assert raw.decode().startswith(DESERIALIZE)
        assert ("duplicate field `max_tokens`" in raw.decode()) == ("max_completion_tokens" in changes)
    else:
        assert (status, headers["content-type"]) == (422, "application/json")
        assert json.loads(raw).keys() == {"error", "error_type"} and json.loads(raw)["error_type"] == "validation"
        assert json.loads(raw)["error"].startswith(f"Input validation error: {outcome}")


def test_input_limits(tgi: FakeTGI) -> None:
    def outcome(inputs: str, **parameters: Any) -> Any:
        status, _, raw = ask(tgi, "/generate", {"inputs": inputs, "parameters": parameters})
        return json.loads(raw)["error"].removeprefix("Input validation error: ") if status == 422 else status

    assert outcome("") == "`inputs` cannot be empty"
    assert outcome("a" + " a" * 3071, max_new_tokens=9) == 200
    assert outcome("a" + " a" * 3072, max_new_tokens=9) == "`inputs` must have less than 3072 tokens. Given: 3073"
    assert outcome("a" + " a" * 3072, max_new_tokens=9, truncate=50) == 200
    limit = "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 3073 `inputs` tokens and 1024 `max_new_tokens`"
    assert outcome("a" + " a" * 3072, max_new_tokens=5000) == limit


# ---- section 2.2: extractors


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "text"),
    [
        ("/generate", b'{"inputs": ', {}, 400, "Failed to parse the request body as JSON: "),
        ("/generate", b'{"inputs": NaN}', {}, 400, "Failed to parse the request body as JSON: "),
        ("/generate", b"", {}, 400, "Failed to parse the request body as JSON: "),
        ("/generate", {}, {}, 422, DESERIALIZE + "missing field `inputs` at line 1 column 2"),
        ("/generate", {"inputs": "a", "parameters": None}, {}, 422, DESERIALIZE + "parameters: invalid type: null"),
        ("/generate", {"inputs": 5}, {}, 422, DESERIALIZE + "inputs: invalid type: integer `5`, expected a string"),
        (
            "/",
            {"inputs": "a", "stream": None},
            {},
            422,
            DESERIALIZE + "stream: invalid type: null, expected a boolean",
        ),
        ("/v1/chat/completions", [], {}, 422, DESERIALIZE + "invalid type: sequence"),
        (
            "/generate",
            {},
            {"content_type": "text/plain"},
            415,
            "Expected request with `Content-Type: application/json`",
        ),
        ("/generate", {"inputs": "a"}, {"content_type": "application/x+json"}, 200, '{"generated_text":'),
        (
            "/tokenize",
            b'"%s"' % (b"a" * 1_999_999),
            {},
            413,
            "Failed to buffer the request body: length limit exceeded",
        ),
        ("/tokenize", b'"%s"' % (b"a" * 1_999_998), {}, 422, DESERIALIZE),  # exactly at the limit
        ("/nowhere", None, {}, 404, ""),
        ("/v1/completions", {}, {}, 422, DESERIALIZE + "missing field `prompt` at line 1 column 2"),
        ("/generate", None, {}, 405, ""),
        ("/health", {}, {}, 405, ""),
    ],
)
def test_extractor_table(tgi: FakeTGI, path: str, body: Any, headers: dict[str, str], status: int, text: str) -> None:
    found, answered, raw = ask(tgi, path, body, **headers)
    assert found == status and raw.decode().startswith(text) and bool(raw) == bool(text)
    assert not raw or found == 200 or answered["content-type"] == "text/plain; charset=utf-8"

"""The protocols as bytes: bodies that no value breaks, answers and errors of every server read for what they are."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.errors import BatchFailed, Overloaded, RequestRefused, ServerError, StopRun, Transient
from generation.prompts import load_prompt
from generation.tgi.protocol import Question, Request, chat_frame, failure, loads, native_frame, read_chat, read_native

PROMPT = load_prompt("multiple_choice")
QUESTION = Question(PROMPT, PROMPT.answer_schema(6, 8))
VALUES = {"kinds": "where something is", "min_items": "6", "max_items": "8"}
hostile = st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(
    [
        "{caption} {kinds}",
        "UNICORN-FIELD-caption-UNICORN",
        '"UNICORN-SAMPLING-SEED-UNICORN"',
        '"}\n\\',
        "\x00\u2028 🦄",
    ]
)


@given(hostile, st.integers(1, 2**31 - 1))
def test_a_body_holds_every_value_verbatim_and_nothing_else_changes(caption: str, seed: int) -> None:
    request = Request(QUESTION, VALUES | {"caption": caption}, seed)
    body = json.loads(chat_frame(QUESTION, None).fill(request))
    assert body["seed"] == seed
    assert body["messages"][:-1] == PROMPT.messages(request.values)[:-1]
    assert f"-----\n{caption}\n-----" in body["messages"][-1]["content"]
    assert (
        body["response_format"]["value"]["schema"]
        == QUESTION.schema
        == body["response_format"]["json_schema"]["schema"]
    )
    native = json.loads(native_frame(QUESTION, "<|user|>UNICORN-FIELD-caption-UNICORN<|end|>").fill(request))
    assert native["inputs"] == f"<|user|>{caption}<|end|>"
    assert native["parameters"]["seed"] == seed
    assert native["parameters"]["grammar"] == {"type": "json", "value": QUESTION.schema}


def test_tgi_is_sent_no_field_that_it_misreads_and_others_are_told_what_they_would_else_make_up() -> None:
    request = Request(QUESTION, VALUES | {"caption": "A dog."}, 1)
    tgi, foreign = (json.loads(chat_frame(QUESTION, model).fill(request)) for model in (None, "served"))
    traps = {"presence_penalty", "n", "logit_bias", "max_completion_tokens", "stream_options", "tools"}
    assert not traps & (tgi.keys() | foreign.keys())
    assert "model" not in tgi
    assert (foreign["model"], foreign["top_k"], foreign["min_p"], foreign["repetition_penalty"]) == (
        "served",
        -1,
        0.0,
        1.0,
    )
    assert tgi["stream"] is False


def tgi(error: str, error_type: str) -> bytes:
    return json.dumps({"error": error, "error_type": error_type}).encode()


def openai(message: str, error_type: str, code: int) -> bytes:
    return json.dumps({"error": {"message": message, "type": error_type, "code": code}}).encode()


FULL_QUEUE = b'{"object": "error", "message": "The request queue is full.", "type": "x", "code": 503}'
ERRORS: list[tuple[int, bytes, type[ServerError], str | None, str]] = [
    (422, tgi("Input validation error: x", "validation"), RequestRefused, "validation", "x"),
    (422, b"Failed to deserialize the JSON body: missing field", RequestRefused, None, "missing field"),
    (422, tgi("Template error: y", "template_error"), RequestRefused, "template_error", "y"),
    (424, tgi("Request failed during generation", "generation"), BatchFailed, "generation", "Request failed"),
    (429, tgi("Model is overloaded", "overloaded"), Overloaded, "overloaded", "overloaded"),
    (429, b"", Overloaded, None, "an empty body"),
    (500, tgi("Incomplete generation", "incomplete_generation"), Transient, "incomplete_generation", "Incomplete"),
    (502, b"<html>Bad Gateway</html>", Transient, None, "Bad Gateway"),
    (503, openai("Loading model", "unavailable_error", 503), Transient, "unavailable_error", "Loading"),
    (503, FULL_QUEUE, Overloaded, "x", "full"),
    (400, openai("too long", "BadRequestError", 400), RequestRefused, "BadRequestError", "too long"),
    (400, openai("n", "exceed_context_size_error", 400), RequestRefused, "exceed_context_size_error", "n"),
    (413, b"length limit exceeded", RequestRefused, None, "length limit"),
    (404, openai("no such model", "NotFoundError", 404), StopRun, "NotFoundError", "no such model"),
    (401, b"", StopRun, None, "TGI_API_KEY"),
    (422, b'{"detail": "Unexpected fields"}', RequestRefused, None, "Unexpected fields"),
    (500, b'{"error": "half \\ud800 pair"}', Transient, None, "half ? pair"),
    (500, b'["a list"]', Transient, None, "a list"),
]


@pytest.mark.parametrize(("status", "body", "kind", "error_type", "words"), ERRORS)
def test_every_error_is_classified_and_names_endpoint_status_type_and_message(
    status: int, body: bytes, kind: type[ServerError], error_type: str | None, words: str
) -> None:
    error = failure("POST http://host:1/generate", "http://host:1", status, body)
    assert type(error) is kind
    assert (error.status, error.error_type, error.endpoint) == (status, error_type, "http://host:1")
    assert f"POST http://host:1/generate: HTTP {status}" in str(error)
    assert words in str(error)
    str(error).encode()


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_body_breaks_the_reading_of_an_error(status: int, body: bytes) -> None:
    str(failure("GET /", "http://host", status, body)).encode()


def test_json_that_nests_too_deep_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        loads(b"[" * 100_000)


@pytest.mark.parametrize("reason", ["stop", "eos_token", "stop_sequence"])
def test_all_names_of_a_finished_answer_are_read_alike(reason: str) -> None:
    chat = {"choices": [{"message": {"content": "x"}, "finish_reason": reason}], "usage": None}
    assert read_chat(chat, {}).finish_reason == "stop"
    native = {"generated_text": "x", "details": {"finish_reason": reason, "generated_tokens": 3}}
    answer = read_native(native, {"x-prompt-tokens": "7", "x-generated-tokens": "3"})
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 7, 3)


COUNTED = {"x-generated-tokens": "2", "x-prompt-tokens": "5"}


@pytest.mark.parametrize(
    ("headers", "share", "agree"),
    [
        ({}, 0.0, True),
        (
            {"x-generated-tokens": "2", "x-prompt-tokens": "5", "x-total-time": "400", "x-queue-time": "100"},
            0.25,
            True,
        ),
        ({"x-generated-tokens": "2", "x-prompt-tokens": "5", "x-total-time": "0", "x-queue-time": "0"}, 0.0, True),
        ({"x-generated-tokens": "3", "x-prompt-tokens": "5"}, 0.0, False),
        ({"x-generated-tokens": "2", "x-prompt-tokens": "6"}, 0.0, False),
    ],
)
def test_queue_time_and_token_counts_are_taken_from_the_headers(
    headers: dict[str, str], share: float, agree: bool
) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": 2}
    answer = read_chat({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}, headers)
    assert (answer.queue_share, answer.tokens_agree) == (share, agree)

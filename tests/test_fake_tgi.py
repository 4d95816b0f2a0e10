"""The fake TGI server, proved with clients that are not ours, and with raw requests for routes, headers and faults.

Sections are those of the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub import errors as hub

from tests.fake_server import LocalServer
from tests.fake_tgi import FakeTGI, Fault
from tests.fake_tgi_answers import render_chat, tokenize

USER = {"role": "user", "content": "Write a detailed caption.\nA brown dog runs along a sandy beach with a red ball."}
CHAT: dict[str, Any] = {"messages": [{"role": "system", "content": "You see."}, USER], "max_tokens": 400}
PROMPT = render_chat(CHAT["messages"])
NATIVE: dict[str, Any] = {"inputs": PROMPT, "parameters": {"max_new_tokens": 400}}
TURN = {"type": "object", "properties": {name: {"type": "string"} for name in ("Question", "answer", "why")}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "turns": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"$ref": "#/$defs/turn"}},
        "letter": {"enum": ["A", "B", "C", "D"]},
    },
    "required": ["turns", "letter"],
    "additionalProperties": False,
    "$defs": {"turn": {**TURN, "required": list(TURN["properties"]), "additionalProperties": False}},
}
NAMED = {"name": "turns", "schema": SCHEMA}
BILINGUAL = {"type": "json_schema", "json_schema": {**NAMED, "strict": True}, "value": NAMED}
OPENAI_FORM = {"type": "json_schema", "json_schema": {**NAMED, "strict": True}}
DESERIALIZE = "Failed to deserialize the JSON body into the target type: "
GENERATION_ROUTES = ["/", "/generate", "/generate_stream", "/v1/chat/completions"]


@pytest.fixture(scope="module")
def tgi() -> Iterator[FakeTGI]:
    with FakeTGI() as server:
        yield server


def hf(server: FakeTGI) -> InferenceClient:
    return InferenceClient(base_url=server.url, api_key="x", timeout=10)


def oai(server: FakeTGI, key: str = "x") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=10)


@pytest.fixture
def hub_client(tgi: FakeTGI) -> Iterator[InferenceClient]:
    with hf(tgi) as client:
        yield client


@pytest.fixture
def openai_client(tgi: FakeTGI) -> Iterator[openai.OpenAI]:
    with oai(tgi) as client:
        yield client


def ask(server: LocalServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body; POST where there is a body, JSON unless it is bytes already."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(server.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail when it does not for long."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def chat_text(server: FakeTGI, **changes: Any) -> str:
    status, _, body = ask(server, "/v1/chat/completions", CHAT | changes)
    assert status == 200, body
    return str(json.loads(body)["choices"][0]["message"]["content"])


def events(body: bytes) -> list[Any]:
    """The payloads of a stream; each event is one `data: ` line and a blank one."""
    parts = body.decode().split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


# ---- huggingface_hub


def test_hub_text_generation_reads_the_details(hub_client: InferenceClient) -> None:
    out = hub_client.text_generation(PROMPT, details=True, max_new_tokens=400, do_sample=True, seed=7)
    assert out.generated_text.startswith(PROMPT)  # the compat route's default for return_full_text
    assert out.details is not None and out.details.finish_reason == "eos_token" and out.details.seed == 7
    assert out.details.generated_tokens == len(out.details.tokens) and out.details.prefill == []
    assert [t.special for t in out.details.tokens] == [False] * (len(out.details.tokens) - 1) + [True]
    assert "".join(t.text for t in out.details.tokens[:-1]) == out.generated_text.removeprefix(PROMPT)


def test_hub_text_generation_without_details_and_greedy_seed(tgi: FakeTGI, hub_client: InferenceClient) -> None:
    text = hub_client.text_generation(PROMPT, max_new_tokens=400, return_full_text=False)
    assert text == chat_text(tgi)
    greedy = hub_client.text_generation(PROMPT, details=True, max_new_tokens=400, seed=7)
    assert greedy.details is not None and greedy.details.seed is None


def test_hub_grammar(hub_client: InferenceClient) -> None:
    grammar: Any = {"type": "json", "value": SCHEMA}
    text = hub_client.text_generation(PROMPT, grammar=grammar, max_new_tokens=900, return_full_text=False)
    jsonschema.validate(json.loads(text), SCHEMA)


def test_hub_stream(hub_client: InferenceClient) -> None:
    whole = hub_client.text_generation(PROMPT, max_new_tokens=400, return_full_text=False)
    out = list(
        hub_client.text_generation(
            PROMPT, stream=True, details=True, max_new_tokens=400, return_full_text=False, seed=1
        )
    )
    assert [event.index for event in out] == list(range(1, len(out) + 1))
    assert "".join(event.token.text for event in out if not event.token.special) == whole
    assert [event.generated_text for event in out] == [None] * (len(out) - 1) + [whole]
    last = out[-1].details
    assert last is not None and last.finish_reason == "eos_token" and last.input_length == len(tokenize(PROMPT))
    assert last.generated_tokens == len(out)


def test_hub_chat(hub_client: InferenceClient) -> None:
    out = hub_client.chat_completion(CHAT["messages"], max_tokens=400)
    assert out.choices[0].finish_reason == "stop" and out.choices[0].message.role == "assistant"
    assert out.model == "dummy" and out.id == "" and out.system_fingerprint == "3.3.6-dev0-sha-db931fc"
    assert out.usage.prompt_tokens == len(tokenize(PROMPT))
    assert out.usage.total_tokens == out.usage.prompt_tokens + out.usage.completion_tokens


@pytest.mark.parametrize("form", [OPENAI_FORM, {"type": "json", "value": SCHEMA}], ids=["rewritten", "tgi"])
def test_hub_chat_response_format(hub_client: InferenceClient, form: Any) -> None:
    out = hub_client.chat_completion(CHAT["messages"], max_tokens=900, response_format=form)
    jsonschema.validate(json.loads(out.choices[0].message.content or ""), SCHEMA)


def test_hub_chat_stream(tgi: FakeTGI, hub_client: InferenceClient) -> None:
    chunks = list(hub_client.chat_completion(CHAT["messages"], max_tokens=400, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat_text(tgi)
    assert {chunk.choices[0].delta.role for chunk in chunks} == {"assistant"}
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded", hub.OverloadedError),
        ("validation", hub.ValidationError),
        ("generation", hub.GenerationError),
        ("incomplete", hub.IncompleteGenerationError),
    ],
)
def test_hub_typed_errors(kind: Any, error: type[Exception], stream: bool) -> None:
    if kind == "incomplete" and stream:
        error = hub.UnknownError  # its stream's error_type is another, which the hub does not know
    with FakeTGI(faults=[Fault(kind, {0})]) as server, pytest.raises(error), hf(server) as client:
        list(client.text_generation("A dog.", stream=stream, max_new_tokens=20))


def test_hub_validation_and_text_errors(hub_client: InferenceClient) -> None:
    with pytest.raises(hub.ValidationError, match="`top_p` must be > 0.0 and < 1.0"):
        hub_client.text_generation("A dog.", top_p=1.0)
    with pytest.raises(hub.HfHubHTTPError) as caught:
        hub_client.text_generation("A dog.", seed=-1)
    assert not isinstance(caught.value, hub.TextGenerationError)


# ---- openai


def test_openai_chat(tgi: FakeTGI, openai_client: openai.OpenAI) -> None:
    out = openai_client.chat.completions.create(model="tgi", **CHAT)
    assert out.object == "chat.completion" and out.model == "fake/Model-Instruct" and out.choices[0].index == 0
    assert out.choices[0].finish_reason == "stop" and out.choices[0].message.content == chat_text(tgi)
    assert out.usage is not None and out.usage.completion_tokens == len(tokenize(chat_text(tgi))) + 1
    assert openai_client.models.list().data[0].owned_by == "fake/Model-Instruct"


def test_openai_stream_with_usage(tgi: FakeTGI, openai_client: openai.OpenAI) -> None:
    create = openai_client.chat.completions.create
    chunks = list(create(model="tgi", stream=True, stream_options={"include_usage": True}, **CHAT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == chat_text(tgi)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_openai_response_format(openai_client: openai.OpenAI) -> None:
    create: Any = openai_client.chat.completions.create
    out = create(model="m", **CHAT | {"max_tokens": 900}, response_format=BILINGUAL)
    jsonschema.validate(json.loads(out.choices[0].message.content), SCHEMA)
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(model="m", **CHAT, response_format=OPENAI_FORM)
    assert caught.value.response.text.startswith(DESERIALIZE + "response_format: missing field `value` at line 1")


def test_openai_errors() -> None:
    faults = [Fault("overloaded", {0}), Fault("generation", {1, 2}), Fault("unavailable", {3})]
    with FakeTGI(api_key="Secret", faults=faults) as server, oai(server, "Secret") as client:
        with pytest.raises(openai.AuthenticationError), oai(server, "wrong") as stranger:
            stranger.chat.completions.create(model="m", **CHAT)
        with pytest.raises(openai.RateLimitError) as overloaded:
            client.chat.completions.create(model="m", **CHAT)
        assert overloaded.value.body == "Model is overloaded"
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="m", **CHAT)
        assert caught.value.status_code == 424
        with pytest.raises(openai.APIError, match="Request failed during generation"):
            list(client.chat.completions.create(model="m", stream=True, **CHAT))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", **CHAT)
        assert [entry["status"] for entry in server.requests] == [401, 429, 424, 200, 503]


# ---- sections 1.0, 1.4, 3.1: routes, keys and headers


def test_api_key_guards_the_right_routes() -> None:
    with FakeTGI(api_key="Secret") as server:
        for path in [*GENERATION_ROUTES, "/tokenize"]:
            body = CHAT if "chat" in path else NATIVE
            assert ask(server, path, body)[::2] == (401, b"")
            assert ask(server, path, b"{", authorization="Bearer no")[0] == 401  # before the body is looked at
            assert ask(server, path, body, authorization="bearer sECRET")[0] == 200
        assert ask(server, "/chat_tokenize", CHAT)[0] == 200
        assert {ask(server, p)[0] for p in ("/", "/health", "/ping", "/info", "/metrics", "/v1/models")} == {200}


def test_other_routes(tgi: FakeTGI) -> None:
    assert [ask(tgi, path)[2] for path in ("/", "/health", "/ping")] == [b""] * 3
    info = json.loads(ask(tgi, "/info")[2])
    assert (info["model_id"], info["max_concurrent_requests"]) == ("fake/Model-Instruct", 128)
    assert (info["max_input_tokens"], info["max_total_tokens"], info["version"]) == (3072, 4096, "3.3.6-dev0")
    out = json.loads(ask(tgi, "/chat_tokenize", CHAT)[2])
    assert out["templated_text"] == PROMPT and json.loads(ask(tgi, "/tokenize", NATIVE)[2]) == out["tokenize_response"]
    assert [PROMPT[t["start"] : t["stop"]] for t in out["tokenize_response"]] == tokenize(PROMPT)
    assert ask(tgi, "/metrics")[1]["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/", "/generate", "/v1/chat/completions"])
def test_headers_of_whole_answers(path: str) -> None:
    with FakeTGI(latency_s=0.05) as server:
        _, headers, raw = ask(server, path, CHAT if "chat" in path else NATIVE)
        found = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-")}
        times = {f"x-{name}-time" for name in ("total", "validation", "queue", "inference")} | {"x-time-per-token"}
        compute = {f"x-compute-{name}" for name in ("type", "time", "characters")}
        assert found.keys() == times | compute | {"x-prompt-tokens", "x-generated-tokens"}
        assert all(found[name].isdigit() for name in times) and int(found["x-inference-time"]) >= 49
        assert 0.049 <= float(found["x-compute-time"]) < 5 and found["x-compute-characters"] == str(len(PROMPT))
        assert found["x-prompt-tokens"] == str(len(tokenize(PROMPT)))
        assert found["x-generated-tokens"] == str(len(tokenize(chat_text(server))) + 1)
        assert headers["content-type"] == "application/json" and isinstance(json.loads(raw), list) == (path == "/")
        assert not [n for n in ask(server, "/generate", {"inputs": ""})[1] if n.lower().startswith("x-")]


@pytest.mark.parametrize("path", ["/", "/generate_stream", "/v1/chat/completions"])
def test_headers_and_form_of_streams(tgi: FakeTGI, path: str) -> None:
    _, headers, raw = ask(tgi, path, (CHAT if "chat" in path else NATIVE) | {"stream": True})
    found = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-")}
    assert found.pop("x-compute-type")
    assert found == {"x-compute-characters": str(len(PROMPT)), "x-accel-buffering": "no"}
    assert headers["content-type"] == "text/event-stream" and headers["cache-control"] == "no-cache"
    *_, last = events(raw)
    if "chat" in path:
        assert last == "data: [DONE]"
    else:  # no details unless asked for, and the prompt before the text on the compat route alone
        assert last["details"] is None and last["generated_text"] == (PROMPT if path == "/" else "") + chat_text(tgi)


def test_answers_depend_on_the_prompt_alone(tgi: FakeTGI) -> None:
    with FakeTGI() as other:
        assert chat_text(other, seed=1) == chat_text(tgi, seed=2, temperature=0.3)
    prefilled = chat_text(tgi, messages=[*CHAT["messages"], {"role": "assistant", "content": "The scene shows"}])
    assert prefilled[0] == " " and prefilled[1].islower() and "The scene shows" not in prefilled


def test_finish_reasons(tgi: FakeTGI) -> None:
    def finish(**parameters: Any) -> tuple[str, str]:
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 400, "details": True} | parameters}
        native = json.loads(ask(tgi, "/generate", body)[2])["details"]["finish_reason"]
        changes = {"max_tokens": parameters.get("max_new_tokens", 400), "stop": parameters.get("stop")}
        chat = json.loads(ask(tgi, "/v1/chat/completions", CHAT | changes)[2])["choices"][0]["finish_reason"]
        return native, chat

    assert finish() == ("eos_token", "stop")
    assert finish(max_new_tokens=5) == ("length", "length")
    assert finish(stop=["."]) == ("stop_sequence", "stop_sequence")
    assert chat_text(tgi, stop=["."]) == chat_text(tgi).partition(".")[0] + "."


# ---- section 2.3 and the scripted faults


@pytest.mark.parametrize(
    ("kind", "status", "error", "error_type"),
    [
        ("overloaded", 429, "Model is overloaded", "overloaded"),
        ("generation", 424, "Request failed during generation: Server error: ", "generation"),
        ("incomplete", 500, "Incomplete generation", "incomplete_generation"),
        ("validation", 422, "Input validation error: ", "validation"),
    ],
)
def test_error_table(kind: Any, status: int, error: str, error_type: str) -> None:
    with FakeTGI(faults=[Fault(kind, {1, 2, 3})]) as server:
        assert ask(server, "/generate", NATIVE)[0] == 200  # not in `at`
        found, headers, raw = ask(server, "/v1/chat/completions", CHAT)
        assert (found, headers["content-type"]) == (status, "application/json") and "retry-after" not in headers
        assert json.loads(raw)["error"].startswith(error) and json.loads(raw)["error_type"] == error_type
        found, _, raw = ask(server, "/generate_stream", NATIVE)
        (event,) = events(raw)
        assert found == 200 and event["error"].startswith(error) and event["error_type"].startswith(error_type)
        found, _, raw = ask(server, "/v1/chat/completions", CHAT | {"stream": True})
        event, done = events(raw)
        assert found == 200 and done == "data: [DONE]" and event["error"]["message"].startswith(error)
        assert event["error"]["http_status_code"] == 422 and ask(server, "/generate", NATIVE)[0] == 200
        assert [entry["status"] for entry in server.requests] == [200, status, 200, 200, 200]
        assert server.requests[2] == {"route": "/generate_stream", "body": NATIVE, "status": 200}


@pytest.mark.parametrize("stream", [False, True])
def test_broken_connections(stream: bool) -> None:
    def keep_alive(timeout: float) -> None:  # as urllib is not: it asks for the close
        with contextlib.closing(http.client.HTTPConnection(server.url[7:], timeout=timeout)) as connection:
            body = json.dumps(CHAT | {"stream": stream})
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            connection.getresponse().read()

    with FakeTGI(faults=[Fault("reset", {0}), Fault("half", {1}), Fault("hang", {2})]) as server:
        with pytest.raises(http.client.RemoteDisconnected):
            keep_alive(5)
        with pytest.raises(http.client.IncompleteRead) as caught:
            keep_alive(5)
        assert stream or len(caught.value.partial) == pytest.approx(caught.value.expected or 0, abs=1)
        assert b"[DONE]" not in caught.value.partial
        with pytest.raises(TimeoutError):
            keep_alive(0.2)
        *first, hung = [entry["status"] for entry in server.requests]
        assert first == [None, 200] and hung in ([None, 200] if stream else [None])  # a stream's 200 comes at once


def test_bad_answers_and_proxy() -> None:
    form = {"max_tokens": 900, "response_format": BILINGUAL}
    with FakeTGI(faults=[Fault("truncated_json", {1}), Fault("garbage", {2}), Fault("unavailable", {3})]) as server:
        whole, cut, empty = (json.loads(ask(server, "/v1/chat/completions", CHAT | form)[2]) for _ in range(3))
        texts = [answered["choices"][0]["message"]["content"] for answered in (whole, cut, empty)]
        assert texts[0].startswith(texts[1]) and 0 < len(texts[1]) < len(texts[0]) and texts[2] == ""
        assert [a["choices"][0]["finish_reason"] for a in (whole, cut, empty)] == ["stop", "length", "stop"]
        status, headers, _ = ask(server, "/generate", NATIVE)
        assert (status, headers["content-type"]) == (503, "text/plain; charset=utf-8")


def test_permits_are_tried_counted_and_freed_by_a_client_that_goes() -> None:
    with FakeTGI(max_concurrent_requests=3, faults=[Fault("hang", {0, 1, 2})]) as server:
        held = [http.client.HTTPConnection(server.url[7:]) for _ in range(3)]
        for connection in held:
            connection.request("POST", "/generate", json.dumps(NATIVE), {"content-type": "application/json"})
        deadline = time.monotonic() + 5
        while server.max_in_flight < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(server, "/generate", {"inputs": ""})[0] == 429  # the permit comes before validation
        assert ask(server, "/generate", {})[0] == 422  # and after deserialization
        assert ask(server, "/tokenize", NATIVE)[0] == 200
        held[0].close()
        while ask(server, "/generate", NATIVE)[0] == 429 and time.monotonic() < deadline:
            time.sleep(0.01)
        two = {"inputs": "A dog.", "parameters": {"best_of": 2, "do_sample": True}}
        assert ask(server, "/generate", NATIVE)[0] == 200 and ask(server, "/generate", two)[0] == 429
        assert server.max_in_flight == 3 and [r["status"] for r in server.requests[:3]] == [None] * 3
        for connection in held:
            connection.close()


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "tests.fake_tgi", "--port", "0", "--latency-s", "0.05", "--model-id", "a/b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/info", timeout=10) as response:
            assert json.load(response)["model_id"] == "a/b"
        process.terminate()

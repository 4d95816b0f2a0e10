"""The fake TGI server's other routes, tools, blocks, streams, health and metrics, with clients that are not ours.

Sections are those of the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient

from tests import fake_tgi_routes
from tests.fake_tgi import FakeTGI, Fault
from tests.fake_tgi_answers import tokenize
from tests.test_fake_tgi import BILINGUAL, CHAT, DESERIALIZE, NATIVE, ask, chat_text, events, hf, oai, until

PROMPTS = ["A red barn in a field.", "A boat.", "Two cats on a wall, a lamp and a chair."]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def tgi() -> Iterator[FakeTGI]:
    with FakeTGI() as server:
        yield server


@pytest.fixture
def openai_client(tgi: FakeTGI) -> Iterator[openai.OpenAI]:
    with oai(tgi) as client:
        yield client


@pytest.fixture
def hub_client(tgi: FakeTGI) -> Iterator[InferenceClient]:
    with hf(tgi) as client:
        yield client


def native_text(server: FakeTGI, prompt: str) -> str:
    return str(json.loads(ask(server, "/generate", {"inputs": prompt})[2])["generated_text"])


def sample(server: FakeTGI, name: str) -> float | None:
    """The value of one line of /metrics, given its name and labels."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", ask(server, "/metrics")[2].decode(), re.MULTILINE)
    return float(found[1]) if found else None


# ---- section 1.3: /v1/completions


def test_openai_completions_come_in_completion_order(tgi: FakeTGI, openai_client: openai.OpenAI) -> None:
    out = openai_client.completions.create(model="tgi", prompt=PROMPTS, max_tokens=400)
    assert sorted(choice.index for choice in out.choices) == [0, 1, 2] != [choice.index for choice in out.choices]
    assert {c.index: c.text for c in out.choices} == {n: native_text(tgi, p) for n, p in enumerate(PROMPTS)}
    assert {choice.finish_reason for choice in out.choices} == {"stop"}
    assert (out.object, out.id, out.model) == ("text_completion", "", "fake/Model-Instruct")
    assert out.usage is not None and out.usage.prompt_tokens == sum(len(tokenize(prompt)) for prompt in PROMPTS)


def test_openai_completions_stream_mixes_prompts_and_keeps_the_raw_reason_for_the_end(
    tgi: FakeTGI, openai_client: openai.OpenAI
) -> None:
    stream = openai_client.completions.create(model="tgi", prompt=PROMPTS[:2], max_tokens=400, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    for index, prompt in enumerate(PROMPTS[:2]):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert "".join(chunk.text for chunk in mine) == native_text(tgi, prompt)
        assert [str(chunk.finish_reason) for chunk in mine] == [""] * (len(mine) - 1) + ["eos_token"]
    assert [chunk.index for chunk in chunks[:4]] == [0, 1, 0, 1]


def test_completions_headers_are_sums_without_compute_time(tgi: FakeTGI) -> None:
    status, headers, raw = ask(tgi, "/v1/completions", {"prompt": PROMPTS})
    assert status == 200 and headers["x-compute-time"] is None and headers["x-queue-time"].isdigit()
    usage = json.loads(raw)["usage"]
    assert headers["x-prompt-tokens"] == str(usage["prompt_tokens"])
    assert headers["x-generated-tokens"] == str(usage["completion_tokens"])
    assert headers["x-compute-characters"] == str(sum(map(len, PROMPTS)))


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({"suffix": "end"}, 422, "suffix not supported"),
        ({"prompt": ["a"] * 5}, 422, "batch size exceeded"),
        ({"prompt": []}, 422, DESERIALIZE + "prompt: "),
        ({"prompt": [1]}, 422, DESERIALIZE + "prompt[0]: invalid type: integer `1`, expected a string"),
        ({"prompt": None}, 422, DESERIALIZE + "prompt: invalid type: null"),
        ({"stop": "a"}, 422, DESERIALIZE + "stop: "),
        ({"prompt": ["a", ""]}, 422, "validation"),  # one prompt fails them all
        ({"temperature": 0, "suffix": None, "response_format": BILINGUAL}, 200, ""),  # no grammar here: ignored
    ],
)
def test_completions_refusals(tgi: FakeTGI, changes: dict[str, Any], status: int, problem: str) -> None:
    found, headers, raw = ask(tgi, "/v1/completions", {"prompt": "A dog."} | changes)
    typed = headers["content-type"] == "application/json"
    said = json.loads(raw).get("error_type", "") if typed else raw.decode()
    assert found == status and said.startswith(problem)


def test_completions_take_a_permit_for_each_prompt() -> None:
    with FakeTGI(max_concurrent_requests=2, faults=[Fault("generation", {1})]) as server:
        assert ask(server, "/v1/completions", {"prompt": PROMPTS})[0] == 429
        assert ask(server, "/v1/completions", {"prompt": PROMPTS[:2]})[0] == 424
        assert ask(server, "/v1/completions", {"prompt": PROMPTS[:2]})[0] == 200
        assert server.max_in_flight == 2
        status, _, raw = ask(server, "/v1/completions", {"prompt": PROMPTS, "stream": True})
        assert status == 200 and events(raw)[0]["error"]["http_status_code"] == 422
        assert sample(server, "tgi_request_count") == 10


# ---- section 1.0: /invocations and /vertex


def test_invocations_take_the_first_body_that_fits(tgi: FakeTGI) -> None:
    compat = ask(tgi, "/invocations", NATIVE | {"prompt": "A dog.", "messages": []})
    assert compat[2] == ask(tgi, "/", NATIVE)[2] and compat[1]["x-compute-time"]
    chat = json.loads(ask(tgi, "/invocations", CHAT | {"prompt": "A dog."})[2])
    assert chat["choices"][0]["message"]["content"] == chat_text(tgi)
    assert json.loads(ask(tgi, "/invocations", {"prompt": "A dog."})[2])["object"] == "text_completion"
    *_, last = events(ask(tgi, "/invocations", CHAT | {"stream": True})[2])
    assert last == "data: [DONE]"
    for misfit in ({}, {"inputs": 5}, CHAT | {"max_tokens": "5"}):
        status, headers, raw = ask(tgi, "/invocations", misfit)
        assert (status, headers["content-type"]) == (422, "text/plain; charset=utf-8")
        assert raw.decode().startswith(DESERIALIZE + "data did not match any variant of untagged enum")


def test_vertex_gives_texts_alone_and_one_error_for_every_failure() -> None:
    bodies = {"instances": [NATIVE, CHAT]}
    with FakeTGI(max_concurrent_requests=2) as server:
        status, headers, raw = ask(server, "/vertex", bodies)
        assert status == 200 and json.loads(raw) == {"predictions": [chat_text(server)] * 2}
        assert not [name for name in headers if name.lower().startswith("x-")]
    with FakeTGI(max_concurrent_requests=3, faults=[Fault("generation", {0})]) as server:
        for instances in ([NATIVE], [NATIVE] * 4, [{"inputs": ""}]):  # 424, 429 and 422 elsewhere
            status, _, raw = ask(server, "/vertex", {"instances": instances})
            assert status == 500 and json.loads(raw)["error_type"] == "Incomplete generation"
        status, _, raw = ask(server, "/vertex", {"instances": []})
        assert status == 422 and json.loads(raw)["error_type"] == "Input validation error"
        status, headers, _ = ask(server, "/vertex", {"instances": [{"prompt": "A dog."}]})
        assert (status, headers["content-type"]) == (422, "text/plain; charset=utf-8")


# ---- sections 1.2 and 1.5: tools


def test_openai_reads_the_call_of_a_tool(openai_client: openai.OpenAI) -> None:
    create: Any = openai_client.chat.completions.create
    for choice in ("required", "weather", {"type": "function", "function": {"name": "weather"}}):
        message = create(model="tgi", **CHAT, tools=[WEATHER], tool_choice=choice).choices[0].message
        call = message.tool_calls[0]
        assert message.content is None and (call.id, call.type, call.function.name) == ("0", "function", "weather")
        assert json.loads(call.function.arguments).keys() == {"place"}


def test_hub_reads_the_call_of_a_tool(hub_client: InferenceClient) -> None:
    tools: Any = [WEATHER, CLOCK]
    out = hub_client.chat_completion(CHAT["messages"], max_tokens=400, tools=tools, tool_choice="required")
    (call,) = out.choices[0].message.tool_calls or ()
    assert call.function.name in ("weather", "clock") and call.function.description is None


def test_auto_may_choose_no_tool_and_then_counts_the_second_generation_alone(tgi: FakeTGI) -> None:
    seen = set()
    for number in range(12):
        body = CHAT | {"messages": [{"role": "user", "content": f"A dog, number {number}."}]}
        made = sample(tgi, "tgi_request_success") or 0
        answered = json.loads(ask(tgi, "/v1/chat/completions", body | {"tools": [WEATHER]})[2])
        runs = (sample(tgi, "tgi_request_success") or 0) - made
        free = json.loads(ask(tgi, "/v1/chat/completions", body)[2])
        if "tool_calls" in answered["choices"][0]["message"]:
            assert "content" not in answered["choices"][0]["message"] and runs == 1
        else:
            assert answered["choices"] == free["choices"] and answered["usage"] == free["usage"] and runs == 2
        seen.add(runs)
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_tokens": 5, "tool_choice": "weather"}, "tool_error"),  # cut JSON, after the whole generation
        ({"response_format": BILINGUAL}, "tool_error"),
        ({"tool_choice": "nothing"}, "tool_error"),
        ({"tool_choice": "weather", "stream": True}, "tool_error"),
        ({"tool_choice": 5}, DESERIALIZE + "tool_choice: "),
        ({"tools": [{"type": "function"}]}, DESERIALIZE + "tools[0]: missing field `function`"),
        ({"tool_choice": "none"}, None),
        ({"tools": [], "tool_choice": None}, None),
    ],
)
def test_tool_refusals(tgi: FakeTGI, changes: dict[str, Any], problem: str | None) -> None:
    status, headers, raw = ask(tgi, "/v1/chat/completions", CHAT | {"tools": [WEATHER]} | changes)
    if problem is None:
        assert json.loads(raw)["choices"][0]["message"]["content"] == chat_text(tgi)
    elif problem == "tool_error":
        assert status == 422 and json.loads(raw)["error_type"] == problem
    else:
        assert status == 422 and raw.decode().startswith(problem)


# ---- section 1.6: blocks


def test_a_grammar_starts_anew_after_1024_tokens_and_a_full_context_ends_early() -> None:
    item = {"type": "array", "minItems": 200, "maxItems": 200, "items": {"type": "string"}}
    grammar = {"type": "json", "value": {"type": "object", "properties": {"items": item}, "required": ["items"]}}
    with FakeTGI() as server:

        def long(max_tokens: int) -> tuple[str, str, int]:
            changes = {"max_tokens": max_tokens, "response_format": grammar}
            answered = json.loads(ask(server, "/v1/chat/completions", CHAT | changes)[2])
            (choice,) = answered["choices"]
            return choice["message"]["content"], choice["finish_reason"], answered["usage"]["completion_tokens"]

        whole, reason, count = long(1024)
        assert (reason, count, sample(server, 'tgi_batch_inference_count{method="prefill"}')) == ("length", 1024, 1)
        text, reason, count = long(2500)
        assert (reason, count, sample(server, 'tgi_batch_inference_count{method="prefill"}')) == ("length", 2500, 4)
        assert text.startswith(whole + '{"items": [') and text.count('{"items": [') == 3
        assert long(4000)[1:] == ("length", 3072)  # the next block would not fit, which nobody is told


# ---- sections 2.3 and 3.1: streams and browsers


def test_a_stream_begins_at_once_and_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tgi_routes, "KEEP_ALIVE_S", 0.01)
    with FakeTGI() as server:
        server.configure(frozen=True)
        connection = http.client.HTTPConnection(server.url[7:], timeout=10)
        body = json.dumps(CHAT | {"stream": True})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200 and [response.readline() for _ in range(4)] == [b":\n", b"\n"] * 2
        server.configure(frozen=False)
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_openai_reads_over_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tgi_routes, "KEEP_ALIVE_S", 0.01)
    with FakeTGI(latency_s=0.1) as server, oai(server) as client:
        chunks = client.chat.completions.create(model="tgi", stream=True, **CHAT)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat_text(server)


def test_any_origin_may_ask(tgi: FakeTGI) -> None:
    for path, body in (("/info", None), ("/generate", {"inputs": ""}), ("/nowhere", None)):
        assert ask(tgi, path, body)[1]["access-control-allow-origin"] == "*"
    assert ask(tgi, "/generate_stream", NATIVE)[1]["access-control-allow-origin"] == "*"
    connection = http.client.HTTPConnection(tgi.url[7:], timeout=10)
    connection.request("OPTIONS", "/v1/chat/completions", headers={"origin": "http://a", "authorization": "no"})
    response = connection.getresponse()
    assert response.status == 200 and response.read() == b""
    assert response.headers["access-control-allow-methods"] == "GET,POST"
    assert response.headers["access-control-allow-headers"] == "content-type"
    connection.close()


# ---- sections 1.4, 2.3 and 3.2: health and metrics


def test_health_after_a_failure_runs_the_model_once() -> None:
    prefills = 'tgi_batch_inference_count{method="prefill"}'
    with FakeTGI(faults=[Fault("generation", {0})]) as server:
        ask(server, "/generate", NATIVE)
        assert [ask(server, path)[::2] for path in ("/health", "/ping", "/")] == [(200, b"")] * 3
        assert sample(server, prefills) == 1
        server.configure(healthy=False)
        status, _, raw = ask(server, "/health")
        assert (status, json.loads(raw)) == (503, {"error": "unhealthy", "error_type": "healthcheck"})


def test_metrics_show_nothing_before_its_first_use() -> None:
    with FakeTGI() as server:
        assert ask(server, "/metrics")[2] == b""
        ask(server, "/generate", {})  # refused before it is counted
        assert ask(server, "/metrics")[2] == b""
        ask(server, "/generate", NATIVE)
        text = ask(server, "/metrics")[2].decode()
        gauges = re.findall(r"^# TYPE (\S+) gauge\n\1 0$", text, re.MULTILINE)
        assert gauges == ["tgi_batch_current_max_tokens", "tgi_batch_current_size", "tgi_queue_size"]


def test_histograms_and_counters_are_named_as_tgi_names_them() -> None:
    with FakeTGI(latency_s=0.02, faults=[Fault("overloaded", {2})]) as server:
        for inputs in ("A dog.", "A cat.", "A cow.", ""):
            ask(server, "/generate", {"inputs": inputs})
        text = ask(server, "/metrics")[2].decode()
        for name in ("", "_validation", "_queue", "_inference", "_mean_time_per_token"):
            assert sample(server, f"tgi_request{name}_duration_count") == 2
        assert 0.04 <= (sample(server, "tgi_request_duration_sum") or 0) < 5
        buckets = re.findall(r'^tgi_request_queue_duration_bucket\{le="(.+)"\} (\d+)$', text, re.MULTILINE)
        assert len(buckets) == 36 and buckets[-1] == ("+Inf", "2") and float(buckets[0][0]) == 0.00015
        assert [int(count) for _, count in buckets] == sorted(int(count) for _, count in buckets)
        assert sample(server, 'tgi_batch_inference_duration_sum{method="decode"}') == 0.04
        assert sample(server, "tgi_request_count") == 4 and sample(server, "tgi_request_success") == 2
        assert sample(server, 'tgi_request_failure{err="overloaded"}') == 1
        assert sample(server, 'tgi_request_failure{err="validation"}') == 1
        assert sample(server, "tgi_request_input_length_sum") == 6
        assert 'tgi_request_skipped_tokens{quantile="0.5"} 0\n' in text and "_total" not in text


def test_a_client_that_goes_counts_as_dropped() -> None:
    with FakeTGI() as server:
        server.configure(frozen=True)
        connection = http.client.HTTPConnection(server.url[7:], timeout=10)
        connection.request("POST", "/generate", json.dumps(NATIVE), {"content-type": "application/json"})
        until(lambda: server.in_flight == 1)
        connection.close()
        until(lambda: server.in_flight == 0)
        assert sample(server, 'tgi_request_failure{err="dropped"}') == 1
        assert sample(server, "tgi_batch_current_size") == 0

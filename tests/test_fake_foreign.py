"""The fake vLLM, SGLang and llama.cpp: where they differ from TGI (section 5.5 of tgi-facts.md), with openai's client
and raw requests.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import aiohttp
import jsonschema
import openai
import pytest
from huggingface_hub import InferenceClient

from generation.prompts import load_prompt
from generation.tgi.client import Endpoint
from generation.tgi.protocol import Answer, Question, Request
from tests.fake_foreign import FakeForeign, Kind
from tests.fake_tgi import FakeTGI
from tests.fake_tgi_answers import EOS_ID
from tests.test_fake_tgi import BILINGUAL, CHAT, NAMED, OPENAI_FORM, SCHEMA, ask, chat_text, until

MODEL = "fake/Model-Instruct"
KINDS: tuple[Kind, ...] = get_args(Kind)
OTHER = {"type": "object", "properties": {"other": {"type": "integer"}}, "required": ["other"]}
OWN_ROUTES = {
    "vllm": ["/version", "/load"],
    "sglang": ["/ready", "/model_info", "/server_info"],
    "llama.cpp": ["/props", "/slots"],
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, FakeForeign]]:
    with FakeForeign("vllm") as vllm, FakeForeign("sglang") as sglang, FakeForeign("llama.cpp") as llama:
        yield {"vllm": vllm, "sglang": sglang, "llama.cpp": llama}


def chat(server: FakeForeign, **changes: Any) -> tuple[int, Any]:
    status, _, raw = ask(server, "/v1/chat/completions", CHAT | {"model": MODEL} | changes)
    return status, json.loads(raw)


def text(server: FakeForeign, **changes: Any) -> str:
    status, answered = chat(server, **changes)
    assert status == 200, answered
    return str(answered["choices"][0]["message"]["content"])


# ---- what all have in common


@pytest.mark.parametrize("kind", KINDS)
def test_openai_reads_answers_and_models(servers: dict[str, FakeForeign], kind: Kind) -> None:
    with openai.OpenAI(base_url=f"{servers[kind].url}/v1", api_key="x", max_retries=0, timeout=10) as client:
        model = client.models.list().data[0]
        assert (model.id, model.object) == (MODEL, "model")
        create: Any = client.chat.completions.create
        out = create(model=MODEL, temperature=0, top_p=1, **CHAT)
        assert out.choices[0].finish_reason == "stop" and out.choices[0].message.content.endswith(".")
        assert out.usage.total_tokens == out.usage.prompt_tokens + out.usage.completion_tokens and out.id
        out = create(model=MODEL, **CHAT | {"max_tokens": 900}, response_format=OPENAI_FORM)
        jsonschema.validate(json.loads(out.choices[0].message.content), SCHEMA)
        assert isinstance(json.loads(text(servers[kind], response_format={"type": "json_object"})), dict)


@pytest.mark.parametrize("kind", KINDS)
def test_hub_reads_answers(servers: dict[str, FakeForeign], kind: Kind) -> None:
    with InferenceClient(base_url=servers[kind].url, api_key="x", timeout=10) as client:
        out = client.chat_completion(CHAT["messages"], model=MODEL, max_tokens=5)
        assert out.choices[0].finish_reason == "length" and out.usage.completion_tokens == 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_read_from_the_key_of_openai(servers: dict[str, FakeForeign], kind: Kind) -> None:
    form = BILINGUAL | {"value": {"name": "other", "schema": OTHER}}  # TGI would read this one
    jsonschema.validate(json.loads(text(servers[kind], max_tokens=900, response_format=form)), SCHEMA)
    status, answered = chat(servers[kind], response_format={"type": "json_schema", "value": NAMED})
    assert status == 400 and "response_format" in json.dumps(answered)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_info_and_each_has_routes_of_its_own(servers: dict[str, FakeForeign], kind: Kind) -> None:
    for owner, routes in OWN_ROUTES.items():
        assert [ask(servers[kind], route)[0] for route in routes] == [200 if owner == kind else 404] * len(routes)
    status, _, raw = ask(servers[kind], "/info")
    missing = {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}
    assert (status, json.loads(raw)) == (404, missing if kind == "llama.cpp" else {"detail": "Not Found"})
    assert [ask(servers[kind], f"/v1/{path}", b"{}")[0] for path in ("generate", "completions")] == [404, 404]
    status, _, raw = ask(servers[kind], "/health")
    assert (status, raw) == (200, b'{"status":"ok"}' if kind == "llama.cpp" else b"")
    model = json.loads(ask(servers[kind], "/v1/models")[2])["data"][0]
    assert ("max_model_len" in model) != (kind == "llama.cpp") == ("meta" in model)


@pytest.mark.parametrize(
    "changes",
    [{"messages": None}, {"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"seed": 2**63}, {"stream": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_request_is_a_400(servers: dict[str, FakeForeign], kind: Kind, changes: dict[str, Any]) -> None:
    status, answered = chat(servers[kind], **changes)
    error = answered if kind == "sglang" else answered["error"]
    keys = {"message", "type", "code"} | (set() if kind == "llama.cpp" else {"param"})
    assert status == 400 and error.keys() - {"object"} == keys and error["code"] == 400
    assert ("error" in answered) != (kind == "sglang") == (answered.get("object") == "error")
    assert error["type"] == ("invalid_request_error" if kind == "llama.cpp" else "BadRequestError")
    assert ask(servers[kind], "/v1/chat/completions", b"{")[0] == 400


# ---- where they differ from each other


def test_only_vllm_insists_on_the_models_name(servers: dict[str, FakeForeign]) -> None:
    status, answered = chat(servers["vllm"], model="tgi")
    assert status == 404 and answered["error"]["type"] == "NotFoundError" and answered["error"]["code"] == 404
    assert ask(servers["vllm"], "/v1/chat/completions", CHAT)[0] == 200  # no name at all
    for kind in ("sglang", "llama.cpp"):
        status, answered = chat(servers[kind], model="any")
        assert (status, answered["model"]) == (200, "any")


def test_forms_of_a_schema_that_not_all_take(servers: dict[str, FakeForeign]) -> None:
    unnamed = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    assert [chat(servers[kind], max_tokens=900, response_format=unnamed)[0] for kind in KINDS] == [400, 400, 200]
    in_object = {"type": "json_object", "schema": OTHER}
    keys = [list(json.loads(text(servers[kind], response_format=in_object))) for kind in KINDS]
    assert keys == [["answer"], ["answer"], ["other"]]


def test_extras_of_choice_and_usage(servers: dict[str, FakeForeign]) -> None:
    for stop, vllm, sglang in (([], None, EOS_ID), (["."], ".", ".")):
        answers = {kind: chat(servers[kind], stop=stop)[1] for kind in KINDS}
        assert {answered["choices"][0]["finish_reason"] for answered in answers.values()} == {"stop"}
        assert all(("." in a["choices"][0]["message"]["content"]) == (stop == []) for a in answers.values())  # cut off
        assert answers["vllm"]["choices"][0]["stop_reason"] == vllm
        assert answers["sglang"]["choices"][0]["matched_stop"] == sglang
        assert answers["vllm"]["usage"]["prompt_tokens_details"] is None
        assert answers["sglang"]["usage"]["reasoning_tokens"] == 0
        usage, timings = answers["llama.cpp"]["usage"], answers["llama.cpp"]["timings"]
        counts = usage["prompt_tokens"], usage["completion_tokens"], 0
        assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == counts


def test_an_answer_that_was_begun(servers: dict[str, FakeForeign]) -> None:
    begun = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "The scene shows"}]}
    assert text(servers["llama.cpp"], **begun).startswith("The scene shows ")
    for kind in ("vllm", "sglang"):
        assert text(servers[kind], **begun)[0].isupper()  # a new turn
        going_on = text(servers[kind], **begun, continue_final_message=True, add_generation_prompt=False)
        assert going_on.startswith(" ") and "The scene shows" + going_on == text(servers["llama.cpp"], **begun)


def test_a_context_that_is_too_long(servers: dict[str, FakeForeign]) -> None:
    assert [chat(servers[kind], max_tokens=4095)[0] for kind in KINDS] == [400, 400, 200]
    long = {"messages": [{"role": "user", "content": "dog " * 4096}], "max_tokens": 5}
    for kind, error_type in (("vllm", "BadRequestError"), ("llama.cpp", "exceed_context_size_error")):
        status, answered = chat(servers[kind], **long)
        assert (status, answered["error"]["type"]) == (400, error_type)


# ---- load


def test_loading() -> None:
    with FakeForeign("llama.cpp", loading=True) as server:
        loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
        for path, body in (("/health", None), ("/v1/models", None), ("/v1/chat/completions", CHAT)):
            status, _, raw = ask(server, path, body)
            assert (status, json.loads(raw)) == (503, loading)
        server.loading = False
        assert ask(server, "/health")[0] == chat(server)[0] == 200
    with FakeForeign("sglang", loading=True) as server:
        assert ask(server, "/health")[0] == 503


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vllm", ("vllm:num_requests_waiting", "vllm:num_requests_running")),
        ("sglang", ("sglang:num_queue_reqs", "sglang:num_running_reqs")),
        ("llama.cpp", ("llamacpp:requests_deferred", "llamacpp:requests_processing")),
    ],
)
def test_more_than_the_slots_wait_in_a_queue_that_metrics_name(kind: Kind, names: tuple[str, str]) -> None:
    with FakeForeign(kind, batch_slots=2) as server, ThreadPoolExecutor(5) as pool:

        def load() -> list[float]:
            found = ask(server, "/metrics")[2].decode()
            return [float(re.findall(rf"^{name}(?:{{.*}})? (\S+)$", found, re.MULTILINE)[0]) for name in names]

        assert load() == [0, 0]
        server.freeze(True)
        asked = [pool.submit(chat, server) for _ in range(5)]
        until(lambda: load() == [3, 2])
        server.freeze(False)
        assert [future.result(timeout=20)[0] for future in asked] == [200] * 5 and load() == [0, 0]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_bounded_queue_refuses_with_503_when_it_is_full(kind: Kind) -> None:
    with FakeForeign(kind, batch_slots=1, max_queued=1) as server, ThreadPoolExecutor(2) as pool:
        server.freeze(True)
        asked = [pool.submit(chat, server) for _ in range(2)]
        until(lambda: len(server.requests) == 2 and server.queued == 1)
        status, answered = chat(server)
        assert (status, (answered if kind == "sglang" else answered["error"])["code"]) == (503, 503)
        server.freeze(False)
        assert [future.result(timeout=20)[0] for future in asked] == [200] * 2


def test_llama_cpp_without_its_metrics() -> None:
    with FakeForeign("llama.cpp", metrics=False) as server:
        status, _, raw = ask(server, "/metrics")
        assert status == 501 and json.loads(raw)["error"]["type"] == "not_supported_error"


def test_a_server_may_abort_an_answer() -> None:
    for kind in ("vllm", "sglang"):
        with FakeForeign(kind, aborts=[1]) as server:
            reasons = [chat(server)[1]["choices"][0]["finish_reason"] for _ in range(3)]
            assert reasons == ["stop", "abort", "stop"]


def test_requests_are_kept(servers: dict[str, FakeForeign]) -> None:
    chat(servers["vllm"], seed=5)
    assert servers["vllm"].requests[-1] == {
        "route": "/v1/chat/completions",
        "body": CHAT | {"model": MODEL, "seed": 5},
        "status": 200,
    }


# ---- our own client, which is to need no setting for any of them


def own_client(server: FakeForeign, prompt_id: str) -> tuple[Request, Answer]:
    async def run() -> tuple[Request, Answer]:
        prompt = load_prompt(prompt_id)
        schema = prompt.answer_schema(2, 3) if prompt_id.startswith("question") else None
        request = Request(Question(prompt, schema), prompt.warm_up, seed=7)
        async with aiohttp.ClientSession() as http:
            endpoint = Endpoint(server.url, http)
            await endpoint.connect()
            return request, await endpoint.ask(request)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_our_client_reads_text_that_goes_on_from_the_begun_answer(servers: dict[str, FakeForeign], kind: Kind) -> None:
    request, answer = own_client(servers[kind], "expand_caption_small")
    with FakeTGI() as tgi:
        asked = {"messages": request.question.prompt.messages(request.values), "max_tokens": 400}
        assert answer.text == chat_text(tgi, **asked)
    assert answer.finish_reason == "stop" and answer.prompt_tokens > 20 < answer.completion_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_our_client_constrains_json(servers: dict[str, FakeForeign], kind: Kind) -> None:
    request, answer = own_client(servers[kind], "question_answering_small")
    jsonschema.validate(json.loads(answer.text), request.question.schema or {})


def test_our_client_tells_an_aborted_answer_from_a_whole_one() -> None:
    with FakeForeign("vllm", aborts=[0]) as server:
        assert own_client(server, "expand_caption_small")[1].finish_reason == "abort"


@pytest.mark.parametrize("kind", KINDS)
def test_our_client_reads_the_queue_under_each_servers_own_name(kind: Kind) -> None:
    async def queued(url: str) -> int | None:
        async with aiohttp.ClientSession() as http:
            return await Endpoint(url, http).queue_size()

    with FakeForeign(kind) as server:
        assert asyncio.run(queued(server.url)) == 0
    with FakeForeign("llama.cpp", metrics=False) as server:
        assert asyncio.run(queued(server.url)) is None

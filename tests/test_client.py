"""One endpoint: what is sent to each kind of server, answers of every shape, and every failure by how to react."""

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.config import Server
from generation.errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from generation.prompts import Sampling
from generation.tgi.client import THINKING_TOKENS, Answer, Endpoint, Request, open_session, read_answer
from generation.tgi.protocol import SIDE_ROUTES, describe, failure
from tests.fake_server import KINDS, FakeServer, Reply

T = TypeVar("T")
SAMPLING = Sampling(max_tokens=256, temperature=0.7, top_p=0.9)
CHAT = [{"role": "system", "content": "Expand."}, {"role": "user", "content": "-----\nA dog on a beach.\n-----"}]
BEGUN = [*CHAT, {"role": "assistant", "content": "A dog on a beach. In the foreground,"}]
ITEM = {"type": "object", "properties": {"Question": {"type": "string"}, "Answer": {"type": "string"}}}
ITEMS = {"type": "array", "minItems": 2, "maxItems": 3, "items": ITEM}
QUESTIONS = {"type": "object", "properties": {"QA Pairs": ITEMS}}
PLAIN, STARTED = Request(CHAT, SAMPLING, 7), Request(BEGUN, SAMPLING, 7)
JSON = Request(CHAT, SAMPLING, 7, QUESTIONS)


def with_endpoint(server: FakeServer, use: Callable[[Endpoint], Awaitable[T]], url: str = "{}", **keys: Any) -> T:
    """Connect to a fake server and return what ``use`` does; ``{}`` in ``url`` is the server's own."""

    async def run() -> T:
        async with server, open_session() as session:
            endpoint = Endpoint(url.replace("{}", server.url), Server(**keys), session)
            await endpoint.connect()
            return await use(endpoint)

    return asyncio.run(run())


def asked(server: FakeServer, request: Request = PLAIN, **keys: Any) -> Answer:
    return with_endpoint(server, lambda endpoint: endpoint.ask(request, 5), **keys)


# ---- dialects


@pytest.mark.parametrize("request_", [PLAIN, STARTED, JSON], ids=["plain", "begun", "json"])
def test_every_kind_gives_the_same_answer_with_tokens(request_: Request) -> None:
    kinds = [kind for kind in KINDS if kind != "openai" or request_ is not STARTED]  # it cannot continue an answer
    answers = [asked(FakeServer(kind), request_) for kind in kinds]
    assert len({answer.text for answer in answers}) == 1
    assert not answers[0].text.startswith("A dog on a beach. In the")
    assert all(a.finish_reason == "stop" and a.prompt_tokens and a.completion_tokens for a in answers)
    assert (request_ is JSON) == answers[0].text.startswith('{"QA Pairs": [{')


def test_what_each_kind_says_of_itself() -> None:
    async def info(endpoint: Endpoint) -> Any:
        assert endpoint.info
        return endpoint.info

    found = {kind: with_endpoint(FakeServer(kind, limit=9, slots=5, max_total_tokens=3000), info) for kind in KINDS}
    assert [found[kind].kind for kind in KINDS] == ["tgi", "vllm", "sglang", "llama.cpp", "openai", "openai"]
    assert [found[kind].version for kind in KINDS] == ["3.3.5", "0.33.0", "0.5.23", "b60", None, None]
    assert [found[kind].max_concurrent for kind in KINDS] == [9, None, 5, 5, None, None]
    assert [found[kind].max_total_tokens for kind in KINDS] == [3000, 3000, 3000, 3000, None, None]
    assert (found["tgi"].model_revision, found["gateway"].model_id) == ("0" * 40, "unknown")
    assert "secret" not in str(found["sglang"])
    given = with_endpoint(FakeServer("gateway"), info, model_name="Qwen/Q", kind="vllm")
    assert (given.model_id, given.kind) == ("Qwen/Q", "vllm")
    other = FakeServer("vllm", side={"/info": Reply(body={"app": {}, "version": "1", "max_total_tokens": 10})})
    assert with_endpoint(other, info)[3:] == (found["vllm"].version, None, None, 4096)
    for kind in ("sglang", "llama.cpp"):
        server = FakeServer(kind, side={"/v1/models": Reply(status=403)})
        assert with_endpoint(server, info).kind == kind
    nothing = FakeServer(side=dict.fromkeys(SIDE_ROUTES, Reply(status=404)), script=lambda _, n: Reply(status=404))
    with pytest.raises(FatalServerError, match="give the server's base URL"):
        with_endpoint(nothing, info, kind="tgi")


NEUTRAL = {"top_k": -1, "min_p": 0.0, "model": "m"}
CONTINUED = {**NEUTRAL, "repetition_penalty": 1.0, "continue_final_message": True}
SENT: list[tuple[str, dict[str, Any], set[str]]] = [
    ("tgi", {}, {"model", "top_k", "chat_template_kwargs", "continue_final_message"}),
    ("vllm", {**CONTINUED, "add_generation_prompt": False}, set()),
    ("sglang", CONTINUED, {"add_generation_prompt"}),
    ("llama.cpp", {**NEUTRAL, "repeat_penalty": 1.0}, {"continue_final_message", "add_generation_prompt"}),
]


@pytest.mark.parametrize(("kind", "present", "absent"), SENT)
def test_each_kind_is_sent_what_it_takes(kind: str, present: dict[str, Any], absent: set[str]) -> None:
    server = FakeServer(kind, model="m")
    asked(server, Request(BEGUN, SAMPLING, 7, QUESTIONS))
    body = server.bodies[-1]
    assert {key: body.get(key) for key in present} == present
    assert not body.keys() & (absent | {"presence_penalty", "n", "logit_bias", "max_completion_tokens", "tools"})
    assert ("value" in body["response_format"]) == (kind == "tgi")
    assert body["response_format"]["json_schema"]["schema"] == QUESTIONS
    assert (body["seed"], body["temperature"], body["stream"], body["max_tokens"]) == (7, 0.7, False, 256)
    if kind != "tgi":
        assert body["chat_template_kwargs"]["enable_thinking"] is False


def test_unknown_fields_are_left_out_from_then_on_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer("openai")

    async def twice(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.ask(PLAIN, 5) for _ in range(5)))
        await endpoint.ask(PLAIN, 5)

    with_endpoint(server, twice)
    assert server.counts["answers"] == 6 and not server.bodies[-1].keys() & {"top_k", "chat_template_kwargs"}
    assert len([r for r in caplog.records if "does not take chat_template_kwargs, min_p" in r.message]) == 1
    with pytest.raises(RequestRejected, match="continue_final_message.*answer_prefix"):
        asked(FakeServer("openai"), STARTED)
    mistral = {"error": {"message": "chat_template is not supported for Mistral tokenizers.", "code": 400}}
    refusal = Reply(status=400, body=mistral)
    server = FakeServer("vllm", script=lambda body, n: refusal if "chat_template_kwargs" in body else None)
    assert asked(server).text and server.counts["requests"] == 2


# ---- thinking


@pytest.mark.parametrize("where", ["reasoning", "reasoning_content", "think"])
@pytest.mark.parametrize("request_", [PLAIN, STARTED, JSON], ids=["plain", "begun", "json"])
@pytest.mark.parametrize("level", ["off", "low", "on"])
def test_thinking_is_switched_off_or_cut_off_and_counted_apart(where: str, request_: Request, level: str) -> None:
    server = FakeServer("vllm", thinking=where, max_total_tokens=10_000)
    answer, plain = asked(server, request_, thinking=level), asked(FakeServer("vllm"), request_)
    thinks = level != "off" and request_ is not STARTED
    assert (answer.text, answer.finish_reason) == (plain.text, "stop")
    assert (answer.thinking_tokens > 100) == thinks
    assert abs(answer.completion_tokens - plain.completion_tokens) < 10
    assert server.bodies[-1]["max_tokens"] == 256 + (THINKING_TOKENS[level] if thinks else 0)
    assert server.bodies[-1].get("reasoning_effort") == (None if level == "on" and thinks else "low")


def test_a_model_that_thinks_though_it_is_asked_not_to_gets_tokens_for_it() -> None:
    server = FakeServer("vllm", thinking="reasoning", script=lambda _, n: Reply("A dog.", thinking="Hm. " * 400))
    assert asked(server).text == "A dog."
    assert [body["max_tokens"] for body in server.bodies] == [256, 256 + THINKING_TOKENS["low"]]


SHAPES: list[tuple[dict[str, Any], str, str, str, bool]] = [
    ({"content": "x"}, "stop", "x", "stop", False),
    ({"content": "x"}, "max_tokens", "x", "length", False),
    ({"content": None}, "stop", "", "stop", False),
    ({"content": None, "reasoning": "A dog."}, "stop", "A dog.", "stop", False),  # a parser, and no thinking
    ({"content": None, "reasoning": "Hm, a dog"}, "length", "", "length", True),
    ({"content": "x", "reasoning_content": "hm", "reasoning": "hm"}, "stop", "x", "stop", True),
    ({"content": "<think>hm</think>\n\n{}"}, "stop", "{}", "stop", True),
    ({"content": "hm, I see\n</think>\n{}"}, "stop", "{}", "stop", True),  # the template opened it
    ({"content": "<think>hm, so the dog"}, "length", "", "length", True),
    ({"content": "[THINK]hm[/THINK]x"}, "stop", "x", "stop", True),
    ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, 3]}, "stop", "ab", "stop", False),
    ({"content": "", "refusal": "I cannot."}, "stop", "I cannot.", "stop", False),
    ({"content": "half \ud800 pair"}, "stop", "half ? pair", "stop", False),
    ({"content": "x"}, "content_filter", "x", "content_filter", False),
]
ODD = [{"choices": [{"message": {"content": "x"}}], "usage": u} for u in (None, [], {"prompt_tokens": [3]})]


@pytest.mark.parametrize(("message", "finish", "text", "reason", "thinks"), SHAPES)
def test_answers_of_every_shape(message: dict[str, Any], finish: str, text: str, reason: str, thinks: bool) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 40}
    reply = {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
    answer = asked(FakeServer("vllm", script=lambda body, n: Reply(body=reply)))
    assert (answer.text, answer.finish_reason, answer.thinking_tokens > 0) == (text, reason, thinks)
    assert answer.completion_tokens + answer.thinking_tokens == 40
    assert all(read_answer(odd, {"x-total-time": "nan"}, "") == Answer("x", "unknown", 0, 0) for odd in ODD)


# ---- failures

BUSY = "The engine is currently busy and cannot accept new requests. Please try again later."
BACKLOG = "The engine has reached its prefill token backlog limit. Please try again later."
QUOTA = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": 429}}
RATE = {"error": {"message": "Rate limit reached; add a payment method at https://x.y/account/billing", "code": 429}}
ERRORS: list[tuple[int, Any, type[ServerError], str]] = [
    (400, {"error": {"message": "too long", "type": "exceed_context_size_error"}}, RequestRejected, "too long"),
    (413, b"length limit exceeded", RequestRejected, "length limit"),
    (422, {"error": "Template error: y", "error_type": "template_error"}, RequestRejected, "template_error"),
    (422, {"detail": [{"msg": "Field required"}]}, RequestRejected, "Field required"),
    (404, b"", TransientError, "an empty body"),
    (404, {"error": {"message": "The model `x` does not exist."}}, FatalServerError, "server.model"),
    (408, b"Request Timeout", TransientError, "Timeout"),
    (424, {"error": "Request failed during generation", "error_type": "generation"}, TransientError, "Request failed"),
    (429, b"", RateLimited, "429"),
    (429, RATE, RateLimited, "Rate limit"),
    (429, QUOTA, FatalServerError, "exceeded your current quota"),
    (402, b"Payment Required", FatalServerError, "Payment"),
    (500, {"error": "half \ud800 pair"}, TransientError, "half"),
    (500, {"error": {"message": f"litellm.ServiceUnavailableError: {BUSY}"}}, RateLimited, "busy"),
    (502, b"<html>Bad Gateway</html>", TransientError, "Bad Gateway"),
    (529, {"error": {"message": "Overloaded"}}, RateLimited, "Overloaded"),
    (503, {"error": {"message": "Loading model", "type": "unavailable_error"}}, TransientError, "Loading"),
    (503, {"error": {"message": BACKLOG, "type": "Service Unavailable"}}, RateLimited, "backlog"),
    (503, {"error": {"message": "No available workers (all circuits open or unhealthy)"}}, TransientError, "workers"),
    (200, {"error": {"message": "upstream failed", "code": 503}}, TransientError, "HTTP 503.*upstream failed"),
    (200, b' \n{"id": 1, "error": {"message": "Insufficient credits", "code": 402}}', FatalServerError, "credits"),
    (200, {"error": "model crashed"}, TransientError, "HTTP 502: model crashed"),
    (200, b' \n{"error": {"message": "free-models-per-min", "code": 429}}', RateLimited, "free-models"),
    (429, {"error": {**QUOTA["error"], "details": [{"retryDelay": "0.1s"}]}}, RateLimited, "exceeded"),
    (401, b"token expired", FatalServerError, "no key was sent"),
    (200, {"error": {"message": BUSY, "code": 503}}, RateLimited, "busy"),
    (200, {"choices": [{"message": {"content": "A"}, "finish_reason": "abort"}]}, TransientError, "abort"),
    (200, ["choices"], TransientError, "unexpected answer"),
    (200, {"choices": []}, TransientError, "unexpected answer"),
    (201, b"", TransientError, "HTTP 201"),
    (499, b"", TransientError, "HTTP 499"),
    (200, b"<html>log in</html>", TransientError, "log in"),
    (200, b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n', TransientError, r"unexpected answer.*data: \{"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), ERRORS)
def test_every_refusal_says_how_to_react(status: int, body: Any, kind: type[ServerError], words: str) -> None:
    server = FakeServer("vllm", script=lambda _, n: Reply(status=status, body=body))
    with pytest.raises(ServerError, match=words) as raised:
        asked(server)
    assert type(raised.value) is kind
    assert f"POST {server.url}" in str(raised.value)
    str(raised.value).encode()


DATE = "Fri, 31 Dec 1999 23:59:59 GMT"
RETRY_AFTER = [("7", 7), ("1.5", 1.5), (DATE, 0), ("soon", None), ("-3", None), ("", None), ("nan", None)]


@pytest.mark.parametrize(("value", "seconds"), RETRY_AFTER)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, seconds: float | None) -> None:
    error = failure("POST x", 503, b"", {"Retry-After": value}, False, True)
    assert error.retry_after_s == seconds
    limited = failure("POST x", 429, json.dumps(QUOTA).encode(), {"Retry-After": value}, False, True)
    assert type(limited) is (FatalServerError if seconds is None else RateLimited)


CUTS = [("cut", "disconnected|reset"), ("half", "ayload"), ("hang", "in 0.3 s")]


@pytest.mark.parametrize(("action", "words"), CUTS)
def test_broken_connections_are_transient(action: str, words: str) -> None:
    server = FakeServer(script=lambda _, n: Reply(action=action))
    with pytest.raises(TransientError, match=words) as raised:
        with_endpoint(server, lambda endpoint: endpoint.ask(PLAIN, 0.3))
    assert raised.value.status is None


def test_a_server_whose_shard_is_dead_is_transient_and_one_that_turns_silent_keeps_its_kind() -> None:
    server = FakeServer("llama.cpp")

    async def use(endpoint: Endpoint) -> None:
        server.dead = True
        with pytest.raises(TransientError, match="Connection refused"):
            await endpoint.connect()
        server.dead, server.side = False, dict.fromkeys(SIDE_ROUTES, Reply(status=403))
        assert (await endpoint.connect()).kind == "llama.cpp" and "repeat_penalty" in endpoint.fields(PLAIN)

    with_endpoint(server, use)


# ---- side channels

NONSENSE = (b"<html>hello</html>", b"", [], {}, [[1]], None, 3, "text", {"data": 3, "model_id": [], "version": {}})
BAD = [Reply(status=403), Reply(status=503, body=b"<html>"), Reply(action="cut"), *(Reply(body=b) for b in NONSENSE)]


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
@pytest.mark.parametrize("reply", BAD)
def test_side_channels_never_matter_once_the_generation_route_answers(kind: str, reply: Reply) -> None:
    routes = (*SIDE_ROUTES, "/metrics")

    async def use(endpoint: Endpoint) -> str:
        assert await endpoint.queue_size() is None
        return (await endpoint.ask(PLAIN, 5)).text

    assert with_endpoint(FakeServer(kind, side=dict.fromkeys(routes, reply)), use)


WORDS = """model_id version data max_total_tokens total_slots default_generation_settings n_ctx id choices message
content reasoning usage finish_reason error code details"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(SIDE_ROUTES), OBJECTS), VALUES, st.integers(100, 599), st.binary(max_size=60))
def test_no_reply_raises_anything_but_a_server_error(side: Any, reply: Any, status: int, content: bytes) -> None:
    try:
        assert describe("http://h:1", side, Server()).model_id
    except FatalServerError as error:
        assert "server.model" in str(error)
    data = json.dumps(reply).encode()
    for raw in (data, content):
        str(failure("POST /", status, raw, {"Retry-After": content.decode("latin-1")}, True, False)).encode()
    with suppress(LookupError, TypeError, AttributeError, ValueError):  # each becomes a TransientError
        read_answer(json.loads(data), {"x-queue-time": "x", "x-total-time": str(status)}, "A").text.encode()


GAUGES = [
    ("tgi_queue_size 3", 3),
    ('vllm:num_requests_waiting{model_name="a b",engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 3', 5),
    ("llamacpp:requests_deferred NaN", 0),
    ("sglang:num_queue_reqs +Inf\nsglang:num_queue_reqs 1e400", 0),
    ("other 3", None),
]


def test_queues_are_measured_where_the_server_can() -> None:
    for text, size in GAUGES:
        server = FakeServer(side={"/metrics": Reply(body=text.encode())})
        assert with_endpoint(server, lambda endpoint: endpoint.queue_size()) == size


def test_one_of_several_models_must_be_named_and_their_order_does_not_matter() -> None:
    with pytest.raises(FatalServerError, match=r"several models \(a, b\): name one in server.model"):
        asked(FakeServer("vllm", models=("a", "b")))
    for models in (("a", "b"), ("b", "a")):
        server = FakeServer("vllm", models=models)
        assert asked(server, model="b").text and server.bodies[-1]["model"] == "b"
    asked(server := FakeServer("vllm", models=("a", "a")))
    assert server.bodies[-1]["model"] == "a"


# ---- keys, URLs, redirects, proxies, certificates


def test_missing_and_wrong_keys_are_distinguished_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, words in (("", r"no key was sent: set \$TGI_API_KEY"), ("hunter2", r"refuses the key in \$TGI_API_KEY")):
        monkeypatch.setenv("TGI_API_KEY", key)
        with pytest.raises(FatalServerError, match=words) as raised:
            asked(FakeServer("tgi", api_key="right"))
        assert "hunter2" not in str(raised.value) and raised.value.status == 401
    for key in ("hunter2\n", "hunt er2", "hünter2", "hunter2\r\nX: y"):  # no header can hold it
        monkeypatch.setenv("TGI_API_KEY", key)
        with pytest.raises(FatalServerError, match=r"\$TGI_API_KEY holds") as raised:
            asked(FakeServer())
        assert "unt" not in str(raised.value)
    monkeypatch.setenv("TGI_API_KEY", "right")
    assert asked(FakeServer("vllm", api_key="right")).text


def test_after_an_answer_a_403_is_about_the_prompt_and_a_404_may_pass() -> None:
    later = [None, Reply(status=403, body=b"guardrail"), Reply(status=404, body=b"model not found")]

    async def ask_all(endpoint: Endpoint) -> None:
        await endpoint.ask(PLAIN, 5)
        for status, kind in ((403, RequestRejected), (404, TransientError)):
            with pytest.raises(kind) as raised:
                await endpoint.ask(PLAIN, 5)
            assert raised.value.status == status

    with_endpoint(FakeServer(script=lambda _, n: later[n]), ask_all)


BAD_URLS = ("localhost:8080", "ftp://h", "http://", "not a url", "http://h:99999", "http://[::1", "http://h:x", "")
SECRET_URLS = [f"http://me:hunter2{rest}" for rest in ("@h:1", "@h:99999", "/x@h")] + ["http://hunter2@h"]


@pytest.mark.parametrize("url", [*BAD_URLS, *SECRET_URLS])
def test_a_bad_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(FatalServerError, match="endpoint '") as raised:
        asked(FakeServer(), url=url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("ending", ["/", "/v1", "/v1/", "/v1/chat/completions"])
@pytest.mark.parametrize("query", ["", "?version=1"])
def test_the_url_may_end_as_others_write_it(ending: str, query: str) -> None:
    server = FakeServer("vllm")
    assert asked(server, url="{}" + ending + query).text
    assert server.requests[-1] == f"POST /v1/chat/completions{query}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_with_the_new_address(status: int) -> None:
    moved = Reply(status=status, headers={"Location": "https://elsewhere.example/v1?key=hunter2"})
    with pytest.raises(FatalServerError, match=r"redirects to https://elsewhere\.example/v1, .*new address") as raised:
        asked(FakeServer(script=lambda _, n: moved))
    assert "hunter2" not in str(raised.value)


def test_a_proxy_of_the_environment_is_used_but_not_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer("vllm") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert asked(FakeServer(), url="http://models.example:8000").text and asked(local := FakeServer()).text
        assert (proxy.counts["answers"], local.counts["answers"]) == (1, 1)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_a_certificate_of_ones_own_needs_ssl_cert_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *name, *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    fake = FakeServer("vllm")

    async def kind(_: Endpoint) -> str:
        listener = await asyncio.get_running_loop().create_server(fake._http, "localhost", 0, ssl=context)
        async with listener, open_session() as session:
            url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
            return (await Endpoint(url, Server(), session).connect()).kind

    with pytest.raises(FatalServerError, match="SSL_CERT_FILE"):
        with_endpoint(fake, kind)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert with_endpoint(fake, kind) == "vllm"

"""A fake Text Generation Inference 3.3 server: its routes, checks, errors and headers, without a model.

Written from /work/shared/tgi-facts.md (sections 1 to 3), to which the docstrings refer; what it says is in
`fake_tgi_answers`. In a test: `with FakeTGI() as server: ... server.url`. As a process:
`python -m tests.fake_tgi --port 0 --latency-s 0.05`, which prints its URL when ready.
Left out: /v1/completions, /invocations, /vertex, tool calls, CORS, SSE keep-alives and 1024-token blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

from tests.fake_tgi_answers import (
    EOS,
    Generation,
    Grammar,
    GrammarError,
    UnsupportedRegexError,
    answer,
    chat_body,
    chat_chunks,
    checked_grammar,
    decode,
    native_body,
    native_events,
    render_chat,
    simple_tokens,
    tokenize,
)

MAX_INPUT_TOKENS = 3072
MAX_TOTAL_TOKENS = 4096
MAX_STOP_SEQUENCES = 4
MAX_BEST_OF = 2
MAX_TOP_N_TOKENS = 5
PAYLOAD_LIMIT = 2_000_000
VERSION, DOCKER_LABEL = "3.3.6-dev0", "sha-db931fc"
COMPUTE_TYPE = "1-fake-gpu"

FaultKind = Literal[
    "overloaded",  # 429, no permit
    "generation",  # 424, the shard failed
    "incomplete",  # 500, the shard vanished
    "unavailable",  # 503 with a text body, as a proxy gives
    "validation",  # 422 JSON
    "reset",  # socket closed with no answer
    "half",  # headers and half of the body, then closed
    "hang",  # no answer until the client goes
    "truncated_json",  # 200, cut in the middle, finish_reason length
    "garbage",  # 200, empty string
]


@dataclass(frozen=True)
class Fault:
    """What goes wrong (section 2) at which generation requests, numbered from 0 in order of arrival."""

    kind: FaultKind
    at: frozenset[int] | set[int]


class _Refusal(Exception):
    """An error answer: JSON {error, error_type} (section 2.1), or text where `error_type` is None (section 2.2)."""

    def __init__(self, status: int, error: str, error_type: str | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.error_type = status, error, error_type

    def response(self) -> web.Response:
        """The answer on a route that does not stream."""
        if self.error_type is None:
            return web.Response(status=self.status, text=self.error or None)
        return _json({"error": self.error, "error_type": self.error_type}, self.status)


class _Mismatch(Exception):
    """The body does not fit the target type; the text serde gives, without its position (section 2.2)."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)


def _invalid(problem: str) -> _Refusal:
    return _Refusal(422, f"Input validation error: {problem}", "validation")


def _overloaded() -> _Refusal:
    return _Refusal(429, "Model is overloaded", "overloaded")


def _failed(problem: str) -> _Refusal:
    return _Refusal(424, f"Request failed during generation: Server error: {problem}", "generation")


# ---- the body and its fields ---------------------------------------------------------------------------------------

# serde's name for the expected type, and the test; "?" after a kind means that null is accepted too
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("a boolean", lambda v: isinstance(v, bool)),
    "string": ("a string", lambda v: isinstance(v, str)),
    "f32": ("f32", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "array": ("a sequence", lambda v: isinstance(v, list)),
    "map": ("a map", lambda v: isinstance(v, dict)),
} | {
    kind: (kind, lambda v, low=low, high=high: type(v) is int and low <= v < high)  # type: ignore[misc]
    for kind, low, high in [("u32", 0, 2**32), ("u64", 0, 2**64), ("usize", 0, 2**64), ("i32", -(2**31), 2**31)]
}
_PARAMETERS = {
    "best_of": "usize?",
    "temperature": "f32?",
    "repetition_penalty": "f32?",
    "frequency_penalty": "f32?",
    "top_k": "i32?",
    "top_p": "f32?",
    "typical_p": "f32?",
    "do_sample": "bool",
    "max_new_tokens": "u32?",
    "return_full_text": "bool?",
    "stop": "array of string",
    "truncate": "usize?",
    "watermark": "bool",
    "details": "bool",
    "decoder_input_details": "bool",
    "seed": "u64?",
    "top_n_tokens": "u32?",
    "grammar": "map?",
    "adapter_id": "string?",
}
_CHAT = {
    "messages": "array of map",
    "model": "string?",
    "max_tokens": "u32?",
    "max_completion_tokens": "u32?",
    "temperature": "f32?",
    "top_p": "f32?",
    "frequency_penalty": "f32?",
    "presence_penalty": "f32?",
    "seed": "u64?",
    "stop": "array of string?",
    "logit_bias": "array of f32?",
    "n": "u32?",
    "user": "string?",
    "logprobs": "bool?",
    "top_logprobs": "u32?",
    "stream": "bool",
    "stream_options": "map",
    "tools": "array of map?",
    "tool_prompt": "string?",
    "response_format": "map?",
}


async def _read_json(request: web.Request) -> tuple[Any, int]:
    """axum's Json extractor: media type, then size, then syntax (section 2.2); also the body's length."""
    if not re.fullmatch(r"application/(json|.+\+json)", request.content_type):
        raise _Refusal(415, "Expected request with `Content-Type: application/json`")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _Refusal(413, "Failed to buffer the request body: length limit exceeded") from None
    try:
        return json.loads(raw, parse_constant=_no_constant), len(raw)
    except ValueError as error:
        raise _Refusal(400, f"Failed to parse the request body as JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"expected value, found {name}")  # Python reads NaN and Infinity, serde_json does not


def _check(value: Any, kind: str, where: str) -> None:
    """One field against its kind, such as "u32?" or "array of string" (sections 1.1 and 1.2)."""
    if value is None and kind.endswith("?"):
        return
    outer, _, inner = kind.removesuffix("?").partition(" of ")
    expected, fits = _KINDS[outer]
    if not fits(value):
        fault = "value" if type(value) is int and expected == outer else "type"  # an integer out of range
        raise _Mismatch(where, f"invalid {fault}: {_unexpected(value)}, expected {expected}")
    for index, item in enumerate(value if inner else ()):
        _check(item, inner, f"{where}[{index}]")


def _unexpected(value: Any) -> str:
    """serde's words for what it found."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{json.dumps(value)}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
    return "sequence" if isinstance(value, list) else "map"


def _fields(body: Mapping[str, Any], kinds: Mapping[str, str], where: str = "", required: Iterable[str] = ()) -> None:
    for name, kind in kinds.items():
        if name in body:
            _check(body[name], kind, f"{where}{name}")
    for name in required:
        if name not in body:
            raise _Mismatch(where.removesuffix("."), f"missing field `{name}`")


def _grammar_fields(grammar: Mapping[str, Any] | None, where: str) -> None:
    """The tagged enum GrammarType, row by row of the table in section 1.5."""
    if grammar is None:
        return
    _fields(grammar, {"type": "string"}, f"{where}.", ["type"])
    kinds = ("json", "json_object", "regex", "json_schema")
    if grammar["type"] not in kinds:
        known = ", ".join(f"`{kind}`" for kind in kinds)
        raise _Mismatch(f"{where}.type", f"unknown variant `{grammar['type']}`, expected one of {known}")
    kind = {"regex": "string", "json_schema": "map"}.get(grammar["type"])
    _fields(grammar, {"value": kind} if kind else {}, f"{where}.", ["value"])
    if grammar["type"] == "json_schema":
        _fields(grammar["value"], {"name": "string?"}, f"{where}.value.", ["schema"])


def _message_fields(message: Mapping[str, Any], where: str) -> None:
    _fields(message, {"role": "string", "name": "string?"}, f"{where}.", ["role"])
    content = message.get("content")
    fits = all(map(_is_chunk, content)) if isinstance(content, list) else isinstance(content, str)
    if not (fits or isinstance(message.get("tool_calls"), list)):
        raise _Mismatch(where, "data did not match any variant of untagged enum MessageBody")


def _is_chunk(chunk: Any) -> bool:
    match chunk:
        case {"type": "text", "text": str()} | {"type": "image_url", "image_url": {"url": str()}}:
            return True
    return False


# ---- from a body to a checked call ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A deserialized request of either family, in the native parameters' names."""

    prompt: str
    parameters: Mapping[str, Any]
    stream: bool = False
    chat: Mapping[str, Any] | None = None
    array: bool = False  # the compat route wraps its answer

    @property
    def sampled(self) -> bool:
        """The sampling rule of section 1.1; a greedy answer reports no seed."""
        p = self.parameters
        warm = p.get("temperature") not in (None, 1.0)
        return bool(p.get("do_sample") or warm or any(p.get(k) is not None for k in ("top_k", "top_p", "typical_p")))


def _parse_generate(body: Mapping[str, Any], path: str) -> _Call:
    """GenerateRequest, and CompatGenerateRequest on `/` (section 1.1)."""
    kinds = {"inputs": "string", "parameters": "map"} | ({"stream": "bool"} if path == "/" else {})
    _fields(body, kinds, required=["inputs"])
    parameters = dict(body.get("parameters", {"do_sample": True}))
    _fields(parameters, _PARAMETERS, "parameters.")
    _grammar_fields(parameters.get("grammar"), "parameters.grammar")
    if path == "/" and parameters.get("return_full_text") is None:
        parameters["return_full_text"] = True  # the default for pipeline_tag text-generation
    stream = path == "/generate_stream" or (path == "/" and body.get("stream", False))
    return _Call(body["inputs"], parameters, stream, array=path == "/")


def _parse_chat(body: Mapping[str, Any], path: str) -> _Call:
    """ChatRequest and its way into a GenerateRequest (section 1.2)."""
    if {"max_tokens", "max_completion_tokens"} <= body.keys():
        raise _Mismatch("", "duplicate field `max_tokens`")
    _fields(body, _CHAT, required=["messages"])
    _fields(body.get("stream_options", {}), {"include_usage": "bool"}, "stream_options.")
    _grammar_fields(body.get("response_format"), "response_format")
    for index, message in enumerate(body["messages"]):
        _message_fields(message, f"messages[{index}]")
    if body.get("tools") is not None:
        problem = "Grammar and tools are mutually exclusive" if body.get("response_format") else "not in this fake"
        raise _Refusal(422, f"Tool error: {problem}", "tool_error")
    presence, temperature = body.get("presence_penalty"), body.get("temperature")
    parameters = {
        "max_new_tokens": body.get("max_tokens", body.get("max_completion_tokens")),
        "do_sample": temperature != 0,
        "temperature": temperature or None,
        "repetition_penalty": None if presence is None else presence + 2.0,
        "stop": body.get("stop") or [],
        "grammar": body.get("response_format"),
        "top_n_tokens": body.get("top_logprobs"),
        "details": True,
    }
    parameters |= {name: body.get(name) for name in ("top_p", "frequency_penalty", "seed")}
    return _Call(render_chat(body["messages"]), parameters, body.get("stream", False), chat=body)


@dataclass(frozen=True)
class _Valid:
    """A call that passed the router's validation."""

    prompt: str  # after truncation
    input_length: int
    max_new_tokens: int
    grammar: Grammar | None


def _validate(call: _Call) -> _Valid:
    """The router's checks in its order: parameters, input, grammar (validation.rs; sections 1.1, 1.6, 2.1)."""
    parameters = {name: value for name, value in call.parameters.items() if value is not None}
    if problem := _parameter_problem(call, parameters):
        raise _invalid(problem)
    tokens = tokenize(call.prompt)
    tokens = tokens[-parameters.get("truncate", len(tokens)) :]
    allowed = parameters.get("max_new_tokens", max(0, MAX_TOTAL_TOKENS - len(tokens)))
    if len(tokens) + min(allowed, 1024) > MAX_TOTAL_TOKENS:
        raise _invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {MAX_TOTAL_TOKENS}. "
            f"Given: {len(tokens)} `inputs` tokens and {min(allowed, 1024)} `max_new_tokens`"
        )
    if len(tokens) > MAX_INPUT_TOKENS:
        raise _invalid(f"`inputs` must have less than {MAX_INPUT_TOKENS} tokens. Given: {len(tokens)}")
    try:
        grammar = checked_grammar(parameters["grammar"]) if "grammar" in parameters else None
    except GrammarError as error:
        raise _invalid(str(error)) from None
    return _Valid("".join(tokens), len(tokens), min(allowed, MAX_TOTAL_TOKENS - len(tokens)), grammar)


def _parameter_problem(call: _Call, p: Mapping[str, Any]) -> str | None:
    def fraction(name: str) -> bool:
        return 0.0 < p.get(name, 0.5) < 1.0

    stops, truncate = len(p.get("stop", [])), p.get("truncate", 1)
    best_of, top_n = p.get("best_of", 1), p.get("top_n_tokens", 0)
    rules = [
        (not call.stream or best_of == 1, "`best_of` != 1 is not supported when streaming tokens"),
        (
            not (call.stream and p.get("decoder_input_details")),
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
        (best_of <= MAX_BEST_OF, f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}"),
        (best_of <= 1 or call.sampled, "you must use sampling when `best_of` is > 1"),
        (p.get("temperature", 1.0) > 0, "`temperature` must be strictly positive"),
        (p.get("repetition_penalty", 1.0) > 0, "`repetition_penalty` must be strictly positive"),
        (-2.0 <= p.get("frequency_penalty", 0.0) <= 2.0, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        (fraction("top_p"), "`top_p` must be > 0.0 and < 1.0"),
        (fraction("typical_p"), "`typical_p` must be > 0.0 and < 1.0"),
        (p.get("top_k", 1) > 0, "`top_k` must be strictly positive"),
        (p.get("max_new_tokens", 1) > 0, "`max_new_tokens` must be strictly positive"),
        (
            stops <= MAX_STOP_SEQUENCES,
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {stops}",
        ),
        (best_of <= 1 or "seed" not in p, "`seed` must not be set when `best_of` > 1"),
        (top_n <= MAX_TOP_N_TOKENS, f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {top_n}"),
        (call.prompt != "", "`inputs` cannot be empty"),
        (
            0 < truncate <= MAX_INPUT_TOKENS,
            f"`truncate` must be strictly positive and less than {MAX_INPUT_TOKENS}. Given: {truncate}",
        ),
    ]
    return next((problem for passed, problem in rules if not passed), None)


def _run(valid: _Valid, stop: Iterable[str], fault: str | None) -> Generation:
    """The model's part, with the two faults that are good HTTP and bad answers."""
    if fault == "garbage":
        return Generation("", (EOS,), "eos_token")
    try:
        text = answer(valid.prompt, valid.grammar)
    except UnsupportedRegexError as error:
        raise _failed(str(error)) from None
    allowed = max(1, len(tokenize(text)) // 2) if fault == "truncated_json" else valid.max_new_tokens
    return decode(text, min(allowed, valid.max_new_tokens), stop)


# ---- the server ----------------------------------------------------------------------------------------------------

_GENERATION_ROUTES = {
    "/": _parse_generate,
    "/generate": _parse_generate,
    "/generate_stream": _parse_generate,
    "/v1/chat/completions": _parse_chat,
}
_KEYED_ROUTES = {*_GENERATION_ROUTES, "/tokenize"}


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(body=raw, status=status, headers=headers, content_type="application/json")


def _event(data: Any) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n".encode()


class FakeTGI:
    """The server in a thread of its own: `with FakeTGI() as server:` serves on `server.url` until the block ends."""

    def __init__(
        self,
        max_concurrent_requests: int = 128,
        api_key: str | None = None,
        latency_s: float = 0.0,
        faults: Iterable[Fault] = (),
        model_id: str = "fake/Model-Instruct",
        port: int = 0,
    ) -> None:
        self.max_concurrent_requests, self.api_key, self.latency_s = max_concurrent_requests, api_key, latency_s
        self.model_id, self.url, self.max_in_flight = model_id, "", 0
        self._faults = {ordinal: fault.kind for fault in faults for ordinal in fault.at}
        self._port, self._in_flight, self._ordinals = port, 0, itertools.count()
        self._entries: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What arrived so far, in order: route, body and status (None while unanswered, 0 if never answered)."""
        with self._lock:
            return [dict(entry) for entry in self._entries]

    def __enter__(self) -> FakeTGI:
        """Start the server and return once it listens."""
        self._thread.start()
        self._ready.result(timeout=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections and stop the thread."""
        loop, stop = self._ready.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join(timeout=30)

    async def _serve(self) -> None:
        # handler_cancellation: a client that goes away frees its permit, as with hyper (section 2.3)
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            stop = asyncio.Event()
            self._ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()
        except OSError as error:
            self._ready.set_exception(error)
        finally:
            await runner.cleanup()

    def _app(self) -> web.Application:
        """The route table of section 1.0, less what the module docstring leaves out."""
        app = web.Application(middlewares=[self._guard], client_max_size=PAYLOAD_LIMIT + 1)
        app.add_routes([web.post(route, self._generation) for route in _GENERATION_ROUTES])
        app.add_routes([web.get(route, self._healthy) for route in ("/", "/health", "/ping")])
        app.add_routes([web.post("/tokenize", self._tokenize), web.post("/chat_tokenize", self._chat_tokenize)])
        app.add_routes([web.get("/info", self._info), web.get("/v1/models", self._models)])
        app.add_routes([web.get("/metrics", self._metrics)])
        return app

    # -- every request --

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        """Record the request, ask for the key, and turn refusals into answers (sections 1.0, 2.1 and 2.2)."""
        entry: dict[str, Any] = {"route": request.path, "body": None, "status": None}
        request["entry"] = entry
        with self._lock:
            self._entries.append(entry)
        try:
            self._authorize(request)
            response: web.StreamResponse = await handler(request)
        except _Refusal as refusal:
            response = refusal.response()
        except web.HTTPException as error:  # unknown route or method
            response = web.Response(status=error.status)
        if entry["status"] is None:
            entry["status"] = response.status
        return response

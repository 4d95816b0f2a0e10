"""A fake Text Generation Inference 3.3 server: its routes, checks, errors and headers, without a model.

Written from sections 1 to 3 of the TGI fact sheet (tgi-facts.md), to which the docstrings refer; what it takes is in
`fake_tgi_requests`, what it says in `fake_tgi_answers`. In a test: `with FakeTGI() as server: ... server.url`.
As a process: `python -m tests.fake_tgi --port 0 --latency-s 0.05`, which prints its URL when ready.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

from tests.fake_tgi_answers import (
    EOS,
    Generation,
    UnsupportedRegexError,
    answer,
    chat_body,
    chat_chunks,
    decode,
    native_body,
    native_events,
    simple_tokens,
    tokenize,
)
from tests.fake_tgi_requests import (
    MAX_BEST_OF,
    MAX_INPUT_TOKENS,
    MAX_STOPS,
    MAX_TOTAL_TOKENS,
    Call,
    Mismatch,
    Refusal,
    Valid,
    check,
    failed,
    invalid,
    parse_chat,
    parse_generate,
    validate,
)

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
    """What goes wrong (section 2) at which generation requests: ordinals from 0, in order of arrival.

    A request refused for its key is not counted; one whose body does not fit is, and gets its own error.
    """

    kind: FaultKind
    at: frozenset[int] | set[int]


def _run(valid: Valid, stop: Iterable[str], fault: str | None) -> Generation:
    """The model's part, with the two faults that are good HTTP and bad answers."""
    if fault == "garbage":
        return Generation("", (EOS,), "eos_token")
    try:
        text = answer(valid.prompt, valid.grammar)
    except UnsupportedRegexError as error:
        raise failed(str(error)) from None
    allowed = max(1, len(tokenize(text)) // 2) if fault == "truncated_json" else valid.max_new_tokens
    return decode(text, min(allowed, valid.max_new_tokens), stop)


_GENERATION_ROUTES = {
    "/": parse_generate,
    "/generate": parse_generate,
    "/generate_stream": parse_generate,
    "/v1/chat/completions": parse_chat,
}
_KEYED_ROUTES = {*_GENERATION_ROUTES, "/tokenize"}
_ENTRY = web.RequestKey("entry", dict[str, Any])


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(body=raw, status=status, headers=headers, content_type="application/json")


def _event(data: Any) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _read_json(request: web.Request) -> tuple[Any, int]:
    """axum's Json extractor: media type, then size, then syntax (section 2.2); also the body's length."""
    if not re.fullmatch(r"application/(json|.+\+json)", request.content_type):
        raise Refusal(415, "Expected request with `Content-Type: application/json`")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, "Failed to buffer the request body: length limit exceeded") from None
    try:
        return json.loads(raw, parse_constant=_no_constant), len(raw)
    except ValueError as error:
        raise Refusal(400, f"Failed to parse the request body as JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"expected value, found {name}")  # Python reads NaN and Infinity, serde_json does not


def _refused(refusal: Refusal) -> web.Response:
    if refusal.error_type is None:
        return web.Response(status=refusal.status, text=refusal.error or None)
    return _json({"error": refusal.error, "error_type": refusal.error_type}, refusal.status)


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
        """What arrived so far, in order: route, body and status (None while or if unanswered)."""
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
        app = web.Application(middlewares=[self._guard], client_max_size=PAYLOAD_LIMIT)
        app.add_routes([web.post(route, self._generation) for route in _GENERATION_ROUTES])
        app.add_routes([web.get(route, self._healthy) for route in ("/", "/health", "/ping")])
        app.add_routes([web.post("/tokenize", self._tokenize), web.post("/chat_tokenize", self._chat_tokenize)])
        app.add_routes([web.get("/info", self._info), web.get("/v1/models", self._models)])
        app.add_routes([web.get("/metrics", self._metrics)])
        return app

    # -- every request --

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Record the request, ask for the key, and turn refusals into answers (sections 1.0, 2.1 and 2.2)."""
        entry: dict[str, Any] = {"route": request.path, "body": None, "status": None}
        request[_ENTRY] = entry
        with self._lock:
            self._entries.append(entry)
        try:
            self._authorize(request)
            response: web.StreamResponse = await handler(request)
        except Refusal as refusal:
            response = _refused(refusal)
        except web.HTTPException as error:  # unknown route or method
            response = web.Response(status=error.status)
        if entry["status"] is None:
            entry["status"] = response.status
        return response

    def _authorize(self, request: web.Request) -> None:
        if self.api_key is None or request.method != "POST" or request.path not in _KEYED_ROUTES:
            return
        if request.headers.get("authorization", "").lower() != f"Bearer {self.api_key}".lower():
            raise Refusal(401, "")

    async def _parsed(self, request: web.Request, parse: Callable[[Mapping[str, Any], str], Call]) -> Call:
        body, size = await _read_json(request)
        request[_ENTRY]["body"] = body
        try:
            check(body, "map", "")
            return parse(body, request.path)
        except Mismatch as mismatch:  # the column is the body's end, not always serde's
            where = f"{mismatch} at line 1 column {size}"
            raise Refusal(422, f"Failed to deserialize the JSON body into the target type: {where}") from None

    # -- generation --

    async def _generation(self, request: web.Request) -> web.StreamResponse:
        """All four routes: parse, take a permit or 429, validate, run, answer (sections 1.1, 1.2 and 2.3)."""
        fault = self._faults.get(next(self._ordinals))
        call = await self._parsed(request, _GENERATION_ROUTES[request.path])
        self._counters["tgi_request_count"] += 1
        if fault == "unavailable":
            raise Refusal(503, "upstream connect error or disconnect/reset before headers")
        if fault == "reset":
            return _aborted(request)
        start = time.perf_counter()
        try:
            with self._permits(0 if fault == "overloaded" else call.parameters.get("best_of") or 1):
                if fault == "hang":
                    await asyncio.Event().wait()
                _raise_fault(fault, call.stream)
                valid = validate(call)
                validated = time.perf_counter()
                generation = _run(valid, call.parameters.get("stop", ()), fault)
                await asyncio.sleep(self.latency_s)
                self._counters["tgi_request_success"] += 1
                if call.stream:
                    return await self._stream(request, call, self._events(call, valid, generation), fault)
                headers = _headers(call, valid, generation, start, validated)
                return await self._whole(request, self._body(call, valid, generation), headers, fault)
        except Refusal as refusal:
            kind = str(refusal.error_type).split("_")[0]
            self._counters[f'tgi_request_failure{{err="{kind}"}}'] += 1
            if not call.stream:
                raise
            return await self._stream(request, call, _error_events(call, refusal), fault)

    @contextlib.contextmanager
    def _permits(self, count: int) -> Iterator[None]:
        """Permits are tried, never awaited, and held until the answer is sent (section 2.3)."""
        if count == 0 or self._in_flight + count > self.max_concurrent_requests:
            raise Refusal(429, "Model is overloaded", "overloaded")
        self._in_flight += count
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= count

    def _chat_head(self, call: Call) -> dict[str, Any]:
        model = (call.chat or {}).get("model") or "tgi"
        served = self.model_id if model == "tgi" else model  # any other name is echoed (section 1.2)
        fingerprint = f"{VERSION}-{DOCKER_LABEL}"
        return {"id": "", "created": int(time.time()), "model": served, "system_fingerprint": fingerprint}

    def _body(self, call: Call, valid: Valid, generation: Generation) -> Any:
        if call.chat is not None:
            logprobs = bool(call.chat.get("logprobs"))
            return chat_body(self._chat_head(call), generation, valid.input_length, logprobs)
        body = native_body(generation, call.prompt, call.parameters, call.seed)
        return [body] if call.array else body

    def _events(self, call: Call, valid: Valid, generation: Generation) -> list[bytes]:
        if call.chat is None:
            events = native_events(generation, call.prompt, call.parameters, call.seed, valid.input_length)
            return [_event(event) for event in events]
        usage = call.chat.get("stream_options", {}).get("include_usage", False)
        logprobs = bool(call.chat.get("logprobs"))
        chunks = chat_chunks(self._chat_head(call), generation, valid.input_length, logprobs, usage)
        return [_event(chunk) for chunk in [*chunks, "[DONE]"]]

    async def _whole(
        self, request: web.Request, body: Any, headers: Mapping[str, str], fault: str | None
    ) -> web.StreamResponse:
        response = _json(body, headers=headers)
        if fault != "half":
            return response
        raw = response.body
        assert isinstance(raw, bytes)
        half = web.StreamResponse(headers={**headers, "content-type": "application/json"})
        half.content_length = len(raw)
        return await self._sent(request, half, [raw[: len(raw) // 2]], close=True)

    async def _stream(
        self, request: web.Request, call: Call, events: list[bytes], fault: str | None
    ) -> web.StreamResponse:
        """Server-sent events with the stream's headers, also for errors (sections 2.3 and 3.1)."""
        headers = {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-compute-type": COMPUTE_TYPE,
            "x-compute-characters": str(len(call.prompt)),
            "x-accel-buffering": "no",
        }
        events = events[: len(events) // 2] if fault == "half" else events
        return await self._sent(request, web.StreamResponse(headers=headers), events, close=fault == "half")

    async def _sent(
        self, request: web.Request, response: web.StreamResponse, parts: Iterable[bytes], close: bool
    ) -> web.StreamResponse:
        request[_ENTRY]["status"] = response.status
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if close and request.transport is not None:
            request.transport.close()
        return response

    # -- the other routes (section 1.4) --

    async def _tokenize(self, request: web.Request) -> web.Response:
        call = await self._parsed(request, parse_generate)
        return _json(simple_tokens(call.prompt))

    async def _chat_tokenize(self, request: web.Request) -> web.Response:
        call = await self._parsed(request, parse_chat)
        self._counters["tgi_request_count"] += 1
        return _json({"tokenize_response": simple_tokens(call.prompt), "templated_text": call.prompt})

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.model_id, "object": "model", "created": 0, "owned_by": self.model_id}
        return _json({"object": "list", "data": [model]})

    async def _metrics(self, request: web.Request) -> web.Response:
        """Counters and gauges of section 3.2 as far as the fake has them; no histograms."""
        gauges = {"tgi_queue_size": 0, "tgi_batch_current_size": self._in_flight}
        return web.Response(text="".join(f"{name} {value}\n" for name, value in {**self._counters, **gauges}.items()))

    async def _info(self, request: web.Request) -> web.Response:
        return _json(
            {
                "model_id": self.model_id,
                "model_sha": "0" * 40,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.max_concurrent_requests,
                "max_best_of": MAX_BEST_OF,
                "max_stop_sequences": MAX_STOPS,
                "max_input_tokens": MAX_INPUT_TOKENS,
                "max_total_tokens": MAX_TOTAL_TOKENS,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": VERSION,
                "sha": "db931fcf" + "0" * 32,
                "docker_label": DOCKER_LABEL,
            }
        )


def _raise_fault(fault: str | None, stream: bool) -> None:
    """The faults that are error answers of TGI's own (section 2.1)."""
    match fault:
        case "generation":
            raise failed("scripted")
        case "validation":
            raise invalid("scripted")
        case "incomplete" if stream:
            raise Refusal(500, "Incomplete generation stream", "incomplete_generation_stream")
        case "incomplete":
            raise Refusal(500, "Incomplete generation", "incomplete_generation")


def _error_events(call: Call, refusal: Refusal) -> list[bytes]:
    """Streams answer 200 and one error event; the chat route's always says 422 (section 2.3)."""
    if call.chat is None:
        return [_event({"error": refusal.error, "error_type": refusal.error_type})]
    return [_event({"error": {"message": refusal.error, "http_status_code": 422}}), _event("[DONE]")]


def _aborted(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def _headers(call: Call, valid: Valid, generation: Generation, start: float, validated: float) -> dict[str, str]:
    """The headers of a whole answer (section 3.1): seconds in x-compute-time, else integer milliseconds."""
    now, count = time.perf_counter(), len(generation.tokens)
    milliseconds = {
        "x-total-time": now - start,
        "x-validation-time": validated - start,
        "x-queue-time": 0.0,
        "x-inference-time": now - validated,
        "x-time-per-token": (now - validated) / count,
    }
    return {
        "x-compute-type": COMPUTE_TYPE,
        "x-compute-time": str(now - start),
        "x-compute-characters": str(len(call.prompt)),
        **{name: str(int(1000 * seconds)) for name, seconds in milliseconds.items()},
        "x-prompt-tokens": str(valid.input_length),
        "x-generated-tokens": str(count),
    }


def main() -> None:
    """Serve until interrupted; print one line with the URL when ready."""
    parser = argparse.ArgumentParser(prog="tests.fake_tgi", description="A fake TGI server on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--max-concurrent-requests", type=int, default=128)
    parser.add_argument("--api-key")
    parser.add_argument("--model-id", default="fake/Model-Instruct")
    with FakeTGI(**vars(parser.parse_args())) as server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

"""The fake TGI server's routes: what is asked, counted, run and answered (sections 1 to 3 of tgi-facts.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fake_tgi_answers import EOS, NO_TOOL, Generation, UnsupportedRegexError, answer, decode, tokenize
from tests.fake_tgi_bodies import (
    chat_body,
    chat_chunks,
    completion_body,
    completion_chunks,
    native_body,
    native_events,
    simple_tokens,
    tool_body,
)
from tests.fake_tgi_engine import Engine
from tests.fake_tgi_faults import FaultScript, miscount, refuse_early, refuse_late
from tests.fake_tgi_metrics import COUNTS
from tests.fake_tgi_requests import (
    BLOCK,
    MAX_BEST_OF,
    MAX_CLIENT_BATCH,
    MAX_INPUT_TOKENS,
    MAX_STOPS,
    MAX_TOTAL_TOKENS,
    Asked,
    Call,
    Mismatch,
    Refusal,
    Valid,
    check,
    parse_chat,
    parse_completion,
    parse_generate,
    parse_invocations,
    parse_vertex,
    validate,
)

PAYLOAD_LIMIT = 2_000_000
VERSION, DOCKER_LABEL = "3.3.6-dev0", "sha-db931fc"
COMPUTE_TYPE = "1-fake-gpu"
KEEP_ALIVE_S = 15.0
_CORS = {"access-control-allow-methods": "GET,POST", "access-control-allow-headers": "content-type"}

_GENERATION_ROUTES = {
    "/": parse_generate,
    "/generate": parse_generate,
    "/generate_stream": parse_generate,
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/invocations": parse_invocations,
    "/vertex": parse_vertex,
}
_KEYED_ROUTES = {*_GENERATION_ROUTES, "/tokenize"}
_FAILURES = {"overloaded", "validation", "generation", "incomplete", "template"}
_ENTRY = web.RequestKey("entry", dict[str, Any])


@dataclass(frozen=True)
class _Made:
    """One generation and its times in seconds."""

    call: Call
    valid: Valid
    generation: Generation
    validation_s: float
    queue_s: float
    total_s: float

    @property
    def inference_s(self) -> float:
        return max(0.0, self.total_s - self.validation_s - self.queue_s)

    @property
    def per_token_s(self) -> float:
        return self.inference_s / len(self.generation.tokens)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer without blanks, as serde writes it."""
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
    return json_response({"error": refusal.error, "error_type": refusal.error_type}, refusal.status)


class Routes:
    """The route table over an engine; keeps in `entries` what arrived."""

    def __init__(self, engine: Engine, script: FaultScript) -> None:
        self.engine, self.settings, self.script = engine, engine.settings, script
        self.entries: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def app(self) -> web.Application:
        """The route table of section 1.0, less the documentation routes."""
        app = web.Application(middlewares=[self._guard], client_max_size=PAYLOAD_LIMIT)
        app.add_routes([web.post(route, self._generation) for route in _GENERATION_ROUTES])
        app.add_routes([web.get(route, self._health) for route in ("/", "/health", "/ping")])
        app.add_routes([web.post("/tokenize", self._tokenize), web.post("/chat_tokenize", self._chat_tokenize)])
        app.add_routes([web.get("/info", self._info), web.get("/v1/models", self._models)])
        app.add_routes([web.get("/metrics", self._metrics)])
        app.on_response_prepare.append(_any_origin)
        return app

    # -- every request --

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Record the request, ask for the key, and turn refusals into answers (sections 1.0, 2.1 and 2.2)."""
        if request.method == "OPTIONS":
            return web.Response(headers=_CORS)
        entry: dict[str, Any] = {"route": request.path, "body": None, "status": None}
        request[_ENTRY] = entry
        if request.path != "/_control":
            with self.lock:
                self.entries.append(entry)
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
        key = self.settings.api_key
        if key is None or request.method != "POST" or request.path not in _KEYED_ROUTES:
            return
        if request.headers.get("authorization", "").lower() != f"Bearer {key}".lower():
            raise Refusal(401, "")

    async def _parsed(self, request: web.Request, parse: Callable[[Mapping[str, Any], str], Asked]) -> Asked:
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
        """All routes that generate: parse, take permits or 429, validate, run, answer (sections 1.1 to 1.3, 2.3)."""
        fault = self.script.next(self.settings.fault_rate, self.settings.fault_kinds)
        asked = await self._parsed(request, _GENERATION_ROUTES[request.path])
        if fault == "reset":
            return _aborted(request)
        try:
            refuse_early(fault)
            self.engine.metrics.count("tgi_request_count", by=len(asked.calls))
            with contextlib.ExitStack() as permits:
                work = self._all_made(asked, fault, permits)
                if asked.stream:
                    return await self._stream(request, asked, fault, work)
                made = await work
                body = _body(self._chat_head(asked.body), asked, made)
                body = miscount(body) if fault == "miscount" else body
                return await self._whole(request, body, _headers(asked, made), fault)
        except Refusal as refusal:
            self._count_failure(refusal)
            if asked.family == "vertex":
                raise Refusal(500, "Incomplete generation", "Incomplete generation") from None
            raise

    async def _all_made(self, asked: Asked, fault: str | None, permits: contextlib.ExitStack) -> list[_Made]:
        """Every generation of a request; a failure of one ends them all (section 1.3)."""
        start = time.perf_counter()
        count = sum(call.parameters.get("best_of") or 1 for call in asked.calls)
        permits.enter_context(self.engine.permits(0 if fault == "overloaded" else count))
        try:
            if fault == "hang":
                await asyncio.Event().wait()
            refuse_late(fault, asked.stream)
            valids = [validate(call) for call in asked.calls]
            if len(valids) == 1:
                made = [await self._made(asked.calls[0], valids[0], fault, start)]
            else:
                made = await _together(
                    self._made(call, valid, fault, start) for call, valid in zip(asked.calls, valids, strict=True)
                )
            return await self._without_tool(asked, made, start) if asked.tools else made
        except asyncio.CancelledError:
            self.engine.metrics.count("tgi_request_failure", 'err="dropped"')
            raise

    async def _made(self, call: Call, valid: Valid, fault: str | None, start: float) -> _Made:
        """One generation, in blocks; each block waits for a slot anew and starts the grammar anew (section 1.6)."""
        validation_s = time.perf_counter() - start
        prompt, length, left = valid.prompt, valid.input_length, valid.max_new_tokens
        text, queue_s = "", 0.0
        tokens: tuple[str, ...] = ()
        while True:
            try:
                said, breaks = answer(prompt, valid.grammar), "scripted" if fault == "batch" else None
            except UnsupportedRegexError as error:
                said, breaks = "", str(error)
            if fault == "truncated_json":
                left = min(left, max(1, len(tokenize(said)) // 2))
            block = min(left, BLOCK)
            queue_s += await self.engine.run(prompt, length + block, breaks)
            piece = decode(said, block, call.parameters.get("stop", ()))
            if fault == "garbage":
                piece = Generation("", (EOS,), "eos_token")
            text, tokens, left = text + piece.text, (*tokens, *piece.tokens), left - len(piece.tokens)
            prompt, length = prompt + piece.text, length + len(piece.tokens)
            full = length > MAX_INPUT_TOKENS  # else a whole block fits: the limits lie one block apart
            if piece.finish_reason != "length" or left == 0 or full:
                break
        generation = Generation(text, tokens, piece.finish_reason)
        made = _Made(call, valid, generation, validation_s, queue_s, time.perf_counter() - start)
        self._observe(made)
        return made

    async def _without_tool(self, asked: Asked, made: list[_Made], start: float) -> list[_Made]:
        """Where the model chose no tool, a second generation without constraint (section 1.5)."""
        try:
            chosen = json.loads(made[0].generation.text)["function"]["_name"]
        except ValueError as error:
            raise Refusal(422, f"Tool error: Failed to parse generated text: {error}", "tool_error") from None
        if chosen != NO_TOOL:
            return made
        call = asked.calls[0]
        free = Call(call.prompt, {**call.parameters, "grammar": None})
        return [await self._made(free, validate(free), None, start)]

    def _observe(self, made: _Made) -> None:
        metrics, generation = self.engine.metrics, made.generation
        metrics.count("tgi_request_success")
        for name, seconds in (
            ("duration", made.total_s),
            ("validation_duration", made.validation_s),
            ("queue_duration", made.queue_s),
            ("inference_duration", made.inference_s),
            ("mean_time_per_token_duration", made.per_token_s),
        ):
            metrics.observe(f"tgi_request_{name}", seconds)
        metrics.observe("tgi_request_input_length", made.valid.input_length, COUNTS)
        metrics.observe("tgi_request_max_new_tokens", made.valid.max_new_tokens, COUNTS)
        metrics.observe("tgi_request_generated_tokens", len(generation.tokens), COUNTS)
        metrics.observe_zero("tgi_request_skipped_tokens")

    def _count_failure(self, refusal: Refusal) -> None:
        kind = str(refusal.error_type).split("_")[0]
        if kind in _FAILURES:
            self.engine.metrics.count("tgi_request_failure", f'err="{kind}"')
        if kind in ("generation", "incomplete"):
            self.engine.suspect = True

    def _chat_head(self, body: Mapping[str, Any]) -> dict[str, Any]:
        model = body.get("model") or "tgi"
        served = self.settings.model_id if model == "tgi" else model  # any other name is echoed (section 1.2)
        fingerprint = f"{VERSION}-{DOCKER_LABEL}"
        return {"id": "", "created": int(time.time()), "model": served, "system_fingerprint": fingerprint}

    async def _whole(
        self, request: web.Request, body: Any, headers: Mapping[str, str], fault: str | None
    ) -> web.StreamResponse:
        response = json_response(body, headers=headers)
        if fault != "half":
            return response
        raw = response.body
        assert isinstance(raw, bytes)
        half = web.StreamResponse(headers={**headers, "content-type": "application/json"})
        half.content_length = len(raw)
        request[_ENTRY]["status"] = half.status
        await half.prepare(request)
        await half.write(raw[: len(raw) // 2])
        return _closed(request, half)

    async def _stream(
        self, request: web.Request, asked: Asked, fault: str | None, work: Coroutine[Any, Any, list[_Made]]
    ) -> web.StreamResponse:
        """200 and headers at once, then server-sent events, errors among them (sections 2.3 and 3.1)."""
        headers = {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-compute-type": COMPUTE_TYPE,
            "x-compute-characters": str(sum(len(call.prompt) for call in asked.calls)),
            "x-accel-buffering": "no",
        }
        response = web.StreamResponse(headers=headers)
        request[_ENTRY]["status"] = response.status
        await response.prepare(request)
        try:
            events = _events(self._chat_head(asked.body), asked, await _kept_alive(response, work))
        except Refusal as refusal:
            self._count_failure(refusal)
            events = _error_events(asked, refusal)
        for event in events[: len(events) // 2] if fault == "half" else events:
            await response.write(event)
        return _closed(request, response) if fault == "half" else response

    # -- the other routes (section 1.4) --

    async def _tokenize(self, request: web.Request) -> web.Response:
        asked = await self._parsed(request, parse_generate)
        return json_response(simple_tokens(asked.calls[0].prompt))

    async def _chat_tokenize(self, request: web.Request) -> web.Response:
        asked = await self._parsed(request, parse_chat)
        self.engine.metrics.count("tgi_request_count")
        prompt = asked.calls[0].prompt
        return json_response({"tokenize_response": simple_tokens(prompt), "templated_text": prompt})

    async def _health(self, request: web.Request) -> web.Response:
        """Asks the shard, so it hangs with the model; after a failure it runs a prefill (sections 1.4 and 2.3)."""
        await self.engine.thawed()
        if not self.settings.healthy:
            raise Refusal(503, "unhealthy", "healthcheck")
        if self.engine.suspect:
            self.engine.prefill()
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        name = self.settings.model_id
        return json_response(
            {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": name}]}
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.engine.metrics.text())

    async def _info(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "model_id": self.settings.model_id,
                "model_sha": "0" * 40,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.settings.max_concurrent_requests,
                "max_best_of": MAX_BEST_OF,
                "max_stop_sequences": MAX_STOPS,
                "max_input_tokens": MAX_INPUT_TOKENS,
                "max_total_tokens": MAX_TOTAL_TOKENS,
                "validation_workers": 2,
                "max_client_batch_size": MAX_CLIENT_BATCH,
                "router": "text-generation-router",
                "version": VERSION,
                "sha": "db931fcf" + "0" * 32,
                "docker_label": DOCKER_LABEL,
            }
        )


async def _any_origin(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["access-control-allow-origin"] = "*"  # also on errors and streams (section 3.1)


async def _together(works: Iterable[Awaitable[_Made]]) -> list[_Made]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _kept_alive(response: web.StreamResponse, work: Coroutine[Any, Any, list[_Made]]) -> list[_Made]:
    """Await the work, with a comment now and then (section 2.3)."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=KEEP_ALIVE_S))[0]:
            await response.write(b":\n\n")
        return await task
    finally:
        task.cancel()


def _body(head: Mapping[str, Any], asked: Asked, made: Sequence[_Made]) -> Any:
    """The whole answer in the shape of the route's family."""
    first = made[0]
    match asked.family:
        case "vertex":
            return {"predictions": [one.generation.text for one in made]}
        case "completions":
            return completion_body(head, [(one.generation, one.valid.input_length) for one in made])
        case "chat" if asked.tools and first.call is asked.calls[0]:
            return tool_body(head, first.generation, first.valid.input_length)
        case "chat":
            return chat_body(head, first.generation, first.valid.input_length, bool(asked.body.get("logprobs")))
    body = native_body(first.generation, first.call.prompt, first.call.parameters, first.call.seed)
    return [body] if asked.family == "compat" else body


def _events(head: Mapping[str, Any], asked: Asked, made: Sequence[_Made]) -> list[bytes]:
    """The whole stream in the shape of the route's family."""
    call, generation, length = made[0].call, made[0].generation, made[0].valid.input_length
    match asked.family:
        case "completions":
            chunks = completion_chunks(head, [one.generation for one in made])
        case "chat":
            usage = asked.body.get("stream_options", {}).get("include_usage", False)
            chunks = chat_chunks(head, generation, length, bool(asked.body.get("logprobs")), usage)
        case _:
            events = native_events(generation, call.prompt, call.parameters, call.seed, length)
            return [_event(event) for event in events]
    return [_event(chunk) for chunk in [*chunks, "[DONE]"]]


def _error_events(asked: Asked, refusal: Refusal) -> list[bytes]:
    """One error event; that of the OpenAI routes always says 422 (section 2.3)."""
    if asked.family in ("native", "compat"):
        return [_event({"error": refusal.error, "error_type": refusal.error_type})]
    return [_event({"error": {"message": refusal.error, "http_status_code": 422}}), _event("[DONE]")]


def _aborted(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def _closed(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    return response


def _headers(asked: Asked, made: Sequence[_Made]) -> dict[str, str]:
    """The headers of a whole answer, summed over prompts; integer milliseconds, but not x-compute-time (3.1)."""
    if asked.family == "vertex":
        return {}
    milliseconds = {
        "x-total-time": (one.total_s for one in made),
        "x-validation-time": (one.validation_s for one in made),
        "x-queue-time": (one.queue_s for one in made),
        "x-inference-time": (one.inference_s for one in made),
        "x-time-per-token": (one.per_token_s for one in made),
    }
    headers = {
        "x-compute-type": COMPUTE_TYPE,
        "x-compute-characters": str(sum(len(call.prompt) for call in asked.calls)),
        **{name: str(sum(int(1000 * seconds) for seconds in each)) for name, each in milliseconds.items()},
        "x-prompt-tokens": str(sum(one.valid.input_length for one in made)),
        "x-generated-tokens": str(sum(len(one.generation.tokens) for one in made)),
    }
    if asked.family != "completions":
        headers["x-compute-time"] = str(made[0].total_s)
    return headers

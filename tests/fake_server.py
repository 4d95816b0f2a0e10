"""One fake text-generation server for tests, benchmarks and the rehearsal, without a model.

    python -m tests.fake_server --kind vllm --slots 64         prints its URL as the first line
    async with FakeServer("tgi", limit=8) as server: ...       in the test's event loop
    with FakeServer("llama.cpp") as server: ...                in a thread of its own

It answers and fails as TGI, vLLM, SGLang, llama.cpp, a strict OpenAI server (``transformers serve``) or SGLang's
gateway does. Default answers depend on messages and seed only. It imports nothing of ``generation``.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields
from typing import Any, Self

import orjson
import uvloop
from aiohttp import web

from tests.fake_answers import answer

KINDS = ("tgi", "vllm", "sglang", "llama.cpp", "openai", "gateway")
THOUGHT = "Let me think about what belongs in this scene before I write it down. " * 10
# What transformers serve takes; it refuses all other fields.
OPENAI_FIELDS = {"messages", "model", "max_tokens", "temperature", "top_p", "frequency_penalty", "seed", "stream"}
_FULL = {
    "vllm": (503, "The engine is currently busy and cannot accept new requests.", "Service Unavailable"),
    "sglang": (503, "The request queue is full.", "ServiceUnavailableError"),
}
Body = dict[str, Any]


@dataclass
class Reply:
    """A scripted reply: ``text`` is sent in the dialect's form; without it, ``status`` and ``body`` as they are."""

    text: str | None = None
    finish_reason: str = "stop"
    thinking: str = ""
    status: int = 200
    body: Any = b""  # a JSON value, or bytes of type text/html
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    action: str = ""  # "hang" never answers, "cut" drops the connection, "half" drops it within the body


Script = Callable[[Body, int], str | Reply | None]


@dataclass
class FakeServer:
    """A server of one kind."""

    kind: str = "tgi"
    model: str = "fake/Model-Instruct"
    models: tuple[str, ...] = ()  # if it lists others, or several
    script: Script | None = None  # called with each generation body and its number (from 0); None: the default answer
    latency_s: float = 0.0  # of every answer
    slots: int | None = None  # requests that run at once; the others queue
    limit: int | None = None  # requests that are taken at once; others are refused in the kind's words
    api_key: str | None = None
    max_total_tokens: int = 4096
    thinking: str | None = None  # where it is unless a request switches it off: reasoning, reasoning_content, or think
    poison: str | None = None  # a request that holds this text kills the server, as cases/servers/poison_server.py
    dying_s: float = 1.0
    away_s: float = 3.0
    side: dict[str, Reply] = field(default_factory=dict)  # replies of other routes
    port: int = 0

    def __post_init__(self) -> None:
        self.bodies: deque[Body] = deque(maxlen=5000)  # of generation requests, newest last
        self.requests: deque[str] = deque(maxlen=5000)  # method and path with query of every request
        self.counts: Counter[str] = Counter(requests=0, answers=0)  # of generation; and failures by status
        self.in_flight = self.peak = 0
        self.loading = self.dead = self.draining = False
        self._busy: set[Any] = set()  # transports with a request
        self._numbers = itertools.count()
        self._running: set[asyncio.Future[str]] = set()  # have a slot; set to why the batch failed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._loop, self._tasks = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        self._places = asyncio.Semaphore(self.slots) if self.slots else contextlib.nullcontext()
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None)
        await self._listen(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        self._close()
        await self._http.shutdown(0.05)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.__aexit__(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def drain(self, away_s: float | None = None) -> None:
        """Close the port, answer what is in flight (each connection ends with it), and listen again later."""
        self.draining = True
        self._close(idle_only=True)
        self.spawn(self._listen(away_s))

    async def die(self, away_s: float | None = None) -> None:
        """Close the port, cut every connection, and listen again later."""
        self._close()
        self.spawn(self._listen(away_s))

    async def _listen(self, away_s: float | None = None) -> None:
        await asyncio.sleep(self.away_s if away_s is None else away_s)
        self._listener = await self._loop.create_server(self._http, "127.0.0.1", self.port, backlog=2048)
        self.port = self._listener.sockets[0].getsockname()[1]
        self.dead = self.draining = False

    def _close(self, idle_only: bool = False) -> None:
        self._listener.close()
        for transport in [connection.transport for connection in self._http.connections]:
            if transport is not None and not (idle_only and transport in self._busy):
                (transport.close if idle_only else transport.abort)()

    def spawn(self, call: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the server's event loop; for scripts."""
        self._tasks.append(self._loop.create_task(call))

    async def _die_of_poison(self) -> None:
        await asyncio.sleep(self.dying_s / 10)
        self.dead = True
        for running in self._running:
            if not running.done():
                running.set_result("transport error")
        await asyncio.sleep(self.dying_s)
        await self.die()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        generates = request.method == "POST" and request.path == "/v1/chat/completions"
        self._busy.add(transport)
        self.in_flight += generates
        try:
            self.requests.append(f"{request.method} {request.path_qs}")
            body = orjson.loads(await request.read() or b"{}")
            if generates:
                self.bodies.append(body)
                self.counts["requests"] += 1
                self.peak = max(self.peak, self.in_flight)
            response = await self._respond(request, body, generates)
        finally:
            self._busy.discard(transport)
            self.in_flight -= generates
        if generates:
            self.counts["answers" if response.status == 200 else str(response.status)] += 1
        if self.draining:
            response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest, body: Body, generates: bool) -> web.StreamResponse:
        path, authorized = request.path, request.headers.get("Authorization") == f"Bearer {self.api_key}"
        if reply := self.side.get(path):
            return await _as_scripted(request, reply)
        if self.loading:
            return self._refused(503, "Loading model", "unavailable_error")
        closed = generates or (path.startswith("/v1") and self.kind not in ("tgi", "llama.cpp"))
        if self.api_key and closed and not authorized:
            return web.Response(status=401) if self.kind == "tgi" else self._refused(401, "Unauthorized")
        return await self._generate(request, body) if generates else self._side(path)

    async def _generate(self, request: web.BaseRequest, body: Body) -> web.StreamResponse:
        if self.dead:
            return self._failed("error trying to connect: Connection refused (os error 111)")
        said = self.script(body, next(self._numbers)) if self.script else None
        reply = Reply(said) if isinstance(said, str) else said
        if self.limit is not None and self.in_flight > self.limit:
            full = _FULL.get(self.kind, (429, "Model is overloaded", "overloaded"))
            return web.Response(status=408) if self.kind == "gateway" else self._refused(*full)
        if reply and reply.text is None:
            return await _as_scripted(request, reply)
        if refusal := self._check(body):
            return refusal
        messages, max_tokens = body["messages"], body.setdefault("max_tokens", 256)
        if reply is None:
            switched = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
            thinks = self.thinking and switched and messages[-1]["role"] != "assistant"
            schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
            said = answer(messages, body.get("seed", 0), schema, max_tokens)
            reply = Reply(said, thinking=THOUGHT if thinks else "")
        seconds = self.latency_s + reply.delay_s
        if self.poison and self.poison in json.dumps(messages):
            self.spawn(self._die_of_poison())
            seconds += 60  # it dies before
        async with self._places:
            failed: asyncio.Future[str] = self._loop.create_future()
            self._running.add(failed)
            try:
                if seconds:
                    await asyncio.wait([failed], timeout=seconds)
                if failed.done():
                    return self._failed(failed.result())
                return self._answer(body, reply)
            finally:
                self._running.discard(failed)

    def _check(self, body: Body) -> web.Response | None:
        """Return the refusal of a body that the real server would refuse, or None."""
        used, wanted, most = len(json.dumps(body)) // 4, body.get("max_tokens", 16), self.max_total_tokens
        if self.kind == "openai" and (extra := body.keys() - OPENAI_FIELDS - {"response_format"}):
            return _response({"detail": f"Unexpected fields in the request: {extra}"}, 422)
        if self.kind == "tgi" and "value" not in body.get("response_format", {"value": 0}):
            return web.Response(status=422, text="Failed to deserialize the JSON body: missing field `value`")
        if self.kind == "tgi" and not 0 < body.get("top_p", 0.5) < 1:
            return self._refused(422, "Input validation error: `top_p` must be > 0.0 and < 1.0")
        if self.kind == "vllm" and body.get("model", self.model) not in (*self.models, self.model):
            return self._refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        if used + wanted <= most:
            return None
        if self.kind == "tgi":
            said = f"`inputs` tokens + `max_new_tokens` must be <= {most}. Given: {used} `inputs` tokens and {wanted}"
            return self._refused(422, f"Input validation error: {said} `max_new_tokens`")
        return self._refused(400, f"This model's maximum context length is {most} tokens", "BadRequestError")

    def _failed(self, why: str) -> web.Response:
        if self.kind == "tgi":
            return self._refused(424, f"Request failed during generation: Server error: {why}", "generation")
        return self._refused(500, f"EngineCore encountered an issue: {why}", "InternalServerError")

    def _refused(self, status: int, message: str, error_type: str = "validation") -> web.Response:
        if self.kind == "tgi":
            return _response({"error": message, "error_type": error_type}, status)
        error = {"message": message, "type": error_type, "param": None, "code": status}
        return _response({"object": "error", **error} if self.kind == "sglang" else {"error": error}, status)

    def _answer(self, body: Body, reply: Reply) -> web.Response:
        messages, most = body["messages"], 4 * body["max_tokens"]  # characters
        text, thinking, reason = reply.text or "", reply.thinking[:most], reply.finish_reason
        if thinking and len(text) + len(thinking) > most:
            text, reason = text[: most - len(thinking)], "length"
        prompt, thought = sum(len(message["content"]) for message in messages) // 4 + 8, len(thinking) // 4
        tokens, headers = len(text) // 4 + 1 + thought, dict(reply.headers)
        if self.kind == "tgi":
            headers |= {"x-prompt-tokens": str(prompt), "x-generated-tokens": str(tokens)}
            headers |= {"x-total-time": "100", "x-queue-time": "5" if self.in_flight > len(self._running) else "0"}
        message: Body = {"role": "assistant", "content": text}
        usage: Body = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        if thinking and self.thinking not in ("reasoning", "reasoning_content"):
            message["content"] = f"<think>\n{thinking}" + (f"\n</think>\n\n{text}" if text else "")
        elif thinking and self.thinking:
            message |= {self.thinking: thinking, "content": text or None}
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        if self.kind == "llama.cpp" and messages[-1]["role"] == "assistant":
            message["content"] = messages[-1]["content"] + message["content"]
        head = {"id": "", "object": "chat.completion", "model": body.get("model") or self.model, "usage": usage}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return _response({**head, "choices": [choice]}, 200, headers)

    def _side(self, path: str) -> web.Response:
        if path == "/health":
            return self._refused(503, "unhealthy", "healthcheck") if self.dead else web.Response(text="OK")
        if path == "/metrics":
            return web.Response(text=f"tgi_queue_size {self.in_flight - len(self._running)}\n")
        facts = self._facts().get(path)
        missing = {"error": {"message": "File Not Found"}} if self.kind == "llama.cpp" else {"detail": "Not Found"}
        return _response(facts or ("" if self.kind == "tgi" else missing), 200 if facts else 404)

    def _facts(self) -> Body:
        """Return the side channels of the kind, by route."""
        context = self.max_total_tokens
        owner = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llamacpp"}.get(self.kind, "me")
        entry = {"object": "model", "owned_by": owner, "max_model_len": context if self.kind in _FULL else None}
        names = ["unknown"] if self.kind == "gateway" else self.models or [self.model]
        listed = {"/v1/models": {"object": "list", "data": [{"id": name, **entry} for name in names]}}
        most = {"max_concurrent_requests": self.limit or 128, "max_input_tokens": context - 1}
        info = {"model_id": self.model, "model_sha": "0" * 40, "version": "3.3.5", "max_total_tokens": context, **most}
        state = {"version": "0.5.23", "max_running_requests": self.slots, "api_key": "secret"}
        slots = {"default_generation_settings": {"n_ctx": context}, "total_slots": self.slots or 4}
        own: dict[str, Body] = {
            "tgi": {"/info": info},
            "vllm": {"/version": {"version": "0.33.0"}},
            "sglang": {"/server_info": {"model_path": self.model, **state}},
            "llama.cpp": {"/props": {**slots, "build_info": "b60"}},
        }
        return listed | own.get(self.kind, {})


async def _as_scripted(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    await asyncio.sleep(reply.delay_s)
    if not reply.action:
        return _response(reply.body, reply.status, reply.headers)
    if reply.action == "hang":
        await asyncio.Event().wait()
    response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
    if reply.action == "half":
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "A do')
    if request.transport is not None:
        request.transport.abort()
    return response


def _response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    kind = "text/html" if isinstance(value, bytes) else "application/json"
    try:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
    except TypeError:  # lone surrogates
        data = json.dumps(value).encode()
    return web.Response(body=data, status=status, headers=headers, content_type=kind)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fake text-generation server; see the module's docstring.")
    for option in fields(FakeServer):
        if option.name not in ("models", "script", "side"):
            read = next(kind for kind in (int, float, str) if kind.__name__ in str(option.type))
            parser.add_argument(f"--{option.name.replace('_', '-')}", type=read, default=option.default)
    async with FakeServer(**vars(parser.parse_args())) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_main())

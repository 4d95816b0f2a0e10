"""One fake text-generation server for tests, benchmarks and the rehearsal, without a model.

    python -m tests.fake_server --kind vllm --slots 64         prints its URL as the first line
    async with FakeServer("tgi", limit=8) as server: ...       in the test's event loop
    with FakeServer("llama.cpp") as server: ...                in a thread of its own

It answers as TGI (chat and /generate), vLLM, SGLang, llama.cpp, a strict OpenAI server (``transformers serve``) or
SGLang's gateway does (servers.md, tgi-facts.md), and fails in their words. Default answers depend on messages and seed
only (``fake_answers``). It imports nothing of ``generation``.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import itertools
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, Self

import orjson
from aiohttp import web

from tests.fake_answers import answer

KINDS = ("tgi", "vllm", "sglang", "llama.cpp", "openai", "gateway")
THOUGHT = "Let me think about what belongs in this scene before I write it down. " * 10
# What transformers serve takes; it refuses all other fields.
OPENAI_FIELDS = {
    "messages",
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "seed",
    "stream",
    "stop",
}
VLLM_BUSY = "The engine is currently busy and cannot accept new requests. Please try again later."
_GAUGES = {
    "tgi": "tgi_queue_size",
    "vllm": 'vllm:num_requests_waiting{model_name="m"}',
    "sglang": 'sglang:num_queue_reqs{model_name="m"}',
    "llama.cpp": "llamacpp:requests_deferred",
}
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llamacpp"}
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|$)", re.DOTALL)
Body = dict[str, Any]


@dataclass
class Reply:
    """A scripted reply: ``text`` is sent in the dialect's form; without it, ``status`` and ``body`` as they are.

    ``body`` is a JSON value, or bytes of type text/html. ``action``: ``hang`` never answers, ``cut`` drops the
    connection, ``half`` drops it within the body.
    """

    text: str | None = None
    finish_reason: str = "stop"
    thinking: str = ""
    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    action: str = ""


FAULTS = {
    "424": Reply(status=424, body={"error": "Request failed during generation: x", "error_type": "generation"}),
    "500": Reply(status=500, body={"error": "Incomplete generation", "error_type": "incomplete_generation"}),
    "404": Reply(status=404),
    "html": Reply(status=502, body=b"<html><h1>502 Bad Gateway</h1></html>"),
    "cut": Reply(action="cut"),
    "half": Reply(action="half"),
    "hang": Reply(action="hang"),
    "slow": Reply(delay_s=2.0),
}
Script = Callable[[Body, int], str | Reply | None]


@dataclass
class FakeServer:
    """A server of one kind.

    Args:
        script: called with each generation body and its number (from 0); None gives the default answer.
        latency_s: of every answer; ``tokens_per_s`` adds the time to write it.
        slots: requests that run at once; the others queue.
        limit: requests that are taken at once; others are refused in the kind's words for a full queue.
        faults: share of the generation requests by fault: ``full``, or a key of ``FAULTS`` (a 424 takes everything in
            flight with it).
        thinking: where the model's thinking is, unless a request switches it off: ``reasoning``,
            ``reasoning_content``, or ``think`` (tags in the text).
        poison: a request that holds this text kills the server, as cases/servers/poison_server.py does.
        side: replies of other routes, such as ``{"/info": Reply(status=403)}``.
    """

    kind: str = "tgi"
    model: str = "fake/Model-Instruct"
    models: tuple[str, ...] = ()
    script: Script | None = None
    latency_s: float = 0.0
    tokens_per_s: float | None = None
    slots: int | None = None
    limit: int | None = None
    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    api_key: str | None = None
    max_total_tokens: int = 4096
    thinking: str | None = None
    poison: str | None = None
    dying_s: float = 1.0
    away_s: float = 3.0
    side: dict[str, Reply] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self.bodies: deque[Body] = deque(maxlen=5000)  # of generation requests, newest last
        self.requests: deque[str] = deque(maxlen=5000)  # method and path with query of every request
        self.headers: dict[str, str] = {}  # of the last generation request
        self.counts: Counter[str] = Counter()  # requests, answers, and statuses of failures
        self.in_flight = self.peak = self.waiting = 0
        self.loading = self.dead = self.draining = False
        self._busy: set[Any] = set()  # transports with a request
        self._rng, self._numbers = Random(self.seed), itertools.count()
        self._running: set[asyncio.Future[str]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(self.slots) if self.slots else None
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._tasks: set[asyncio.Task[None]] = set()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        self._close()
        await self._http.shutdown(0.05)

    def __enter__(self) -> Self:
        ready, self._stop = threading.Event(), asyncio.Event()

        async def run() -> None:
            async with self:
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def do(self, call: Coroutine[Any, Any, None]) -> None:
        """Run ``drain`` or ``die`` of a server that is in a thread of its own."""
        asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    async def drain(self, away_s: float | None = None) -> None:
        """Close the port, answer what is in flight (each connection ends with it), and listen again later."""
        self._listener.close()
        self.draining = True
        for connection in self._http.connections:
            if connection.transport is not None and connection.transport not in self._busy:
                connection.transport.close()
        self._spawn(self._return(away_s))

    async def die(self, away_s: float | None = None) -> None:
        """Close the port, cut every connection, and listen again later."""
        self._close()
        self._spawn(self._return(away_s))

    async def _return(self, away_s: float | None) -> None:
        await asyncio.sleep(self.away_s if away_s is None else away_s)
        await self._listen()

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(self._http, "127.0.0.1", self.port, backlog=2048)
        self.port = self._listener.sockets[0].getsockname()[1]
        self.dead = self.draining = False

    def _close(self) -> None:
        self._listener.close()
        for connection in self._http.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail_batch(self) -> None:
        for running in self._running:
            if not running.done():
                running.set_result("transport error")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        self._busy.add(transport)
        try:
            self.requests.append(f"{request.method} {request.path_qs}")
            body = orjson.loads(await request.read() or b"{}")
            generates = request.method == "POST" and request.path in ("/v1/chat/completions", "/generate")
            response = await (self._counted if generates else self._side)(request, body)
        finally:
            self._busy.discard(transport)
        if self.draining:
            response.force_close()
        return response

    async def _counted(self, request: web.BaseRequest, body: Body) -> web.StreamResponse:
        self.headers = dict(request.headers)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.Response(status=401) if self.kind == "tgi" else self._refused(401, "Unauthorized")
        self.bodies.append(body)
        self.counts["requests"] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            response = await self._generate(request, body, request.path == "/generate")
        finally:
            self.in_flight -= 1
        self.counts["answers" if response.status == 200 else str(response.status)] += 1
        return response

    async def _generate(self, request: web.BaseRequest, body: Body, native: bool) -> web.StreamResponse:
        if self.loading:
            return self._refused(503, "Loading model", "unavailable_error")
        if self.dead:
            return self._failed("error trying to connect: Connection refused (os error 111)")
        number = next(self._numbers)
        said = self.script(body, number) if self.script else None
        fault = self._fault() if said is None else None
        if fault == "full" or (self.limit is not None and self.in_flight > self.limit):
            return self._full()
        if fault == "424":
            self._fail_batch()
        reply = Reply(said) if isinstance(said, str) else said or FAULTS.get(fault or "")
        if reply and reply.action:
            return await _misbehave(request, reply.action)
        if reply and reply.text is None and fault != "slow":
            await asyncio.sleep(reply.delay_s)
            return _response(reply.body, reply.status, reply.headers)
        if refusal := self._check(body, native):
            return refusal
        messages, schema, max_tokens, seed = _question(body, native)
        delay_s = reply.delay_s if reply else 0.0
        if reply is None or reply.text is None:
            switched = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
            thinks = self.thinking and switched and messages[-1]["role"] != "assistant"
            reply = Reply(answer(messages, seed, schema, max_tokens), thinking=THOUGHT if thinks else "")
        if self.poison and self.poison in json.dumps(messages):
            self._spawn(self._die_of_poison())
            delay_s += 2 * self.dying_s
        if why := await self._work(delay_s + self.latency_s, reply):
            return self._failed(why)
        return self._answer(body, messages, reply, max_tokens, native)

    def _fault(self) -> str | None:
        drawn = self._rng.random() if self.faults else 1.0
        for fault, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return fault
        return None

    async def _work(self, seconds: float, reply: Reply) -> str | None:
        """Wait for a slot and until the answer is written; return why the batch failed, if it did."""
        seconds += len(reply.text or "") / 4 / self.tokens_per_s if self.tokens_per_s else 0
        if self._places is None and not seconds:
            return None
        self.waiting += 1
        try:
            async with self._places or contextlib.nullcontext():
                self.waiting -= 1
                failed: asyncio.Future[str] = self._loop.create_future()
                self._running.add(failed)
                try:
                    await asyncio.wait([failed], timeout=seconds)
                finally:
                    self._running.discard(failed)
                    self.waiting += 1
                return failed.result() if failed.done() else None
        finally:
            self.waiting -= 1

    async def _die_of_poison(self) -> None:
        await asyncio.sleep(self.dying_s / 10)
        self.dead = True
        self._fail_batch()
        await asyncio.sleep(self.dying_s)
        await self.die()

    def _check(self, body: Body, native: bool) -> web.Response | None:
        """Return the refusal of a body that the real server would refuse, or None."""
        asked, form = body.get("parameters", {}) if native else body, body.get("response_format", {"value": 0})
        used, wanted = len(json.dumps(body)) // 4, asked.get("max_new_tokens" if native else "max_tokens", 16)
        most = self.max_total_tokens
        if self.kind == "openai" and (extra := body.keys() - OPENAI_FIELDS - {"response_format"}):
            return _response({"detail": f"Unexpected fields in the request: {extra}"}, 422)
        if self.kind == "tgi" and "value" not in form:
            return web.Response(status=422, text="Failed to deserialize the JSON body: missing field `value`")
        if self.kind == "tgi" and not 0 < asked.get("top_p", 0.5) < 1:
            return self._refused(422, "Input validation error: `top_p` must be > 0.0 and < 1.0")
        if self.kind == "vllm" and body.get("model", self.model) not in (*self.models, self.model):
            return self._refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        if used + wanted > most and self.kind == "tgi":
            said = f"`inputs` tokens + `max_new_tokens` must be <= {most}. Given: {used} `inputs` tokens and {wanted}"
            return self._refused(422, f"Input validation error: {said} `max_new_tokens`")
        if used + wanted > most:
            return self._refused(400, f"This model's maximum context length is {most} tokens", "BadRequestError")
        return None

    def _full(self) -> web.Response:
        """Refuse for a full queue, in the words of the kind."""
        if self.kind == "vllm":
            return self._refused(503, VLLM_BUSY, "Service Unavailable")
        if self.kind == "sglang":
            return self._refused(503, "The request queue is full.", "ServiceUnavailableError")
        return web.Response(status=408) if self.kind == "gateway" else self._refused(429, "Model is overloaded")

    def _failed(self, why: str) -> web.Response:
        if self.kind == "tgi":
            return self._refused(424, f"Request failed during generation: Server error: {why}", "generation")
        return self._refused(500, f"EngineCore encountered an issue: {why}", "InternalServerError")

    def _refused(self, status: int, message: str, error_type: str = "validation") -> web.Response:
        if self.kind == "tgi":
            return _response({"error": message, "error_type": error_type}, status)
        error = {"message": message, "type": error_type, "param": None, "code": status}
        return _response({"object": "error", **error} if self.kind == "sglang" else {"error": error}, status)

    def _answer(
        self, body: Body, messages: list[dict[str, str]], reply: Reply, max_tokens: int, native: bool
    ) -> web.Response:
        text, thinking, reason = reply.text or "", reply.thinking[: 4 * max_tokens], reply.finish_reason
        if len(text) + len(thinking) > 4 * max_tokens:
            text, reason = text[: 4 * max_tokens - len(thinking)], "length"
        prompt, thought = sum(len(message["content"]) for message in messages) // 4 + 8, len(thinking) // 4
        tokens, headers = len(text) // 4 + 1 + thought, reply.headers
        if self.kind == "tgi":
            queued = "5" if self.waiting else "0"
            headers = {"x-prompt-tokens": str(prompt), "x-generated-tokens": str(tokens), **headers}
            headers |= {"x-total-time": "100", "x-queue-time": queued}
        if native:
            details = {"finish_reason": "eos_token" if reason == "stop" else reason, "generated_tokens": tokens}
            return _response({"generated_text": text, "details": {**details, "seed": 1, "tokens": []}}, 200, headers)
        message: Body = {"role": "assistant", "content": text}
        usage: Body = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        if thinking and self.thinking not in ("reasoning", "reasoning_content"):
            message["content"] = f"<think>\n{thinking}" + (f"\n</think>\n\n{text}" if text else "")
        elif thinking and self.thinking:
            message |= {self.thinking: thinking, "content": text or None}
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        if self.kind == "llama.cpp" and messages[-1]["role"] == "assistant":
            message["content"] = messages[-1]["content"] + message["content"]
        head = {"id": "", "object": "chat.completion", "created": 0, "model": body.get("model") or self.model}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return _response({**head, "choices": [choice], "usage": usage}, 200, headers)

    async def _side(self, request: web.BaseRequest, body: Body) -> web.StreamResponse:
        path = request.path
        if reply := self.side.get(path):
            if reply.action:
                return await _misbehave(request, reply.action)
            return _response(reply.body, reply.status, reply.headers)
        if self.loading:
            return self._refused(503, "Loading model", "unavailable_error")
        closed = path.startswith("/v1") and self.kind not in ("tgi", "llama.cpp")
        if self.api_key and closed and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return self._refused(401, "Unauthorized")
        if path == "/health":
            return self._refused(503, "unhealthy", "healthcheck") if self.dead else web.Response(text="OK")
        if path == "/metrics" and (name := _GAUGES.get(self.kind)):
            return web.Response(text=f"# TYPE {name.split('{')[0]} gauge\n{name} {self.waiting}\n")
        facts = self._tokens(path, body) if request.method == "POST" else self._facts().get(path)
        missing = {"error": {"message": "File Not Found"}} if self.kind == "llama.cpp" else {"detail": "Not Found"}
        return _response(facts or ("" if self.kind == "tgi" else missing), 200 if facts else 404)

    def _facts(self) -> Body:
        """Return the side channels of the kind."""
        context, entries = self.max_total_tokens, []
        for name in self.models or (self.model,):
            entry = {"id": name, "object": "model", "created": 0, "owned_by": _OWNERS.get(self.kind, name)}
            entries.append({**entry, "max_model_len": context} if self.kind in ("vllm", "sglang") else entry)
        if self.kind == "gateway":
            entries[0]["id"] = "unknown"
        most = {"max_concurrent_requests": self.limit or 128, "max_input_tokens": context - 1}
        info = {"model_id": self.model, "model_sha": "0" * 40, "version": "3.3.5", "max_total_tokens": context, **most}
        state = {
            "model_path": self.model,
            "version": "0.5.23",
            "max_running_requests": self.slots,
            "api_key": "secret",
        }
        props = {
            "default_generation_settings": {"n_ctx": context},
            "total_slots": self.slots or 4,
            "build_info": "b60",
        }
        own = {"tgi": ("/info", info), "vllm": ("/version", {"version": "0.33.0"}), "llama.cpp": ("/props", props)}
        route, facts = own.get(self.kind, ("/server_info", state))
        listed = {"/v1/models": {"object": "list", "data": entries}}
        return listed | ({route: facts} if self.kind not in ("openai", "gateway") else {})

    def _tokens(self, path: str, body: Body) -> Body | None:
        """Return the reply of TGI's ``/chat_tokenize`` (ChatML) or vLLM's ``/tokenize``, a token a word."""
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body.get("messages", []))
        begun = text and body["messages"][-1]["role"] == "assistant"
        text = text.removesuffix("<|im_end|>\n") if begun else f"{text}<|im_start|>assistant\n"
        if path == "/chat_tokenize" and self.kind == "tgi":
            return {"tokenize_response": [{"id": 1} for _ in text.split()], "templated_text": text}
        return {"count": len(text.split())} if path == "/tokenize" and self.kind == "vllm" else None


async def _misbehave(request: web.BaseRequest, action: str) -> web.StreamResponse:
    if action == "hang":
        await asyncio.Event().wait()
    response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
    if action == "half":
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "A do')
    if request.transport is not None:
        request.transport.abort()
    return response


def _question(body: Body, native: bool) -> tuple[list[dict[str, str]], Body | None, int, int]:
    """Return messages, schema, max_tokens and seed of a generation body."""
    if native:
        asked = body.get("parameters", {})
        messages = [{"role": role, "content": content} for role, content in _TURN.findall(body["inputs"])]
        messages = messages[:-1] if len(messages) > 1 and not messages[-1]["content"] else messages
        grammar = asked.get("grammar") or {}
        messages = messages or [{"role": "user", "content": body["inputs"]}]
        return messages, grammar.get("value"), asked.get("max_new_tokens", 100), asked.get("seed", 0)
    named = (body.get("response_format") or {}).get("json_schema") or {}
    return body["messages"], named.get("schema"), body.get("max_tokens", 256), body.get("seed", 0)


def _response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    html = isinstance(value, bytes)
    try:
        data = value if html else orjson.dumps(value)
    except TypeError:  # lone surrogates
        data = json.dumps(value).encode()
    kind = "text/html" if html else "application/json"
    return web.Response(body=data, status=status, headers=headers, content_type=kind)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fake text-generation server; see the module's docstring.")
    parser.add_argument("--drain-at", type=float, help="seconds after which it drains, once")
    for option in fields(FakeServer):
        if option.name not in ("models", "script", "side"):
            read = {"faults": json.loads}.get(option.name) or next(
                kind for kind in (int, float, str) if kind.__name__ in str(option.type)
            )
            default = {} if option.name == "faults" else option.default
            parser.add_argument(f"--{option.name.replace('_', '-')}", type=read, default=default)
    options = vars(parser.parse_args())
    drain_at = options.pop("drain_at")
    async with FakeServer(**options) as server:
        print(server.url, flush=True)
        if drain_at is not None:
            await asyncio.sleep(drain_at)
            await server.drain()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None).run(_main())

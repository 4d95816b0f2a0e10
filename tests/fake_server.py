"""One fake text-generation server for tests, benchmarks and the rehearsal, without a model.

    python -m tests.fake_server --kind vllm --port 0 --slots 64      prints its URL as the first line
    async with FakeServer("tgi", limit=8) as server: ...             in the test's event loop
    with FakeServer("llama.cpp") as server: ...                      in a thread of its own

It answers as TGI (chat and /generate), vLLM, SGLang, llama.cpp, a strict OpenAI server (``transformers serve``) or
SGLang's gateway does, by servers.md and tgi-facts.md, and fails in their words. Answers depend on messages and seed
alone (``fake_answers``). It imports nothing of ``generation``.
"""

import argparse
import asyncio
import itertools
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

import orjson
from aiohttp import web

from tests.fake_answers import answer

KINDS = ("tgi", "vllm", "sglang", "llama.cpp", "openai", "gateway")
THOUGHT = "Let me think about what belongs in this scene before I write it down. "
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|$)", re.DOTALL)
_QUEUE_GAUGES = {
    "tgi": "tgi_queue_size",
    "vllm": 'vllm:num_requests_waiting{model_name="m"}',
    "sglang": 'sglang:num_queue_reqs{model_name="m"}',
    "llama.cpp": "llamacpp:requests_deferred",
}
# transformers serve refuses every field that it does not know.
_OPENAI_FIELDS = frozenset(
    "messages model max_tokens temperature top_p frequency_penalty seed stream response_format stop".split()
)


@dataclass
class Reply:
    """What a script answers with.

    Attributes:
        text: the model's answer, sent in the dialect's form; None sends ``status`` and ``body`` as they are.
        body: JSON value, or text of type text/html.
        action: ``hang`` never answers, ``cut`` drops the connection, ``half`` drops it in the middle of the answer.
    """

    text: str | None = None
    finish_reason: str = "stop"
    thinking: str = ""
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    action: str = ""


Script = Callable[[dict[str, Any], int], "str | Reply | None"]


class FakeServer:
    """A server of one kind.

    Args:
        kind: one of ``KINDS``.
        script: called with each generation body and its number (from 0); None gives the default answer.
        latency_s: of every answer; ``tokens_per_s`` adds the time to write it.
        slots: requests that run at once; the others queue.
        limit: requests that are taken at once; more are refused in the kind's words for a full queue.
        faults: share of generation requests by fault: 429, 503, 408, 424 (everything in flight fails), 500, 404,
            html, cut, half, hang, slow.
        thinking: ``reasoning``, ``reasoning_content`` or ``think`` (tags in the text): where the model thinks, unless
            the request switches it off.
        poison: a request that holds this text kills the server, as in cases/servers/poison_server.py.
        side: replies of other routes, such as ``{"/info": Reply(status=403)}``.
    """

    def __init__(
        self,
        kind: str = "tgi",
        *,
        model: str = "fake/Model-Instruct",
        models: tuple[str, ...] = (),
        script: Script | None = None,
        latency_s: float = 0.0,
        tokens_per_s: float | None = None,
        slots: int | None = None,
        limit: int | None = None,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        api_key: str | None = None,
        max_total_tokens: int = 4096,
        thinking: str | None = None,
        poison: str | None = None,
        dying_s: float = 1.0,
        away_s: float = 3.0,
        side: Mapping[str, Reply] | None = None,
        port: int = 0,
    ) -> None:
        self.kind, self.model, self.models, self.script = kind, model, models or (model,), script
        self.latency_s, self.tokens_per_s, self.limit = latency_s, tokens_per_s, limit
        self.slots, self.faults, self.api_key, self.max_total_tokens = (
            slots,
            dict(faults or {}),
            api_key,
            max_total_tokens,
        )
        self.thinking, self.poison, self.dying_s, self.away_s = thinking, poison, dying_s, away_s
        self.side, self.port = dict(side or {}), port
        self.bodies: deque[dict[str, Any]] = deque(maxlen=5000)  # of generation requests, newest last
        self.requests: deque[tuple[str, str]] = deque(maxlen=5000)  # method and path with query of every request
        self.headers: dict[str, str] = {}  # of the last generation request
        self.counts: Counter[str] = Counter()  # generation requests, answers, and statuses of failures
        self.in_flight = self.peak = self.waiting = 0
        self.loading = self.dead = False
        self._rng, self._numbers = Random(seed), itertools.count()
        self._failing: set[asyncio.Future[str]] = set()

    # ---- life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(self.slots) if self.slots else None
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None, keepalive_timeout=75)
        self._background: set[asyncio.Task[None]] = set()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._background:
            task.cancel()
        self._listener.close()
        self._abort()
        await self._http.shutdown(0.05)

    def __enter__(self) -> Self:
        ready = threading.Event()

        async def run() -> None:
            async with self:
                self._stop = asyncio.Event()
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
        self._http.pre_shutdown()
        self._later(self.away_s if away_s is None else away_s)

    async def die(self, away_s: float | None = None) -> None:
        """Close the port, cut every connection, and listen again later."""
        self._listener.close()
        self._abort()
        self._later(self.away_s if away_s is None else away_s)

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            self._http, "127.0.0.1", self.port, reuse_address=True, backlog=2048
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self.dead = False

    def _later(self, away_s: float) -> None:
        async def again() -> None:
            await asyncio.sleep(away_s)
            await self._listen()

        self._spawn(again())

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _abort(self) -> None:
        for connection in self._http.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _fail_batch(self, why: str) -> None:
        for waiting in self._failing:
            if not waiting.done():
                waiting.set_result(why)

    # ---- requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "GET" or path not in ("/v1/chat/completions", "/generate"):
            self.requests.append((request.method, request.path_qs))
            return await self._side(request)
        try:
            body = orjson.loads(await request.read())
        except ValueError:
            return _json({"error": "the body is not JSON"}, 400)
        self.requests.append((request.method, request.path_qs))
        self.headers = dict(request.headers)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return self._refused(401, "" if self.kind == "tgi" else "Unauthorized")
        self.bodies.append(body)
        self.counts["requests"] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            response = await self._generate(request, body, next(self._numbers), path == "/generate")
        finally:
            self.in_flight -= 1
        self.counts["answers" if response.status == 200 else str(response.status)] += 1
        return response

    async def _generate(
        self, request: web.BaseRequest, body: dict[str, Any], n: int, native: bool
    ) -> web.StreamResponse:
        if self.loading:
            return self._refused(503, "Loading model")
        if self.dead:
            return self._failed("error trying to connect: Connection refused (os error 111)")
        if self.limit is not None and self.in_flight > self.limit:
            return self._full()
        said = self.script(body, n) if self.script else None
        reply = Reply(text=said) if isinstance(said, str) else said
        if reply is None and (fault := self._fault()):
            reply = _FAULTS[fault]
            if fault == "424":
                self._fail_batch("transport error")
            elif fault in ("429", "503", "408"):
                return self._full()
        if reply is not None and reply.action:
            return await self._misbehave(request, reply.action)
        if reply is not None and reply.text is None and reply is not _FAULTS["slow"]:
            await asyncio.sleep(reply.delay_s)
            return _json(reply.body, reply.status, reply.headers)
        if refusal := self._check(body, native):
            return refusal
        messages, schema, max_tokens, seed = _question(body, native)
        if reply is None or reply.text is None:
            delay_s = reply.delay_s if reply else 0.0
            reply = Reply(
                answer(messages, seed, schema, max_tokens), delay_s=delay_s, thinking=self._thought(body, messages)
            )
        if self.poison and self.poison in json.dumps(messages):
            self._spawn(self._die_of_poison())
            reply.delay_s += self.dying_s
        if why := await self._work(reply):
            return self._failed(why)
        return self._answer(body, messages, reply, max_tokens, native)

    async def _work(self, reply: Reply) -> str | None:
        """Wait for a slot and for the answer to be written; return why the batch failed, if it did."""
        seconds = (
            reply.delay_s
            + self.latency_s
            + (len(reply.text or "") / 4 / self.tokens_per_s if self.tokens_per_s else 0)
        )
        if self._places is None and not seconds:
            return None
        self.waiting += 1
        try:
            if self._places:
                await self._places.acquire()
        finally:
            self.waiting -= 1
        failed = self._loop.create_future()
        self._failing.add(failed)
        try:
            await asyncio.wait([failed], timeout=seconds)
            return failed.result() if failed.done() else None
        finally:
            self._failing.discard(failed)
            if self._places:
                self._places.release()

    async def _die_of_poison(self) -> None:
        await asyncio.sleep(self.dying_s / 10)
        self.dead = True
        self._fail_batch("transport error")
        await asyncio.sleep(self.dying_s)
        await self.die()

    def _fault(self) -> str | None:
        drawn = self._rng.random() if self.faults else 1.0
        for fault, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return fault
        return None

    async def _misbehave(self, request: web.BaseRequest, action: str) -> web.StreamResponse:
        if action == "hang":
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
        if action == "half":
            await response.prepare(request)
            await response.write(b'{"choices": [{"message": {"content": "A do')
        if request.transport is not None:
            request.transport.abort()
        return response

    def _thought(self, body: Mapping[str, Any], messages: list[dict[str, str]]) -> str:
        switched = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        return THOUGHT * 10 if self.thinking and switched and messages[-1]["role"] != "assistant" else ""

    # ---- what is refused

    def _check(self, body: dict[str, Any], native: bool) -> web.Response | None:
        """Return the refusal of a body that the real server would refuse."""
        asked = body.get("parameters", {}) if native else body
        form = body.get("response_format")
        if self.kind == "tgi":
            if not 0 < asked.get("top_p", 0.5) < 1:
                return self._refused(422, "Input validation error: `top_p` must be > 0.0 and < 1.0")
            if form and "value" not in form:
                return web.Response(
                    status=422, text="Failed to deserialize the JSON body into the target type: missing field `value`"
                )
        elif self.kind == "openai" and (extra := body.keys() - _OPENAI_FIELDS):
            return _json({"detail": f"Unexpected fields in the request: {extra}"}, 422)
        elif self.kind == "openai" and form and "value" in form:
            return _json({"detail": [{"type": "extra_forbidden", "loc": ["body", "response_format", "value"]}]}, 422)
        elif self.kind == "vllm" and body.get("model", self.models[0]) not in self.models:
            return self._refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        used, wanted = len(json.dumps(body)) // 4, asked.get("max_new_tokens" if native else "max_tokens", 16)
        if used + wanted > self.max_total_tokens:
            if self.kind == "tgi":
                said = f"`inputs` tokens + `max_new_tokens` must be <= {self.max_total_tokens}. Given: {used} `inputs` tokens"
                return self._refused(422, f"Input validation error: {said} and {wanted} `max_new_tokens`")
            return self._refused(
                400, f"This model's maximum context length is {self.max_total_tokens} tokens", "BadRequestError"
            )
        return None

    def _full(self) -> web.Response:
        """Refuse for a full queue, in the words of the kind."""
        match self.kind:
            case "vllm":
                busy = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
                return self._refused(503, busy, "Service Unavailable")
            case "sglang":
                return self._refused(503, "The request queue is full.", "ServiceUnavailableError")
            case "gateway":
                return web.Response(status=408)
        return self._refused(429, "Model is overloaded", "overloaded")

    def _failed(self, why: str) -> web.Response:
        if self.kind == "tgi":
            return self._refused(424, f"Request failed during generation: Server error: {why}", "generation")
        return self._refused(500, f"EngineCore encountered an issue: {why}", "InternalServerError")

    def _refused(self, status: int, message: str, error_type: str = "validation") -> web.Response:
        if not message:
            return web.Response(status=status)
        if self.kind == "tgi":
            return _json({"error": message, "error_type": error_type}, status)
        error = {"message": message, "type": error_type, "param": None, "code": status}
        return _json({"object": "error", **error} if self.kind == "sglang" else {"error": error}, status)

    # ---- what is answered

    def _answer(
        self, body: dict[str, Any], messages: list[dict[str, str]], reply: Reply, max_tokens: int, native: bool
    ) -> web.Response:
        text, reason = reply.text or "", reply.finish_reason
        thinking = reply.thinking
        if len(text) + len(thinking) > 4 * max_tokens:
            thinking, rest = thinking[: 4 * max_tokens], max(0, 4 * max_tokens - len(thinking))
            text, reason = text[:rest], "length"
        prompt, thought = sum(len(m["content"]) for m in messages) // 4 + 8, len(thinking) // 4
        tokens = len(text) // 4 + 1 + thought
        headers = {}
        if self.kind == "tgi":
            times = {"x-total-time": 100, "x-queue-time": 5 if self.waiting else 0, "x-inference-time": 95}
            headers = {
                k: str(v) for k, v in {**times, "x-prompt-tokens": prompt, "x-generated-tokens": tokens}.items()
            }
        if native:
            native_reason = "eos_token" if reason == "stop" else reason
            details = {
                "finish_reason": native_reason,
                "generated_tokens": tokens,
                "seed": 1,
                "prefill": [],
                "tokens": [],
            }
            return _json({"generated_text": text, "details": details}, 200, headers)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking and (self.thinking == "think" or self.thinking is None):
            message["content"] = f"<think>\n{thinking}\n</think>\n\n{text}" if text else f"<think>\n{thinking}"
        elif thinking:
            message |= {self.thinking: thinking, "content": text or None}
        if self.kind == "llama.cpp" and messages[-1]["role"] == "assistant":
            message["content"] = messages[-1]["content"] + message["content"]
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
        if self.kind == "sglang":
            usage |= {"prompt_tokens_details": None, "reasoning_tokens": thought}
        elif self.kind in ("vllm", "openai") and thinking and self.thinking != "think":
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        head = {"id": "", "object": "chat.completion", "created": 0, "model": body.get("model") or self.model}
        return _json({**head, "choices": [choice], "usage": usage}, 200, headers)

    # ---- everything but generation

    async def _side(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if reply := self.side.get(path):
            if reply.action:
                return await self._misbehave(request, reply.action)
            return _json(reply.body, reply.status, reply.headers)
        if self.loading:
            return self._refused(503, "Loading model", "unavailable_error")
        open_to_all = not path.startswith("/v1") or self.kind in ("tgi", "llama.cpp")
        if self.api_key and not open_to_all and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return self._refused(401, "Unauthorized")
        if path == "/health":
            if self.dead:
                return self._refused(503, "unhealthy", "healthcheck")
            return web.Response(text="OK" if self.kind == "gateway" else "")
        if path == "/metrics" and self.kind in _QUEUE_GAUGES:
            name = _QUEUE_GAUGES[self.kind]
            return web.Response(text=f"# TYPE {name.split('{')[0]} gauge\n{name} {self.waiting}\n")
        if path == "/v1/models":
            return _json({"object": "list", "data": [self._entry(name) for name in self.models]})
        if path in ("/chat_tokenize", "/tokenize") and request.method == "POST":
            return self._tokenized(path, orjson.loads(await request.read()))
        if (facts := self._facts().get(path)) is not None:
            return _json(facts)
        if self.kind == "tgi":
            return web.Response(status=404)
        return _json(
            {"error": {"message": "File Not Found"}} if self.kind == "llama.cpp" else {"detail": "Not Found"}, 404
        )

    def _entry(self, name: str) -> dict[str, Any]:
        owner = {"tgi": name, "sglang": "sglang", "vllm": "vllm", "llama.cpp": "llamacpp", "gateway": "local"}
        entry: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": owner.get(self.kind, "user")}
        if self.kind == "gateway":
            entry["id"] = "unknown"
        elif self.kind in ("vllm", "sglang"):
            entry |= {"root": name, "max_model_len": self.max_total_tokens}
        return entry

    def _facts(self) -> dict[str, Any]:
        context = self.max_total_tokens
        limit = self.limit or 128
        info = {
            "model_id": self.model,
            "model_sha": "0" * 40,
            "max_concurrent_requests": limit,
            "max_total_tokens": context,
        }
        info |= {"max_input_tokens": context - 1, "version": "3.3.5", "router": "text-generation-router", "sha": None}
        state = {
            "model_path": self.model,
            "version": "0.5.23",
            "max_running_requests": self.slots,
            "context_length": context,
        }
        props = {
            "default_generation_settings": {"n_ctx": context},
            "total_slots": self.slots or 4,
            "build_info": "b6000",
        }
        return {
            "tgi": {"/info": info},
            "vllm": {"/version": {"version": "0.33.0"}},
            "sglang": {"/server_info": state, "/model_info": {"model_path": self.model}},
            "llama.cpp": {"/props": {**props, "model_path": f"/models/{self.model}.gguf"}},
        }.get(self.kind, {})

    def _tokenized(self, path: str, body: dict[str, Any]) -> web.Response:
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body.get("messages", [])]
        text = "".join(turns) + "<|im_start|>assistant\n"
        if turns and body["messages"][-1]["role"] == "assistant":
            text = "".join(turns).removesuffix("<|im_end|>\n")
        tokens = [{"id": 1, "text": word, "start": 0, "stop": 1} for word in text.split()]
        if self.kind == "vllm":
            return _json({"count": len(tokens), "max_model_len": self.max_total_tokens, "tokens": [1] * len(tokens)})
        return _json({"tokenize_response": tokens, "templated_text": text} if path == "/chat_tokenize" else tokens)


_FAULTS = {
    **dict.fromkeys(("429", "503", "408"), Reply()),
    "424": Reply(
        status=424, body={"error": "Request failed during generation: Server error: x", "error_type": "generation"}
    ),
    "500": Reply(status=500, body={"error": "Incomplete generation", "error_type": "incomplete_generation"}),
    "404": Reply(status=404, body=""),
    "html": Reply(status=502, body="<html><h1>502 Bad Gateway</h1></html>"),
    "cut": Reply(action="cut"),
    "half": Reply(action="half"),
    "hang": Reply(action="hang"),
    "slow": Reply(delay_s=2.0),
}


def _question(body: dict[str, Any], native: bool) -> tuple[list[dict[str, str]], dict[str, Any] | None, int, int]:
    """Return messages, schema, max_tokens and seed of a body."""
    if native:
        asked = body.get("parameters", {})
        messages = [{"role": role, "content": content} for role, content in _TURN.findall(body["inputs"])]
        if len(messages) > 1 and messages[-1]["content"] == "":
            messages.pop()
        grammar = asked.get("grammar") or {}
        return (
            messages or [{"role": "user", "content": body["inputs"]}],
            grammar.get("value"),
            asked.get("max_new_tokens", 100),
            asked.get("seed", 0),
        )
    form = body.get("response_format") or {}
    named = form.get("json_schema") or form.get("value") or {}
    return body["messages"], named.get("schema"), body.get("max_tokens", 256), body.get("seed", 0)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    if isinstance(value, str):
        return web.Response(text=value, status=status, headers=headers, content_type="text/html")
    data = json.dumps(value).encode() if isinstance(value, float) else _bytes(value)
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


def _bytes(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates
        return json.dumps(value).encode()


async def _main(args: argparse.Namespace) -> None:
    options = {name: value for name, value in vars(args).items() if name not in ("drain_at",)}
    async with FakeServer(**options) as server:
        print(server.url, flush=True)
        if args.drain_at is not None:
            await asyncio.sleep(args.drain_at)
            await server.drain()
        await asyncio.Event().wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kind", choices=KINDS, default="tgi")
    parser.add_argument("--model", default="fake/Model-Instruct")
    parser.add_argument("--faults", type=json.loads, help='such as {"429": 0.01, "cut": 0.01}')
    for name in ("port", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("slots", "limit"):
        parser.add_argument(f"--{name}", type=int)
    for name, value in (
        ("latency-s", 0.0),
        ("tokens-per-s", None),
        ("dying-s", 1.0),
        ("away-s", 3.0),
        ("drain-at", None),
    ):
        parser.add_argument(f"--{name}", type=float, default=value)
    for name in ("api-key", "thinking", "poison"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--max-total-tokens", type=int, default=4096)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    try:
        run(_main(_arguments()))
    except KeyboardInterrupt:
        pass

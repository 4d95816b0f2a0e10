"""A fake server that answers as vLLM, SGLang or llama.cpp do where they differ from TGI, without a model.

Written from section 5.5 of the TGI fact sheet (tgi-facts.md). In a test: `with FakeForeign("vllm") as server: ...`.
Left out: streams, tools, keys, and each server's own names for constraints.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from aiohttp import web

from tests.fake_server import LocalServer
from tests.fake_tgi_answers import EOS_ID, Generation, Grammar, answer, decode, render_chat, tokenize
from tests.fake_tgi_engine import Engine, Settings
from tests.fake_tgi_routes import json_response

MAX_MODEL_LEN = 4096
_FREE_FORM = {"type": "object", "properties": {"answer": {"type": "string"}}}
Kind = Literal["vllm", "sglang", "llama.cpp"]
_METRIC_NAMES = {
    "vllm": ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"),
    "sglang": ("sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"),
    "llama.cpp": ("llamacpp:requests_deferred", "llamacpp:requests_processing"),
}
_ERROR_TYPES = {
    "vllm": {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"},
    "sglang": {400: "BadRequestError", 503: "ServiceUnavailableError"},
    "llama.cpp": {
        400: "invalid_request_error",
        404: "not_found_error",
        501: "not_supported_error",
        503: "unavailable_error",
    },
}
_ENTRY = web.RequestKey("entry", dict[str, Any])


class _Refusal(Exception):
    def __init__(self, status: int, message: str, param: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.kind = status, param, kind


class FakeForeign(LocalServer):
    """The server in a thread of its own: `with FakeForeign(kind) as server:` serves on `server.url`.

    Args:
        kind: whose shapes it takes.
        batch_slots: so many requests run at once, the others queue.
        max_queued: a request that finds so many in the queue gets a 503 (vLLM, SGLang); None: the queue is endless.
        loading: the model is not there yet; set `server.loading = False` when it is. llama.cpp answers everything,
            SGLang its health with 503. A vLLM that loads does not answer at all: use `start_delay_s`.
        metrics: False: llama.cpp was started without `--metrics`.
        aborts: the ordinals of chat requests that the server ends by itself (vLLM, SGLang).
    """

    def __init__(
        self,
        kind: Kind,
        model_id: str = "fake/Model-Instruct",
        *,
        latency_s: float = 0.0,
        batch_slots: int | None = None,
        max_queued: int | None = None,
        loading: bool = False,
        metrics: bool = True,
        aborts: Iterable[int] = (),
        port: int = 0,
        start_delay_s: float = 0.0,
    ) -> None:
        super().__init__(port, start_delay_s)
        self.kind, self.model_id, self.loading = kind, model_id, loading
        self._max_queued, self._with_metrics, self._aborts = max_queued, metrics, frozenset(aborts)
        self._engine = Engine(Settings(batch_slots=batch_slots, latency_s=latency_s))
        self._ordinals = itertools.count()
        self._entries: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What arrived so far, in order: route, body and status (None while or if unanswered)."""
        with self._lock:
            return [dict(entry) for entry in self._entries]

    @property
    def queued(self) -> int:
        """The requests that wait for a slot now."""
        return self._engine.queued

    def freeze(self, frozen: bool) -> None:
        """Take chat requests and do not answer them, until told otherwise."""

        def change() -> None:
            self._engine.settings.frozen = frozen
            self._engine.settle()

        self.in_loop(change)

    def app(self) -> web.Application:
        """The routes that all have, and those by which they can be told apart."""
        facts: dict[str, Mapping[str, Callable[[], Any]]] = {
            "vllm": {
                "/version": lambda: {"version": "0.33.0"},
                "/load": lambda: {"server_load": self._engine.running},
            },
            "sglang": {
                "/model_info": lambda: {"model_path": self.model_id, "is_generation": True},
                "/server_info": lambda: {"model_path": self.model_id, "version": "0.5.23"},
            },
            "llama.cpp": {
                "/props": lambda: {"model_path": self.model_id, "total_slots": self._engine.settings.batch_slots},
                "/slots": lambda: [{"id": n, "is_processing": True} for n in range(self._engine.running)],
            },
        }
        app = web.Application(middlewares=[self._guard])
        app.add_routes([web.get(path, _told(fact)) for path, fact in facts[self.kind].items()])
        app.add_routes([web.get(path, self._health) for path in ("/health", *["/ready"] * (self.kind == "sglang"))])
        app.add_routes([web.get("/v1/models", self._models), web.get("/metrics", self._metrics)])
        app.add_routes([web.post("/v1/chat/completions", self._chat)])
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        entry: dict[str, Any] = {"route": request.path, "body": None, "status": None}
        request[_ENTRY] = entry
        with self._lock:
            self._entries.append(entry)
        try:
            if self.loading and self.kind == "llama.cpp":
                raise _Refusal(503, "Loading model")
            response: web.StreamResponse = await handler(request)
        except _Refusal as refusal:
            response = json_response(self._error(refusal), refusal.status)
        except web.HTTPException as error:
            missing = self._error(_Refusal(error.status, "File Not Found"))
            said = missing if self.kind == "llama.cpp" else {"detail": error.reason}
            response = json_response(said, error.status)
        entry["status"] = response.status
        return response

    def _error(self, refusal: _Refusal) -> dict[str, Any]:
        """vLLM and llama.cpp nest the error, SGLang does not; the code is a number."""
        kind = refusal.kind or _ERROR_TYPES[self.kind].get(refusal.status)
        error = {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.status}
        if self.kind == "sglang":
            return {"object": "error", **error}
        if self.kind == "llama.cpp":
            del error["param"]
        return {"error": error}

    async def _health(self, request: web.Request) -> web.Response:
        if self.loading and self.kind == "sglang":
            return web.Response(status=503)
        return json_response({"status": "ok"}) if self.kind == "llama.cpp" else web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        owner = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llamacpp"}[self.kind]
        model: dict[str, Any] = {
            "id": self.model_id,
            "object": "model",
            "created": 0,
            "owned_by": owner,
        }
        if self.kind == "llama.cpp":
            model["meta"] = {"n_ctx_train": MAX_MODEL_LEN, "n_vocab": EOS_ID + 1}
        else:
            model |= {"root": self.model_id, "max_model_len": MAX_MODEL_LEN}
        return json_response({"object": "list", "data": [model]})

    async def _metrics(self, request: web.Request) -> web.Response:
        """How many wait and run, under the server's own names."""
        if self.kind == "llama.cpp" and not self._with_metrics:
            raise _Refusal(501, "This server does not support metrics endpoint. Start it with `--metrics`")
        labels = "" if self.kind == "llama.cpp" else f'{{model_name="{self.model_id}"}}'
        values = (self._engine.queued, self._engine.running, 0.0)
        lines = (
            f"# TYPE {name} gauge\n{name}{labels} {value}\n"
            for name, value in zip(_METRIC_NAMES[self.kind], values, strict=False)
        )
        return web.Response(text="".join(lines))

    async def _chat(self, request: web.Request) -> web.Response:
        aborted = next(self._ordinals) in self._aborts
        try:
            body = request[_ENTRY]["body"] = await request.json()
        except ValueError as error:
            raise _Refusal(400, f"the body is no JSON: {error}") from None
        self._check(body)
        grammar = self._grammar(body.get("response_format"))
        prompt = self._prompt(body)
        length = len(tokenize(prompt))
        allowed = body.get("max_tokens") or MAX_MODEL_LEN - length
        if length + (0 if self.kind == "llama.cpp" else allowed) > MAX_MODEL_LEN:
            kind = "exceed_context_size_error" if self.kind == "llama.cpp" else None
            raise _Refusal(400, f"{length} tokens exceed the context of {MAX_MODEL_LEN}", "input_tokens", kind)
        busy = self._engine.settings.batch_slots == self._engine.running
        if busy and self._max_queued is not None and self._engine.queued >= self._max_queued:
            raise _Refusal(503, "The request queue is full.")
        await self._engine.run(prompt, length + allowed)
        generation = decode(answer(prompt, grammar), allowed, body.get("stop") or ())
        if aborted:
            generation = Generation("", (), "abort")
        return json_response(self._body(body, generation, length))

    def _check(self, body: Any) -> None:
        """What is a 400, and the model that only vLLM insists on (404)."""
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise _Refusal(400, "messages: a list is required", "messages")
        if self.kind == "vllm" and body.get("model", self.model_id) != self.model_id:
            raise _Refusal(404, f"The model `{body['model']}` does not exist.", "model")
        rules = {
            "temperature": body.get("temperature") is None or body["temperature"] >= 0,
            "top_p": body.get("top_p") is None or 0 < body["top_p"] <= 1,
            "max_tokens": body.get("max_tokens") is None or body["max_tokens"] > 0,
            "seed": body.get("seed") is None or -(2**63) <= body["seed"] < 2**63,
            "stream": not body.get("stream"),
        }
        for name, kept in rules.items():
            if not kept:
                raise _Refusal(400, f"{name}: {body[name]} is not taken", name)

    def _grammar(self, form: Any) -> Grammar | None:
        """The OpenAI form of `response_format`; TGI's `value` beside it is not looked at."""
        match form:
            case None | {"type": "text"}:
                return None
            case {"type": "json_schema", "json_schema": {"schema": dict(schema), **rest}}:
                if "name" in rest or self.kind == "llama.cpp":
                    return Grammar("json", schema)
            case {"type": "json_object", "schema": dict(schema)} if self.kind == "llama.cpp":
                return Grammar("json", schema)
            case {"type": "json_object"}:
                return Grammar("json", _FREE_FORM)
        raise _Refusal(400, f"response_format: {json.dumps(form)[:200]} is not taken", "response_format")

    def _prompt(self, body: Mapping[str, Any]) -> str:
        """vLLM and SGLang go on from an assistant's message only when they are told to."""
        prompt = render_chat(body["messages"])
        last = body["messages"][-1]["role"] if body["messages"] else None
        if last == "assistant" and self.kind != "llama.cpp" and not body.get("continue_final_message"):
            prompt += "<|im_end|>\n<|im_start|>assistant\n"
        return prompt

    def _body(self, asked: Mapping[str, Any], generation: Generation, length: int) -> dict[str, Any]:
        reason, count = generation.finish_reason, len(generation.tokens)
        text, stopped = generation.text, None
        if reason == "stop_sequence":  # other than TGI, they cut it off
            stopped = next(stop for stop in asked["stop"] if text.endswith(stop))
            text = text.removesuffix(stopped)
        if self.kind == "llama.cpp" and asked["messages"] and asked["messages"][-1]["role"] == "assistant":
            text = asked["messages"][-1]["content"] + text
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reason if reason in ("length", "abort") else "stop",
        }
        usage: dict[str, Any] = {
            "prompt_tokens": length,
            "completion_tokens": count,
            "total_tokens": length + count,
        }
        extras: dict[str, Any] = {}
        if self.kind == "vllm":
            choice["stop_reason"] = stopped
            usage["prompt_tokens_details"] = None
        elif self.kind == "sglang":
            choice["matched_stop"] = stopped or (EOS_ID if reason == "eos_token" else None)
            usage |= {"prompt_tokens_details": None, "reasoning_tokens": 0}
        else:
            extras["timings"] = {"prompt_n": length, "predicted_n": count, "cache_n": 0}
        return {
            "id": "chatcmpl-" + re.sub(r"\W", "", str(time.time())),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked.get("model") or self.model_id,
            "choices": [choice],
            "usage": usage,
            **extras,
        }


def _told(fact: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        return json_response(fact())

    return handler

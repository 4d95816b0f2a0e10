"""What each server takes: one table, the bodies made from it, and how a server is recognised.

Sources: TGI 3.3.7 (``router/src``) and the chat routes of vLLM 0.33, SGLang 0.5 and llama.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..errors import FatalServerError
from .protocol import Request, ServerInfo, count

THINKING_TOKENS = {"off": 0, "low": 1024, "on": 4096}  # added to max_tokens where the model may think
SIDE_ROUTES = ("/info", "/version", "/v1/models", "/props", "/server_info", "/get_server_info", "/health")
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # owned_by in /v1/models
_VERSIONS = (("version", "build_info"), ("docker_label", "sha"))  # TGI 3.3.6 and 3.3.7 name one version
_REFUSAL = re.compile(
    "unknown|unexpected|unrecogni[sz]ed|unsupported|extra|forbidden|additional|invalid|must be|"
    "not (be )?(supported|support|permitted|allowed|accepted)",
    re.I,
)


@dataclass(frozen=True)
class Dialect:
    """What one kind of server takes in ``/v1/chat/completions``."""

    neutral: Mapping[str, float] = field(default_factory=dict)  # else it uses values of generation_config.json
    continues: Mapping[str, bool] = field(default_factory=dict)  # make it continue a last assistant message
    tgi: bool = False  # reads "model" as an adapter, cannot switch thinking, and needs the schema in "value" too


_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_TGI = Dialect(tgi=True)
_VLLM = Dialect(_NEUTRAL, {"add_generation_prompt": False, "continue_final_message": True})
DIALECTS = {
    **{"tgi": _TGI, "tgi_generate": _TGI, "vllm": _VLLM},  # tgi_generate: POST /generate; by server.kind only
    "sglang": Dialect(_NEUTRAL, {"continue_final_message": True}),
    "llama.cpp": Dialect({"top_k": -1, "min_p": 0.0, "repeat_penalty": 1.0}),  # continues by itself
    "openai": _VLLM,  # what such a server does not know, it names, and it is left out
}


def chat_body(request: Request, dialect: Dialect, model: str | None, thinking: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of ``/v1/chat/completions``; ``presence_penalty`` is never sent (TGI makes 2.0 of its 0)."""
    body = vars(request.sampling) | {"max_tokens": max_tokens, "seed": request.seed, "stream": False}
    body |= {"messages": request.messages, **dialect.neutral, **(dialect.continues if request.prefix else {})}
    if not dialect.tgi:
        allowed = thinking != "off" and not request.prefix
        body |= {"model": model} if model else {}
        body["chat_template_kwargs"] = {
            "enable_thinking": allowed,
            "thinking": allowed,
        }  # Qwen, GLM; DeepSeek, Granite
        body |= {} if thinking == "on" and allowed else {"reasoning_effort": "low"}  # gpt-oss: cannot be off
    if request.schema:
        named = {"name": "answer", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}}
        body["response_format"] |= {"value": named} if dialect.tgi else {}
    return body


def native_body(request: Request, inputs: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of TGI's ``/generate``; ``inputs`` are the messages, rendered by the server's template."""
    parameters: dict[str, Any] = request.sampling.model_dump(exclude={"max_tokens"})
    parameters |= {"max_new_tokens": max_tokens, "do_sample": True, "seed": request.seed}
    parameters |= {"return_full_text": False, "details": True}  # details: the only place of the finish reason
    if request.schema:
        parameters["grammar"] = {"type": "json", "value": request.schema}
    return {"inputs": inputs, "parameters": parameters}


def refused_fields(message: str, body: Mapping[str, Any], dialect: Dialect) -> set[str]:
    """Return the fields of ``body`` that a refusal names and that can be left out: the neutral ones, and those of
    thinking, since a server that does not know them cannot switch it."""
    if not _REFUSAL.search(message):
        return set()
    optional = {*dialect.neutral, "chat_template_kwargs", "reasoning_effort"} & body.keys()
    optional |= {"frequency_penalty"} if body.get("frequency_penalty") == 0 else set()
    return {name for name in optional if re.search(rf"\b{name.removesuffix('_kwargs')}", message)}


def describe(url: str, replies: Mapping[str, Any], settings: config.Server) -> ServerInfo:
    """Return what a server is, by the JSON objects of its side channels (route to object); a ``FatalServerError`` if
    it serves several models and ``server.model`` names none."""
    if not _text(replies.get("/info", {}).get("model_id")):  # that of another service on the same host
        replies = {route: reply for route, reply in replies.items() if route != "/info"}
    said = {key: value for route in reversed(SIDE_ROUTES) for key, value in replies.get(route, {}).items()}
    listed = replies.get("/v1/models", {}).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    models = {entry["id"]: entry for entry in reversed(entries) if _text(entry.get("id"))}
    guesses = ["tgi"] if "/info" in replies else []
    guesses += [_OWNERS[owner] for entry in entries if (owner := _text(entry.get("owned_by"))) in _OWNERS]
    guesses += ["llama.cpp"] if "default_generation_settings" in said else []
    guesses += ["sglang"] if "model_path" in replies.get("/server_info", {}) else []
    kind = settings.kind if settings.kind != "auto" else [*guesses, "openai"][0]
    served = settings.model or next(reversed(models), None)
    if len(models) > 1 and not settings.model and not DIALECTS[kind].tgi:
        names = ", ".join(sorted(models)[:20])
        raise FatalServerError(f"{url} serves several models ({names}): name one in server.model")
    slot = said.get("default_generation_settings")
    said |= models.get(served or "", {}) | ({"n_ctx": slot.get("n_ctx")} if isinstance(slot, dict) else {})
    contexts = map(said.get, ("max_total_tokens", "max_model_len", "context_length", "n_ctx"))
    at_once = map(said.get, ("max_concurrent_requests", "total_slots", "max_running_requests"))
    version, image = (_text(said.get(one)) or _text(said.get(other)) for one, other in _VERSIONS)
    return ServerInfo(
        kind=kind,
        model_id=settings.model_name or (kind[:3] == "tgi" and _text(said.get("model_id"))) or served or "unknown",
        served_model=served,
        version=f"{version} ({image})" if version and image else version,
        model_revision=_text(said.get("model_sha")),
        max_concurrent=next(filter(None, map(count, at_once)), None),
        max_total_tokens=next(filter(None, map(count, contexts)), None),
    )


def _text(value: Any) -> str | None:
    """Return a short string, or None for any other value."""
    return value if isinstance(value, str) and 0 < len(value) <= 300 else None

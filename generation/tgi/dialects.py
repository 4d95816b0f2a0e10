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
_REFUSAL = re.compile(
    "unknown|unexpected|unrecogni[sz]ed|unsupported|extra|forbidden|additional|invalid|must be|"
    "not (be )?(supported|support|permitted|allowed|accepted)",
    re.I,
)


@dataclass(frozen=True)
class Dialect:
    """What one kind of server takes in ``/v1/chat/completions``.

    Attributes:
        neutral: sampling fields that keep the server from using values of ``generation_config.json``.
        continues: fields that make it continue a last assistant message.
        value: ``response_format`` needs TGI's ``value``.
        named: the body names the model (TGI takes the name for an adapter).
        thinks: the fields that switch thinking are sent.
    """

    neutral: Mapping[str, float] = field(default_factory=dict)
    continues: Mapping[str, bool] = field(default_factory=dict)
    value: bool = False
    named: bool = True
    thinks: bool = True


_TGI = Dialect(value=True, named=False, thinks=False)
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_VLLM = Dialect(_NEUTRAL, {"add_generation_prompt": False, "continue_final_message": True})
DIALECTS = {
    "tgi": _TGI,
    "tgi_generate": _TGI,  # POST /generate; by server.kind only
    "vllm": _VLLM,
    "sglang": Dialect(_NEUTRAL, {"continue_final_message": True}),
    "llama.cpp": Dialect({"top_k": -1, "min_p": 0.0, "repeat_penalty": 1.0}),  # continues by itself
    "openai": _VLLM,  # what such a server does not know, it names, and it is left out
}


def chat_body(request: Request, dialect: Dialect, model: str | None, thinking: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of ``/v1/chat/completions``; ``presence_penalty`` is never sent (TGI makes 2.0 of its 0)."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "messages": request.messages,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": request.seed,
        "stream": False,
        **dialect.neutral,
    }
    if dialect.named and model is not None:
        body["model"] = model
    if request.prefix:
        body.update(dialect.continues)
    if dialect.thinks:
        allowed = thinking != "off" and not request.prefix
        body["chat_template_kwargs"] = {
            "enable_thinking": allowed,
            "thinking": allowed,
        }  # Qwen, GLM; DeepSeek, Granite
        if thinking != "on" or not allowed:
            body["reasoning_effort"] = "low"  # gpt-oss: cannot be off
    if request.schema:
        named = {"name": "answer", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}}
        if dialect.value:
            body["response_format"]["value"] = named
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
    """Return the fields of ``body`` that a 400 or 422 names and that can be left out.

    Those are the neutral ones, and those of thinking: a server that does not know them cannot switch it.
    """
    if not _REFUSAL.search(message):
        return set()
    optional = {*dialect.neutral, "chat_template_kwargs", "reasoning_effort"} & body.keys()
    optional |= {"frequency_penalty"} if body.get("frequency_penalty") == 0 else set()
    return {name for name in optional if re.search(rf"\b{name.removesuffix('_kwargs')}", message)}


def describe(url: str, replies: Mapping[str, Any], settings: config.Server) -> ServerInfo:
    """Return what a server is, by the JSON objects of its side channels (route to object).

    Raises:
        FatalServerError: it serves several models and ``server.model`` names none.
    """
    said = {key: value for route in reversed(SIDE_ROUTES) for key, value in replies.get(route, {}).items()}
    listed = replies.get("/v1/models", {}).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    models = {entry["id"]: entry for entry in reversed(entries) if _text(entry.get("id"))}
    owners = [_OWNERS[owner] for entry in entries if (owner := _text(entry.get("owned_by"))) in _OWNERS]
    kind: str = settings.kind
    if kind == "auto" and _text(replies.get("/info", {}).get("model_id")):
        kind = "tgi"
    elif kind == "auto":
        guess = "sglang" if "model_path" in replies.get("/server_info", {}) else "openai"
        kind = owners[0] if owners else "llama.cpp" if "default_generation_settings" in said else guess
    served = settings.model or next(reversed(models), None)
    if len(models) > 1 and not settings.model and DIALECTS[kind].named:
        names = ", ".join(sorted(models)[:20])
        raise FatalServerError(f"{url} serves several models ({names}): name one in server.model", endpoint=url)
    entry, slot = models.get(served or "", {}), said.get("default_generation_settings")
    contexts = [said.get("max_total_tokens"), entry.get("max_model_len"), said.get("context_length")]
    contexts += [slot.get("n_ctx")] if isinstance(slot, dict) else []
    at_once = [said.get(name) for name in ("max_concurrent_requests", "total_slots", "max_running_requests")]
    version = _text(said.get("version")) or _text(said.get("build_info"))
    image = _text(said.get("docker_label")) or _text(said.get("sha"))  # TGI 3.3.6 and 3.3.7 name one version
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

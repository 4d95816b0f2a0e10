"""What each server takes: one table, the bodies made from it, and how a server is recognised.

Sources: TGI 3.3.7 router (``lib.rs``, ``validation.rs``), and the OpenAI-compatible servers of vLLM 0.33, SGLang 0.5
and llama.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..errors import FatalServerError
from .protocol import Request, ServerInfo, count

THINKING_TOKENS = {"off": 0, "low": 1024, "on": 4096}  # added to max_tokens when the model may think
# Routes that say what a server is. Any of them may be missing, refused or nonsense.
SIDE_ROUTES = ("/info", "/version", "/v1/models", "/props", "/server_info", "/get_server_info", "/health")
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # owned_by in /v1/models
_THINKING_FIELDS = ("chat_template_kwargs", "reasoning_effort")
_REFUSES_FIELDS = re.compile(
    r"unknown|unexpected|unrecogni[sz]ed|not (?:be )?(?:supported|permitted|allowed|accepted)|unsupported|extra|"
    r"not support|forbidden|additional|invalid|must be",
    re.I,
)


@dataclass(frozen=True)
class Dialect:
    """What one kind of server takes in ``/v1/chat/completions``.

    Attributes:
        neutral: sampling fields that keep the server from taking values from ``generation_config.json``.
        continues: fields that make it continue a last assistant message.
        value: ``response_format`` needs TGI's ``value``.
        named: the body names the model (TGI would take the name for an adapter).
        thinks: it takes the fields that switch thinking on and off.
    """

    neutral: Mapping[str, float] = field(default_factory=dict)
    continues: Mapping[str, bool] = field(default_factory=dict)
    value: bool = False
    named: bool = True
    thinks: bool = True


_VLLM = Dialect(
    neutral={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    continues={"add_generation_prompt": False, "continue_final_message": True},
)
_TGI = Dialect(value=True, named=False, thinks=False)
DIALECTS = {
    "tgi": _TGI,
    "tgi_generate": _TGI,  # POST /generate; chosen by server.kind only
    "vllm": _VLLM,
    "sglang": _VLLM,
    "llama.cpp": Dialect(neutral={"top_k": -1, "min_p": 0.0, "repeat_penalty": 1.0}),
    "openai": _VLLM,
}


def max_tokens(request: Request, thinking: str) -> int:
    """Return the tokens to allow: those of the answer, and a budget of their own for thinking.

    A request that begins the answer leaves no place for thinking.
    """
    return request.sampling.max_tokens + (0 if request.prefix else THINKING_TOKENS[thinking])


def chat_body(request: Request, dialect: Dialect, model: str | None, thinking: str) -> dict[str, Any]:
    """Return the body of ``/v1/chat/completions``.

    Left out on purpose: ``presence_penalty`` (0 becomes a repetition penalty of 2 in TGI), ``n``, ``logit_bias``.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "messages": request.messages,
        "max_tokens": max_tokens(request, thinking),
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
        body |= dialect.continues
    if dialect.thinks:
        allowed = thinking != "off" and not request.prefix
        body["chat_template_kwargs"] = {
            "enable_thinking": allowed,
            "thinking": allowed,
        }  # Qwen, GLM; DeepSeek, Granite
        if thinking != "on" or request.prefix:
            body["reasoning_effort"] = "low"  # gpt-oss cannot do without
    if request.schema:
        named = {"name": "answer", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}}
        if dialect.value:
            body["response_format"]["value"] = named
    return body


def native_body(request: Request, inputs: str, thinking: str) -> dict[str, Any]:
    """Return the body of TGI's ``/generate``; ``inputs`` are the messages as the server's chat template renders them."""
    sampling = request.sampling
    parameters: dict[str, Any] = {
        "max_new_tokens": max_tokens(request, thinking),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "do_sample": True,
        "seed": request.seed,
        "return_full_text": False,
        "details": True,  # the only place of the finish reason
    }
    if request.schema:
        parameters["grammar"] = {"type": "json", "value": request.schema}
    return {"inputs": inputs, "parameters": parameters}


def refused_fields(message: str, body: Mapping[str, Any], dialect: Dialect) -> set[str]:
    """Return the fields of ``body`` that a 400 or 422 names as unknown and that can be left out.

    These are the neutral sampling fields, and those of thinking (a server without them cannot switch it).
    """
    if not _REFUSES_FIELDS.search(message):
        return set()
    optional = {*dialect.neutral, *_THINKING_FIELDS}
    if body.get("frequency_penalty") == 0:
        optional.add("frequency_penalty")
    return {name for name in optional & body.keys() if re.search(rf"\b{name.removesuffix('_kwargs')}", message)}


def describe(url: str, replies: Mapping[str, Any], settings: config.Server) -> ServerInfo:
    """Return what a server is, by the JSON of its side channels.

    Args:
        url: of the endpoint, for messages.
        replies: route to JSON value; routes that gave none are absent.
        settings: ``kind``, ``model`` and ``model_name`` override what the server says.

    Raises:
        FatalServerError: it serves several models and ``server.model`` names none.
    """
    info, version, props, state = (
        _first_dict(replies, *routes)
        for routes in (SIDE_ROUTES[:1], SIDE_ROUTES[1:2], SIDE_ROUTES[3:4], SIDE_ROUTES[4:6])
    )
    models = _models(replies.get("/v1/models"))
    owner = next((_OWNERS[m["owned_by"]] for m in models.values() if m.get("owned_by") in (*_OWNERS,)), None)
    kind: str = settings.kind
    if kind == "auto":
        is_llama = "default_generation_settings" in props or "total_slots" in props
        is_tgi = isinstance(info.get("model_id"), str)
        kind = (
            "tgi"
            if is_tgi
            else owner or ("sglang" if "model_path" in state else "llama.cpp" if is_llama else "openai")
        )
    served = settings.model or next(iter(models), None)
    if len(models) > 1 and not settings.model and DIALECTS[kind].named:
        listed = ", ".join(list(models)[:20])
        raise FatalServerError(f"{url} serves several models: name one in server.model ({listed})", endpoint=url)
    model = models.get(served or "", {})
    slot = props.get("default_generation_settings")
    limits = (
        info.get("max_concurrent_requests") or props.get("total_slots") or state.get("max_running_requests"),
        info.get("max_total_tokens")
        or model.get("max_model_len")
        or state.get("context_length")
        or (slot.get("n_ctx") if isinstance(slot, dict) else None),
    )
    versions = (info.get("version"), version.get("version"), state.get("version"), props.get("build_info"))
    return ServerInfo(
        kind=kind,
        model_id=settings.model_name or _text(info.get("model_id")) or served or "unknown",
        served_model=served,
        version=next(filter(None, map(_text, versions)), None),
        model_revision=_text(info.get("model_sha")),
        max_concurrent=count(limits[0]) or None,
        max_total_tokens=count(limits[1]) or None,
        facts={key: value for key, value in (info or model).items() if isinstance(value, int) or _text(value)},
    )


def _first_dict(replies: Mapping[str, Any], *routes: str) -> dict[str, Any]:
    return next((replies[route] for route in routes if isinstance(replies.get(route), dict)), {})


def _models(reply: Any) -> dict[str, dict[str, Any]]:
    """Return the entries of ``/v1/models`` by their id."""
    listed = reply.get("data") if isinstance(reply, dict) else reply
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {entry["id"]: entry for entry in reversed(entries) if _text(entry.get("id"))}


def _text(value: Any) -> str | None:
    """Return a short string, or None for any other value."""
    return value if isinstance(value, str) and 0 < len(value) <= 300 else None

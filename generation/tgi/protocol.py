"""How servers differ: what each kind takes, what one says of itself, and what its errors mean.

Sources: TGI 3.3.7 (``router/src``) and the chat routes of vLLM 0.33, SGLang 0.5 and llama.cpp. Nothing here does I/O.
"""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from yarl import URL

from .. import config
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError

Fields = dict[str, Any]
API_KEY_VARIABLE = "TGI_API_KEY"
SIDE_ROUTES = ("/info", "/version", "/v1/models", "/props", "/server_info", "/get_server_info", "/health")
# What each kind takes in /v1/chat/completions: fields that stay neutral (else it uses generation_config.json), and
# those that make it continue a last assistant message. TGI reads "model" as an adapter and cannot switch thinking;
# llama.cpp continues by itself; what a server of kind "openai" does not know, it names, and it is left out.
_OPENAI = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL: dict[str, Fields] = {
    **{"tgi": {}, "llama.cpp": {"top_k": -1, "min_p": 0.0, "repeat_penalty": 1.0}},
    **dict.fromkeys(("vllm", "sglang", "openai"), _OPENAI),
}
CONTINUE: dict[str, Fields] = {
    **dict.fromkeys(("vllm", "openai"), {"add_generation_prompt": False, "continue_final_message": True}),
    "sglang": {"continue_final_message": True},
}
_OPTIONAL = {*_OPENAI, "repeat_penalty", "chat_template_kwargs", "reasoning_effort"}
_REFUSAL = re.compile(
    "(?i)unknown|unexpected|unrecogni[sz]ed|unsupported|extra|forbidden|additional|invalid|must be|"
    "not (be )?(supported|support|permitted|allowed|accepted)"
)
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # owned_by in /v1/models
_VERSIONS = (("version", "build_info"), ("docker_label", "sha"))  # TGI 3.3.6 and 3.3.7 name one version
_STATUS: dict[int, type[ServerError]] = {
    **{402: FatalServerError, 429: RateLimited},
    **dict.fromkeys((404, 408, 409, 424, 425, 499), TransientError),  # 424: TGI fails a batch, maybe for one row
}
# vLLM: "The engine is currently busy and cannot accept new requests", "... has reached its prefill token backlog
# limit"; SGLang: "The request queue is full."; TGI: "Model is overloaded"; Envoy: "reset reason: overflow".
_QUEUE_FULL = re.compile(
    "(?i)queue is full|queue full|overloaded|too many|currently busy|backlog limit|at capacity|reason: overflow"
)
_NO_CREDIT = re.compile(  # OpenAI's ordinary rate limit mentions the billing page too, so that word does not count
    "(?i)insufficient_quota|billing_(hard_limit|not_active)|plan and billing|credit balance|payment required|"
    "insufficient (credit|balance|funds)|exceeded your (current quota|monthly)|budget has been exceeded"
)
_RETRY_DELAY = re.compile(rb'"retryDelay": *"([0-9]{1,9}(?:\.[0-9]+)?)s"')  # Google's, in the body


class ServerInfo(NamedTuple):
    """What an endpoint says of itself."""

    kind: str  # a key of NEUTRAL
    model_id: str  # for provenance: server.model_name, else the server's name for it, else "unknown"
    served_model: str | None = None  # the name to send as "model"
    version: str | None = None
    model_revision: str | None = None
    max_concurrent: int | None = None  # requests that the server takes at once
    max_total_tokens: int | None = None  # context of one request, prompt and answer


def count(value: Any) -> int:
    """Return ``value`` as a count below 2^31, or 0 for anything else, such as NaN or a list."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if 0 < number < 2**31 else 0  # False for NaN


def refused_fields(message: str, body: Fields) -> set[str]:
    """Return the fields of ``body`` that a refusal names and that can be left out: the neutral ones, and those of
    thinking, since a server that does not know them cannot switch it."""
    optional = _OPTIONAL | ({"frequency_penalty"} if body.get("frequency_penalty") == 0 else set())
    named = {name for name in optional & body.keys() if re.search(rf"\b{name.removesuffix('_kwargs')}", message)}
    return named if _REFUSAL.search(message) else set()


def describe(url: str, routes: Mapping[str, Fields | None], settings: config.Server) -> ServerInfo:
    """Return what a server is, by the JSON objects of its side channels; a ``FatalServerError`` if it serves several
    models and ``server.model`` names none."""

    def text(value: Any) -> str | None:
        return value if isinstance(value, str) and 0 < len(value) <= 300 else None

    replies = {route: reply for route, reply in routes.items() if reply}
    if not text(replies.get("/info", {}).get("model_id")):  # that of another service on the same host
        replies.pop("/info", None)
    said = {key: value for route in reversed(SIDE_ROUTES) for key, value in replies.get(route, {}).items()}
    listed = replies.get("/v1/models", {}).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    models = {entry["id"]: entry for entry in reversed(entries) if text(entry.get("id"))}
    guesses = ["tgi"] if "/info" in replies else []
    guesses += [_OWNERS[owner] for entry in entries if (owner := text(entry.get("owned_by"))) in _OWNERS]
    guesses += ["llama.cpp"] if "default_generation_settings" in said else []
    guesses += ["sglang"] if "model_path" in replies.get("/server_info", {}) else []
    kind = settings.kind if settings.kind != "auto" else [*guesses, "openai"][0]
    served = settings.model or next(reversed(models), None)
    if len(models) > 1 and not settings.model and kind != "tgi":
        names = ", ".join(sorted(models)[:20])
        raise FatalServerError(f"{url} serves several models ({names}): name one in server.model")
    slot = said.get("default_generation_settings")
    said |= models.get(served or "", {}) | ({"n_ctx": slot.get("n_ctx")} if isinstance(slot, dict) else {})
    contexts = map(said.get, ("max_total_tokens", "max_model_len", "context_length", "n_ctx"))
    at_once = map(said.get, ("max_concurrent_requests", "total_slots", "max_running_requests"))
    version, image = (text(said.get(one)) or text(said.get(other)) for one, other in _VERSIONS)
    return ServerInfo(
        kind=kind,
        model_id=settings.model_name or (kind == "tgi" and text(said.get("model_id"))) or served or "unknown",
        served_model=served,
        version=f"{version} ({image})" if version and image else version,
        model_revision=text(said.get("model_sha")),
        max_concurrent=next(filter(None, map(count, at_once)), None),
        max_total_tokens=next(filter(None, map(count, contexts)), None),
    )


def failure(
    call: str, status: int, content: bytes, headers: Mapping[str, str], keyed: bool, answered: bool
) -> ServerError:
    """Return the error for a reply to ``call`` (method and URL) that has another status, or an error in place of an
    answer, by how to react to it.

    ``content`` is JSON of TGI's, OpenAI's, SGLang's or FastAPI's form, text, HTML, or nothing. ``keyed``: an API key
    was sent. ``answered``: the endpoint answered before, so that a 403 is about the prompt, not the key.
    """
    message, error_type, code = content[:2000].decode("utf-8", "replace").strip()[:500] or "an empty body", None, None
    with suppress(ValueError, AttributeError, RecursionError):  # no JSON object
        said = json.loads(content)
        said = said["error"] if isinstance(said.get("error"), dict) else said
        message = str(next(filter(None, map(said.get, ("message", "error", "detail"))), message))[:500]
        named = next(filter(None, map(said.get, ("error_type", "type", "code"))), None)
        error_type, code = str(named)[:80] if named else None, count(said.get("code"))
    if status == 200:  # so proxies answer
        status = code if code and 400 <= code < 600 else 502
    wait, retry_after_s = headers.get("Retry-After", ""), None
    if delay := _RETRY_DELAY.search(content[:2000]) or re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)", wait):
        retry_after_s = float(delay[1])
    else:
        with suppress(ValueError, TypeError, OverflowError):  # no HTTP date
            retry_after_s = max(0.0, parsedate_to_datetime(wait).timestamp() - time.time())
    kind, hint = _STATUS.get(status, RequestRejected if 400 <= status < 500 else TransientError), ""
    if (status == 408 and not content.strip()) or (status >= 500 and _QUEUE_FULL.search(message)):
        kind = RateLimited  # 408 without a word: the queue of SGLang's gateway is full
    elif status in (400, 403, 429) and retry_after_s is None and _NO_CREDIT.search(f"{error_type} {message}"):
        kind = FatalServerError
    elif status == 401 or (status == 403 and not answered):
        kind, name = FatalServerError, f"${API_KEY_VARIABLE}"
        hint = f"; the server refuses the key in {name}" if keyed else f"; no key was sent: set {name}"
    elif status == 404 and not answered and "model" in message.lower():
        kind, hint = FatalServerError, "; name a served model in server.model"
    elif status in (400, 422) and "continue_final_message" in message:
        hint = "; this server cannot continue an answer: use prompts without answer_prefix"
    elif status in (301, 302, 307, 308):
        kind, target = FatalServerError, headers.get("Location", "").partition("?")[0]
        hint = f"; it redirects to {target}, which is not followed: give the new address as the endpoint"
    shown = f" ({error_type})" if error_type else ""
    text = f"{call}: HTTP {status}{shown}: {message}{hint}".encode("utf-8", "replace").decode()  # lone surrogates
    return kind(text, status, retry_after_s)


def parse_url(text: str) -> tuple[URL, URL]:
    """Return the base URL and the URL of the chat route; ``.../v1`` and ``.../chat/completions`` may be given."""
    shown = re.sub(r"//.*@", "//***@", text)
    try:
        url = URL(text.strip())
        if url.scheme not in ("http", "https") or not url.host or not url.port:
            raise ValueError
    except ValueError:
        raise FatalServerError(f"endpoint '{shown}' is not a URL of the form http://host:port") from None
    if url.user is not None or url.password is not None:
        raise FatalServerError(f"endpoint '{shown}': give the key in ${API_KEY_VARIABLE}, not in the URL")
    base = re.sub(r"(/v1)?(/chat/completions|/completions|/generate)?/*$", "", url.path)
    chat = url.path if url.path.endswith("/chat/completions") else f"{base}/v1/chat/completions"
    return url.with_path(base or "/", keep_query=True), url.with_path(chat, keep_query=True)

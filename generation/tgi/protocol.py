"""Requests, answers and errors as values, and how the replies of every server are read. Nothing here does I/O."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from ..errors import BatchFailed, FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from ..prompts import Message, Sampling

API_KEY_VARIABLE = "TGI_API_KEY"

_STATUS: dict[int, type[ServerError]] = {
    402: FatalServerError,
    404: TransientError,
    408: TransientError,
    409: TransientError,
    424: BatchFailed,
    425: TransientError,
    429: RateLimited,
    499: TransientError,
}
# vLLM: "The engine is currently busy and cannot accept new requests", "... has reached its prefill token backlog
# limit"; SGLang: "The request queue is full."; TGI: "Model is overloaded"; Envoy: "reset reason: overflow".
_QUEUE_FULL = re.compile(
    r"queue is full|queue full|overload|too many|currently busy|backlog limit|no slot|at capacity|reason: overflow",
    re.I,
)
# A rate limit of OpenAI also mentions the billing page, so the word alone does not count.
_NO_CREDIT = re.compile(
    r"insufficient_quota|billing_(?:hard_limit|not_active)|plan and billing|credit balance|payment required|"
    r"insufficient (?:credit|balance|funds)|exceeded your (?:current quota|monthly)",
    re.I,
)
_STOP = {"stop", "eos_token", "stop_sequence", "eos", "end_turn"}  # OpenAI; TGI /generate; TGI with stop words; others
_LENGTH = {"length", "max_tokens", "model_length", "MAX_TOKENS"}
_ABORTED = {"abort", "error", "cancelled"}  # vLLM and SGLang end a request so when they shut down
_THINKING_BEGINS = re.compile(r"\s*(?:<think(?:ing)?>|\[THINK\]|<\|channel\|>analysis<\|message\|>)")
_THINKING_ENDS = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final<\|message\|>")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Attributes:
        messages: the chat; a last message of role assistant is the beginning of the answer, to be continued.
        sampling: ``max_tokens`` counts the answer without thinking.
        seed: of sampling, 1 .. 2^31 - 1.
        schema: JSON schema of the answer, or None for plain text.
    """

    messages: list[Message]
    sampling: Sampling
    seed: int
    schema: dict[str, Any] | None = None

    @property
    def prefix(self) -> str:
        """The beginning of the answer, or an empty string."""
        last = self.messages[-1] if self.messages else {}
        return last["content"] if last.get("role") == "assistant" else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Attributes:
        text: without the given beginning and without thinking; can be stored as UTF-8.
        finish_reason: ``stop``, ``length``, or the server's own word.
        prompt_tokens, completion_tokens: as the server counts them, thinking excluded; 0 if it does not say.
        thinking_tokens: as the server counts them, else estimated by the share of characters.
        queue_share: share of the answer's time that it waited for a slot, 0 .. 1 (TGI only).
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0
    queue_share: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What an endpoint says of itself; everything but ``kind`` and ``model_id`` may be missing.

    Attributes:
        kind: a key of ``dialects.DIALECTS``.
        model_id: for provenance: ``server.model_name``, else the server's name for it, else ``unknown``.
        served_model: the name to send as ``model``, or None.
        max_concurrent: requests that the server takes at once.
        max_total_tokens: context of one request, prompt and answer.
        facts: further short values, for provenance.
    """

    kind: str
    model_id: str
    served_model: str | None
    version: str | None
    model_revision: str | None
    max_concurrent: int | None
    max_total_tokens: int | None
    facts: dict[str, Any]


def loads(content: bytes) -> Any:
    """Return JSON as servers write it, lone surrogates and NaN included (which orjson refuses).

    Raises:
        ValueError: not JSON, or nested too deep to be an answer.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            return json.loads(content)
        except RecursionError:
            raise ValueError("nested too deep") from None


def read_chat(reply: Any, headers: Mapping[str, str], prefix: str = "") -> Answer:
    """Return the answer of ``/v1/chat/completions``.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: the reply has another shape.
    """
    choice = reply["choices"][0]
    message, reason = choice["message"], _finish_reason(choice.get("finish_reason"))
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text = _joined(message.get("content")) or _joined(message.get("refusal"))
    thinking = _joined(message.get("reasoning_content")) or _joined(message.get("reasoning"))
    if thinking and not text.strip() and (reason == "stop" or prefix):
        text, thinking = thinking, ""  # the server's parser took for thinking what a model without thinking wrote
        usage = {**usage, "completion_tokens_details": None, "reasoning_tokens": None}
    return _answer(text, thinking, reason, usage, headers, prefix)


def read_native(reply: Any, headers: Mapping[str, str], prefix: str = "") -> Answer:
    """Return the answer of TGI's ``/generate``; the prompt's tokens are in the headers only.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: the reply has another shape.
    """
    reply = reply[0] if isinstance(reply, list) else reply
    details = reply.get("details") or {}
    usage = {"prompt_tokens": headers.get("x-prompt-tokens"), "completion_tokens": details.get("generated_tokens")}
    return _answer(
        _joined(reply["generated_text"]), "", _finish_reason(details.get("finish_reason")), usage, headers, prefix
    )


def _answer(
    text: str, thinking: str, reason: str, usage: dict[str, Any], headers: Mapping[str, str], prefix: str
) -> Answer:
    text = text.removeprefix(prefix)  # llama.cpp repeats the given beginning; the others continue it
    if end := next(reversed([*_THINKING_ENDS.finditer(text)]), None) if "]" in text or ">" in text else None:
        thinking, text = thinking + text[: end.start()], text[end.end() :].lstrip().removeprefix(prefix)
    elif _THINKING_BEGINS.match(text):
        thinking, text = thinking + text, ""
    completion, details = count(usage.get("completion_tokens")), usage.get("completion_tokens_details")
    thought = 0
    if thinking:
        thought = count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
        thought = thought or count(usage.get("reasoning_tokens"))
        thought = min(completion, thought or round(completion * len(thinking) / (len(thinking) + len(text))))
    total, queued = _number(headers.get("x-total-time")), _number(headers.get("x-queue-time"))  # ms
    share = min(1.0, queued / total) if total else 0.0
    return Answer(storable(text), reason, count(usage.get("prompt_tokens")), completion - thought, thought, share)


def _joined(content: Any) -> str:
    """Return the text of ``content``: a string, null, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_joined(part.get("text")) if isinstance(part, dict) else _joined(part) for part in content)
    return ""


def _finish_reason(reason: Any) -> str:
    if not isinstance(reason, str) or not reason:
        return "unknown"
    if reason in _ABORTED:
        raise TransientError(f"the server ended the request itself (finish_reason {reason!r})")
    return "stop" if reason in _STOP else "length" if reason in _LENGTH else storable(reason)[:40]


def _number(value: Any) -> float:
    """Return ``value`` as a finite number from 0 on, or 0 if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def count(value: Any) -> int:
    """Return ``value`` as a count of at most 2^31 - 1, or 0 if it is none."""
    return int(min(_number(value), 2**31 - 1))


def failure(
    call: str, endpoint: str, status: int, content: bytes, headers: Mapping[str, str], keyed: bool, answered: bool
) -> ServerError:
    """Return the error for a reply that is not 200, by what is to be done about it.

    Args:
        call: method and URL, for the message.
        status: of HTTP.
        content: JSON of TGI's, OpenAI's, SGLang's or FastAPI's form, plain text, HTML, or nothing.
        keyed: an API key was sent.
        answered: the endpoint has answered a request before, so that a 401 or 403 is not about the key.
    """
    message, error_type = _said(content)
    retry_after_s = _retry_after(headers.get("Retry-After"))
    kind = _STATUS.get(status, RequestRejected if 400 <= status < 500 else TransientError)
    hint = ""
    if status == 408 and not content.strip():
        kind = RateLimited  # SGLang's gateway says so that its queue is full
    elif status >= 500 and _QUEUE_FULL.search(message):
        kind = RateLimited
    elif status in (400, 403, 429) and retry_after_s is None and _NO_CREDIT.search(f"{error_type} {message}"):
        kind = FatalServerError
    elif not answered and status in (401, 403):
        kind = FatalServerError
        sent = f"the server refuses the key in ${API_KEY_VARIABLE}"
        hint = f"; {sent if keyed else f'no key was sent: set ${API_KEY_VARIABLE}'}"
    elif not answered and status == 404 and "model" in message.lower():
        kind, hint = FatalServerError, "; name a served model in server.model"
    named = f" ({error_type})" if error_type else ""
    return kind(f"{call}: HTTP {status}{named}: {message}{hint}", status, error_type, endpoint, retry_after_s)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, given in seconds or as an HTTP date; None if it is neither."""
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, TypeError, OverflowError):
        return _number(value) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value or "") else None


def _said(content: bytes) -> tuple[str, str | None]:
    """Return a server's message and its own name of the error, from a body of any form."""
    text = content[:4000].decode("utf-8", "replace").strip()[:500] or "an empty body"
    try:
        body = loads(content)
    except ValueError:
        return text, None
    if not isinstance(body, dict):
        return text, None
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    message = next((inner[key] for key in ("message", "error", "detail") if inner.get(key)), text)
    error_type = inner.get("error_type") or inner.get("type") or inner.get("code")
    return storable(str(message))[:500], storable(str(error_type))[:80] if error_type else None


def storable(text: str) -> str:
    """Return ``text`` with lone surrogates replaced, since they cannot be stored as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

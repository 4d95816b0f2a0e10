"""The protocols as bytes: what is sent, and how answers and errors are read. Nothing here touches the network.

Two are spoken: ``/v1/chat/completions`` with a ``response_format`` that TGI 3.3, vLLM, SGLang and llama.cpp all read,
and TGI's native ``/generate`` with ``grammar``. The bodies of one question differ in the values and the sampling seed
alone, so each is made once, cut at the places of these (a ``Frame``), and a request costs one join.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from ..errors import BatchFailed, Overloaded, RequestRefused, ServerError, StopRun, Transient
from ..prompts import Prompt

API_KEY_VARIABLE = "TGI_API_KEY"
Api = Literal["chat", "generate"]

_STATUS: dict[int, type[ServerError]] = {
    400: RequestRefused,
    408: Transient,
    413: RequestRefused,
    422: RequestRefused,
    424: BatchFailed,
    429: Overloaded,
}
_FULL_QUEUE = re.compile(r"queue|overload|too many", re.IGNORECASE)  # vLLM's and SGLang's 503 where TGI says 429
_SEED_MARK = "UNICORN-SAMPLING-SEED-UNICORN"
_FIELD_MARK = "UNICORN-FIELD-{}-UNICORN"
_MARKS = re.compile(b'"UNICORN-SAMPLING-SEED-UNICORN"|UNICORN-FIELD-(\\w+?)-UNICORN')
_FINISHED = ("stop", "eos_token", "stop_sequence")  # as chat, native TGI, and TGI's chat with a stop word say it


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of many rows: a prompt and, for JSON answers, their schema. Compared by identity."""

    prompt: Prompt
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Request:
    """One question about one row: the values of the prompt's fields, and the seed of sampling (1 .. 2^31 - 1)."""

    question: Question
    values: Mapping[str, str]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: without the prompt's answer prefix; can be stored as UTF-8.
        finish_reason: ``stop`` or ``length``, or what a foreign server made of it.
        prompt_tokens, completion_tokens: as the server counts them.
        queue_share: the part of the answer's time that it waited for a place in the batch, 0 .. 1.
        tokens_agree: False where TGI's headers count other tokens than the answer's body.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    queue_share: float = 0.0
    tokens_agree: bool = True


class Frame:
    """The JSON of a body with places for the values of fields and for the sampling seed."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        content, pieces, start = orjson.dumps(body), [], 0  # pieces: text, and the field after it (None: the seed)
        for mark in _MARKS.finditer(content):
            pieces.append((content[start : mark.start()], mark[1].decode() if mark[1] else None))
            start = mark.end()
        self._pieces, self._tail = pieces, content[start:]

    def fill(self, request: Request) -> bytes:
        """The body of one request. A value is put in as data: marks, braces or quotes inside it change nothing."""
        values = {field: orjson.dumps(value)[1:-1] for field, value in request.values.items()}
        parts = []
        for text, field in self._pieces:
            parts.append(text)
            parts.append(str(request.seed).encode() if field is None else values[field])
        parts.append(self._tail)
        return b"".join(parts)


def marked_messages(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt's messages with marks in the places of its fields."""
    return prompt.messages({field: _FIELD_MARK.format(field) for field in prompt.warm_up})


def chat_frame(question: Question, foreign_model: str | None) -> Frame:
    """The frame of ``/v1/chat/completions``.

    Args:
        question: what is asked.
        foreign_model: the served model's name, for servers other than TGI (which reads ``model`` as an adapter).
    """
    prompt, sampling = question.prompt, question.prompt.sampling
    body: dict[str, Any] = {
        "messages": marked_messages(prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": _SEED_MARK,
        "stream": False,
    }
    if foreign_model is not None:  # what is not sent, vLLM and SGLang take from the model's generation_config.json
        body |= {"model": foreign_model, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        if prompt.answer_prefix:  # their names for what TGI and llama.cpp do by themselves
            body |= {"add_generation_prompt": False, "continue_final_message": True}
    if question.schema:
        named = {"name": prompt.id, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}, "value": named}
    return Frame(body)


def native_frame(question: Question, inputs: str) -> Frame:
    """The frame of ``/generate``; ``inputs`` is ``marked_messages`` as the server's chat template renders them."""
    sampling = question.prompt.sampling
    parameters: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "do_sample": True,
        "seed": _SEED_MARK,
        "return_full_text": False,
        "details": True,  # the only place of the finish reason
    }
    if question.schema:
        parameters["grammar"] = {"type": "json", "value": question.schema}
    return Frame({"inputs": inputs, "parameters": parameters})


def loads(content: bytes) -> Any:
    """JSON as servers write it: lone surrogates included, which the fast reader refuses.

    Raises:
        ValueError: it is no JSON, or nests too deep to be an answer.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            return json.loads(content)
        except RecursionError:
            raise ValueError("it nests too deep") from None


def read_chat(reply: Any, headers: Mapping[str, str]) -> Answer:
    """The answer of ``/v1/chat/completions``.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: the reply has another shape.
    """
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text, reason = choice["message"].get("content"), choice.get("finish_reason")
    return _answer(text, reason, usage.get("prompt_tokens"), usage.get("completion_tokens"), headers)


def read_native(reply: Any, headers: Mapping[str, str]) -> Answer:
    """The answer of ``/generate``; the prompt's tokens stand in the headers alone.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: the reply has another shape.
    """
    details = reply["details"]
    tokens = headers.get("x-prompt-tokens"), details["generated_tokens"]
    return _answer(reply["generated_text"], details["finish_reason"], *tokens, headers)


def _answer(text: str | None, finish_reason: str | None, prompt: Any, completion: Any, headers: Any) -> Answer:
    reason = "stop" if finish_reason in _FINISHED else finish_reason or "unknown"
    prompt_tokens, completion_tokens = int(prompt or 0), int(completion or 0)
    counted = headers.get("x-generated-tokens")
    if counted is None:
        return Answer(_storable(text or ""), reason, prompt_tokens, completion_tokens)
    agree = int(counted) == completion_tokens and int(headers.get("x-prompt-tokens") or 0) == prompt_tokens
    total, queue = int(headers.get("x-total-time") or 0), int(headers.get("x-queue-time") or 0)  # ms
    share = min(1.0, queue / total) if total else 0.0
    return Answer(_storable(text or ""), reason, prompt_tokens, completion_tokens, share, agree)


def failure(call: str, endpoint: str, status: int, content: bytes) -> ServerError:
    """The error for an answer that is not 200, by what is to be done about it.

    Args:
        call: method and URL, for the message.
        endpoint: the server's URL.
        status: HTTP's.
        content: the body: JSON of TGI's, OpenAI's, SGLang's or FastAPI's form, plain text, or nothing.
    """
    message, error_type = _said(content)
    kind = _STATUS.get(status, Transient if status >= 500 else StopRun)
    if status == 503 and _FULL_QUEUE.search(message):
        kind = Overloaded
    hint = f"; set ${API_KEY_VARIABLE} to the server's key" if status in (401, 403) else ""
    named = f" ({error_type})" if error_type else ""
    return kind(f"{call}: HTTP {status}{named}: {message}{hint}", status, error_type, endpoint)


def _said(content: bytes) -> tuple[str, str | None]:
    """A server's message and its own name for the error, from a body of any form."""
    text = content.decode("utf-8", "replace").strip()[:500] or "an empty body"
    try:
        body = loads(content)
    except ValueError:
        return text, None
    if not isinstance(body, dict):
        return text, None
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    message = next((inner[key] for key in ("message", "error", "detail") if inner.get(key)), text)
    error_type = inner.get("error_type") or inner.get("type")
    return _storable(str(message))[:500], _storable(str(error_type))[:80] if error_type else None


def _storable(text: str) -> str:
    """``text`` with lone surrogates replaced: they can be sent as JSON, but not be stored as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

"""One endpoint of a text-generation server, over aiohttp.

Two protocols: ``/v1/chat/completions`` with a ``response_format`` that TGI 3.3, vLLM, SGLang and llama.cpp all read,
and TGI's native ``/generate`` with ``grammar``. Every failure becomes one of the classes of ``errors``, with the
endpoint, the status and what the server said (TGI answers errors as JSON, as plain text, or with an empty body).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from ..errors import Overloaded, RequestRefused, ServerError, StopRun, Transient
from ..prompts import Prompt

API_KEY_VARIABLE = "TGI_API_KEY"
Api = Literal["chat", "generate"]

_STATUS: dict[int, type[ServerError]] = {
    400: RequestRefused,
    413: RequestRefused,
    422: RequestRefused,
    429: Overloaded,
    408: Transient,
    424: Transient,
}
_MARK = "UNICORN-FIELD-{}-UNICORN"
_MARKS = re.compile(_MARK.format(r"(\w+?)"))
_FINISHED = ("stop", "eos_token", "stop_sequence")  # as chat, native TGI, and TGI's chat with a stop word say it


@dataclass(frozen=True)
class Request:
    """One question to the model: a prompt, the values of its fields, and the seed of its sampling (1 .. 2^31 - 1)."""

    prompt: Prompt
    values: dict[str, str]
    seed: int
    schema: dict[str, Any] | None = None
    max_tokens: int | None = None  # None: the prompt's own


@dataclass(frozen=True)
class Answer:
    """What the model said. ``finish_reason`` is ``stop`` or ``length``, or what a foreign server made of it."""

    text: str  # without the prompt's answer prefix
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ServerInfo:
    """What an endpoint says of itself: TGI's ``/info``, else the first entry of ``/v1/models``."""

    model_id: str
    model_sha: str | None
    max_concurrent_requests: int | None  # None: the server queues what it cannot serve yet
    is_tgi: bool
    facts: dict[str, Any]


class Endpoint:
    """A server at ``url``, asked through a session that the caller owns.

    Args:
        url: such as ``http://127.0.0.1:8080``; a trailing ``/v1`` is cut off.
        session: an aiohttp session; its time-out and connection limit hold.
        api: which protocol to speak.
        api_key: sent as a bearer token, and never shown.

    Raises:
        StopRun: the URL is no http(s) URL, or holds a password.
    """

    def __init__(
        self, url: str, session: aiohttp.ClientSession, api: Api = "chat", api_key: str | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StopRun(f"endpoint '{url}' is no URL of the form http://host:port")
        if parts.username or parts.password:
            raise StopRun(f"endpoint at {parts.hostname}: give the key in ${API_KEY_VARIABLE}, not in the URL")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api = api
        self.info: ServerInfo | None = None
        self._session = session
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._frames: dict[str, str] = {}  # of native requests, by prompt

    async def connect(self) -> ServerInfo:
        """Asks the server what it is, and keeps the answer as ``info``.

        Raises:
            ServerError: it cannot be reached, refuses the key, or names no model.
        """
        try:
            facts = await self._call("GET", "/info")
            info = ServerInfo(
                facts["model_id"], facts.get("model_sha"), facts.get("max_concurrent_requests"), True, facts
            )
        except StopRun as error:
            if error.status not in (404, 405):
                raise
            models = await self._call("GET", "/v1/models")
            try:
                facts = models["data"][0]
                info = ServerInfo(facts["id"], None, None, False, facts)
            except (KeyError, IndexError, TypeError):
                raise StopRun(f"{self.url}/v1/models names no model: {json.dumps(models)[:300]}") from None
        except KeyError as error:
            raise StopRun(f"{self.url}/info lacks {error}: this is no text-generation server") from None
        if self.api == "generate" and not info.is_tgi:
            raise StopRun(f"{self.url} has no /info, so it is no TGI server; use --api chat")
        self.info = info
        return info

    async def ask(self, request: Request) -> Answer:
        """Sends one request and reads its answer.

        Raises:
            ServerError: one of its classes, by what is to be done about it.
        """
        if self.api == "chat":
            route, body, read = "/v1/chat/completions", self._chat_body(request), _read_chat
        else:
            route, body, read = "/generate", await self._native_body(request), _read_native
        reply, headers = await self._call_with_headers("POST", route, body)
        try:
            answer = read(reply, headers)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            shown = json.dumps(reply)[:300]
            raise Transient(f"POST {self.url}{route}: unexpected answer ({error!r}): {shown}") from error
        # llama.cpp repeats the answer's prefix; TGI, vLLM and SGLang go on from it.
        return replace(answer, text=answer.text.removeprefix(request.prompt.prefix(request.values)))

    def _chat_body(self, request: Request) -> dict[str, Any]:
        sampling = request.prompt.sampling
        body: dict[str, Any] = {
            "messages": request.prompt.messages(request.values),
            "max_tokens": request.max_tokens or sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": request.seed,
            "stream": False,
        }
        if self.info and not self.info.is_tgi:  # TGI reads `model` as the name of an adapter
            body["model"] = self.info.model_id
        if request.prompt.answer_prefix:  # vLLM's and SGLang's names for what TGI and llama.cpp do by themselves
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if request.schema:
            named = {"name": request.prompt.id, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}, "value": named}
        return body

    async def _native_body(self, request: Request) -> dict[str, Any]:
        sampling = request.prompt.sampling
        parameters: dict[str, Any] = {
            "max_new_tokens": request.max_tokens or sampling.max_tokens,
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
        return {"inputs": await self._native_inputs(request), "parameters": parameters}

    async def _native_inputs(self, request: Request) -> str:
        """The prompt as the server's own chat template renders it. The template is asked for once a prompt, with marks
        in the fields' places; the values go into the marks here."""
        frame = self._frames.get(request.prompt.sha256)
        if frame is None:
            marks = {field: _MARK.format(field) for field in request.values}
            body = {"messages": request.prompt.messages(marks)}
            frame = (await self._call("POST", "/chat_tokenize", body))["templated_text"]
            self._frames[request.prompt.sha256] = frame
        return _MARKS.sub(lambda match: request.values[match[1]], frame)

    async def _call(self, method: str, route: str, body: object = None) -> Any:
        return (await self._call_with_headers(method, route, body))[0]

    async def _call_with_headers(self, method: str, route: str, body: object = None) -> tuple[Any, Any]:
        where = f"{method} {self.url}{route}"
        try:
            async with self._session.request(method, self.url + route, json=body, headers=self._headers) as response:
                content = await response.read()
                if response.status == 200:
                    return json.loads(content), response.headers
                raise _failure(where, response.status, content)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Transient(f"{where}: {type(error).__name__}: {error}") from error
        except TimeoutError:
            raise Transient(f"{where}: no answer in {self._session.timeout.total} s") from None
        except ValueError as error:
            raise Transient(f"{where}: the answer is no JSON: {error}") from error


def _read_chat(reply: Any, headers: Mapping[str, str]) -> Answer:
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text, reason = choice["message"].get("content"), choice.get("finish_reason")
    return _answer(text, reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _read_native(reply: Any, headers: Mapping[str, str]) -> Answer:
    details = reply["details"]
    tokens = headers.get("x-prompt-tokens"), details["generated_tokens"]
    return _answer(reply["generated_text"], details["finish_reason"], *tokens)


def _answer(text: str | None, finish_reason: str | None, prompt_tokens: Any, completion_tokens: Any) -> Answer:
    reason = "stop" if finish_reason in _FINISHED else finish_reason or "unknown"
    storable = (text or "").encode("utf-8", "replace").decode()  # a lone surrogate can be sent, but not be stored
    return Answer(storable, reason, int(prompt_tokens or 0), int(completion_tokens or 0))


def _failure(where: str, status: int, content: bytes) -> ServerError:
    """The error for an answer that is not 200, by what is to be done about it."""
    said = content.decode("utf-8", "replace").strip()[:500] or "an empty body"
    kind = _STATUS.get(status, Transient if status >= 500 else StopRun)
    hint = f"; set ${API_KEY_VARIABLE} to the server's key" if status in (401, 403) else ""
    return kind(f"{where}: HTTP {status}: {said}{hint}", status)

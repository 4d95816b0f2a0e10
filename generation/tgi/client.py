"""One endpoint of a text-generation server, over aiohttp: what it is, how it is, and its answers.

Every failure becomes one of the classes of ``errors``, by what is to be done about it, with the endpoint, the status
and what the server said.
"""

import asyncio
import json
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from ..errors import ServerError, StopRun, Transient
from .protocol import (
    API_KEY_VARIABLE,
    Answer,
    Api,
    Frame,
    Question,
    Request,
    chat_frame,
    failure,
    loads,
    marked_messages,
    native_frame,
    read_chat,
    read_native,
)

ASIDE_S = 10.0  # for an answer to anything but a generation request
_ROUTES = {"chat": "/v1/chat/completions", "generate": "/generate"}
_READERS = {"chat": read_chat, "generate": read_native}
# Requests that wait for a place in the batch, as TGI, vLLM, SGLang and llama.cpp name their gauge.
_QUEUE_GAUGE = re.compile(
    r"^(?:tgi_queue_size|vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:\{.*\})?\s+(\S+)",
    re.MULTILINE,
)


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
        session: an aiohttp session; its time-outs and connection limit hold.
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
        self._urls = {route: URL(self.url + route) for route in _ROUTES.values()}
        self._frames: dict[Question, Frame] = {}

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

    async def check_health(self) -> None:
        """Returns if ``/health`` is 200, or is a route that the server does not have.

        Raises:
            ServerError: the server cannot be reached, is loading its model, or is unhealthy.
        """
        try:
            await self._aside("GET", "/health")
        except StopRun as error:
            if error.status not in (404, 405):
                raise

    async def queue_size(self) -> int | None:
        """How many requests wait for a place in the batch, by ``/metrics``; None where it does not say."""
        try:
            content = await self._aside("GET", "/metrics")
        except ServerError:
            return None
        sizes = _QUEUE_GAUGE.findall(content.decode("utf-8", "replace"))
        return sum(int(float(size)) for size in sizes) if sizes else None

    async def count_tokens(self, request: Request) -> int | None:
        """The prompt tokens of a request, by TGI's ``/chat_tokenize``; None from any other server."""
        if not (self.info and self.info.is_tgi):
            return None
        body = {"messages": request.question.prompt.messages(request.values)}
        return len((await self._call("POST", "/chat_tokenize", body))["tokenize_response"])

    async def body(self, request: Request) -> bytes:
        """The JSON of a request, as it is sent.

        Raises:
            ServerError: the server does not render its chat template (native protocol).
        """
        frame = self._frames.get(request.question)
        if frame is None:
            frame = self._frames[request.question] = await self._frame(request.question)
        return frame.fill(request)

    async def ask(self, request: Request) -> Answer:
        """Sends one request and reads its answer.

        Raises:
            ServerError: one of its classes, by what is to be done about it.
        """
        route = _ROUTES[self.api]
        content, headers = await self._send("POST", route, await self.body(request))
        reply = self._json(f"POST {self.url}{route}", content)
        try:
            answer = _READERS[self.api](reply, headers)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            shown = json.dumps(reply)[:300]
            raise Transient(
                f"POST {self.url}{route}: unexpected answer ({error!r}): {shown}", endpoint=self.url
            ) from error
        if not request.question.prompt.answer_prefix:
            return answer
        # llama.cpp repeats the answer's prefix; TGI, vLLM and SGLang go on from it.
        return replace(answer, text=answer.text.removeprefix(request.question.prompt.prefix(request.values)))

    async def _frame(self, question: Question) -> Frame:
        if self.api == "chat":
            return chat_frame(question, None if not self.info or self.info.is_tgi else self.info.model_id)
        templated = await self._call("POST", "/chat_tokenize", {"messages": marked_messages(question.prompt)})
        return native_frame(question, templated["templated_text"])

    async def _call(self, method: str, route: str, body: object = None) -> Any:
        content = await self._aside(method, route, None if body is None else json.dumps(body).encode())
        return self._json(f"{method} {self.url}{route}", content)

    async def _aside(self, method: str, route: str, body: bytes | None = None) -> bytes:
        try:
            async with asyncio.timeout(ASIDE_S):
                return (await self._send(method, route, body))[0]
        except TimeoutError:
            raise Transient(f"{method} {self.url}{route}: no answer in {ASIDE_S:g} s", endpoint=self.url) from None

    def _json(self, call: str, content: bytes) -> Any:
        try:
            return loads(content)
        except ValueError as error:
            raise Transient(f"{call}: the answer is no JSON: {error}", endpoint=self.url) from error

    async def _send(self, method: str, route: str, body: bytes | None = None) -> tuple[bytes, Any]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        url = self._urls.get(route) or URL(self.url + route)
        try:
            async with self._session.request(method, url, data=body, headers=headers) as response:
                content = await response.read()
                if response.status == 200:
                    return content, response.headers
                raise failure(f"{method} {self.url}{route}", self.url, response.status, content)
        except TimeoutError:  # aiohttp's are also ClientErrors
            seconds = self._session.timeout.total or self._session.timeout.sock_connect
            raise Transient(f"{method} {self.url}{route}: no answer in {seconds} s", endpoint=self.url) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            said = f"{type(error).__name__}: {error}"
            raise Transient(f"{method} {self.url}{route}: {said}", endpoint=self.url) from error

"""One endpoint of a text-generation server over aiohttp: what it is, how it is, and its answers.

Every failure becomes a ``ServerError`` that says how to react, with the URL, the status and what the server said.
"""

import asyncio
import json
import logging
import os
import re
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from .. import config
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from .dialects import DIALECTS, SIDE_ROUTES, THINKING_TOKENS, chat_body, describe, native_body, refused_fields
from .protocol import API_KEY_VARIABLE, Answer, Request, ServerInfo, count, failure, read_answer

logger = logging.getLogger(__name__)
SIDE_S = 10.0  # for a reply of any route but generation
CONNECT_S = 10.0  # for a new connection
KEEP_ALIVE_S = 4.0  # uvicorn closes idle connections after 5 s
THINKS_FROM = 16  # thinking tokens; Qwen3 writes an empty <think></think> where thinking is off
_TOKENIZE = {"tgi": "/chat_tokenize", "tgi_generate": "/chat_tokenize", "vllm": "/tokenize"}
_QUEUE_GAUGE = re.compile(  # requests that wait for a slot
    r"^(?:tgi_queue_size|vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:{.*})? +(\S+)",
    re.MULTILINE,
)
_certificates = cache(lambda file: ssl.create_default_context())  # reads ``file``, in 50 ms
Fields = dict[str, Any]
Session = aiohttp.ClientSession


def open_session() -> Session:
    """Return a session for endpoints: any number of connections; certificates as ``$SSL_CERT_FILE`` says."""
    certificates = _certificates(os.environ.get("SSL_CERT_FILE"))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=certificates)
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S)  # ``Endpoint`` limits the rest
    return Session(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout)


class Endpoint:
    """A server, asked with the key in ``$TGI_API_KEY``; a ``FatalServerError`` if the URL or the key cannot be used.
    ``url`` is the base URL as messages show it, and ``info`` what the server is, once connected."""

    def __init__(self, url: str, settings: config.Server, session: Session) -> None:
        self._settings, self._session, self._native = settings, session, settings.kind == "tgi_generate"
        self._base, chat_url = _parse(url)
        self._ask_url = self._route("/generate") if self._native else chat_url
        self.url, host = str(self._base.with_query(None)).rstrip("/"), self._base.host or ""
        self.info: ServerInfo | None = None
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            if not re.fullmatch("[!-~]+", key):
                raise FatalServerError(f"${API_KEY_VARIABLE} holds a line feed, a blank or a non-ASCII character")
            self._headers["Authorization"] = f"Bearer {key}"
        local = host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host)
        self._proxy = None if local else getproxies().get(self._base.scheme)  # trust_env would look for every request
        self._dialect = DIALECTS["openai" if settings.kind == "auto" else settings.kind]
        self._left_out: set[str] = set()  # fields that this server does not take
        self._answered = self._thinks = False  # a request; although thinking is off
        self._clocks: set[asyncio.Timeout] = set()  # of requests in flight

    async def connect(self) -> ServerInfo:
        """Return, and keep as ``info``, what the server is, asked over new connections. Where it does not say, or not
        that it is healthy, the generation route decides. A ``ServerError`` says that it cannot be reached, is not
        ready, refuses the key, or serves several models."""
        async with open_session() as session:
            found = await asyncio.gather(*(self._side(route, None, session) for route in SIDE_ROUTES))
            replies = dict(zip(SIDE_ROUTES, found, strict=True))
            info = describe(self.url, {route: reply for route, reply in replies.items() if reply}, self._settings)
            known = info.kind.startswith("tgi") or info.served_model is not None
            if not known or replies["/health"] is None:
                await self._try_generation(info.served_model, session)
        if self.info is None or known:  # else what it said before
            self.info, self._dialect = info, DIALECTS[info.kind]
        return self.info

    async def _try_generation(self, model: str | None, session: Session) -> None:
        """Raise a ServerError unless the generation route, asked for one token, gives an answer or refuses it."""
        fields: Fields = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        fields |= {"model": model} if model else {}
        fields = {"inputs": "Hi", "parameters": {"max_new_tokens": 1}} if self._native else fields
        try:
            await self._send(self._ask_url, fields, session=session)
        except (RateLimited, RequestRejected, TransientError) as error:
            if error.status in (404, 405) and not self._answered:
                raise FatalServerError(f"{error}; give the server's base URL", error.status) from None
            if isinstance(error, TransientError):
                raise

    def abandon(self) -> None:
        """End the requests in flight with a ``TransientError``."""
        for clock in self._clocks:
            if not clock.expired():
                clock.reschedule(0)

    async def queue_size(self) -> int | None:
        """Return how many requests wait for a slot, by ``/metrics``; None where it does not say."""
        try:
            content, _ = await self._send(self._route("/metrics"))
        except ServerError:
            return None
        sizes = _QUEUE_GAUGE.findall(content.decode("utf-8", "replace"))
        return sum(map(count, sizes)) if sizes else None

    async def count_tokens(self, request: Request) -> int | None:
        """Return the prompt tokens of a request, by TGI's ``/chat_tokenize`` or vLLM's ``/tokenize``; else None."""
        route = _TOKENIZE.get(self.info.kind) if self.info else None
        reply = (await self._side(route, self._fields(request)) if route else None) or {}
        tokens = reply.get("tokenize_response")
        return len(tokens) if isinstance(tokens, list) else count(reply.get("count")) or None

    def max_tokens(self, request: Request) -> int:
        """Return the tokens to allow: of the answer, and of thinking unless the answer is begun already."""
        budget = THINKING_TOKENS["low" if self._thinks else self._settings.thinking]
        return request.sampling.max_tokens + (0 if request.prefix else budget)

    def body(self, request: Request) -> bytes:
        """Return the JSON of a request to the chat route."""
        return orjson.dumps(self._fields(request))

    def _fields(self, request: Request) -> Fields:
        model = self.info.served_model if self.info else self._settings.model
        fields = chat_body(request, self._dialect, model, self._settings.thinking, self.max_tokens(request))
        return {name: fields[name] for name in fields.keys() - self._left_out} if self._left_out else fields

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer to a request; neutral fields that the server refuses are left out from then on. The class
        of the ``ServerError`` that is raised else says how to react."""
        while True:
            fields = await self._native_fields(request) if self._native else self._fields(request)
            try:
                content, headers = await self._send(self._ask_url, fields, timeout_s)
                reply = _json(content)
                if isinstance(reply, dict) and reply.get("error") and not {"choices", "generated_text"} & reply.keys():
                    raise self._failure("POST", self._ask_url, 200, content, headers)  # so proxies send errors
                answer = read_answer(reply, headers, request.prefix)
            except RequestRejected as error:
                refused = refused_fields(str(error), fields, self._dialect) if error.status in (400, 422) else set()
                if not refused:
                    raise
                if new := sorted(refused - self._left_out):
                    self._left_out.update(new)
                    logger.warning("%s does not take %s: left out from now on", self.url, ", ".join(new))
                continue
            except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
                shown = f"({error!r}): {content[:300].decode('utf-8', 'replace')}"
                raise TransientError(f"POST {self.url}: unexpected answer {shown}", 200) from None
            self._answered = True
            if answer.thinking_tokens < THINKS_FROM or self._settings.thinking != "off" or self._thinks:
                return answer
            self._thinks = True  # gpt-oss does in any case
            logger.warning("%s thinks although it is asked not to: max_tokens are raised", self.url)
            if answer.finish_reason != "length":
                return answer

    async def _native_fields(self, request: Request) -> Fields:
        rendered = (await self._side("/chat_tokenize", {"messages": request.messages}) or {}).get("templated_text")
        if not isinstance(rendered, str):
            raise TransientError(f"{self.url}/chat_tokenize gives no templated_text")
        return native_body(request, rendered, self.max_tokens(request))

    def _route(self, path: str) -> URL:
        return self._base.with_path(self._base.path.rstrip("/") + path, keep_query=True)

    async def _side(self, path: str, fields: Fields | None = None, session: Session | None = None) -> Fields | None:
        """Return the JSON object of a route other than generation: empty if it gave none, None unless status 200."""
        try:
            content, _ = await self._send(self._route(path), fields, session=session)
            reply = _json(content)
        except ServerError:
            return None
        except (ValueError, RecursionError):
            return {}
        return reply if isinstance(reply, dict) else {}

    async def _send(
        self, url: URL, fields: Fields | None = None, timeout_s: float = SIDE_S,
        session: Session | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:  # fmt: skip
        """Return body and headers of a reply with status 200 to a POST of ``fields``, or to a GET without them."""
        method, data = ("POST", orjson.dumps(fields)) if fields else ("GET", None)
        clock = asyncio.timeout(timeout_s)
        self._clocks.add(clock)
        try:
            async with clock:
                response = await (session or self._session).request(
                    method, url, data=data, headers=self._headers, proxy=self._proxy, allow_redirects=False
                )
                content, status = await response.read(), response.status
        except TimeoutError as error:  # aiohttp's are also ClientErrors
            said = str(error) or (f"no answer in {timeout_s:g} s" if clock.when() else "no sign of life")
            raise TransientError(f"{_call(method, url)}: {said}") from None
        except aiohttp.ClientSSLError as error:
            hint = "name its authority's certificate in $SSL_CERT_FILE, or give http:// if it does not speak TLS"
            raise FatalServerError(f"{_call(method, url)}: no secure connection ({error}); {hint}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransientError(f"{_call(method, url)}: {type(error).__name__}: {error}") from None
        finally:
            self._clocks.discard(clock)
        if status == 200:
            return content, response.headers
        raise self._failure(method, url, status, content, response.headers)

    def _failure(self, method: str, url: URL, status: int, content: bytes, headers: Mapping[str, str]) -> ServerError:
        return failure(_call(method, url), status, content, headers, "Authorization" in self._headers, self._answered)


def _call(method: str, url: URL) -> str:
    return f"{method} {url.with_query(None)}"


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:  # NaN, lone surrogates
        return json.loads(content)


def _parse(text: str) -> tuple[URL, URL]:
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

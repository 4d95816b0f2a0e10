"""One endpoint of a text-generation server over aiohttp: what it is, how it is, and its answers.

Every failure becomes a ``ServerError`` that says how to react, with the URL, the status and what the server said.
"""

import asyncio
import json
import logging
import math
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from .. import config
from ..errors import FatalServerError, RequestRejected, ServerError, TransientError
from .dialects import DIALECTS, SIDE_ROUTES, chat_body, describe, max_tokens, native_body, refused_fields
from .protocol import API_KEY_VARIABLE, Answer, Request, ServerInfo, failure, loads, read_chat, read_native

logger = logging.getLogger(__name__)
SIDE_S = 10.0  # for a reply of any route but generation
CONNECT_S = 10.0  # for a new connection
KEEP_ALIVE_S = 4.0  # uvicorn closes idle connections after 5 s
MAX_REPLY_BYTES = 32 * 1024 * 1024
MAX_REDIRECTS = 5
_GAUGE = re.compile(  # requests that wait for a slot
    r"^(?:tgi_queue_size|vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:\{[^\n]*\})?[ \t]+"
    r"(\S+)",
    re.MULTILINE,
)


def open_session() -> aiohttp.ClientSession:
    """Return a session for endpoints: no limit of connections, certificates as ``SSL_CERT_FILE`` says."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl.create_default_context())
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def api_key() -> str | None:
    """Return the key in ``$TGI_API_KEY``, or None.

    Raises:
        FatalServerError: it holds a character that no HTTP header can hold.
    """
    key = os.environ.get(API_KEY_VARIABLE) or None
    if key and not all("!" <= character <= "~" for character in key):
        raise FatalServerError(
            f"${API_KEY_VARIABLE} holds a line feed, a blank or a character outside ASCII; set it to the key alone"
        )
    return key


def parse_url(text: str) -> tuple[URL, str]:
    """Return the base URL of an endpoint (with its query string, if any) and the path of the chat route.

    ``http://host:8080``, ``.../v1`` and ``.../v1/chat/completions`` are the same endpoint.

    Raises:
        FatalServerError: not an http(s) URL, or one that holds a password.
    """
    shown = re.sub(r"//[^/]*@", "//***@", text)
    try:
        url = URL(text.strip())
        good = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except (ValueError, TypeError) as error:
        raise FatalServerError(f"endpoint '{shown}' is not a valid URL ({error}); give http://host:port") from None
    if not good:
        raise FatalServerError(f"endpoint '{shown}' is not a URL of the form http://host:port")
    if url.user is not None or url.password is not None:
        raise FatalServerError(f"endpoint '{shown}': give the key in ${API_KEY_VARIABLE}, not in the URL")
    path = url.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/generate", "/models"):
        path = path.removesuffix(ending)
    chat = url.path if url.path.endswith("/chat/completions") else f"{path.removesuffix('/v1')}/v1/chat/completions"
    return url.with_path(path.removesuffix("/v1") or "/", keep_query=True).with_fragment(None), chat


class Endpoint:
    """A server at ``url``.

    Attributes:
        url: the base URL without its query string, as messages show it.
        info: what the server is, once connected.
        answered: it has answered a request.

    Raises:
        FatalServerError: the URL or the key cannot be used.
    """

    def __init__(self, url: str, settings: config.Server, session: aiohttp.ClientSession) -> None:
        self._base, chat = parse_url(url)
        self.url = str(self._base.with_query(None)).rstrip("/")
        self.info: ServerInfo | None = None
        self.answered = False
        self._settings, self._session = settings, session
        self._key = api_key()
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        host = self._base.host or ""
        self._proxy = None if proxy_bypass(host) else getproxies().get(self._base.scheme)
        self._native = settings.kind == "tgi_generate"
        self._ask_url = self._route("/generate") if self._native else self._base.with_path(chat, keep_query=True)
        self._dialect = DIALECTS["openai" if settings.kind == "auto" else settings.kind]
        self._left_out: set[str] = set()  # fields that this server does not take
        self._moved: dict[URL, URL] = {}  # redirects that were followed
        self._templates: dict[tuple[str, ...], list[str]] = {}  # roles of the messages -> text between the contents
        self._had_health = False  # /health was good once, so that it can be believed

    async def connect(self) -> ServerInfo:
        """Return, and keep as ``info``, what the server says of itself.

        Side channels may fail in any way; where they say nothing, the generation route decides.

        Raises:
            ServerError: the server cannot be reached or is not ready, refuses the key, or serves several models.
        """
        results = await asyncio.gather(*(self._side(route) for route in SIDE_ROUTES), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ServerError):
                raise result
        found = dict(zip(SIDE_ROUTES, results, strict=True))
        self._had_health |= not isinstance(found["/health"], ServerError)
        info = describe(self.url, {r: v for r, v in found.items() if isinstance(v, dict | list)}, self._settings)
        self._dialect = DIALECTS[info.kind]
        if info.model_id == "unknown" or all(isinstance(result, ServerError) for result in results):
            await self._try_generation(info)
        self.info = info
        return info

    async def _try_generation(self, info: ServerInfo) -> None:
        """Ask for one token: whether the server can be used at all."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": False}
        if self._native:
            body = {"inputs": "Hi", "parameters": {"max_new_tokens": 1}}
        elif info.served_model:
            body["model"] = info.served_model
        try:
            await self._send("POST", self._ask_url, orjson.dumps(body), SIDE_S)
        except RequestRejected as error:
            if error.status in (405, 501):
                raise FatalServerError(
                    f"{error}; give the server's base URL", error.status, endpoint=self.url
                ) from None
        except TransientError as error:
            if error.status == 404:
                raise FatalServerError(f"{error}; give the server's base URL", 404, endpoint=self.url) from None
            if error.status is not None or "no answer" not in str(error):
                raise

    async def probe(self) -> bool:
        """Return whether a new connection is accepted and the server is healthy enough to be tried."""
        async with open_session() as session:
            try:
                await self._send("GET", self._route("/health"), None, SIDE_S, session)
            except ServerError as error:
                healthy = error.status is not None and (error.status < 500 or not self._had_health)
                return healthy
        self._had_health = True
        return True

    async def queue_size(self) -> int | None:
        """Return how many requests wait for a slot, by ``/metrics``; None where it does not say."""
        try:
            content, _ = await self._send("GET", self._route("/metrics"), None, SIDE_S)
        except ServerError:
            return None
        sizes = []
        for text in _GAUGE.findall(content.decode("utf-8", "replace")):
            try:
                sizes.append(float(text))
            except ValueError:
                continue
        finite = [size for size in sizes if math.isfinite(size) and 0 <= size < 2**31]
        return int(sum(finite)) if finite else None

    async def count_tokens(self, request: Request) -> int | None:
        """Return the prompt tokens of a request, by TGI's ``/chat_tokenize`` or vLLM's ``/tokenize``; else None."""
        kind = self.info.kind if self.info else "auto"
        body: dict[str, Any] = {"messages": request.messages}
        try:
            if kind in ("tgi", "tgi_generate"):
                return len((await self._side("/chat_tokenize", body))["tokenize_response"])
            if kind == "vllm" and self.info:
                extra = self._dialect.continues if request.prefix else {}
                reply = await self._side("/tokenize", {"model": self.info.served_model, **body, **extra})
                return int(reply["count"])
        except (ServerError, LookupError, TypeError, ValueError):
            pass
        return None

    def max_tokens(self, request: Request) -> int:
        """Return the tokens that are asked for: those of the answer, and of thinking where it is allowed."""
        return max_tokens(request, self._settings.thinking)

    def body(self, request: Request) -> bytes:
        """Return the JSON of a request to the chat route."""
        return _dumps(self._fields(request))

    def _fields(self, request: Request) -> dict[str, Any]:
        model = self.info.served_model if self.info else self._settings.model
        fields = chat_body(request, self._dialect, model, self._settings.thinking)
        for name in self._left_out:
            fields.pop(name, None)
        return fields

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer to one request.

        Fields that the server refuses and that can be left out are left out from then on.

        Raises:
            ServerError: the subclass says how to react.
        """
        while True:
            fields = await self._native_fields(request) if self._native else self._fields(request)
            try:
                content, headers = await self._send("POST", self._ask_url, _dumps(fields), timeout_s)
            except RequestRejected as error:
                if not self._adapt(error, fields):
                    raise
                continue
            return self._read(request, content, headers)

    def _read(self, request: Request, content: bytes, headers: Mapping[str, str]) -> Answer:
        call = f"POST {self._ask_url.with_query(None)}"
        try:
            reply = loads(content)
            if isinstance(reply, dict) and reply.get("error") and "choices" not in reply:  # proxies: 200 with an error
                code = reply["error"].get("code") if isinstance(reply["error"], dict) else None
                status = code if isinstance(code, int) and 400 <= code < 600 else 502
                raise failure(call, self.url, status, content, headers, bool(self._key), self.answered)
            answer = (read_native if self._native else read_chat)(reply, headers, request.prefix)
        except TransientError as error:
            raise TransientError(f"{call}: {error}", error.status, endpoint=self.url) from None
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            shown = content[:300].decode("utf-8", "replace")
            raise TransientError(f"{call}: unexpected answer ({error!r}): {shown}", endpoint=self.url) from None
        self.answered = True
        return answer

    def _adapt(self, error: RequestRejected, fields: Mapping[str, Any]) -> bool:
        """Return whether the request can be asked again without what the server refused."""
        if error.status not in (400, 422) or self._native:
            return False
        message = str(error)
        if "missing field `value`" in message and "value" not in fields.get("response_format", {"value": 0}):
            logger.info("%s takes response_format as TGI does", self.url)
            self._dialect = replace(self._dialect, value=True)
            return True
        refused = refused_fields(message, fields, self._dialect)
        if new := sorted(refused - self._left_out):
            self._left_out.update(new)
            logger.warning("%s does not take %s: left out from now on", self.url, ", ".join(new))
        if not refused and "continue_final_message" in message and "continue_final_message" in fields:
            error.args = (f"{message}; it cannot continue an answer: use prompts without answer_prefix",)
        return bool(refused)

    async def _native_fields(self, request: Request) -> dict[str, Any]:
        """Return the body of ``/generate``: the server renders its chat template once for each sequence of roles."""
        roles = tuple(message["role"] for message in request.messages)
        if roles not in self._templates:
            marked = [{"role": role, "content": f"CONTENT-{n}-OF-UNICORN"} for n, role in enumerate(roles)]
            reply = await self._side("/chat_tokenize", {"messages": marked})
            try:
                pieces = re.split(r"CONTENT-(\d+)-OF-UNICORN", reply["templated_text"])
            except (LookupError, TypeError):
                raise TransientError(f"{self.url}/chat_tokenize: no templated_text", endpoint=self.url) from None
            if sorted(map(int, pieces[1::2])) != list(range(len(roles))):
                raise FatalServerError(
                    f"{self.url}: the chat template of the model drops or repeats messages; use server.kind: tgi"
                )
            self._templates[roles] = pieces
        pieces = list(self._templates[roles])
        pieces[1::2] = [request.messages[int(number)]["content"].strip() for number in pieces[1::2]]
        return native_body(request, "".join(pieces), self._settings.thinking)

    def _route(self, path: str) -> URL:
        return self._base.with_path(self._base.path.rstrip("/") + path, keep_query=True)

    async def _side(self, path: str, body: object = None) -> Any:
        """Return the JSON (else the text) of a route other than generation."""
        data = None if body is None else _dumps(body)
        content, _ = await self._send("GET" if data is None else "POST", self._route(path), data, SIDE_S)
        try:
            return loads(content)
        except ValueError:
            return content.decode("utf-8", "replace")

    async def _send(
        self, method: str, url: URL, body: bytes | None, timeout_s: float, session: aiohttp.ClientSession | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Return body and headers of a reply with status 200; a redirected POST stays a POST."""
        target, timeout = self._moved.get(url, url), aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        call = f"{method} {url.with_query(None)}"
        try:
            for _ in range(MAX_REDIRECTS):
                async with (session or self._session).request(
                    method,
                    target,
                    data=body,
                    headers=self._headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                    timeout=timeout,
                ) as response:
                    if response.status in (301, 302, 307, 308) and "Location" in response.headers:
                        target = self._moved[url] = self._redirected(target, response)
                        continue
                    content = await _content(response)
                    if response.status == 200:
                        return content, response.headers
                    raise failure(
                        call, self.url, response.status, content, response.headers, bool(self._key), self.answered
                    )
            raise TransientError(f"{call}: more than {MAX_REDIRECTS} redirects", 302, endpoint=self.url)
        except TimeoutError:  # aiohttp's are also ClientErrors
            raise TransientError(f"{call}: no answer in {timeout_s:g} s", endpoint=self.url) from None
        except aiohttp.ClientSSLError as error:
            hint = "give the certificate of its authority in $SSL_CERT_FILE, or http:// if it does not speak TLS"
            raise FatalServerError(f"{call}: no secure connection ({error}); {hint}", endpoint=self.url) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransientError(f"{call}: {type(error).__name__}: {error}", endpoint=self.url) from None

    def _redirected(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        target = url.join(URL(response.headers["Location"]))
        if target.host != url.host or (url.scheme == "https" and target.scheme != "https"):
            raise FatalServerError(
                f"{url.with_query(None)} redirects to {target.with_query(None)}, which is not followed: prompts and "
                "key go only to the host that the recipe names. Give the new address as the endpoint",
                response.status,
                endpoint=self.url,
            )
        return target


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a reply, up to ``MAX_REPLY_BYTES``."""
    if (response.content_length or MAX_REPLY_BYTES + 1) <= MAX_REPLY_BYTES:
        return await response.read()
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            raise ValueError(f"a reply of over {MAX_REPLY_BYTES:,} bytes")
    return bytes(content)


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates
        return json.dumps(value).encode()

"""Requests, answers, and one endpoint of a text-generation server over aiohttp: what it is, how it is, what it says.

Every failure becomes a ``ServerError`` that says how to react, with the URL, the status and what the server said.
"""

import asyncio
import json
import logging
import os
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from .. import config
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from ..limits import CONNECT_S, KEEP_ALIVE_S, REPLY_BYTES, SIDE_S
from ..prompts import Message, Sampling
from . import protocol
from .protocol import API_KEY_VARIABLE, Fields, ServerInfo, count

logger = logging.getLogger(__name__)
THINKS_FROM = 16  # thinking tokens; Qwen3 writes an empty <think></think> where thinking is off
THINKING_TOKENS = {"off": 0, "low": 1024, "on": 4096}  # added to max_tokens where the model may think
_QUEUE_GAUGE = re.compile(  # requests that wait for a slot
    r"^(?:tgi_queue_size|vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:{.*})? +(\S+)",
    re.MULTILINE,
)
_certificates = cache(lambda file: ssl.create_default_context())  # reads ``file``, in 50 ms
Session = aiohttp.ClientSession
_FINISHED = {
    **dict.fromkeys(("stop", "eos_token", "stop_sequence", "eos", "end_turn"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "MAX_TOKENS"), "length"),
}
_ABORTED = ("abort", "error", "cancelled")  # so vLLM and SGLang end requests when they shut down
_THINKING_BEGINS = re.compile(r"\s*(<think(ing)?>|\[THINK\]|<\|channel\|>analysis<\|message\|>)")
_THINKING_ENDS = re.compile(r"[<\[](?:/think(?:ing)?>|/THINK\]|\|channel\|>final<\|message\|>)\s*")


class Request(NamedTuple):
    """One question to a model; a last message of role assistant is the beginning of the answer, to be continued."""

    messages: list[Message]
    sampling: Sampling  # its max_tokens are for the answer without thinking
    seed: int  # of sampling, 1 .. 2^31 - 1
    schema: dict[str, Any] | None = None  # JSON schema of the answer; None: plain text

    @property
    def prefix(self) -> str:
        """The beginning of the answer, or an empty string."""
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else ""


class Answer(NamedTuple):
    """What the model said."""

    text: str  # without the given beginning and without thinking; can be stored as UTF-8
    finish_reason: str  # "stop", "length", or the server's own word
    prompt_tokens: int  # this and the next as the server counts them, thinking excluded; 0 if it does not
    completion_tokens: int
    thinking_tokens: int = 0  # as the server counts them, else estimated by the share of characters
    queue_share: float = 0.0  # of the answer's time that it waited for a slot, 0 .. 1 (TGI only)


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
        self._settings, self._session = settings, session
        self._base, self._url = protocol.parse_url(url)
        self.url, host = str(self._base.with_query(None)).rstrip("/"), self._base.host or ""
        self._shown = str(self._url.with_query(None))  # of the generation route, in messages
        self._kind: str = "openai" if settings.kind == "auto" else settings.kind
        self.info: ServerInfo | None = None
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            if not re.fullmatch("[!-~]+", key):
                raise FatalServerError(f"${API_KEY_VARIABLE} holds a line feed, a blank or a non-ASCII character")
            self._headers["Authorization"] = f"Bearer {key}"
        local = host in ("localhost", "::1") or host.startswith("127.") or proxy_bypass(host)
        self._proxy = None if local else getproxies().get(self._base.scheme)  # trust_env would look for every request
        self._left_out: set[str] = set()  # fields that this server does not take
        self._answered = self._thinks = False  # a request; although thinking is off
        self._clocks: set[asyncio.Timeout] = set()  # of requests in flight

    async def connect(self) -> ServerInfo:
        """Return, and keep as ``info``, what the server is, asked over new connections. Where it does not say, or not
        that it is healthy, the generation route decides. A ``ServerError`` says that it cannot be reached, is not
        ready, refuses the key, or serves several models."""
        async with open_session() as session:
            found = await asyncio.gather(*(self._side(route, session) for route in protocol.SIDE_ROUTES))
            replies = dict(zip(protocol.SIDE_ROUTES, found, strict=True))
            info = protocol.describe(self.url, replies, self._settings)
            known = info.kind == "tgi" or info.served_model is not None
            if not known or replies["/health"] is None:
                await self._try_generation(info.served_model, session)
        if self.info is None or known:  # else what it said before
            self.info, self._kind = info, info.kind
        return self.info

    async def _try_generation(self, model: str | None, session: Session) -> None:
        """Raise a ServerError unless the generation route, asked for one token, gives an answer or refuses it."""
        fields: Fields = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        try:
            await self._send("", fields | ({"model": model} if model else {}), session=session)
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
            _, content, _ = await self._send("/metrics")
        except ServerError:
            return None
        sizes = _QUEUE_GAUGE.findall(content.decode("utf-8", "replace"))
        return sum(map(count, sizes)) if sizes else None

    def fields(self, request: Request) -> Fields:
        """Return the body of the generation route; ``presence_penalty`` is never sent (TGI makes 2.0 of its 0).
        ``max_tokens`` are those of the answer, and of thinking unless the answer is begun already."""
        begun, thinking = bool(request.prefix), self._settings.thinking
        more = 0 if begun else THINKING_TOKENS["low" if self._thinks else thinking]
        fields: Fields = request.sampling.__dict__ | protocol.NEUTRAL[self._kind]
        fields |= {"max_tokens": request.sampling.max_tokens + more, "seed": request.seed, "stream": False}
        fields |= {"messages": request.messages} | (protocol.CONTINUE.get(self._kind, {}) if begun else {})
        if self._kind != "tgi":
            thinks = thinking != "off" and not begun
            model = self.info.served_model if self.info else self._settings.model
            fields |= {"model": model} if model else {}
            fields["chat_template_kwargs"] = {"enable_thinking": thinks, "thinking": thinks}  # Qwen; DeepSeek
            fields |= {} if thinks and thinking == "on" else {"reasoning_effort": "low"}  # gpt-oss: cannot be off
        if request.schema:
            named = {"name": "answer", "schema": request.schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": {**named, "strict": True}}
            fields["response_format"] |= {"value": named} if self._kind == "tgi" else {}
        return {name: fields[name] for name in fields.keys() - self._left_out} if self._left_out else fields

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer to a request; neutral fields that the server refuses are left out from then on. The class
        of the ``ServerError`` that is raised else says how to react."""
        while True:
            fields = self.fields(request)
            try:
                reply, content, headers = await self._send("", fields, timeout_s)
                answer = read_answer(reply, headers, request.prefix)
            except RequestRejected as error:
                refused = protocol.refused_fields(str(error), fields) if error.status in (400, 422) else set()
                if not refused:
                    raise
                if new := sorted(refused - self._left_out):
                    self._left_out.update(new)
                    logger.warning("%s does not take %s: left out from now on", self.url, ", ".join(new))
                continue
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                shown = f"({error!r}): {content[:300].decode('utf-8', 'replace')}"
                raise TransientError(f"POST {self.url}: unexpected answer {shown}", 200) from None
            self._answered = True
            if answer.thinking_tokens < THINKS_FROM or self._settings.thinking != "off" or self._thinks:
                return answer
            self._thinks = True  # gpt-oss does in any case
            logger.warning("%s thinks although it is asked not to: max_tokens are raised", self.url)
            if answer.finish_reason != "length":
                return answer

    async def _side(self, route: str, session: Session) -> Fields | None:
        """Return the JSON object of a route other than generation: empty if it gave none, None unless status 200."""
        try:
            reply, _, _ = await self._send(route, session=session)
        except ServerError:
            return None
        return reply if isinstance(reply, dict) else {}

    async def _send(
        self, route: str, fields: Fields | None = None, timeout_s: float = SIDE_S, session: Session | None = None
    ) -> tuple[Any, bytes, Mapping[str, str]]:
        """Return JSON ({} if it is none), body and headers of a reply with status 200 to a POST of ``fields``, or to a
        GET without them; the empty ``route`` is that of generation."""
        url = self._base.with_path(self._base.path.rstrip("/") + route, keep_query=True) if route else self._url
        method, data = ("POST", orjson.dumps(fields)) if fields else ("GET", None)
        call = f"{method} {self.url + route if route else self._shown}"
        reply, clock = Fields(), asyncio.timeout(timeout_s)
        self._clocks.add(clock)
        try:
            async with clock:
                response = await (session or self._session).request(
                    method, url, data=data, headers=self._headers, proxy=self._proxy, allow_redirects=False
                )
                if (response.content_length or 0) > REPLY_BYTES:
                    response.close()
                    raise ValueError(f"a reply of {response.content_length:,} bytes")
                content, status = await response.read(), response.status
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError):  # asyncio's, or one of aiohttp's
                said = str(error) or (f"no answer in {timeout_s:g} s" if clock.when() else "no sign of life")
            elif isinstance(error, aiohttp.ClientSSLError):
                hint = "name its authority's certificate in $SSL_CERT_FILE, or give http:// if it does not speak TLS"
                raise FatalServerError(f"{call}: no secure connection ({error}); {hint}") from None
            raise TransientError(f"{call}: {said}") from None
        finally:
            self._clocks.discard(clock)
        try:
            reply = orjson.loads(content)
        except ValueError:
            with suppress(ValueError, RecursionError):
                reply = json.loads(content)  # takes NaN and lone surrogates
        headers, keyed = response.headers, "Authorization" in self._headers
        if status != 200 or (isinstance(reply, dict) and reply.get("error") and "choices" not in reply):  # of a proxy
            raise protocol.failure(call, status, content, headers, keyed, self._answered)
        return reply, content, headers


def read_answer(reply: Any, headers: Mapping[str, str], prefix: str) -> Answer:
    """Return the answer of ``/v1/chat/completions``. If it has another shape, or the server aborted the request, a
    LookupError, TypeError, AttributeError or ValueError is raised."""
    choice, usage = reply["choices"][0], reply.get("usage")
    message, reason = choice["message"], choice.get("finish_reason")
    if reason in _ABORTED:
        raise ValueError(f"the server aborted the request: finish_reason {reason}")
    reason = (_FINISHED.get(reason) or storable(reason)[:40]) if isinstance(reason, str) and reason else "unknown"
    text = _joined(message.get("content")) or _joined(message.get("refusal"))
    thinking = _joined(message.get("reasoning_content")) or _joined(message.get("reasoning"))
    if thinking and not text.strip() and (reason == "stop" or prefix):
        text, thinking = thinking, ""  # a reasoning parser takes all that a model without thinking writes for thinking
    text = text.removeprefix(prefix)  # llama.cpp repeats the given beginning; the others continue it
    *thoughts, text = _THINKING_ENDS.split(text) if "<" in text or "[" in text else [text]
    if thoughts:
        thinking, text = "".join([thinking, *thoughts]), text.removeprefix(prefix)
    elif _THINKING_BEGINS.match(text):
        thinking, text = thinking + text, ""
    usage = usage if isinstance(usage, dict) else {}
    tokens, thought = count(usage.get("completion_tokens")), 0
    if thinking:
        details = usage.get("completion_tokens_details")
        counted = [part.get("reasoning_tokens") for part in (details, usage) if isinstance(part, dict)]
        estimate = round(tokens * len(thinking) / len(thinking + text))
        thought = min(tokens, next(filter(None, map(count, counted)), estimate))
    queued, total = count(headers.get("x-queue-time")), count(headers.get("x-total-time"))  # ms
    share = min(1.0, queued / total) if total else 0.0
    return Answer(storable(text), reason, count(usage.get("prompt_tokens")), tokens - thought, thought, share)


def _joined(content: Any) -> str:
    """Return the text of ``content``: a string, null, or a list of parts."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def storable(text: str) -> str:
    """Return ``text`` with lone surrogates replaced, since they cannot be stored as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

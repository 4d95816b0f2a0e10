"""Endpoints as the scheduler sees them: may they be sent requests, how many, and when is the next look at them due?

One is ``reachable`` once it has accepted a new connection, until a request is lost: an answer that was in flight while
the server closed its listener does not bring it back. Times are those of the event loop's clock, in seconds.
"""

import asyncio
import logging
import math
import random
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import orjson

from ..config import Server
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from ..limits import BURST_S, FULL_S, LOOK_S, PROBE_S, SLOW_S, STALL_S, START_LIMIT, TICK_S
from .client import Answer, Endpoint, Request
from .protocol import ServerInfo

logger = logging.getLogger(__name__)
DECREASE, ROUND = 0.9, 32
QUEUE_SHARE = 0.3  # of an answer's time, or of the requests in flight: more waiting in the server only adds latency
FAILURES_IN_A_ROW = 5  # HTTP errors without an answer between them: treated as away
PROBE_SHARE = 0.25  # of the time that it has been away
MAY_PASS = (None, 408, 429, 502, 503, 504)  # HTTP status of a server that is not there yet
CHARACTERS_A_TOKEN = 5  # English has 4 to 5, so no good prompt is refused


class AdaptiveLimit:
    """How many requests one endpoint gets at a time: ``value``, at most ``ceiling``.

    It doubles with every limit's worth of answers until the first sign of congestion (slow start). At each sign it
    falls by a tenth; then it grows by one with every limit's worth of answers, or every ``ROUND`` if that is more. A
    sign counts in full only if its request was sent after the last decrease, for the requests of one burst carry the
    same news; but the more of them are refused, the less the server holds. Times are the event loop's.
    """

    def __init__(self, ceiling: int, start: int = START_LIMIT) -> None:
        self.ceiling, self.value = ceiling, float(min(start, ceiling))
        self._decreased_at, self._before, self._refused = -math.inf, 0.0, 0  # last decrease; value before it; refused

    def answered(self, sent_at: float, now: float, queue_share: float, saturated: bool) -> None:
        """Count an answer: the limit grows if it was ``saturated``, that is if more requests waited to be sent."""
        if queue_share > QUEUE_SHARE:
            self.congested(sent_at, now, refused=False)
        elif saturated:
            self.value = min(self.value + (1 / max(self.value, ROUND) if self._before else 1), self.ceiling)

    def congested(self, sent_at: float, now: float, refused: bool = True) -> None:
        """Lower the limit: a request was refused, or waited too long in the server."""
        if sent_at >= self._decreased_at:
            self._decreased_at, self._before, self._refused = now, self.value, 0
        elif not refused:
            return
        self._refused += 1
        self.value = max(1.0, min(self._before * DECREASE, self._before - self._refused))


class EndpointState:
    """The state of an endpoint, not connected at first; its limit starts at ``slots`` if the server publishes none."""

    def __init__(self, endpoint: Endpoint, settings: Server, slots: int = START_LIMIT) -> None:
        self.endpoint, self.settings, self._slots = endpoint, settings, slots
        self.host, self._time = urlsplit(endpoint.url).hostname, asyncio.get_running_loop().time
        self.limit = AdaptiveLimit(settings.max_in_flight, slots)
        self.running = 0  # requests in flight
        self.reachable = False
        self.trials: Sequence[Request] = ()  # requests to be answered before rows are sent
        self.unproven = False  # likewise a known-good request: new connections succeed while requests fail
        self.reserved = False  # for a test of suspects
        self.look: asyncio.Task[None] | None = None  # the last check
        self.failed_in_a_row = 0  # HTTP errors without an answer between them
        self.last_failure: ServerError | None = None
        self.sign_at = self.check_at = self.full_until = 0.0  # last sign of life; next look; end of a pause
        self._refused_at, self._left_at, self._missed = -BURST_S, self._time(), False  # missed: a look since it left

    def is_up(self) -> bool:
        """Return whether requests may be sent."""
        return self.reachable and self._time() + TICK_S >= self.full_until

    def started(self) -> float:
        """Count a request that is sent; return the time."""
        now = self._time()
        if not self.running:
            self.sign_at = now
        self.running += 1
        return now

    def answered(self, sent_at: float, queue_share: float, saturated: bool) -> None:
        """Count an answer; ``saturated``: more requests waited than the limit let through."""
        self.sign_at, self.failed_in_a_row = self._time(), 0
        self.limit.answered(sent_at, self.sign_at, queue_share, saturated)

    def failed(self, sent_at: float, error: ServerError) -> None:
        """Count a request that was not answered."""
        now = self._time()
        if error.status is None:  # unproven if it hangs, whatever a new connection says
            self.leave(error, now - sent_at >= self.settings.timeout_s and self.sign_at <= sent_at)
            return
        self.sign_at = now
        if isinstance(error, RequestRejected):
            self.failed_in_a_row = 0
        elif isinstance(error, RateLimited):
            self.last_failure = error
            self.limit.congested(sent_at, now)
            if self.running == 1:
                self.full_until = max(self.full_until, now + FULL_S * random.uniform(0.5, 1))
            if now - self._refused_at >= BURST_S:
                wait_s, most = error.retry_after_s, f"at most {self.limit.value:.0f} requests at once"
                wait = f"waiting {wait_s:,.0f} s, as it asks" if wait_s else most
                logger.info("%s is full: %s; %s", self.endpoint.url, error, wait)
            self._refused_at = now
        else:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= FAILURES_IN_A_ROW:
                self.leave(error, unproven=True)

    def leave(self, error: ServerError, unproven: bool = False) -> None:
        """Send nothing until a look, the first of which is due now, and with ``unproven`` a request, succeeds."""
        self.last_failure, self.unproven = error, self.unproven or unproven
        if self.reachable:
            self.check_at = self._left_at = self._time()
            self.reachable = self._missed = False

    async def check(self, good: Request | None, agree: Callable[[str, ServerInfo], None]) -> None:
        """Look at the endpoint: does it hang, is its queue long, is it there (again)? ``good`` was answered before;
        ``agree`` is called with what the server is. FatalServerError: it cannot be used."""
        url, silent_s = self.endpoint.url, self._time() - self.sign_at if self.running else 0.0
        self.check_at = self._time() + LOOK_S
        if self.reachable and silent_s < STALL_S:
            if self.running and (await self.endpoint.queue_size() or 0) > QUEUE_SHARE * self.running:
                self.limit.congested(self._time(), self._time(), refused=False)
            return
        if not self.reachable and silent_s >= 2 * STALL_S:
            self.endpoint.abandon()
        try:
            fresh, info = self._missed or not self.endpoint.info, await self.endpoint.connect()
            agree(url, info)
            if self.reachable:
                return
            if fresh:
                published, most = info.max_concurrent, self.settings.max_in_flight
                self.limit = AdaptiveLimit(min(most, published or most), published or self._slots)
            for request in self.trials:
                await self._warm_up(request)
            if self.unproven and good and not self.trials:
                await self.prove(good)
            if self._missed:
                logger.warning("%s answers, after %.0f s", url, self._time() - self._left_at)
            self.trials, self.unproven, self.reachable = (), False, True
            self.failed_in_a_row, self.sign_at = 0, self._time()
        except (RateLimited, RequestRejected, TransientError) as error:
            self.leave(error)
            if not self._missed:
                logger.warning("%s does not answer; waiting for it: %s", url, error)
            pause_s = min(max(PROBE_SHARE * (self._time() - self._left_at), PROBE_S[0]), PROBE_S[1])
            pause_s = max(pause_s * random.uniform(0.75, 1.25), error.retry_after_s or 0)
            self._missed, self.check_at = True, self._time() + pause_s

    async def prove(self, good: Request) -> Answer:
        """Return the answer to a known-good request; if it fails, the endpoint has to prove itself."""
        sent_at = self.started()
        try:
            answer = await self.endpoint.ask(good, self.settings.timeout_s)
            self.answered(sent_at, answer.queue_share, False)
            return answer
        except ServerError as error:
            self.failed(sent_at, error)
            if not isinstance(error, RateLimited):
                self.leave(error, unproven=True)
            raise
        finally:
            self.running -= 1

    async def _warm_up(self, request: Request) -> None:
        """See that a request is answered, and let the server compile its schema; else raise a ServerError."""
        url, context = self.endpoint.url, self.endpoint.info and self.endpoint.info.max_total_tokens
        characters = sum(len(message["content"]) for message in request.messages)
        refused, grammar = "", "; it may be compiling the grammar of the answers" if request.schema else ""
        text = f"{url}: waiting for the answer to the warm-up request{grammar}"
        slow = asyncio.get_running_loop().call_later(SLOW_S, logger.info, text)
        try:
            answer = await self.prove(request)
            prompt = answer.prompt_tokens or characters // CHARACTERS_A_TOKEN
        except RequestRejected as error:
            said = str(error).partition(": HTTP ")[2]  # without the URL, whose port may be the same number
            if not (context and re.search(rf"\b{context}\b", said)):
                raise FatalServerError(f"the warm-up request was refused: {error}", error.status) from error
            prompt = characters // CHARACTERS_A_TOKEN
            refused = f" ({error})"
        finally:
            slow.cancel()
        tokens = self.endpoint.fields(request)["max_tokens"]
        if refused or (context and prompt + tokens > context):  # llama.cpp would cut the answer off
            raise FatalServerError(
                f"{url} has a context of {context} tokens; the longest prompt ({prompt} tokens) and max_tokens "
                f"({tokens}) do not fit{refused}. Start the server with a longer context (TGI --max-total-tokens, "
                "vLLM --max-model-len, SGLang --context-length, llama.cpp -c) or lower max_tokens in the prompt file"
            )
        if not answer.text.strip():
            fault = f"answered the warm-up request with no text but {answer.thinking_tokens} tokens of thinking"
            fault += f" (finish_reason {answer.finish_reason}, max_tokens {tokens})"
            raise FatalServerError(f"{url} {fault}: switch thinking off on the server, or serve a model that answers")


class Fleet:
    """Endpoints that serve one model; ``Scheduler`` adds the requests."""

    def __init__(self, states: Sequence[EndpointState], settings: Server) -> None:
        self.states, self.settings, self.loop = states, settings, asyncio.get_running_loop()
        self.infos: list[ServerInfo] = []  # what the endpoints have said of themselves; the first began the run
        self.good: Request | None = None  # answered before

    @property
    def running(self) -> int:
        """Requests in flight."""
        return sum(state.running for state in self.states)

    def body(self, request: Request) -> bytes:
        """Return the JSON of a request as an endpoint is sent it."""
        return orjson.dumps(next(state.endpoint for state in self.states if state.endpoint.info).fields(request))

    def least_loaded(self) -> EndpointState | None:
        """Return the free endpoint with the smallest share of its limit in use."""
        free = [s for s in self.states if s.running < int(s.limit.value) and not s.reserved and s.is_up()]
        return min(free, key=lambda state: state.running / state.limit.value, default=None)

    def failures(self) -> str:
        """Return how each endpoint failed last."""
        return "; ".join(str(state.last_failure or f"{state.endpoint.url}: no answer") for state in self.states)

    async def connect(self) -> None:
        """Wait until one endpoint can be used; FatalServerError: one cannot, or none answers."""
        start, failures = self.loop.time(), 0
        while True:
            await asyncio.gather(*(state.check(None, self.agree) for state in self.states))
            if any(state.reachable for state in self.states):
                return
            statuses = [state.last_failure.status for state in self.states if state.last_failure]
            failures += not {*statuses} & {*MAY_PASS}
            seconds, wait_s = self.loop.time() - start, min(s.check_at for s in self.states) - self.loop.time()
            if failures >= FAILURES_IN_A_ROW or seconds + wait_s >= self.settings.give_up_s:
                raise FatalServerError(f"{self.failures()} (tried for {seconds:.0f} s)", statuses[0])
            await asyncio.sleep(wait_s)

    def agree(self, url: str, info: ServerInfo) -> None:
        """Note what an endpoint serves; FatalServerError: another model than the others, as far as they say."""
        first = self.infos[0] if self.infos else info
        models, revisions = {first.model_id, info.model_id}, {first.model_revision, info.model_revision}
        if len(models - {"unknown"}) > 1 or len(revisions - {None}) > 1:
            own, begun = (f"{one.model_id} ({one.model_revision})" for one in (info, first))
            fault = f"{url} serves {own}, but this run began with {begun}"
            raise FatalServerError(f"{fault}: all endpoints must serve one model at one revision")
        self.infos += [] if info in self.infos else [info]

    async def warm_up(self, requests: Sequence[Request]) -> None:
        """Have ``requests`` answered before any row, one for each prompt and schema with its longest values: by one
        endpoint now, by the others as they come. FatalServerError: one is refused, too long, or gets no text."""
        for state in self.states:
            state.trials, state.reachable = requests, False
        await self.connect()
        self.good = requests[0] if requests else None

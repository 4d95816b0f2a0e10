"""One endpoint as the scheduler sees it: may it be sent requests, how many, and when is the next look at it due?

``up``: requests are sent, up to the limit. ``full``: the server has refused one for want of a slot, and nothing is
sent for a while. ``draining``: connections fail, requests in flight may still be answered. ``away``: the same with
nothing in flight. Only a new connection, accepted by a probe, ends the last two: an answer that was in flight while
the server closed its listener does not. Times are those of the event loop's clock, in seconds.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from ..config import Server
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, TransientError
from .client import Endpoint
from .limit import QUEUE_SHARE, START_LIMIT, AdaptiveLimit
from .protocol import Answer, Request, ServerInfo

T = TypeVar("T")
logger = logging.getLogger(__name__)
FAILURES_IN_A_ROW = 5  # HTTP errors without an answer between them: treated as away
LOOK_S = 5.0  # between looks at an endpoint that is up
STALL_S = 60.0  # requests in flight and no sign of life: probe; twice as long, and away: ask elsewhere
PROBE_S = (0.5, 15.0)  # shortest and longest pause between probes of an endpoint that is away
PROBE_SHARE = 0.25  # of the time that it has been away
FULL_S = 1.0  # pause after a refusal with nothing else in flight
BURST_S = 60.0  # refusals that are closer together are logged once
SLOW_S = 10.0  # a warm-up that takes longer is explained
TICK_S = 0.005  # what is due so soon is due now: timers may fire early, under uvloop by more than 1 ms
CHARACTERS_A_TOKEN = 5  # of prompts that the server does not count; English has 4 to 5, so no good prompt is refused


class EndpointState:
    """The state of a connected endpoint, whose limit starts at ``slots`` if the server publishes none."""

    def __init__(self, endpoint: Endpoint, settings: Server, slots: int = START_LIMIT) -> None:
        self.endpoint, self.settings, self._slots = endpoint, settings, slots
        self.host, self._time = urlsplit(endpoint.url).hostname, asyncio.get_running_loop().time
        self.limit = self._new_limit()
        self.running = 0  # requests in flight
        self.reachable = True  # False: draining or away
        self.unproven = False  # away until a known-good request is answered: its probes succeed while requests fail
        self.reserved = False  # for a test of suspects
        self.look: asyncio.Task[None] | None = None  # the last check
        self.failed_in_a_row = 0  # HTTP errors without an answer between them
        self.last_failure: ServerError | None = None
        self.sign_at = self.check_at = self.full_until = 0.0  # last sign of life; next look; end of a pause
        self._refused_at, self._left_at, self._missed = -BURST_S, 0.0, False  # missed: a probe failed since it left
        self._clocks: set[asyncio.Timeout] = set()  # of requests in flight, to abandon them

    def _new_limit(self) -> AdaptiveLimit:
        published, most = self.endpoint.info and self.endpoint.info.max_concurrent, self.settings.max_in_flight
        return AdaptiveLimit(min(most, published or most), published or self._slots)

    def is_up(self) -> bool:
        """Return whether requests may be sent."""
        return self.reachable and self._time() + TICK_S >= self.full_until

    def is_free(self) -> bool:
        """Return whether one more request may be sent."""
        return self.running < int(self.limit.value) and not self.reserved and self.is_up()

    def started(self) -> None:
        """Count a request that is sent."""
        if not self.running:
            self.sign_at = self._time()
        self.running += 1

    def answered(self, sent_at: float, queue_share: float, saturated: bool) -> None:
        """Count an answer; ``saturated``: more requests waited than the limit let through."""
        self.sign_at, self.failed_in_a_row = self._time(), 0
        self.limit.answered(sent_at, self.sign_at, queue_share, saturated)

    def failed(self, sent_at: float, error: ServerError) -> None:
        """Count a request that was not answered."""
        now = self._time()
        if error.status is None:  # unproven if it hangs, whatever a probe says
            self.leave(error, now - sent_at >= self.settings.timeout_s and self.sign_at <= sent_at)
            return
        self.sign_at = now
        if isinstance(error, RequestRejected):
            self.failed_in_a_row = 0
        elif isinstance(error, RateLimited):
            self.last_failure = error
            self.limit.congested(sent_at, now)
            if self.running == 1:
                self.pause(FULL_S * random.uniform(0.5, 1))
            if now - self._refused_at >= BURST_S:
                logger.info("%s is full: %s; at most %d requests at once", self.endpoint.url, error, self.limit.value)
            self._refused_at = now
        else:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= FAILURES_IN_A_ROW:
                self.leave(error, unproven=True)

    def pause(self, seconds: float) -> None:
        """Send nothing for ``seconds``."""
        self.full_until = max(self.full_until, self._time() + seconds)

    def leave(self, error: ServerError, unproven: bool = False) -> None:
        """Send nothing until a probe, the first of which is due now, and with ``unproven`` a request, succeeds."""
        self.last_failure, self.unproven = error, self.unproven or unproven
        if self.reachable:
            self.reachable, self._missed, self._left_at = False, False, self._time()
            self.check_at = self._left_at

    async def check(self, good: Request | None) -> None:
        """Look at the endpoint: does it hang, is its queue long, is it back? FatalServerError: with another model."""
        endpoint, silent_s = self.endpoint, self._time() - self.sign_at if self.running else 0.0
        self.check_at = self._time() + LOOK_S
        if not self.reachable:
            if silent_s >= 2 * STALL_S:
                self.abandon()
            if await self._connects() and (not self.unproven or good is None or await self.answers(good)):
                self.reachable, self.unproven, self.failed_in_a_row, self.sign_at = True, False, 0, self._time()
                if self._missed:
                    logger.warning("%s answers again, after %.0f s", endpoint.url, self._time() - self._left_at)
                    self.limit = self._new_limit()
                return
            if not self._missed:
                logger.warning("%s does not answer; waiting for it: %s", endpoint.url, self.last_failure)
            pause_s = min(max(PROBE_SHARE * (self._time() - self._left_at), PROBE_S[0]), PROBE_S[1])
            self._missed, self.check_at = True, self._time() + pause_s * random.uniform(0.75, 1.25)
        elif silent_s >= STALL_S and not await endpoint.probe():
            self.leave(TransientError(f"{endpoint.url} holds {self.running} requests and answers no probe"))
        elif self.running and (await endpoint.queue_size() or 0) > QUEUE_SHARE * self.running:
            self.limit.congested(self._time(), self._time(), refused=False)

    async def _connects(self) -> bool:
        before, info = self.endpoint.info, None
        try:
            info = await self.endpoint.connect() if await self.endpoint.probe() else None
        except ServerError as error:
            self.last_failure = error
        if info and before and not same_model(before, info):
            raise FatalServerError(
                f"{self.endpoint.url} now serves {info.model_id} ({info.model_revision}); this run began with "
                f"{before.model_id} ({before.model_revision}). Serve that model again"
            )
        return info is not None

    async def ask(self, request: Request) -> Answer:
        """Return the endpoint's answer, or raise a ServerError, also if the request is abandoned."""
        try:
            async with asyncio.timeout(None) as clock:
                self._clocks.add(clock)
                try:
                    return await self.endpoint.ask(request, self.settings.timeout_s)
                finally:
                    self._clocks.discard(clock)
        except TimeoutError:
            raise TransientError(f"{self.endpoint.url} gave no sign of life; the request is sent again") from None

    def abandon(self) -> None:
        """End the requests in flight with a ``TransientError``."""
        for clock in self._clocks:
            if not clock.expired():
                clock.reschedule(0)

    async def answers(self, good: Request) -> bool:
        """Return whether a known-good request is answered; if it fails, the endpoint has to prove itself."""
        self.started()
        sent_at = self._time()
        try:
            self.answered(sent_at, (await self.ask(good)).queue_share, False)
            return True
        except ServerError as error:
            self.failed(sent_at, error)
            if not isinstance(error, RateLimited):
                self.leave(error, unproven=True)
            return False
        finally:
            self.running -= 1


def same_model(one: ServerInfo, other: ServerInfo) -> bool:
    """Return whether two endpoints serve the same model, as far as they say."""
    ids, revisions = {one.model_id, other.model_id}, {one.model_revision, other.model_revision}
    return len(ids - {"unknown"}) < 2 and len(revisions - {None}) < 2


async def keep_trying(call: Callable[[], Awaitable[T]], url: str, give_up_s: float) -> T:
    """Return what ``call`` returns once the server is ready; FatalServerError: not within ``give_up_s``."""
    now = asyncio.get_running_loop().time
    start, pause_s, failures = now(), PROBE_S[0], 0
    while True:
        try:
            return await call()
        except (RateLimited, TransientError) as error:
            failures += isinstance(error, TransientError) and error.status not in (None, 408, 502, 503, 504)
            if failures >= FAILURES_IN_A_ROW or now() - start >= give_up_s:
                raise FatalServerError(f"{error} (tried for {now() - start:.0f} s)", error.status) from error
            if pause_s == PROBE_S[0]:
                logger.warning("Waiting up to %.0f s for %s: %s", give_up_s, url, error)
        await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
        pause_s = min(2 * pause_s, PROBE_S[1])


async def warm_up(endpoint: Endpoint, requests: Sequence[Request], settings: Server) -> None:
    """See that an endpoint serves ``requests``, and let it compile their schemas; else raise a FatalServerError."""
    url, context = endpoint.url, endpoint.info and endpoint.info.max_total_tokens
    for request in requests:
        counted = await endpoint.count_tokens(request) if context else None
        prompt = counted or sum(len(message["content"]) for message in request.messages) // CHARACTERS_A_TOKEN
        tokens = endpoint.max_tokens(request)
        if context and prompt + tokens > context:
            raise FatalServerError(
                f"{url} has a context of {context} tokens; the longest prompt ({prompt} tokens) and max_tokens "
                f"({tokens}) need {prompt + tokens}. Start the server with a longer context (TGI --max-total-tokens, "
                "vLLM --max-model-len, SGLang --context-length, llama.cpp -c) or lower max_tokens in the prompt file"
            )
        grammar = "; it may be compiling the grammar of the answers" if request.schema else ""
        text = f"{url}: waiting for the answer to the warm-up request{grammar}"
        slow = asyncio.get_running_loop().call_later(SLOW_S, logger.info, text)
        try:
            answer = await keep_trying(partial(endpoint.ask, request, settings.timeout_s), url, settings.give_up_s)
        except RequestRejected as error:
            raise FatalServerError(f"the warm-up request was refused: {error}", error.status) from error
        finally:
            slow.cancel()
        if not answer.text.strip():
            raise FatalServerError(
                f"{url} answered the warm-up request with no text but {answer.thinking_tokens} tokens of thinking "
                f"(finish_reason {answer.finish_reason}, max_tokens {tokens}): switch thinking off on the server, "
                "or serve a model that answers"
            )

"""One endpoint as the scheduler sees it: may it be sent requests, how many, and when is the next look at it due?

``up``: requests are sent, up to the limit. ``full``: the server refused one for want of a slot, and nothing is sent
until an answer or a timer. ``draining``: connections fail, requests in flight may still be answered. ``away``: the
same with nothing in flight. Only a new connection, accepted by a probe, ends the last two: an answer that was in
flight while the server closed its listener does not.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, TypeVar
from urllib.parse import urlsplit

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
FULL_S = (0.1, 10.0)  # first and longest pause after a refusal, if no answer comes
BURST_S = 60.0  # refusals that are closer together are logged once
SLOW_S = 10.0  # a warm-up that takes longer is explained
CHARACTERS_A_TOKEN = 5  # of prompts that the server does not count; English has 4 to 5, so no good prompt is refused


class EndpointState:
    """The state of a connected endpoint; times are those of the event loop's clock.

    Args:
        endpoint: connected.
        max_in_flight: upper bound of the limit.
        slots: where the limit starts if the server publishes none.
    """

    def __init__(self, endpoint: Endpoint, max_in_flight: int, slots: int = START_LIMIT) -> None:
        self.endpoint, self._max_in_flight, self._slots = endpoint, max_in_flight, slots
        self.host = urlsplit(endpoint.url).hostname
        self.limit = AdaptiveLimit(*self._bounds())
        self.running = 0  # requests in flight
        self.reachable = True  # False: draining or away
        self.unproven = False  # away until a known-good request is answered: its probes succeed while requests fail
        self.reserved = False  # for a test of suspects
        self.look: asyncio.Task[None] | None = None  # the last check
        self.failed_in_a_row = self.refused_in_a_row = 0  # HTTP errors; prompts (4xx); without an answer between them
        self.last_failure: ServerError | None = None
        self.answered_at = self.sign_at = self.check_at = 0.0  # last answer; last sign of life; next look
        self._clocks: set[asyncio.Timeout] = set()  # of requests in flight, to abandon them
        self.full_until = self.told_until = 0.0  # by refusals; by Retry-After
        self._full_s, self._refused_at = FULL_S[0], -BURST_S
        self._left_at, self._missed = 0.0, False  # since it is away, a probe has failed

    def _bounds(self) -> tuple[int, int]:
        """Return ceiling and start of the limit."""
        published = self.endpoint.info.max_concurrent if self.endpoint.info else None
        return min(self._max_in_flight, published or self._max_in_flight), published or self._slots

    def status(self, now: float) -> Literal["up", "full", "draining", "away"]:
        """Return the state in a word."""
        if not self.reachable:
            return "draining" if self.running else "away"
        return "full" if now < max(self.full_until, self.told_until) else "up"

    def is_free(self, now: float) -> bool:
        """Return whether one more request may be sent."""
        return self.running < int(self.limit.value) and not self.reserved and self.status(now) == "up"

    def started(self, now: float) -> int:
        """Count a request that is sent; return the stamp to pass on with its outcome."""
        self.sign_at = self.sign_at if self.running else now
        self.running += 1
        return self.limit.stamp

    def answered(self, stamp: int, queue_share: float, now: float) -> None:
        """Count an answer to a request, which still counts as running."""
        self.failed_in_a_row = self.refused_in_a_row = 0
        self.answered_at = self.sign_at = now
        self.full_until, self._full_s = 0.0, FULL_S[0]
        self.limit.answered(stamp, queue_share, self.running)

    def failed(self, stamp: int, error: ServerError, now: float) -> None:
        """Count a request that was not answered."""
        if error.status is None:
            self.leave(error, now)
            return
        self.sign_at = now
        if isinstance(error, RequestRejected):
            self.failed_in_a_row, self.refused_in_a_row = 0, self.refused_in_a_row + 1
        elif isinstance(error, RateLimited):
            self.last_failure = error
            self.limit.congested(stamp)
            self.full_until = now + self._full_s * random.uniform(0.5, 1)
            self._full_s = min(2 * self._full_s, FULL_S[1])
            if now - self._refused_at >= BURST_S:
                logger.info("%s is full: %s; at most %d requests at once", self.endpoint.url, error, self.limit.value)
            self._refused_at = now
        else:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= FAILURES_IN_A_ROW:
                self.leave(error, now, unproven=True)

    def leave(self, error: ServerError, now: float, unproven: bool = False) -> None:
        """Send nothing until a probe, the first of which is due now, and with ``unproven`` a request, succeeds."""
        self.last_failure, self.unproven = error, self.unproven or unproven
        if self.reachable:
            self.reachable, self._missed, self._left_at, self.check_at = False, False, now, now

    async def check(self, good: Request | None, timeout_s: float) -> None:
        """Look at the endpoint: does it hang, how long is its queue, is it back?

        Raises:
            FatalServerError: it is back with another model.
        """
        now, endpoint, before = asyncio.get_running_loop().time, self.endpoint, self.endpoint.info
        silent_s = now() - self.sign_at if self.running else 0.0
        self.check_at = now() + LOOK_S
        if self.reachable and silent_s >= STALL_S and not await endpoint.probe():
            holds = f"{endpoint.url} holds {self.running} requests and answers no probe"
            self.leave(TransientError(holds), now())
        elif self.reachable:
            waiting = await endpoint.queue_size() if self.running else None
            if (waiting or 0) > QUEUE_SHARE * self.running:
                self.limit.congested(self.limit.stamp)
        else:
            if silent_s >= 2 * STALL_S:
                self.abandon()
            try:
                info = await endpoint.connect() if await endpoint.probe() else None
            except ServerError as error:
                info, self.last_failure = None, error
            if info and before and not same_model(before, info):
                raise FatalServerError(
                    f"{endpoint.url} now serves {info.model_id} ({info.model_revision}); this run began with "
                    f"{before.model_id} ({before.model_revision}). Serve that model again"
                )
            if info and (not self.unproven or good is None or await self.answers(good, timeout_s)):
                self._back(now())
            else:
                self._still_away(now())

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        """Return the endpoint's answer, unless the request is abandoned.

        Raises:
            ServerError: the subclass says how to react.
        """
        try:
            async with asyncio.timeout(None) as clock:
                self._clocks.add(clock)
                try:
                    return await self.endpoint.ask(request, timeout_s)
                finally:
                    self._clocks.discard(clock)
        except TimeoutError:
            raise TransientError(f"{self.endpoint.url} gave no sign of life; the request is sent again") from None

    def abandon(self) -> None:
        """End the requests in flight with a ``TransientError``."""
        for clock in self._clocks:
            if not clock.expired():
                clock.reschedule(0)

    async def answers(self, good: Request, timeout_s: float) -> bool:
        """Return whether a known-good request is answered; if it fails, the endpoint has to prove itself."""
        now = asyncio.get_running_loop().time
        stamp = self.started(now())
        try:
            self.answered(stamp, (await self.ask(good, timeout_s)).queue_share, now())
            return True
        except ServerError as error:
            self.failed(stamp, error, now())
            if not isinstance(error, RateLimited):
                self.leave(error, now(), unproven=True)
            return False
        finally:
            self.running -= 1

    def _still_away(self, now: float) -> None:
        if not self._missed:
            logger.warning("%s does not answer; waiting for it: %s", self.endpoint.url, self.last_failure)
        pause_s = min(max(PROBE_SHARE * (now - self._left_at), PROBE_S[0]), PROBE_S[1])
        self._missed, self.check_at = True, now + pause_s * random.uniform(0.75, 1.25)

    def _back(self, now: float) -> None:
        if self._missed:
            logger.warning("%s answers again, after %.0f s", self.endpoint.url, now - self._left_at)
            self.limit.restart(*self._bounds())
        self.reachable, self.unproven, self.failed_in_a_row, self.sign_at = True, False, 0, now


def same_model(one: ServerInfo, other: ServerInfo) -> bool:
    """Return whether two endpoints serve the same model, as far as they say."""
    ids, revisions = {one.model_id, other.model_id}, {one.model_revision, other.model_revision}
    return len(ids - {"unknown"}) < 2 and len(revisions - {None}) < 2


async def keep_trying(call: Callable[[], Awaitable[T]], url: str, give_up_s: float) -> T:
    """Return what ``call`` returns once the server at ``url`` has loaded its model.

    Raises:
        FatalServerError: it is not ready within ``give_up_s``, or fails for another reason.
    """
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


async def warm_up(endpoint: Endpoint, requests: Sequence[Request], timeout_s: float, give_up_s: float) -> None:
    """Check that an endpoint can serve ``requests`` with their real ``max_tokens``; let it compile their schemas.

    Raises:
        FatalServerError: the context is too short, or a request is refused or gets no text; says what to change.
    """
    url, context = endpoint.url, endpoint.info.max_total_tokens if endpoint.info else None
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
            answer = await keep_trying(partial(endpoint.ask, request, timeout_s), url, give_up_s)
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

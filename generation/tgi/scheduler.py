"""Spreads requests over endpoints and asks again what failed.

Each endpoint has a lane: a limit that is found (``limit``), a circuit breaker (``breaker``), and a watch for servers
that take requests and answer none. A request that fails gives its place back at once; its back-off, jittered, is slept
outside. What an item may be to blame for (HTTP 424 twice) is asked alone, so that it takes no other along.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ..errors import BatchFailed, Overloaded, RequestRefused, StopRun, Transient
from .client import Endpoint
from .lane import Lane
from .protocol import Answer, Question, Request

BACKOFF_S = 0.1  # doubles with each attempt
BACKOFF_CEILING_S = 30.0
ISOLATE_AFTER = 2  # answers 424 to one item
REFUSED_IN_A_ROW = 50  # prompts refused, and none answered: the fault is not theirs
WARM_UP_TOKENS = 16


@dataclass
class Tally:
    """What asking about one row took: requests sent, and those asked again, by cause (``429``, ``connection`` ...)."""

    requests: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    tokens_disagree: int = 0


@dataclass
class _Trial:
    """One request on its way to an answer."""

    request: Request
    tally: Tally
    failures: int = 0  # those that count against the request
    batch_failures: int = 0


class Scheduler:
    """Asks the least loaded of its endpoints.

    Args:
        lanes: connected endpoints, all serving one model.
        retries: how often a request that failed in transit or on the server is asked again.
        timeout_s: of one request, queue time included.
        give_up_s: without any answer from any endpoint, the run is stopped after as long.
    """

    def __init__(
        self, lanes: Iterable[Lane], retries: int, timeout_s: float = 600.0, give_up_s: float = 1800.0
    ) -> None:
        self.lanes = list(lanes)
        self.in_flight = 0  # calls of ``ask`` that have not returned
        self.naps = asyncio.Semaphore(0)  # released whenever a request begins to sleep in its back-off
        self._retries, self._timeout_s, self._give_up_s = retries, timeout_s, give_up_s
        self._refused_in_a_row = 0
        self._waiting: deque[asyncio.Future[Lane]] = deque()
        self._fatal: StopRun | None = None
        self._answered_at = time.monotonic()
        self._wait = wait_random_exponential(multiplier=BACKOFF_S, max=BACKOFF_CEILING_S)

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of the lanes."""
        return [lane.endpoint for lane in self.lanes]

    @property
    def places(self) -> int:
        """How many requests can be in flight at most: as many calls of ``ask`` keep all lanes busy, and one more for
        each permit of ``naps``."""
        return sum(lane.limit.ceiling for lane in self.lanes)

    @property
    def model_id(self) -> str:
        """The model that all endpoints serve."""
        info = self.lanes[0].endpoint.info
        assert info is not None
        return info.model_id

    async def ask(self, request: Request, tally: Tally | None = None) -> Answer:
        """The answer to ``request``, from whichever endpoint; ``tally`` is added to.

        Raises:
            RequestRefused: the server refuses this very prompt, or fails on it though it is asked alone.
            Transient: all retries failed, though the server lives: this prompt is to blame.
            StopRun: an endpoint is unusable, no endpoint answers any more, or prompt after prompt is refused.
        """
        trial = _Trial(request, tally if tally is not None else Tally())
        if not self.in_flight:
            self._answered_at = time.monotonic()
        self.in_flight += 1
        try:
            answer = await self._try(trial)
        except RequestRefused as error:
            self._count_refusal(error)
            raise
        finally:
            self.in_flight -= 1
        self._refused_in_a_row = 0
        self._answered_at = time.monotonic()
        return answer

    async def warm_up(self, question: Question) -> None:
        """Sends one short request to every endpoint, so that it compiles the schema, and so that a schema, sampling
        value or key that it does not take stops the run before it has touched a row.

        Raises:
            StopRun: an endpoint refuses it or fails it.
        """
        sampling = replace(question.prompt.sampling, max_tokens=WARM_UP_TOKENS)
        short = Question(replace(question.prompt, sampling=sampling), question.schema)
        request = Request(short, short.prompt.warm_up, 1)
        again = AsyncRetrying(
            retry=retry_if_exception_type((Overloaded, Transient)),
            stop=lambda state: state.attempt_number > self._retries,
            wait=self._wait,
            reraise=True,
        )
        try:
            await asyncio.gather(*(again.wraps(lane.endpoint.ask)(request) for lane in self.lanes))
        except (RequestRefused, Overloaded, Transient) as error:
            raise StopRun(f"the warm-up request of prompt {short.prompt.name} failed: {error}") from error

    async def _try(self, trial: _Trial) -> Answer:
        """The common case, success at once, pays nothing for the machinery of retries."""
        try:
            return await self._ask_once(trial)
        except (Overloaded, Transient) as error:
            failures = [error]

        async def attempt() -> Answer:
            if failures:
                raise failures.pop()
            return await self._ask_once(trial)

        def exhausted(state: RetryCallState) -> bool:
            return trial.failures > self._retries

        again = AsyncRetrying(
            retry=retry_if_exception_type((Overloaded, Transient)),
            stop=exhausted,
            wait=self._wait,
            sleep=self._nap,
            reraise=True,
        )
        return await again.wraps(attempt)()

    async def _nap(self, seconds: float) -> None:
        self.naps.release()
        await asyncio.sleep(seconds)

    async def _ask_once(self, trial: _Trial) -> Answer:
        if trial.batch_failures >= ISOLATE_AFTER:
            return await self._ask_alone(trial)
        return await self._send(await self._take_place(), trial)

    async def _ask_alone(self, trial: _Trial) -> Answer:
        """Asks with nothing else in flight on the lane: who fails there has failed by himself."""
        lane = await self._take_place()
        lane.give_place_back()  # to wait without it, in line with others who are to be alone
        async with lane.isolation:
            lane.reserved = True
            try:
                await lane.idle.wait()
                if lane.breaker.state == "open":
                    raise lane.last_failure or lane.timed_out(self._timeout_s)
                lane.take()
                return await self._send(lane, trial)
            except BatchFailed as error:
                raise RequestRefused(
                    f"{error} (also when asked alone)", error.status, error.error_type, error.endpoint
                ) from error
            except Transient:
                trial.failures += 1
                raise
            finally:
                lane.reserved = False
                self.hand_out()

    async def _send(self, lane: Lane, trial: _Trial) -> Answer:
        """One request on a place that was taken; the place is free again when it returns."""
        limit_stamp, breaker_stamp, answers = lane.limit.stamp, lane.breaker.stamp, lane.answers
        trial.tally.requests += 1
        try:
            async with asyncio.timeout(self._timeout_s) as clock:
                lane.clocks.add(clock)
                answer = await lane.endpoint.ask(trial.request)
        except Overloaded:
            trial.tally.retries["429"] += 1
            lane.limit.refused(limit_stamp)
            lane.touch()
            raise
        except (Transient, TimeoutError) as error:
            failure = error if isinstance(error, Transient) else lane.timed_out(self._timeout_s)
            trial.tally.retries[_cause(failure)] += 1
            trial.batch_failures += isinstance(failure, BatchFailed)
            # A server that is away, or a gateway before it, says nothing of the request, unless others came through.
            trial.failures += failure.status not in (None, 502, 503, 504) or lane.answers > answers
            lane.failed(breaker_stamp, failure)
            raise failure from None
        finally:
            lane.clocks.discard(clock)
            lane.give_place_back()
            if self._waiting:
                self.hand_out()
        trial.tally.tokens_disagree += not answer.tokens_agree
        lane.answered(limit_stamp, answer.queue_share)
        return answer

    async def _take_place(self) -> Lane:
        """A lane with a place, which is then taken; waits in line while there is none."""
        if self._fatal:
            raise self._fatal
        if not self._waiting and (lane := self._freest()):
            lane.take()
            return lane
        turn: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                turn.result().give_place_back()
                self.hand_out()
            raise

    def hand_out(self) -> None:
        """Gives what places are free to those in line, whose places count as taken from then on."""
        while self._waiting and (lane := self._freest()):
            turn = self._waiting.popleft()
            if not turn.done():
                lane.take()
                turn.set_result(lane)

    def _freest(self) -> Lane | None:
        """The open lane with the smallest share of its limit in use, or None if none has room."""
        if len(self.lanes) == 1:
            return self.lanes[0] if self.lanes[0].free else None
        return min((lane for lane in self.lanes if lane.free), key=lambda lane: lane.limit.load, default=None)

    def _count_refusal(self, error: RequestRefused) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSED_IN_A_ROW:
            raise StopRun(f"{error}. So were {REFUSED_IN_A_ROW} prompts in a row; the fault is not theirs") from error

    def stop(self, error: StopRun) -> None:
        """Makes this and every later call of ``ask`` that waits for a place end with ``error``."""
        self._fatal = error
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def check_progress(self) -> None:
        """Stops the run when no endpoint has answered anything for too long."""
        silent_s = time.monotonic() - self._answered_at
        if self.in_flight and silent_s > self._give_up_s and not self._fatal:
            states = "; ".join(f"{lane.endpoint.url}: {lane.last_failure or 'no answer'}" for lane in self.lanes)
            self.stop(StopRun(f"no request was answered for {silent_s:.0f} s; are the servers still up? {states}"))


def _cause(failure: Transient) -> str:
    """A short name for the account: the status, or what became of the connection."""
    if failure.status:
        return str(failure.status)
    return "no_answer" if "no answer" in str(failure) else "connection"

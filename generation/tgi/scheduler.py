"""Spread requests over endpoints, and ask again what failed, without losing or blaming a row for what a server did.

Every event (an answer, a failure, a timer, a look) requests one dispatch, which runs after the event, never inside it,
and decides what is sent next. All waiting is on the event loop's clock, so that tests can make it virtual.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ..config import Server
from ..errors import FatalServerError, RateLimited, RequestRejected, ServerError, UnicornError
from ..limits import BACKOFF_S, EMBEDDED_SLOTS, POLL_S, START_LIMIT, TEST_AFTER_S, TICK_S
from .client import Answer, Endpoint, Request, open_session
from .embedded import embedded_server
from .endpoint_state import EndpointState, Fleet

SUSPECT_AFTER = 3  # failures of one row, then it is tested
TEST_SHARE = 8  # a test begins when 1 in 8 calls is suspected
FAILS_ALONE = 4  # failures alone of a row at fault; one after which the server answers at once counts double
REFUSED_IN_A_ROW = 50  # prompts refused and none answered: the fault is not theirs
ALONE = " (failed alone each time, between answers to another request)"


@dataclass
class RequestStats:
    """What one row took: requests sent, and why some were sent again (``429``, ``503``, ``connection``)."""

    requests: int = 0
    retries: list[str] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Job:
    """One call of ``ask``: queued, in back-off, suspected, or in flight on ``state``."""

    request: Request
    stats: RequestStats
    turn: asyncio.Future[EndpointState]
    state: EndpointState | None = None  # set while a slot is held
    sent_at: float = 0.0
    failures: int = 0  # in company
    failed_alone: int = 0
    error: ServerError | None = None  # in the last test; None: it did not reach the server


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator["Scheduler"]:
    """Yield a scheduler over the endpoints, or over the embedded model, once one of them answers. FatalServerError: an
    endpoint cannot be used, none answers, or two of them serve different models."""
    async with AsyncExitStack() as stack:
        urls, slots = server.endpoints, START_LIMIT
        if not urls:
            urls, slots = (stack.enter_context(embedded_server()),), EMBEDDED_SLOTS
        session = await stack.enter_async_context(open_session())
        scheduler = Scheduler([EndpointState(Endpoint(url, server, session), server, slots) for url in urls], server)
        stack.push_async_callback(scheduler.close)
        await scheduler.connect()
        yield scheduler


class Scheduler(Fleet):
    """Send each request to the least loaded endpoint."""

    def __init__(self, states: Sequence[EndpointState], settings: Server) -> None:
        super().__init__(states, settings)
        self._jobs: set[_Job] = set()
        self._queue: deque[_Job] = deque()
        self._saturated = False  # the last dispatch left some in the queue
        self._held: set[_Job] = set()  # in back-off or suspected
        self._suspects: list[_Job] = []  # to be tested
        self._alive_at = 0.0  # last answer, or first call after a time without any
        self._refused_in_a_row = 0
        self._end: UnicornError | None = None  # why nothing is sent any more
        self._tasks: set[asyncio.Task[None]] = set()  # checks and tests
        self._timer = self.loop.call_later(0, self._changed)
        self._requested = False  # a dispatch is on its way

    @property
    def capacity(self) -> int:
        """How many concurrent calls of ``ask`` keep every endpoint busy, those in back-off included."""
        return sum(state.limit.ceiling for state in self.states) + len(self._held)

    @property
    def waiting(self) -> int:
        """Calls of ``ask`` that have no request in flight."""
        return max(0, len(self._jobs) - self.running)

    async def ask(self, request: Request, stats: RequestStats | None = None) -> Answer:
        """Return the answer to ``request`` from any endpoint; ``stats`` is updated in place. RequestRejected: the
        server refuses this prompt, or fails on it alone. FatalServerError: no endpoint is usable."""
        if self._end:
            raise self._end
        job = _Job(request, stats or RequestStats(), self.loop.create_future())
        if not self._jobs:
            self._alive_at = self.loop.time()
        self._jobs.add(job)
        if not self._queue and (free := self.least_loaded()):
            self._grant(job, free)  # as the next dispatch would
        else:
            self._queue.append(job)
        self._changed()
        try:
            while True:
                state = await job.turn
                job.stats.requests += 1
                try:
                    answer = await state.endpoint.ask(request, self.settings.timeout_s)
                except ServerError as error:
                    self._failed(job, state, error)
                    self._release(job)
                else:
                    state.answered(job.sent_at, answer.queue_share, self._saturated and not state.reserved)
                    self.good, self._refused_in_a_row = self.good or request, 0
                    self._alive_at = state.sign_at
                    return answer
        finally:
            self._release(job)
            self._jobs.discard(job)
            self._held.discard(job)

    def _release(self, job: _Job) -> None:
        if job.state:
            job.state.running -= 1
            job.state = None
        self._changed()

    def _failed(self, job: _Job, state: EndpointState, error: ServerError) -> None:
        """Decide what becomes of a job whose request failed; raise if it ends, or if the run must stop."""
        if self._end:  # after the first signal the others may still be answered
            raise self._end
        if isinstance(error, FatalServerError):
            raise self.stop(error)
        state.failed(job.sent_at, error)
        limited, wait_s = isinstance(error, RateLimited), error.retry_after_s or 0
        if isinstance(error, RequestRejected):
            self._refused_in_a_row, self._alive_at = self._refused_in_a_row + 1, self.loop.time()
            if self._refused_in_a_row < REFUSED_IN_A_ROW:
                raise error
            raise self.stop(FatalServerError(f"{error}. The server refused {REFUSED_IN_A_ROW} prompts in a row"))
        if limited and wait_s > self.settings.give_up_s:
            raise self.stop(FatalServerError(f"{error}. It asks to wait {wait_s:,.0f} s, longer than give_up_s"))
        reached = not isinstance(error.__context__, ConnectionRefusedError | aiohttp.ClientConnectorError)
        job.turn = self.loop.create_future()
        job.stats.retries.append("429" if limited else str(error.status or "connection"))
        if limited:
            for other in self.states:
                if other.host == state.host:
                    other.full_until = max(other.full_until, self.loop.time() + wait_s)
            self._requeue(job)
        elif job in self._held:
            job.error = error if reached else None  # a test decides
        else:
            self._held.add(job)
            job.failures += reached
            longest_s = min(BACKOFF_S[0] * 2**job.failures, BACKOFF_S[1])
            if job.failures >= SUSPECT_AFTER and self.good:
                self._suspects.append(job)
            else:
                self.loop.call_later(random.uniform(0, longest_s), self._requeue, job)

    def _requeue(self, job: _Job) -> None:
        self._held.discard(job)
        self._queue.appendleft(job)
        self._changed()

    def _changed(self) -> None:
        """Request a dispatch after the current event."""
        if not self._requested:
            self._requested = True
            self.loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Decide what happens next: which requests are sent, what is probed or tested, whether the run is over."""
        self._requested = False
        if self._end or not self._jobs:
            return
        now, give_up_s = self.loop.time() + TICK_S, self.settings.give_up_s
        due = [self._alive_at + give_up_s]
        if now >= due[0]:
            said = f"no request was answered for {give_up_s:g} s; are the servers still up? {self.failures()}"
            self.stop(FatalServerError(said))
            return
        for state in self.states:
            if now >= state.check_at and state.look not in self._tasks:
                state.look = self._spawn(state.check(self.good, self.agree))
            due += [at for at in (state.check_at, state.full_until) if at > now]
        if self._suspects and not any(state.reserved for state in self.states) and (free := self.least_loaded()):
            enough = TEST_SHARE * len(self._suspects) >= len(self._jobs)
            if enough or now >= self._suspects[0].sent_at + TEST_AFTER_S:
                free.reserved = True
                self._spawn(self._test(free))
        while self._queue and (free := self.least_loaded()):
            job = self._queue.popleft()
            if not job.turn.done():  # else the caller is gone
                self._grant(job, free)
        self._saturated = bool(self._queue)
        self._timer.cancel()
        self._timer = self.loop.call_at(min(due), self._changed)

    def _grant(self, job: _Job, state: EndpointState) -> None:
        job.state, job.sent_at = state, state.started()
        job.turn.set_result(state)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a check or a test in the background; an error in it stops the run."""

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                bug = FatalServerError(f"the scheduler failed: {error!r}")
                self.stop(error if isinstance(error, UnicornError) else bug)
            self._changed()

        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(end)
        return task

    async def _test(self, state: EndpointState) -> None:
        """Test the suspects on a reserved endpoint (Dorfman's group testing).

        A row is at fault only if it fails while a known-good request is answered before, during and after it. If that
        fails with a group, one of the group takes the others with it, and it is halved, down to single rows.
        """
        groups, self._suspects = [self._suspects], []
        good = await self._recovers(state)
        while good and groups:
            group = failed = [job for job in groups.pop() if not job.turn.done()]
            alone = len(group) == 1
            if alone or 1 < len(group) < int(state.limit.value):  # else it is halved untested
                for job in group:
                    self._grant(job, state)
                steady = not alone
                while steady and state.running:
                    steady = await self._is_good(state)
                while state.running:
                    await asyncio.sleep(POLL_S)
                failed, alone = [job for job in group if job in self._held], alone or steady
                at_once = steady or not failed or await self._is_good(state)
                good = at_once or await self._recovers(state)
                for job in failed if alone and good else ():
                    job.failed_alone += (1 + at_once) * (job.error is not None)
                    if job.failed_alone >= FAILS_ALONE and not job.turn.done():
                        job.turn.set_exception(RequestRejected(f"{job.error}{ALONE}"))
            middle = len(failed) if alone else (len(failed) + 1) // 2
            groups += [half for half in (failed[:middle], failed[middle:]) if half]
        self._suspects += sum(groups, [])
        state.reserved = False

    async def _recovers(self, state: EndpointState) -> bool:
        """Return whether the known-good request is answered once the endpoint is up and nothing else in flight."""
        end_at = self.loop.time() + self.settings.timeout_s
        while self.loop.time() < end_at:
            if state.is_up() and not state.running and await self._is_good(state):
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _is_good(self, state: EndpointState) -> bool:
        with suppress(ServerError):
            if self.good:
                await state.prove(self.good)
                self._alive_at = self.loop.time()
                return True
        return False

    def stop(self, error: UnicornError, abandon: bool = True) -> UnicornError:
        """End every call of ``ask`` with an error, and return it; without ``abandon``, those in flight may finish."""
        self._end = self._end or error
        if abandon:
            for state in self.states:
                state.endpoint.abandon()
        for job in self._jobs:
            if not job.turn.done():
                job.turn.set_exception(self._end)
        return self._end

    async def close(self) -> None:
        """End the looks at endpoints; nothing may be asked any more."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

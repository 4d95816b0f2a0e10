"""The scheduler under thousands of schedules of faults, on a virtual clock.

Servers that slow down, refuse, hang, cut connections, fail, drain, vanish and die by a poisoned row; rows that are
answered, fail the caller's checks, are refused, or make the server fail. Set ``UNICORN_SCHEDULES`` for more schedules.
"""

import asyncio
import math
import os
import selectors
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.config import Server
from generation.errors import RequestRejected, ServerError, TransientError
from generation.limits import PROBE_S, STALL_S, TEST_AFTER_S
from generation.prompts import Sampling
from generation.tgi.client import Answer, Request
from generation.tgi.endpoint_state import EndpointState
from generation.tgi.protocol import ServerInfo, failure
from generation.tgi.scheduler import FAILS_ALONE, SUSPECT_AFTER, RequestStats, Scheduler

SCHEDULES = int(os.environ.get("UNICORN_SCHEDULES", "300"))
STEPS = [step for step in hypothesis.Phase if SCHEDULES < 1000 or step is not hypothesis.Phase.shrink]
ROUND_TRIP_S = 0.01
TIMEOUT_S = 300.0
GIVE_UP_S = 3600.0
DEAD_S, RESTART_S = 1.0, 4.0  # a server with a dead shard: answers 424, then is restarted
BUSY = b'{"error":{"message":"The engine is currently busy and cannot accept new requests.","type":"x","code":503}}'
REPLIES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "424": (424, b'{"error":"Request failed during generation: Server error: x","error_type":"generation"}', {}),
    "500": (500, b'{"error":"Incomplete generation","error_type":"incomplete_generation"}', {}),
    "503": (503, b"<html>Service Unavailable</html>", {}),
    "refused": (422, b'{"error":"no","error_type":"validation"}', {}),
    "guarded": (403, b"forbidden", {}),
    "tgi": (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', {}),
    "vllm": (503, BUSY, {}),
    "sglang": (503, b'{"object":"error","message":"The request queue is full.","type":"x","code":503}', {}),
    "gateway": (408, b"", {}),
    "retry_after": (429, b"slow down", {"Retry-After": "3"}),
}
FULL, ERRORS = ["gateway", "retry_after", "sglang", "tgi", "vllm"], ["424", "500", "503"]
FATES = ["unfit", "refused", "guarded", "broken", "poison", "impatient"]


class Stuck(BaseException):
    """Everybody waits and no timer is due, or something goes round in circles while the clock stands."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, moves the clock."""

    now, rounds = 0.0, 0

    def select(self, timeout: float | None = None) -> Any:
        self.rounds = 0 if timeout else self.rounds + 1
        if timeout is None or self.rounds > 20_000:
            raise Stuck("nothing is scheduled" if timeout is None else f"at {self.now} s")
        self.now += timeout
        return super().select(0)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop whose ``time()`` moves to the next timer whenever nothing else is to do."""

    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        early = max(self.time(), math.floor(when * 1000) / 1000)  # uvloop's timers count whole milliseconds
        return super().call_at(early, callback, *args, context=context)


@dataclass(frozen=True)
class Phase:
    """What a server does for a while."""

    pause_s: float  # since the last phase
    seconds: float
    kind: str
    dialect: str = "tgi"


@dataclass
class Plan:
    """A server as it is drawn."""

    slots: int
    latency_s: float
    published: int | None
    phases: list[Phase] = field(default_factory=list)
    cap: int = 10**6  # requests that are taken, without being published
    later: int | None = None  # published after the server has vanished and returned
    late_s: float = 0.0  # is there only then


class SimulatedServer:
    """Has the methods of ``Endpoint``; ``wrong`` is what it noticed."""

    def __init__(self, number: int, plan: Plan, fates: dict[int, str]) -> None:
        self.url, self.plan, self.fates = f"http://server{number}:80", plan, fates
        self.published, self.loop = plan.published, asyncio.get_running_loop()
        self.info: ServerInfo | None = None
        self.flying: dict[asyncio.Future[None], int] = {}
        self.refused = self.answered = 0
        self.phase: Phase | None = None
        self.dead_until, self.down_until = 0.0, plan.late_s
        self.state: EndpointState
        self.wrong: list[str] = []

    def begin(self, state: EndpointState) -> None:
        """Start the phases of the plan."""
        self.state, at = state, self.loop.time()
        for phase in self.plan.phases:
            for pause_s, next_phase in ((phase.pause_s, phase), (phase.seconds, None)):
                at += pause_s
                self.loop.call_at(at, self._begin, next_phase)

    def _begin(self, phase: Phase | None) -> None:
        if self._is("vanish") and self.plan.published:
            self.published = self.plan.later or self.plan.published
        self.phase = phase
        if self._is("vanish", "cut"):
            self.abandon()

    def _is(self, *kinds: str) -> bool:
        return self.phase is not None and self.phase.kind in kinds

    def abandon(self, error: str = "") -> None:
        for future in list(self.flying):
            if not future.done():
                lost = TransientError(f"{self.url}: Server disconnected")
                future.set_exception(self._error(error) if error else lost)

    def _error(self, name: str) -> ServerError:
        return failure(f"POST {self.url}", *REPLIES[name], True, True)

    def _accept(self) -> None:
        if self._is("drain", "vanish") or self.loop.time() < self.down_until:
            error = TransientError(f"{self.url}: Connection refused")
            error.__context__ = ConnectionRefusedError()
            raise error

    async def connect(self) -> ServerInfo:
        await asyncio.sleep(10 if self._is("hang") else ROUND_TRIP_S)
        self._accept()
        if self._is("hang", "sick") or self.loop.time() < self.dead_until:
            raise TransientError("no answer in 10 s") if self._is("hang") else self._error("424")
        self.info = ServerInfo("tgi", "m", max_concurrent=self.published)
        return self.info

    async def queue_size(self) -> int | None:
        return max(0, len(self.flying) - self.plan.slots)

    def fields(self, request: Request) -> dict[str, Any]:
        return {"max_tokens": request.sampling.max_tokens}

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        if hasattr(self, "state") and self.state.running > self.state.limit.ceiling:
            self.wrong.append(f"{self.state.running} requests in flight, limit {self.state.limit.ceiling}")
        self._accept()
        await asyncio.sleep(ROUND_TRIP_S)
        self._accept()
        if self.loop.time() < self.dead_until or self._is("sick"):
            raise self._error("424")
        dialect = self.phase.dialect if self.phase else "tgi"
        if self._is("failing"):
            raise self._error(dialect)
        cap = max(1, self.plan.slots // 2) if self._is("full") else self.plan.cap
        if len(self.flying) >= min(cap, self.published or cap):
            self.refused += 1
            raise self._error(dialect if self._is("full") else "tgi")
        future: asyncio.Future[None] = self.loop.create_future()
        self.flying[future] = request.seed
        load = max(1.0, len(self.flying) / self.plan.slots) * (5 if self._is("slow") else 1)
        self.loop.call_later(self.plan.latency_s * load * (0.8 + request.seed % 5 / 10), self._end, future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise TransientError(f"{self.url}: no answer in {timeout_s:g} s") from None
        finally:
            del self.flying[future]
        fate = self.fates.get(request.seed)
        if fate in ("refused", "guarded", "broken"):
            raise self._error("500" if fate == "broken" else fate)
        self.answered += 1
        return Answer("text", "stop", 10, 10, queue_share=1 - 1 / load if load > 1 else 0.0)

    def _end(self, future: "asyncio.Future[None]") -> None:
        if future.done() or future not in self.flying:
            return
        if self._is("hang", "mute"):
            self.loop.call_later(1.0, self._end, future)
        elif self.fates.get(self.flying[future]) == "poison":
            self.dead_until = self.loop.time() + DEAD_S
            self.loop.call_at(self.dead_until, self._go_down)
            self.abandon("424")
        else:
            future.set_result(None)

    def _go_down(self) -> None:
        self.down_until = self.loop.time() + RESTART_S
        self.abandon()


def request(row: int) -> Request:
    sampling = Sampling(max_tokens=10, temperature=0.5, top_p=0.9)
    return Request([{"role": "user", "content": f"row {row}"}], sampling, row)


@dataclass
class Outcome:
    """What became of a schedule."""

    ends: dict[int, list[Any]]
    seconds: float
    servers: list[SimulatedServer]
    stats: RequestStats

    @property
    def failed(self) -> dict[int, Any]:
        """The rows that were not answered, and why."""
        return {row: end for row, (end,) in self.ends.items() if not isinstance(end, Answer)}


async def watch_for_silence(scheduler: Scheduler, wrong: list[str]) -> None:
    """Note when rows wait, nothing is in flight, and neither a probe nor a timer is due soon."""
    while True:
        await asyncio.sleep(0.5)
        now = asyncio.get_running_loop().time()
        looking = any(state.look in scheduler._tasks for state in scheduler.states)
        due = now <= scheduler._timer.when() <= now + max(PROBE_S) * 1.25
        if scheduler.waiting and not (scheduler.running or scheduler._requested or looking or due):
            wrong.append(f"{scheduler.waiting} rows wait at {now} s and nothing is due")


def simulate(
    plans: list[Plan], rows: int, fates: dict[int, str], give_up_s: float = GIVE_UP_S, most: int = 64
) -> Outcome:
    """Ask for all rows; a row of fate ``unfit`` asks again, one of fate ``impatient`` is cancelled and asked again."""
    ends: dict[int, list[Any]] = {row: [] for row in range(1, rows + 1)}
    stats, server_settings = RequestStats(), Server(max_in_flight=most, timeout_s=TIMEOUT_S, give_up_s=give_up_s)

    async def one(scheduler: Scheduler, row: int) -> None:
        try:
            if fates.get(row) == "impatient":
                asked = asyncio.create_task(scheduler.ask(request(row), stats))
                await asyncio.wait([asked], timeout=row % 7)
                asked.cancel()
                await asyncio.wait([asked])
            for _ in range(3 if fates.get(row) == "unfit" else 1):
                answer = await scheduler.ask(request(row), stats)
            ends[row].append(answer)
        except ServerError as error:
            ends[row].append(error)

    async def everything() -> Outcome:
        loop = asyncio.get_running_loop()
        servers = [SimulatedServer(number, plan, fates) for number, plan in enumerate(plans)]
        states = [EndpointState(server, server_settings) for server in servers]  # type: ignore[arg-type]
        scheduler = Scheduler(states, server_settings)
        await scheduler.connect()
        await scheduler.warm_up([request(0)])
        for server, state in zip(servers, states, strict=True):
            server.begin(state)
        waiting, start = list(ends), loop.time()
        asked: set[asyncio.Task[None]] = set()
        watch = asyncio.create_task(watch_for_silence(scheduler, servers[0].wrong))
        while waiting or asked:
            while waiting and len(asked) < scheduler.capacity:
                asked.add(asyncio.create_task(one(scheduler, waiting.pop(0))))
            _, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        seconds = loop.time() - start
        watch.cancel()
        await asyncio.wait([watch])
        assert scheduler.waiting == 0
        await scheduler.close()  # a known-good request may have been in flight
        assert scheduler.running == 0
        assert len(asyncio.all_tasks()) == 1
        assert not any(server.flying or server.wrong for server in servers), [server.wrong for server in servers]
        return Outcome(ends, seconds, servers, stats)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(everything())


def bound_s(plans: list[Plan], rows: int, fates: dict[int, str]) -> float:
    """Return the time that the slowest allowed course takes."""
    latency_s = max(plan.latency_s for plan in plans)
    fewest = min(min(plan.slots, plan.published or 64, plan.later or 64) for plan in plans)
    work_s = 4 * (3 * rows / fewest + 10) * latency_s
    faults_s = max(plan.late_s for plan in plans) + max(PROBE_S) * 1.25
    for phase in [phase for plan in plans for phase in plan.phases]:
        faults_s += phase.pause_s + phase.seconds + max(PROBE_S) * 1.25 + 10 * latency_s
        faults_s += {"hang": 3 * STALL_S, "mute": 2 * TIMEOUT_S}.get(phase.kind, 0.0)
    culprits = sum(fate in ("poison", "broken") for fate in fates.values())
    tests = culprits * (SUSPECT_AFTER + FAILS_ALONE + 2 * math.log2(64))
    return work_s + faults_s + tests * (DEAD_S + RESTART_S + 4 + 4 * latency_s) + bool(culprits) * TEST_AFTER_S


def phases(kinds: list[str], dialects: list[str], longest_s: float) -> st.SearchStrategy[Phase]:
    drawn = {"kind": st.sampled_from(kinds), "dialect": st.sampled_from(dialects)}
    return st.builds(Phase, pause_s=st.floats(0, 30), seconds=st.floats(0.1, longest_s), **drawn)


KINDS = ["slow", "full", "hang", "mute", "cut", "sick", "drain", "vanish"]
PLANS = st.builds(
    Plan,
    slots=st.integers(1, 40),
    latency_s=st.floats(0.05, 5),
    published=st.none() | st.integers(1, 64),
    phases=st.lists(phases(KINDS, FULL, 120) | phases(["failing"], ERRORS, 60), max_size=4),
    later=st.none() | st.integers(1, 64),
    late_s=st.just(0.0) | st.floats(0, 60),
)


@settings(max_examples=SCHEDULES, deadline=None, suppress_health_check=list(HealthCheck), phases=STEPS)
@given(
    st.lists(PLANS, min_size=1, max_size=3),
    st.integers(1, 90),
    st.dictionaries(st.integers(1, 90), st.sampled_from(FATES), max_size=6),
)
def test_every_row_ends_once_and_as_it_deserves_whatever_servers_do(
    plans: list[Plan], rows: int, fates: dict[int, str]
) -> None:
    fates = {row: fate for row, fate in fates.items() if row <= rows}
    outcome = simulate(plans, rows, fates)
    assert all(len(ends) == 1 for ends in outcome.ends.values())
    assert all(isinstance(end, RequestRejected) for end in outcome.failed.values()), outcome.failed
    culprits = {row for row, fate in fates.items() if fate in ("refused", "guarded", "broken", "poison")}
    assert outcome.failed.keys() == culprits, (outcome.failed, fates)
    assert outcome.seconds <= bound_s(plans, rows, fates), (outcome.seconds, outcome.stats)

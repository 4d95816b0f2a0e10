"""Many requests over endpoints: limits that are found, retries that lose nothing, and a stop that says why."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import Server
from generation.errors import RequestRefused, StopRun, Transient
from generation.prompts import load_prompt
from generation.tgi import scheduler as scheduling
from generation.tgi.client import Answer, Request
from generation.tgi.scheduler import AdaptiveLimit, Scheduler, connect
from tests.fake_tgi import FakeTGI, Fault


@pytest.fixture(autouse=True)
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "BACKOFF_CEILING_S", 0.05)


def request(number: int) -> Request:
    return Request(load_prompt("expand_caption_small"), {"seed": f"Scene number {number}."}, seed=number + 1)


def ask_many(server: Server, count: int) -> tuple[list[Answer | BaseException], Scheduler]:
    async def run() -> tuple[list[Answer | BaseException], Scheduler]:
        async with connect(server) as scheduler:
            asked = (scheduler.ask(request(number)) for number in range(count))
            return list(await asyncio.gather(*asked, return_exceptions=True)), scheduler

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["generation", "incomplete", "unavailable", "reset", "half"])
def test_every_request_is_answered_though_some_fail_on_the_way(kind: Any) -> None:
    with FakeTGI(faults=[Fault(kind, frozenset(range(0, 60, 7)))]) as server:
        answers, scheduler = ask_many(Server(endpoints=(server.url,)), 60)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert scheduler.requests == 60 + 9
    assert scheduler.retries["Transient"] == 9


def test_a_429_is_never_given_up_and_lowers_the_limit() -> None:
    faults = [Fault("overloaded", frozenset(range(20, 200)))]
    with FakeTGI(faults=faults) as server:
        answers, scheduler = ask_many(Server(endpoints=(server.url,), retries=1), 40)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert scheduler.retries["Overloaded"] == 180
    assert scheduler.limits[0].value < 24  # twenty answers in a row would have made it 28


def test_the_limit_stays_below_the_servers_own() -> None:
    with FakeTGI(max_concurrent_requests=6, latency_s=0.01) as server:
        answers, scheduler = ask_many(Server(endpoints=(server.url,)), 100)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert server.max_in_flight == 6
    assert scheduler.retries["Overloaded"] == 0


def test_the_limit_grows_when_the_server_takes_more() -> None:
    with FakeTGI(latency_s=0.01) as server:
        _, scheduler = ask_many(Server(endpoints=(server.url,)), 400)
    assert scheduler.limits[0].value > 12
    assert server.max_in_flight > 12


def test_two_endpoints_share_the_work() -> None:
    with FakeTGI(latency_s=0.01) as one, FakeTGI(latency_s=0.01) as two:
        ask_many(Server(endpoints=(one.url, two.url)), 100)
        served = [sum(r["route"] == "/v1/chat/completions" for r in server.requests) for server in (one, two)]
    assert sum(served) == 100
    assert min(served) >= 35


def test_endpoints_that_serve_different_models_are_refused_by_name() -> None:
    with (
        FakeTGI(model_id="a/Model") as one,
        FakeTGI(model_id="b/Model") as two,
        pytest.raises(StopRun, match="a/Model.*b/Model"),
    ):
        ask_many(Server(endpoints=(one.url, two.url)), 1)


def test_a_server_that_is_gone_stops_the_run_instead_of_burning_through_the_rows() -> None:
    async def run() -> None:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(FakeTGI())
            async with connect(Server(endpoints=(server.url,), retries=2)) as scheduler:
                stack.close()
                await scheduler.ask(request(0))

    with pytest.raises(StopRun, match="is the server still up"):
        asyncio.run(run())


def test_a_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "CONNECT_ATTEMPTS", 1)
    with pytest.raises(StopRun, match="http://127.0.0.1:9/info"):
        ask_many(Server(endpoints=("http://127.0.0.1:9",)), 1)


def test_one_poisonous_prompt_fails_alone_while_others_are_answered() -> None:
    async def run() -> None:
        with FakeTGI() as server:
            async with connect(Server(endpoints=(server.url,), retries=3)) as scheduler:
                poison = request(13)
                ask = scheduler.endpoints[0].ask

                async def poisoned(asked: Request) -> Answer:
                    if asked is poison:
                        raise Transient("424 for the whole batch", 424)
                    return await ask(asked)

                scheduler.endpoints[0].ask = poisoned  # type: ignore[method-assign]
                failing = asyncio.create_task(scheduler.ask(poison))
                for number in range(5):
                    assert isinstance(await scheduler.ask(request(number)), Answer)
                with pytest.raises(Transient, match="424"):
                    await failing

    asyncio.run(run())


def test_a_refused_prompt_is_not_asked_again() -> None:
    with FakeTGI(faults=[Fault("validation", frozenset({0}))]) as server:
        answers, scheduler = ask_many(Server(endpoints=(server.url,)), 1)
    assert isinstance(answers[0], RequestRefused)
    assert scheduler.requests == 1


def test_the_warm_up_stops_the_run_when_the_server_refuses_the_prompt() -> None:
    async def run(url: str) -> None:
        async with connect(Server(endpoints=(url,))) as scheduler:
            await scheduler.warm_up(request(0))

    with (
        FakeTGI(faults=[Fault("validation", frozenset({0}))]) as server,
        pytest.raises(StopRun, match=r"expand_caption_small@\d"),
    ):
        asyncio.run(run(server.url))


def test_back_off_is_slept_outside_the_place() -> None:
    """With one place, a request that waits to be asked again lets the others pass."""
    faults = [Fault("unavailable", frozenset({0, 1}))]
    with FakeTGI(max_concurrent_requests=1, faults=faults) as server:
        start = time.monotonic()
        answers, _ = ask_many(Server(endpoints=(server.url,)), 10)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert time.monotonic() - start < 30


@given(st.integers(1, 600), st.lists(st.sampled_from(["answered", "refused"]), max_size=300))
def test_a_limit_always_lies_between_one_and_its_ceiling(ceiling: int, events: list[str]) -> None:
    limit = AdaptiveLimit(ceiling)
    for event in events:
        limit.in_flight = int(limit.value)
        getattr(limit, event)()
        assert 1 <= limit.value <= ceiling


def test_one_burst_of_refusals_lowers_the_limit_once() -> None:
    limit = AdaptiveLimit(100)
    limit.in_flight = 8
    limit.answered()
    before = limit.value
    for _ in range(8):
        limit.refused()
    assert limit.value == pytest.approx(before * scheduling.DECREASE)


def test_a_limit_doubles_until_the_first_refusal_and_then_creeps() -> None:
    limit = AdaptiveLimit(1000)
    for wanted in (16, 32, 64):
        for _ in range(int(limit.value)):
            limit.in_flight = int(limit.value)
            limit.answered()
        assert limit.value == wanted
    limit.refused()
    cut = limit.value
    for _ in range(int(cut)):
        limit.in_flight = int(limit.value)
        limit.answered()
    assert cut + 0.9 < limit.value <= cut + 1


def test_an_idle_limit_does_not_grow() -> None:
    limit = AdaptiveLimit(1000)
    limit.in_flight = 1
    for _ in range(100):
        limit.answered()
    assert limit.value == 8


def test_one_that_leaves_the_line_does_not_take_a_place_along() -> None:
    async def run(url: str) -> None:
        async with connect(Server(endpoints=(url,), max_in_flight=1)) as scheduler:
            first, second = (asyncio.create_task(scheduler.ask(request(number))) for number in (0, 1))
            await asyncio.sleep(0.05)
            second.cancel()
            await first
            assert await asyncio.wait_for(scheduler.ask(request(2)), timeout=5)
            assert scheduler.limits[0].in_flight == 0

    with FakeTGI(latency_s=0.1) as server:
        asyncio.run(run(server.url))


def test_places_are_given_in_the_order_they_were_asked_for() -> None:
    ended: list[int] = []

    async def run(url: str) -> None:
        async with connect(Server(endpoints=(url,), max_in_flight=1)) as scheduler:

            async def one(number: int) -> None:
                await scheduler.ask(request(number))
                ended.append(number)

            await asyncio.gather(*map(one, range(12)))

    with FakeTGI() as server:
        asyncio.run(run(server.url))
    assert ended == list(range(12))

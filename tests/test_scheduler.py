"""Many requests over endpoints: limits that are found, retries that lose nothing, and a stop that says why."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

from generation.config import Server
from generation.errors import RequestRefused, StopRun, Transient
from generation.prompts import load_prompt
from generation.tgi import connect as connecting
from generation.tgi import scheduler as scheduling
from generation.tgi.connect import connect
from generation.tgi.protocol import Answer, Question, Request
from generation.tgi.scheduler import Scheduler, Tally
from tests.fake_tgi import FakeTGI, Fault

CAPTION = Question(load_prompt("expand_caption_small"))


@pytest.fixture(autouse=True)
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "BACKOFF_CEILING_S", 0.05)


def request(number: int) -> Request:
    return Request(CAPTION, {"seed": f"Scene number {number}."}, seed=number + 1)


def ask_many(server: Server, count: int) -> tuple[list[Answer | BaseException], Scheduler, Tally]:
    tally = Tally()

    async def run() -> tuple[list[Answer | BaseException], Scheduler]:
        async with connect(server) as scheduler:
            asked = (scheduler.ask(request(number), tally) for number in range(count))
            return list(await asyncio.gather(*asked, return_exceptions=True)), scheduler

    return *asyncio.run(run()), tally


def settings(*urls: str, **more: Any) -> Server:
    return Server(endpoints=urls, **more)


CAUSES = {"generation": "424", "incomplete": "500", "unavailable": "503", "reset": "connection", "half": "connection"}


@pytest.mark.parametrize("kind", CAUSES)
def test_every_request_is_answered_though_some_fail_on_the_way(kind: Any) -> None:
    with FakeTGI(faults=[Fault(kind, frozenset(range(0, 60, 7)))]) as server:
        answers, scheduler, tally = ask_many(settings(server.url), 60)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert tally.requests == 60 + 9
    assert tally.retries == {CAUSES[kind]: 9}


def test_a_429_is_never_given_up_and_lowers_the_limit() -> None:
    faults = [Fault("overloaded", frozenset(range(20, 200)))]
    with FakeTGI(faults=faults) as server:
        answers, scheduler, tally = ask_many(settings(server.url, retries=1), 40)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert tally.retries == {"429": 180}
    assert scheduler.lanes[0].limit.value < 24  # twenty answers in a row would have made it 28


def test_the_limit_stays_below_the_servers_own() -> None:
    with FakeTGI(max_concurrent_requests=6, latency_s=0.01) as server:
        answers, scheduler, tally = ask_many(settings(server.url), 100)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert server.max_in_flight == 6
    assert not tally.retries


def test_the_limit_grows_when_the_server_takes_more() -> None:
    with FakeTGI(latency_s=0.01) as server:
        _, scheduler, _ = ask_many(settings(server.url), 400)
    assert scheduler.lanes[0].limit.value > 12
    assert server.max_in_flight > 12


def test_two_endpoints_share_the_work() -> None:
    with FakeTGI(latency_s=0.05) as one, FakeTGI(latency_s=0.05) as two:
        ask_many(settings(one.url, two.url), 100)
        served = [sum(r["route"] == "/v1/chat/completions" for r in server.requests) for server in (one, two)]
    assert sum(served) == 100
    assert min(served) >= 35


def test_endpoints_that_serve_different_models_are_refused_by_name() -> None:
    with (
        FakeTGI(model_id="a/Model") as one,
        FakeTGI(model_id="b/Model") as two,
        pytest.raises(StopRun, match="a/Model.*b/Model"),
    ):
        ask_many(settings(one.url, two.url), 1)


def test_a_server_that_is_gone_stops_the_run_instead_of_burning_through_the_rows() -> None:
    async def run() -> None:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(FakeTGI())
            async with connect(settings(server.url, give_up_s=1.0)) as scheduler:
                stack.close()
                await scheduler.ask(request(0))

    with pytest.raises(StopRun, match=r"are the servers still up\? http://127"):
        asyncio.run(run())


def test_a_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "CONNECT_ATTEMPTS", 1)
    with pytest.raises(StopRun, match="http://127.0.0.1:9/info"):
        ask_many(settings("http://127.0.0.1:9"), 1)


def test_one_poisonous_prompt_fails_alone_while_others_are_answered() -> None:
    async def run() -> None:
        with FakeTGI() as server:
            async with connect(settings(server.url, retries=3)) as scheduler:
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
        answers, scheduler, tally = ask_many(settings(server.url), 1)
    assert isinstance(answers[0], RequestRefused)
    assert tally.requests == 1


def test_the_warm_up_stops_the_run_when_the_server_refuses_the_prompt() -> None:
    async def run(url: str) -> None:
        async with connect(settings(url)) as scheduler:
            await scheduler.warm_up(CAPTION)

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
        answers, _, _ = ask_many(settings(server.url), 10)
    assert all(isinstance(answer, Answer) for answer in answers)
    assert time.monotonic() - start < 30


def test_one_that_leaves_the_line_does_not_take_a_place_along() -> None:
    async def run(url: str) -> None:
        async with connect(settings(url, max_in_flight=1)) as scheduler:
            first, second = (asyncio.create_task(scheduler.ask(request(number))) for number in (0, 1))
            await asyncio.sleep(0.05)
            second.cancel()
            await first
            assert await asyncio.wait_for(scheduler.ask(request(2)), timeout=5)
            assert scheduler.lanes[0].limit.in_flight == 0

    with FakeTGI(latency_s=0.1) as server:
        asyncio.run(run(server.url))


def test_places_are_given_in_the_order_they_were_asked_for() -> None:
    ended: list[int] = []

    async def run(url: str) -> None:
        async with connect(settings(url, max_in_flight=1)) as scheduler:

            async def one(number: int) -> None:
                await scheduler.ask(request(number))
                ended.append(number)

            await asyncio.gather(*map(one, range(12)))

    with FakeTGI() as server:
        asyncio.run(run(server.url))
    assert ended == list(range(12))

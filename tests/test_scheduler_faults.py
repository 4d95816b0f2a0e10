"""Servers that fail, hang, restart, slow down or poison each other's requests: nothing is lost, and it is said."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from generation.config import Server
from generation.errors import RequestRefused, StopRun
from generation.prompts import load_prompt
from generation.tgi import breaker
from generation.tgi import scheduler as scheduling
from generation.tgi.connect import connect
from generation.tgi.protocol import Answer, Question, Request
from generation.tgi.scheduler import Scheduler, Tally
from tests.fake_tgi import FakeTGI, Fault

T = TypeVar("T")
CAPTION = Question(load_prompt("expand_caption_small"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "BACKOFF_CEILING_S", 0.05)
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.5)


def request(number: int, seed: str = "Scene number {}.") -> Request:
    return Request(CAPTION, {"seed": seed.format(number)}, seed=number + 1)


def with_scheduler(server: Server, use: Callable[[Scheduler], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(server) as scheduler:
            return await use(scheduler)

    return asyncio.run(run())


def ask_all(
    server: Server, requests: list[Request], during: Callable[[Scheduler], Awaitable[None]] | None = None
) -> tuple[list[Answer | BaseException], Tally]:
    """The answers, in order; ``during`` runs beside them."""
    tally = Tally()

    async def use(scheduler: Scheduler) -> list[Answer | BaseException]:
        disturbing = asyncio.create_task(during(scheduler)) if during else None
        answers = await asyncio.gather(*(scheduler.ask(r, tally) for r in requests), return_exceptions=True)
        if disturbing:
            await disturbing
        return list(answers)

    return with_scheduler(server, use), tally


def all_answered(answers: list[Answer | BaseException]) -> bool:
    return all(isinstance(answer, Answer) for answer in answers)


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def test_faults_of_every_kind_at_five_per_cent_cost_their_own_number_of_requests_and_no_row() -> None:
    kinds = ("overloaded", "unavailable", "incomplete", "reset", "half", "generation", "empty_429", "empty_502")
    with FakeTGI(fault_rate=0.05, fault_kinds=kinds, fault_seed=7) as server:
        answers, tally = ask_all(Server(endpoints=(server.url,)), [request(number) for number in range(600)])
        faults = server.faults_given.total()
    assert all_answered(answers)
    assert faults > 10
    assert tally.requests == 600 + faults
    assert tally.retries.total() == faults


def test_a_server_that_restarts_is_waited_for_and_no_row_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    with FakeTGI(latency_s=0.02) as server:

        async def restart(scheduler: Scheduler) -> None:
            await until(lambda: len(server.requests) > 50)
            await asyncio.to_thread(server.restart, 1.0)

        settings = Server(endpoints=(server.url,), retries=2)
        answers, tally = ask_all(settings, [request(number) for number in range(300)], restart)
    assert all_answered(answers)
    assert tally.requests < 300 + 2 * 128  # those in flight, and some looks at whether it is back
    assert f"{server.url} is left alone for" in caplog.text
    assert f"{server.url} answers again" in caplog.text


def test_a_server_that_comes_back_with_another_model_stops_the_run() -> None:
    with FakeTGI(latency_s=0.02) as server:

        async def restart(scheduler: Scheduler) -> None:
            await until(lambda: len(server.requests) > 20)
            await asyncio.to_thread(server.restart, 0.5, "another/Model")

        answers, _ = ask_all(Server(endpoints=(server.url,)), [request(number) for number in range(300)], restart)
    stops = {str(answer) for answer in answers if isinstance(answer, StopRun)}
    assert len(stops) == 1
    assert "now serves another/Model" in stops.pop()


def test_while_one_endpoint_is_away_the_other_does_the_work_and_later_they_share_it() -> None:
    with FakeTGI(latency_s=0.02) as one, FakeTGI(latency_s=0.02) as two:
        counts: dict[str, int] = {}

        async def restart(scheduler: Scheduler) -> None:
            await until(lambda: len(one.requests) > 40)
            await asyncio.to_thread(one.restart, 1.0)
            await until(lambda: scheduler.lanes[0].breaker.state == "closed" and scheduler.lanes[0].answers > 60)
            counts["later"] = scheduler.lanes[0].answers

        settings = Server(endpoints=(one.url, two.url), max_in_flight=16)
        answers, _ = ask_all(settings, [request(number) for number in range(1500)], restart)
    assert all_answered(answers)
    assert counts["later"] > 60


def test_a_server_that_takes_requests_and_answers_none_is_found_out_and_its_requests_go_elsewhere() -> None:
    with FakeTGI(latency_s=0.01) as good, FakeTGI() as frozen:
        frozen.configure(frozen=True)

        async def thaw(scheduler: Scheduler) -> None:
            await until(lambda: scheduler.lanes[1].breaker.state == "open")
            frozen.configure(frozen=False)

        settings = Server(endpoints=(good.url, frozen.url), stall_s=0.5)
        answers, tally = ask_all(settings, [request(number) for number in range(200)], thaw)
    assert all_answered(answers)
    assert 1 <= tally.retries["no_answer"] <= 16


def test_a_single_server_that_hangs_for_a_while_costs_time_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTGI(latency_s=0.01) as server:

        async def freeze(scheduler: Scheduler) -> None:
            await until(lambda: len(server.requests) > 30)
            server.configure(frozen=True)
            await until(lambda: scheduler.lanes[0].breaker.state == "open")
            server.configure(frozen=False)

        settings = Server(endpoints=(server.url,), stall_s=0.5)
        answers, _ = ask_all(settings, [request(number) for number in range(150)], freeze)
    assert all_answered(answers)


def test_the_prompt_that_fails_its_batch_is_found_by_asking_it_alone_and_the_others_are_answered() -> None:
    with FakeTGI(latency_s=0.02, poison="venom") as server:
        requests = [
            request(number, "A jar of venom number {}." if number in (5, 40) else "Scene {}.") for number in range(60)
        ]
        answers, tally = ask_all(Server(endpoints=(server.url,)), requests)
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, RequestRefused)]
    assert refused == [5, 40]
    assert all("also when asked alone" in str(answers[number]) for number in refused)
    assert sum(isinstance(answer, Answer) for answer in answers) == 58


def test_a_prompt_that_was_only_in_bad_company_is_answered_when_it_is_asked_alone() -> None:
    with FakeTGI(faults=[Fault("generation", frozenset({0, 1}))]) as server:
        answers, tally = ask_all(Server(endpoints=(server.url,)), [request(0)])
    assert all_answered(answers)
    assert tally.retries == {"424": 2}


@pytest.mark.parametrize("kind", ["incomplete", "unavailable", "empty_500"])
def test_a_storm_of_failures_pauses_the_run_instead_of_burning_through_the_rows(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeTGI(latency_s=0.01, fault_rate=1.0, fault_kinds=(kind,)) as server:

        async def mend(scheduler: Scheduler) -> None:
            await until(lambda: scheduler.lanes[0].breaker.state == "open")
            await asyncio.sleep(1.0)
            server.configure(fault_rate=0.0)

        answers, tally = ask_all(
            Server(endpoints=(server.url,), retries=8), [request(number) for number in range(100)], mend
        )
    assert all_answered(answers)
    assert tally.requests < 100 + 8 * 8
    assert "is left alone for" in caplog.text


def test_prompt_after_prompt_refused_stops_the_run() -> None:
    with FakeTGI(fault_rate=1.0, fault_kinds=("validation",)) as server:
        answers, tally = ask_all(Server(endpoints=(server.url,)), [request(number) for number in range(200)])
    assert sum(isinstance(answer, RequestRefused) for answer in answers) < scheduling.REFUSED_IN_A_ROW
    assert any(isinstance(answer, StopRun) and "prompts in a row" in str(answer) for answer in answers)


def test_a_key_that_is_refused_in_mid_run_stops_it() -> None:
    with FakeTGI(faults=[Fault("unauthorized", frozenset({5}))]) as server:
        answers, _ = ask_all(Server(endpoints=(server.url,)), [request(number) for number in range(10)])
    stops = [answer for answer in answers if isinstance(answer, StopRun)]
    assert len(stops) == 1
    assert (stops[0].status, stops[0].endpoint) == (401, server.url)


def test_the_limit_follows_the_queue_time_that_the_server_tells() -> None:
    with FakeTGI(batch_slots=8, max_concurrent_requests=128, latency_s=0.05) as server:

        async def use(scheduler: Scheduler) -> float:
            await asyncio.gather(*(scheduler.ask(request(number)) for number in range(600)))
            return scheduler.lanes[0].limit.value

        assert with_scheduler(Server(endpoints=(server.url,)), use) < 24
        assert server.max_in_flight < 64


def test_the_queue_in_the_servers_metrics_is_read() -> None:
    async def use(scheduler: Scheduler) -> int | None:
        asked = asyncio.gather(*(scheduler.ask(request(number)) for number in range(40)))
        await asyncio.sleep(0.2)
        queued = await scheduler.lanes[0].endpoint.queue_size()
        await asked
        return queued

    with FakeTGI(batch_slots=2, latency_s=0.1) as server:
        assert (with_scheduler(Server(endpoints=(server.url,)), use) or 0) > 2


def test_counts_of_tokens_that_do_not_agree_are_noticed() -> None:
    with FakeTGI(faults=[Fault("miscount", frozenset({1, 4}))]) as server:
        answers, tally = ask_all(Server(endpoints=(server.url,)), [request(number) for number in range(10)])
    assert all_answered(answers)
    assert tally.tokens_disagree == 2


def test_servers_that_stay_away_stop_the_run_and_each_is_named() -> None:
    with FakeTGI(latency_s=0.2) as one, FakeTGI(latency_s=0.2) as two:

        async def end(scheduler: Scheduler) -> None:
            await until(lambda: len(one.requests) > 20)
            await asyncio.to_thread(one.restart, 600)
            await asyncio.to_thread(two.restart, 600)

        settings = Server(endpoints=(one.url, two.url), give_up_s=1.5)
        answers, _ = ask_all(settings, [request(number) for number in range(3000)], end)
    stops = {str(answer) for answer in answers if isinstance(answer, StopRun)}
    assert any(one.url in stop and two.url in stop and "still up" in stop for stop in stops)

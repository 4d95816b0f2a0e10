"""Many requests over endpoints: limits that are found, failures that lose nothing, and errors that say what to do."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import chain, repeat
from typing import Any

import pytest

from generation.config import Server
from generation.errors import FatalServerError, Interrupted, RequestRejected
from generation.prompts import Sampling
from generation.tgi import endpoint_state
from generation.tgi.client import Answer, Request
from generation.tgi.scheduler import RequestStats, connect
from tests.fake_server import FakeServer, Reply
from tests.test_simulation import Phase, Plan, simulate

SAMPLING = Sampling(max_tokens=64, temperature=0.5, top_p=0.9)
Outcomes = list[Answer | BaseException]


def request(text: str = "A scene.", **keys: Any) -> Request:
    return Request([{"role": "user", "content": text}], SAMPLING, 1, **keys)


def rows(count: int) -> list[str]:
    return [f"Scene number {number}." for number in range(count)]


def ask_all(
    servers: list[FakeServer],
    texts: list[str],
    during: Callable[[], Awaitable[Any]] | None = None,
    first: Request | None = None,
    **settings: Any,
) -> tuple[Outcomes, RequestStats]:
    """Start the servers, warm up, and ask for all texts at once; ``during`` runs at the same time."""
    stats = RequestStats()

    async def run() -> Outcomes:
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            endpoints = tuple(server.url for server in servers)
            scheduler = await stack.enter_async_context(connect(Server(endpoints=endpoints, **settings)))
            await scheduler.warm_up([first or request("warm-up")])
            asked = asyncio.gather(*(scheduler.ask(request(text), stats) for text in texts), return_exceptions=True)
            if during:
                await during()
            return await asked

    return asyncio.run(run()), stats


def all_answered(answers: Outcomes) -> bool:
    return all(isinstance(answer, Answer) for answer in answers)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_state, "PROBE_S", (0.05, 0.1))


@pytest.mark.parametrize("latency_s", [0.2, 20])
@pytest.mark.parametrize("slots", [8, 32, 128])
def test_a_full_queue_costs_less_than_a_tenth_of_the_throughput_and_few_refusals(slots: int, latency_s: float) -> None:
    free = simulate([Plan(slots, latency_s, None)], 40 * slots, {}, most=512)
    full = simulate([Plan(slots, latency_s, None, cap=slots)], 40 * slots, {}, most=512)
    assert full.seconds <= free.seconds / 0.9
    assert full.servers[0].refused < 0.05 * full.stats.requests


@pytest.mark.parametrize("kind", ["tgi", "vllm", "sglang", "gateway"])
def test_a_full_queue_is_waited_for_in_the_words_of_every_kind_and_logged_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    side = {"/info": Reply(status=404), "/server_info": Reply(status=404)}  # publishes no limit
    answers, stats = ask_all([FakeServer(kind, limit=12, latency_s=0.02, side=side)], rows(150))
    assert all_answered(answers)
    assert 0 < len(stats.retries) == stats.retries.count("429") < 30
    assert caplog.text.count("requests at once") == 1


def test_a_run_begins_at_the_published_limit_and_stays_below_it() -> None:
    server = FakeServer(limit=40, latency_s=0.4)
    answers, stats = ask_all([server], rows(80))
    assert all_answered(answers) and not stats.retries and server.peak == 40  # 32 if the limit began at 8 and doubled


def test_retry_after_holds_all_endpoints_of_that_host() -> None:
    wait = Reply(status=429, body={"error": "slow down"}, headers={"Retry-After": "1"})
    refuse, start = iter([False, True]), time.monotonic()  # not the warm-up
    one = FakeServer(script=lambda body, n: wait if next(refuse, False) else None)
    answers, stats = ask_all([one, FakeServer()], rows(4), max_in_flight=1)
    assert all_answered(answers) and stats.retries == ["429"] and time.monotonic() - start > 1
    wait.headers["Retry-After"], refuse = "60000", iter([False, True])  # milliseconds, as some proxies write
    (end,) = ask_all([one], rows(1))[0]
    assert isinstance(end, FatalServerError) and "asks to wait 60,000 s, longer than give_up_s" in str(end)


def test_two_draining_servers_one_after_the_other_lose_nothing(hurried: None) -> None:
    servers = [FakeServer(latency_s=0.1, limit=8), FakeServer(latency_s=0.1, limit=8)]

    async def roll() -> None:
        for server in servers:
            await asyncio.sleep(0.4)
            await server.drain(0.6)
            await asyncio.sleep(0.8)

    answers, stats = ask_all(servers, rows(300), roll)
    assert all_answered(answers) and stats.requests < 300 + 4 * 8


def test_the_row_that_kills_the_server_is_found_and_no_other_is_rejected(hurried: None) -> None:
    server = FakeServer(latency_s=0.03, limit=16, poison="venom", dying_s=0.05, away_s=0.1)
    answers, _ = ask_all([server], [*rows(40), "A jar of venom.", *rows(40)])
    assert [number for number, answer in enumerate(answers) if not isinstance(answer, Answer)] == [40]
    assert isinstance(answers[40], RequestRejected) and "failed alone each time" in str(answers[40])
    deaths = sum("venom" in str(body) for body in server.bodies)
    assert deaths <= 14  # 3 in company, halves of at most 16, 4 alone


BROKEN, POISON = dict.fromkeys(range(50, 1001, 100), "broken"), {200: "poison"}


@pytest.mark.parametrize(("count", "latency_s", "fates", "most_s"), [(1000, 5, BROKEN, 150), (400, 20, POISON, 900)])
def test_suspects_are_tested_together_and_halved(count: int, latency_s: float, fates: Any, most_s: float) -> None:
    healthy, ill = (simulate([Plan(64, latency_s, 64)], count, drawn) for drawn in ({}, fates))
    assert ill.failed.keys() == fates.keys()
    assert ill.seconds < healthy.seconds + most_s  # 300 and 1280 if each suspect is tested by itself


def test_an_answer_of_a_draining_server_does_not_make_it_up_again() -> None:
    outcome = simulate([Plan(8, 5.0, 8, [Phase(2, 60, "drain")]), Plan(8, 1.0, 8)], 200, {})
    assert outcome.stats.requests - 200 <= 8 + 2  # one wave at most was refused
    assert outcome.servers[1].answered > 150


def test_servers_that_stay_away_stop_the_run_and_each_is_named() -> None:
    gone = [Plan(8, 1.0, 8, [Phase(2, 1e6, kind)]) for kind in ("vanish", "sick", "mute")]
    outcome = simulate(gone, 200, {}, give_up_s=600)
    (message,) = set(map(str, outcome.failed.values()))
    assert all(isinstance(end, FatalServerError) for end in outcome.failed.values())
    assert "no request was answered for 600 s" in message
    assert "http://server0:80: Connection refused" in message and "POST http://server1:80: HTTP 424" in message
    assert "http://server2:80: no answer in 300 s" in message
    assert outcome.seconds < 2 + 1.4 + 600 + 1


def test_rows_that_a_server_refuses_are_rejected_and_fifty_in_a_row_stop_the_run() -> None:
    def ask(*others: FakeServer) -> tuple[int, Outcomes]:
        no = Reply(status=403, body={"error": "blocked by the guardrail"}, delay_s=0.02)
        server = FakeServer(script=lambda body, n: None if "warm-up" in str(body["messages"]) else no)
        ends = ask_all([server, *others], rows(150), max_in_flight=4)[0]
        return sum(isinstance(end, RequestRejected) for end in ends), [e for e in ends if not isinstance(e, Answer)]

    refused, ends = ask()
    assert refused == 49 and isinstance(ends[-1], FatalServerError)
    assert "guardrail" in str(ends[-1]) and "refused 50 prompts in a row" in str(ends[-1])
    refused, ends = ask(FakeServer(latency_s=0.02))  # the other one answers
    assert 50 <= refused == len(ends) < 150


class Loading(FakeServer):
    loading = property(lambda self: len(self.requests) <= 40, lambda self, value: None)


def test_a_run_begins_with_the_endpoints_that_answer_and_the_others_join_it(
    hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    for late, reason in ((Loading("llama.cpp"), ""), (Loading("llama.cpp", model="another/M"), "serves another/M")):
        answers = ask_all([late, FakeServer("llama.cpp", latency_s=0.1)], rows(100), max_in_flight=2)[0]
        assert all_answered(answers) if not reason else reason in str(answers[-1])
        assert late.counts["answers"] > 10 or reason
    assert "does not answer; waiting for it" in caplog.text and "Loading model" in caplog.text
    assert all_answered(ask_all([Loading("llama.cpp")], rows(3))[0])


def test_an_endpoint_that_refuses_a_good_request_is_left_to_the_others(hurried: None) -> None:
    replies = chain([None], repeat(Reply(status=500, delay_s=0.05), 9), repeat(Reply(status=403, body=b"maintenance")))
    sick = FakeServer(script=lambda body, n: next(replies))
    answers, stats = ask_all([sick, FakeServer(latency_s=0.05)], rows(150), max_in_flight=5)
    assert all_answered(answers) and {*stats.retries} == {"500"} and sick.counts["403"] > 0


def test_after_a_stop_what_is_in_flight_may_end_although_a_request_fails() -> None:
    replies = iter([None, Reply(status=429, delay_s=0.2), *[Reply(text="a", delay_s=0.5)] * 2])

    async def run() -> Outcomes:
        async with (
            FakeServer(script=lambda body, n: next(replies)) as one,
            connect(Server(endpoints=(one.url,))) as scheduler,
        ):
            await scheduler.warm_up([request("warm-up")])
            asked = asyncio.gather(*map(scheduler.ask, map(request, rows(3))), return_exceptions=True)
            await asyncio.sleep(0.1)
            scheduler.stop(Interrupted("stopped"), abandon=False)
            return await asked

    assert [type(end) for end in asyncio.run(run())] == [Interrupted, Answer, Answer]


def test_a_server_that_never_gets_ready_is_given_up(hurried: None) -> None:
    server = FakeServer("llama.cpp")
    server.loading = True
    with pytest.raises(FatalServerError, match=r"Loading model.*tried for \d s"):
        ask_all([server], [], give_up_s=0.5, timeout_s=0.4)


def test_a_context_that_is_too_short_is_refused_with_the_three_numbers() -> None:
    numbers = r"context of 1500 tokens; .*\(\d{4} tokens\) and max_tokens \(64\) do not fit"
    answered = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": 1437}}
    silent = {"choices": answered["choices"]}  # no usage: characters are counted
    for script in (None, lambda body, n: Reply(body=answered), lambda body, n: Reply(body=silent)):
        with pytest.raises(FatalServerError, match=numbers) as raised:
            ask_all([FakeServer(max_total_tokens=1500, script=script)], [], first=request("word " * 4000))
        assert raised.value.status is None  # so no shorter request is tried


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(status=422, body={"error": "grammar is not valid"}), "grammar is not valid"),
        (Reply(status=424, body={"error": "cannot compile"}), "cannot compile"),
        (Reply(text=""), "with no text"),
    ],
)
def test_a_warm_up_that_fails_stops_the_run_at_once(reply: Reply, message: str, hurried: None) -> None:
    with pytest.raises(FatalServerError, match=message):
        ask_all([FakeServer(script=lambda body, n: reply)], [])


def test_a_slow_warm_up_is_explained(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(endpoint_state, "SLOW_S", 0.05)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    ask_all([FakeServer(latency_s=0.3)], [], first=request(schema=schema))
    assert "compiling the grammar" in caplog.text


def test_endpoints_of_different_models_stop_at_once() -> None:
    with pytest.raises(FatalServerError, match="[ab]/Model.*[ab]/Model"):
        ask_all([FakeServer(model="a/Model"), FakeServer(model="b/Model")], [])

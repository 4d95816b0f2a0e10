"""The adaptive limit: found by answers and refusals alone, on a clock of the test's own."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.tgi.limit import DECREASE, START_LIMIT, AdaptiveLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refuse(limit: AdaptiveLimit) -> None:
    """As often as is a sign of congestion."""
    stamp = limit.stamp
    while limit.stamp == stamp:
        limit.refused(stamp)


@given(
    st.integers(1, 600),
    st.lists(
        st.tuples(
            st.sampled_from(["answered", "refused", "queued", "restart"]),
            st.floats(0, 1),
            st.floats(0, 30),
            st.booleans(),
        ),
        max_size=300,
    ),
)
def test_a_limit_always_lies_between_one_and_its_ceiling(
    ceiling: int, events: list[tuple[str, float, float, bool]]
) -> None:
    clock = Clock()
    limit = AdaptiveLimit(ceiling, clock=clock)
    for event, share, seconds, stale in events:
        clock.now += seconds
        limit.in_flight = int(limit.value)
        stamp = limit.stamp - stale
        match event:
            case "answered":
                limit.answered(stamp, share)
            case "refused":
                limit.refused(stamp)
            case "queued":
                limit.queued(int(share * 100))
            case "restart":
                limit.restart()
        assert 1 <= limit.value <= ceiling


def test_a_limit_doubles_for_every_limits_worth_of_answers_until_the_first_congestion() -> None:
    limit = AdaptiveLimit(1000)
    for wanted in (16, 32, 64):
        for _ in range(int(limit.value)):
            limit.in_flight = int(limit.value)
            limit.answered(limit.stamp)
        assert limit.value == wanted


def test_refusals_of_one_burst_lower_the_limit_once() -> None:
    limit = AdaptiveLimit(100, start=50)
    stamp = limit.stamp  # all were started before the first of them came back
    for _ in range(40):
        limit.refused(stamp)
    assert limit.value == pytest.approx(50 * DECREASE)


def test_single_refusals_among_many_answers_are_faults_and_lower_nothing() -> None:
    limit = AdaptiveLimit(100, start=50)
    for number in range(2000):
        if number % 20 == 0:
            limit.refused(limit.stamp)
        else:
            limit.answered(limit.stamp)
    assert limit.value >= 50


def test_a_burst_of_starts_may_meet_several_faults() -> None:
    limit = AdaptiveLimit(128, start=128)
    for _ in range(50):
        for _ in range(6):  # of 128 that start together
            limit.refused(limit.stamp)
        for _ in range(122):
            limit.answered(limit.stamp)
    assert limit.value == 128


def test_answers_that_waited_long_for_the_batch_lower_the_limit_once_a_round() -> None:
    limit = AdaptiveLimit(512, start=400)
    old = limit.stamp
    for _ in range(100):
        limit.answered(old, queue_share=0.8)
    assert limit.value == pytest.approx(400 * DECREASE)
    limit.answered(limit.stamp, queue_share=0.8)
    assert limit.value == pytest.approx(400 * DECREASE**2)


def test_a_queue_that_the_servers_metrics_show_lowers_the_limit() -> None:
    limit = AdaptiveLimit(512, start=100)
    limit.in_flight = 100
    limit.queued(10)
    assert limit.value == 100
    limit.queued(60)
    assert limit.value == pytest.approx(90)


def test_an_idle_limit_does_not_grow() -> None:
    limit = AdaptiveLimit(1000)
    limit.in_flight = 1
    for _ in range(100):
        limit.answered(limit.stamp)
    assert limit.value == START_LIMIT


def test_after_a_decrease_the_limit_comes_back_fast_lingers_and_then_looks_for_more() -> None:
    clock = Clock()
    limit = AdaptiveLimit(1000, start=64, clock=clock)
    refuse(limit)
    values = {}
    for tick in range(1, 1001):
        clock.now = tick / 100
        limit.in_flight = int(limit.value)
        limit.answered(limit.stamp)
        values[clock.now] = limit.value
    assert values[1.5] > 62  # from 57.6
    assert 63 < values[2.5] < 65.5
    assert values[8.0] > 110


def simulated(limit: AdaptiveLimit, clock: Clock, seconds: float, capacity: int, latency_s: float = 0.2) -> float:
    """Keeps a server of ``capacity`` busy for some time; returns the share of requests that it refused."""
    sent = refused = 0
    ends: deque[tuple[float, int]] = deque()
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.002
        while ends and ends[0][0] <= clock.now:
            _, stamp = ends.popleft()
            limit.answered(stamp)
            limit.in_flight -= 1
        for _ in range(4):  # a refusal takes a moment to come back
            if limit.free:
                sent += 1
                limit.in_flight += 1
                if limit.in_flight > capacity:
                    refused += 1
                    limit.refused(limit.stamp)
                    limit.in_flight -= 1
                else:
                    ends.append((clock.now + latency_s * (0.8 + sent % 41 / 100), limit.stamp))
    for _, _stamp in ends:
        limit.in_flight -= 1
    return refused / sent


@pytest.mark.parametrize("capacity", [48, 128, 300])
def test_a_limit_follows_a_server_that_halves_and_doubles_its_capacity_within_ten_seconds(capacity: int) -> None:
    clock = Clock()
    limit = AdaptiveLimit(2 * capacity, clock=clock)
    simulated(limit, clock, 10, capacity)
    simulated(limit, clock, 10, capacity // 2)
    assert 0.8 * capacity / 2 <= limit.value <= 1.2 * capacity / 2 + 1
    assert simulated(limit, clock, 10, capacity // 2) < 0.03
    simulated(limit, clock, 10, capacity)
    assert 0.8 * capacity <= limit.value <= 1.2 * capacity
    assert simulated(limit, clock, 10, capacity) < 0.03

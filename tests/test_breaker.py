"""The circuit breaker, on a clock of the test's own."""

import pytest

from generation.tgi.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int) -> list[bool]:
    return [breaker.failed(breaker.stamp, "HTTP 500") for _ in range(times)]


def test_failures_in_a_row_open_the_circuit_and_say_why() -> None:
    breaker = Breaker()
    assert fail(breaker, FAILURES_IN_A_ROW) == [False] * (FAILURES_IN_A_ROW - 1) + [True]
    assert breaker.state == "open"
    assert breaker.reason == "HTTP 500"


def test_an_answer_between_failures_keeps_the_circuit_closed() -> None:
    breaker = Breaker()
    for _ in range(10):
        fail(breaker, FAILURES_IN_A_ROW - 1)
        assert breaker.answered() is False
    assert breaker.state == "closed"


def test_requests_that_fail_together_count_once() -> None:
    breaker = Breaker()
    stamp = breaker.stamp
    for _ in range(100):
        breaker.failed(stamp, "reset")
    assert breaker.state == "closed"


def test_an_open_circuit_is_due_after_its_pause_and_the_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    pauses = []
    for _ in range(12):
        breaker.open("away")
        pauses.append(breaker.retry_at - clock.now)
        assert not breaker.due
        clock.now = breaker.retry_at
        assert breaker.due
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, rel=0.26)
    assert pauses[3] == pytest.approx(8 * FIRST_PAUSE_S, rel=0.26)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S, rel=0.26)


def test_half_open_the_next_answer_closes_the_circuit_and_the_next_failure_opens_it() -> None:
    breaker = Breaker()
    breaker.open("away")
    breaker.state = "half_open"
    assert fail(breaker, 1) == [True]
    breaker.state = "half_open"
    assert breaker.answered() is True
    assert breaker.state == "closed"

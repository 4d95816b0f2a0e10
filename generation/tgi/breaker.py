"""A circuit breaker for one endpoint: after failures in a row it is left alone for a while, then tried with care."""

import random
import time
from collections.abc import Callable
from typing import Literal

FAILURES_IN_A_ROW = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

State = Literal["closed", "open", "half_open"]


class Breaker:
    """``closed``: requests pass. ``open``: none does until ``retry_at``. ``half_open``: one does, and decides.

    The failures of requests that were in flight together count once: they are one event. So ``stamp`` is to be read
    when a request starts, and handed back when it fails.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.state: State = "closed"
        self.stamp = 0
        self.retry_at = 0.0
        self.reason = ""
        self._clock = clock
        self._failures = 0  # in a row
        self._pause_s = FIRST_PAUSE_S

    def answered(self) -> bool:
        """Counts an answer; returns whether it closed the circuit."""
        closes = self.state != "closed"
        self.state, self._failures, self._pause_s = "closed", 0, FIRST_PAUSE_S
        return closes

    def failed(self, stamp: int, reason: str) -> bool:
        """Counts a failure; returns whether it opened the circuit."""
        if stamp != self.stamp or self.state == "open":
            return False
        self.stamp += 1
        self._failures += 1
        if self.state == "half_open" or self._failures >= FAILURES_IN_A_ROW:
            self.open(reason)
            return True
        return False

    def open(self, reason: str) -> None:
        """Opens the circuit for a jittered pause that doubles from time to time."""
        self.state, self.reason = "open", reason
        self.stamp += 1
        self.retry_at = self._clock() + self._pause_s * random.uniform(0.75, 1.25)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    @property
    def due(self) -> bool:
        """Whether an open circuit's pause is over."""
        return self.state == "open" and self._clock() >= self.retry_at

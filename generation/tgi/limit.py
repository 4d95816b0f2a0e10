"""How many requests one endpoint may hold at a time: found, not configured.

The limit doubles for every limit's worth of answers until the first sign of congestion (slow start). At each sign it
falls by a tenth, and then grows back along CUBIC's curve (RFC 9438, section 4.2): fast at first, flat near the value
that was too much, and fast again beyond it. The curve is in seconds, so that it does not matter how long answers take.
"""

import math
import time
from collections.abc import Callable

START_LIMIT = 8.0
DECREASE = 0.9
GROWTH = 0.4  # RFC 9438's C, in requests / s^3
QUEUE_SHARE = 0.3  # of an answer's time; a request that waits longer for its place in the batch only adds latency
REFUSALS = 3.0  # that are a sign of congestion: a full server refuses one request after the other
REFUSED_SHARE = 0.15  # of the limit, where that is more: requests start in bursts, and a burst meets several faults
FORGIVEN = 0.1  # of a refusal, by each answer: single refusals among many answers are faults, no sign


class AdaptiveLimit:
    """The limit of one endpoint.

    A sign of congestion counts if the request that bears it was started after the last decrease: the others of a burst
    tell what is known already. So ``stamp`` is to be read when a request starts, and handed back with what came of it.

    Args:
        ceiling: never more than this.
        start: where it begins.
        clock: seconds.
    """

    def __init__(self, ceiling: int, start: float = START_LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self.ceiling = ceiling
        self.value = min(start, float(ceiling))
        self.in_flight = 0
        self.stamp = 0  # the number of decreases
        self._clock = clock
        self._peak = 0.0  # the value at the last decrease; 0 in slow start
        self._decreased_at = 0.0
        self._refusals = 0.0

    @property
    def free(self) -> bool:
        """Whether one more request may start."""
        return self.in_flight < int(self.value)

    @property
    def load(self) -> float:
        """The share of the limit that is in use."""
        return self.in_flight / self.value

    def answered(self, stamp: int, queue_share: float = 0.0) -> None:
        """Counts an answer; the limit grows, if it was in use and the answer did not wait long for its place."""
        self._refusals = max(0.0, self._refusals - FORGIVEN)
        if queue_share > QUEUE_SHARE:
            self._congested(stamp)
        elif self.in_flight >= int(self.value) - 1:
            grown = min(self.value + 1, float(self.ceiling))
            self.value = max(self.value, min(grown, self._curve()) if self._peak else grown)

    def refused(self, stamp: int) -> None:
        """Counts a refusal for want of a place (HTTP 429)."""
        if stamp == self.stamp:
            self._refusals += 1
            if self._refusals >= max(REFUSALS, REFUSED_SHARE * self.value):
                self._congested(stamp)

    def queued(self, waiting: int) -> None:
        """Takes in how many requests wait for a place in the server's batch, by its own account."""
        if waiting > QUEUE_SHARE * self.in_flight:
            self._congested(self.stamp)

    def restart(self, start: float = START_LIMIT) -> None:
        """Begins anew, as after the server was away."""
        self.value, self._peak, self._refusals = min(start, float(self.ceiling)), 0.0, 0.0
        self.stamp += 1

    def _congested(self, stamp: int) -> None:
        if stamp != self.stamp:
            return
        self._peak, self._decreased_at = self.value, self._clock()
        self.value = max(1.0, min(self.value * DECREASE, self.value - 1))
        self.stamp += 1
        self._refusals = 0.0

    def _curve(self) -> float:
        """CUBIC's value now: C * (t - K)^3 + peak, K being the time at which it is back at the peak."""
        k = math.cbrt(self._peak * (1 - DECREASE) / GROWTH)
        return GROWTH * (self._clock() - self._decreased_at - k) ** 3 + self._peak

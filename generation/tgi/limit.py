"""How many requests one endpoint gets at a time: found while the run goes on, not configured.

The limit doubles with every limit's worth of answers until the first sign of congestion (slow start). At each sign it
falls by a tenth, and then grows along CUBIC's curve (RFC 9438, section 4.2): fast at first, flat near the value that
was too much, fast again beyond it. The curve counts rounds of answers, not seconds, so that the share of refused
requests is the same for answers of 0.1 s and of 60 s.
"""

import math

START_LIMIT = 8  # where the server publishes no limit
DECREASE = 0.9
GROWTH = 0.05  # C of RFC 9438, in requests / round^3
ROUND = 32  # answers in a round, or the limit's worth if that is more
QUEUE_SHARE = 0.3  # of an answer's time, or of the requests in flight: more waiting in the server only adds latency


class AdaptiveLimit:
    """The limit of one endpoint: ``value``, at most ``ceiling``.

    A sign of congestion counts only if its request started after the last decrease: requests of one burst carry the
    same news. So read ``stamp`` when a request starts, and pass it on with the outcome.
    """

    def __init__(self, ceiling: int, start: int = START_LIMIT) -> None:
        self.stamp = 0  # number of decreases and restarts
        self.restart(ceiling, start)

    def restart(self, ceiling: int, start: int = START_LIMIT) -> None:
        """Begin anew, as for a server that was restarted."""
        self.stamp += 1
        self.ceiling, self.value = ceiling, float(min(start, ceiling))
        self._peak = self._rounds = 0.0  # value at the last decrease (0: slow start); rounds since then

    def answered(self, stamp: int, queue_share: float, in_flight: int) -> None:
        """Count an answer: the limit grows if ``in_flight``, the answered request included, used it up."""
        self._rounds += 1 / max(self.value, ROUND)
        if queue_share > QUEUE_SHARE:
            self.congested(stamp)
        elif in_flight >= int(self.value) - 1:
            grown = min(self.value + 1, self.ceiling)
            if self._peak:
                k = math.cbrt(self._peak * (1 - DECREASE) / GROWTH)  # rounds until the limit is back at its peak
                grown = min(grown, GROWTH * (self._rounds - k) ** 3 + self._peak)
            self.value = max(self.value, grown)

    def congested(self, stamp: int) -> None:
        """Lower the limit: a request that started at ``stamp`` was refused, or waited too long in the server."""
        if stamp == self.stamp:
            self.stamp += 1
            self._peak, self._rounds = self.value, 0.0
            self.value = max(1.0, min(self.value * DECREASE, self.value - 1))

"""How many requests one endpoint gets at a time: found while the run goes on, not configured.

The limit doubles with every limit's worth of answers until the first sign of congestion (slow start). At each sign it
falls by a tenth; then it grows by one with every limit's worth of answers, or every ``ROUND`` if that is more.
"""

import math

START_LIMIT = 8  # where the server publishes no limit
DECREASE, ROUND = 0.9, 32
QUEUE_SHARE = 0.3  # of an answer's time, or of the requests in flight: more waiting in the server only adds latency


class AdaptiveLimit:
    """The limit of one endpoint: ``value``, at most ``ceiling``.

    A sign of congestion counts in full only if its request was sent after the last decrease, for the requests of one
    burst carry the same news; but the more of them are refused, the less the server holds. Times are the event loop's.
    """

    def __init__(self, ceiling: int, start: int = START_LIMIT) -> None:
        self.ceiling, self.value = ceiling, float(min(start, ceiling))
        self._decreased_at, self._before, self._refused = -math.inf, 0.0, 0  # last decrease; value before it; refused

    def answered(self, sent_at: float, now: float, queue_share: float, saturated: bool) -> None:
        """Count an answer: the limit grows if it was ``saturated``, that is if more requests waited to be sent."""
        if queue_share > QUEUE_SHARE:
            self.congested(sent_at, now, refused=False)
        elif saturated:
            self.value = min(self.value + (1 / max(self.value, ROUND) if self._before else 1), self.ceiling)

    def congested(self, sent_at: float, now: float, refused: bool = True) -> None:
        """Lower the limit: a request was refused, or waited too long in the server."""
        if sent_at >= self._decreased_at:
            self._decreased_at, self._before, self._refused = now, self.value, 0
        elif not refused:
            return
        self._refused += 1
        self.value = max(1.0, min(self._before * DECREASE, self._before - self._refused))

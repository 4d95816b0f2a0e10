"""The stand-in server of rehearsals with one fixed caption after a set latency, for measuring the client alone.

    python -m benchmarks.fast_server [--latency-s 0] [--limit 128] [--capacity 8:64,28:128] [--fault reset] [--core 1]

Keeps an account of each second at ``/stats``, and prints its URL when it is ready. ``--capacity`` changes the limit
some seconds after the first request; ``--fault`` spoils every twentieth request.
"""

import argparse
import os
import time
from collections import Counter

import uvloop

from generation.rehearsal.answers import Reply
from generation.rehearsal.server import FAULTS, Stand, completion, response, serve

CAPTION = """
A wide wooden table stands near a bright window, its top scarred by long use and covered with a layer of pale dust.
Three round cups of white porcelain rest in a row along the nearer edge, and one of them has a chipped rim. Behind them
lies a folded cloth with blue stripes, its corner hanging over the side. The legs of the table are turned and painted
brown, and a low bench with a woven seat is pushed halfway under it. To the left a tall shelf holds jars of grain, a
brass scale and a stack of plates. Sunlight falls in a slanted patch across the tiled floor, where two wicker baskets
stand beside each other. The plain wall at the back is whitewashed and cracked.
""".strip().replace("\n", " ")
FAULT_EVERY = 20  # requests
MODEL = "fast/Stand-in"
ANSWER = completion(MODEL, CAPTION, "stop", 60, 100)


class FastStand(Stand):
    """One caption for all; an account of each second.

    Args:
        latency_s: of an answer.
        limit: requests in flight.
        capacity: other limits, by the second from which on they hold.
        fault: a key of ``FAULTS``, for every twentieth request.
    """

    def __init__(self, latency_s: float, limit: int, capacity: dict[float, int], fault: str | None) -> None:
        super().__init__(limit, MODEL)
        self.latency_s, self.spoiled = latency_s, fault
        self.changes = sorted(capacity.items())
        self.start = 0.0
        self.sums: Counter[str] = Counter()
        self.seconds: dict[str, Counter[str]] = {}  # since the first request; in_flight is summed at each request

    def page(self, path: bytes) -> bytes:
        """See ``Stand``."""
        if path == b"/stats":
            return response("200 OK", {**self.sums, "seconds": self.seconds})
        return super().page(path)

    def fault(self, path: bytes) -> str | None:
        """See ``Stand``."""
        second = self._second()
        self.sums["requests"] += 1
        second["requests"] += 1
        second["in_flight"] += self.in_flight
        if not self.spoiled or self.sums["requests"] % FAULT_EVERY:
            return None
        self.sums["faults"] += 1
        return self.spoiled

    def reply(self, path: bytes, body: bytes) -> tuple[float, bytes, Reply | None]:
        """See ``Stand``."""
        return self.latency_s, ANSWER, None

    def ended(self, path: bytes, what: str | None, reply: Reply | None) -> None:
        """See ``Stand``."""
        self._second()[what or "answered"] += 1

    def _second(self) -> Counter[str]:
        """The account of the current second."""
        now = time.monotonic()
        self.start = self.start or now
        while self.changes and now - self.start >= self.changes[0][0]:
            self.limit = self.changes.pop(0)[1]
        return self.seconds.setdefault(str(int(now - self.start)), Counter())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--capacity", default="", help="SECONDS:LIMIT,... after the first request")
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--core", type=int, help="run on this core alone")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    changes = (change.split(":") for change in options.capacity.split(",") if change)
    capacity = {float(seconds): int(limit) for seconds, limit in changes}
    uvloop.run(serve(FastStand(options.latency_s, options.limit, capacity, options.fault)))


if __name__ == "__main__":
    main()

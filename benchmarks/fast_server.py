"""A stand-in for TGI that costs next to nothing: a fixed caption after a set latency, from a bare asyncio protocol.

    python -m benchmarks.fast_server [--latency-s 0] [--limit 128] [--capacity 8:64,28:128] [--fault reset] [--core 1]

Speaks just enough HTTP/1.1 (keep-alive, Content-Length) for ``/info`` and ``/v1/chat/completions``, answers 429 above
its limit, keeps an account at ``/stats``, and prints its URL when it is ready. ``--capacity`` changes the limit some
seconds after the first request; ``--fault`` spoils every twentieth request. For the protocol there is
``tests/fake_tgi.py``.
"""

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from typing import Any, cast

import uvloop

CAPTION = """
A wide wooden table stands near a bright window, its top scarred by long use and covered with a layer of pale dust.
Three round cups of white porcelain rest in a row along the nearer edge, and one of them has a chipped rim. Behind them
lies a folded cloth with blue stripes, its corner hanging over the side. The legs of the table are turned and painted
brown, and a low bench with a woven seat is pushed halfway under it. To the left a tall shelf holds jars of grain, a
brass scale and a stack of plates. Sunlight falls in a slanted patch across the tiled floor, where two wicker baskets
stand beside each other. The plain wall at the back is whitewashed and cracked.
""".strip().replace("\n", " ")
FAULT_EVERY = 20  # requests


def response(status: str, body: object, headers: str = "") -> bytes:
    """The bytes of one HTTP response."""
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


ANSWER = response(
    "200 OK",
    {
        "object": "chat.completion",
        "model": "fast/Stand-in",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": CAPTION}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 60, "completion_tokens": 100, "total_tokens": 160},
    },
    "x-total-time: 200\r\nx-queue-time: 0\r\nx-prompt-tokens: 60\r\nx-generated-tokens: 100\r\n",
)
FAULTS = {
    "429": response("429 Too Many Requests", {"error": "Model is overloaded", "error_type": "overloaded"}),
    "500": response("500 Internal Server Error", {"error": "Incomplete generation", "error_type": "incomplete"}),
    "503": response("503 Service Unavailable", "upstream connect error"),
    "reset": b"",
}
NOT_FOUND = response("404 Not Found", {})


class Stand:
    """What all connections share: the settings and the account."""

    def __init__(self, latency_s: float, limit: int, capacity: dict[float, int], fault: str | None) -> None:
        self.latency_s, self.limit, self.fault = latency_s, limit, fault
        self.info = response(
            "200 OK",
            {"model_id": "fast/Stand-in", "model_sha": "0" * 40, "max_concurrent_requests": limit, "version": "3.3.5"},
        )
        self.changes = sorted(capacity.items())
        self.start = 0.0
        self.in_flight = 0
        self.sums: Counter[str] = Counter()
        self.seconds: dict[int, Counter[str]] = {}  # since the first request; in_flight is summed at each request

    def second(self) -> Counter[str]:
        """The account of the current second."""
        now = time.monotonic()
        self.start = self.start or now
        while self.changes and now - self.start >= self.changes[0][0]:
            self.limit = self.changes.pop(0)[1]
        return self.seconds.setdefault(int(now - self.start), Counter())

    def stats(self) -> bytes:
        """The account as a response."""
        return response("200 OK", {**self.sums, "seconds": self.seconds})


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.buffer = b""
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        """Frees the place of a request whose client went away."""
        if self.waiting:
            self.waiting = False
            self.stand.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        """Acts once a whole request has come."""
        self.buffer += data
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        lower = head.lower()
        start = lower.find(b"content-length:")
        length = int(lower[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(rest) < length:
            return
        self.buffer = b""
        if head.startswith(b"POST /v1/chat/completions"):
            self.generate()
        else:
            stand = self.stand
            routes: dict[bytes, Any] = {b"/info": stand.info, b"/stats": stand.stats()}
            self.transport.write(routes.get(head.split(b" ", 2)[1], NOT_FOUND))

    def generate(self) -> None:
        """One generation request: spoiled, refused, or answered after the latency."""
        stand = self.stand
        second = stand.second()
        stand.sums["requests"] += 1
        second["requests"] += 1
        second["in_flight"] += stand.in_flight
        if stand.fault and stand.sums["requests"] % FAULT_EVERY == 0:
            stand.sums["faults"] += 1
            self.transport.write(FAULTS[stand.fault])
            if stand.fault == "reset":
                self.transport.abort()
        elif stand.in_flight >= stand.limit:
            second["refused"] += 1
            self.transport.write(FAULTS["429"])
        elif stand.latency_s:
            stand.in_flight += 1
            self.waiting = True
            asyncio.get_running_loop().call_later(stand.latency_s, self.answer)
        else:
            second["answered"] += 1
            self.transport.write(ANSWER)

    def answer(self) -> None:
        """Sends the caption, if its client is still there."""
        if self.waiting:
            self.waiting = False
            self.stand.in_flight -= 1
            self.stand.second()["answered"] += 1
            self.transport.write(ANSWER)


async def serve(stand: Stand) -> None:
    """Serves until it is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stand), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


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
    uvloop.run(serve(Stand(options.latency_s, options.limit, capacity, options.fault)))


if __name__ == "__main__":
    main()

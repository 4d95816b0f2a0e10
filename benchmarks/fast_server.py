"""A stand-in for TGI that costs next to nothing: a fixed caption after a set latency, from a bare asyncio protocol.

    python -m benchmarks.fast_server [--latency-s 0] [--limit 128]

Speaks just enough HTTP/1.1 (keep-alive, Content-Length) for ``/info`` and ``/v1/chat/completions``, answers 429 above
its limit, and prints its URL when it is ready. For protocol faults there is ``tests/fake_tgi.py``.
"""

import argparse
import asyncio
import json

CAPTION = """
A wide wooden table stands near a bright window, its top scarred by long use and covered with a layer of pale dust.
Three round cups of white porcelain rest in a row along the nearer edge, and one of them has a chipped rim. Behind them
lies a folded cloth with blue stripes, its corner hanging over the side. The legs of the table are turned and painted
brown, and a low bench with a woven seat is pushed halfway under it. To the left a tall shelf holds jars of grain, a
brass scale and a stack of plates. Sunlight falls in a slanted patch across the tiled floor, where two wicker baskets
stand beside each other. The plain wall at the back is whitewashed and cracked.
""".strip().replace("\n", " ")


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
    "x-queue-time: 0\r\nx-prompt-tokens: 60\r\nx-generated-tokens: 100\r\n",
)
OVERLOADED = response("429 Too Many Requests", {"error": "Model is overloaded", "error_type": "overloaded"})


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    in_flight = 0
    served = 0

    def __init__(self, latency_s: float, limit: int) -> None:
        self.latency_s, self.limit = latency_s, limit
        self.info = response(
            "200 OK",
            {"model_id": "fast/Stand-in", "model_sha": "0" * 40, "max_concurrent_requests": limit, "version": "3.3.5"},
        )
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers once a whole request has come."""
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
        if head.startswith(b"GET /info"):
            self.transport.write(self.info)
        elif Connection.in_flight >= self.limit:
            self.transport.write(OVERLOADED)
        elif self.latency_s:
            Connection.in_flight += 1
            asyncio.get_running_loop().call_later(self.latency_s, self.answer)
        else:
            self.transport.write(ANSWER)

    def answer(self) -> None:
        """Sends the caption."""
        Connection.in_flight -= 1
        self.transport.write(ANSWER)


async def serve(latency_s: float, limit: int) -> None:
    """Serves until it is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency_s, limit), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=128)
    options = parser.parse_args()
    asyncio.run(serve(options.latency_s, options.limit))

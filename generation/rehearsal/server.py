"""A stand-in for TGI that costs next to nothing, from a bare asyncio protocol.

    python -m generation.rehearsal.server --account FILE [--slots 256] [--tokens-per-s 1000] [--fault-seed 0]

Speaks just enough HTTP/1.1 (keep-alive, Content-Length) for ``/info`` and ``/v1/chat/completions``, and answers 429
above its limit. Each of its slots writes so many tokens a second. With a fault seed it also fails one request in a
hundred: 429, 500, or a connection that is reset. It prints its URL when it is ready, and ends when its stdin closes.
What it says is a function of the request (``answers``); for the protocol there is ``tests/fake_tgi.py``.
"""

import argparse
import asyncio
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import cast

import orjson
import uvloop

from ..config import STAND_IN
from .account import Account
from .answers import Reply, reply

SLOTS, TOKENS_PER_S = 256, 1_000.0
FAULT_SHARE = {"429": 0.004, "500": 0.003, "reset": 0.003}  # of the requests
PROBE = b"/v1/chat/completions?probe"  # asked by ``load``: answered alike, accounted apart


def response(status: str, body: object, headers: str = "") -> bytes:
    """The bytes of one HTTP response."""
    content = orjson.dumps(body)
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


FAULTS = {
    "429": response("429 Too Many Requests", {"error": "Model is overloaded", "error_type": "overloaded"}),
    "500": response("500 Internal Server Error", {"error": "Incomplete generation", "error_type": "incomplete"}),
    "422": response("422 Unprocessable Entity", {"error": "no request of a rehearsal", "error_type": "validation"}),
    "503": response("503 Service Unavailable", "upstream connect error"),
    "reset": b"",
}
NOT_FOUND = response("404 Not Found", {})


def completion(model: str, text: str, finish_reason: str, prompt_tokens: int, completion_tokens: int) -> bytes:
    """The response that bears an answer, with TGI's headers."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    headers = f"x-prompt-tokens: {prompt_tokens}\r\nx-generated-tokens: {completion_tokens}\r\nx-total-time: 1\r\n"
    return response(
        "200 OK", {"object": "chat.completion", "model": model, "choices": choices, "usage": usage}, headers
    )


class Stand(ABC):
    """What all connections share: how many requests may be in flight, what is answered, and the account.

    Args:
        limit: requests in flight.
        model: the name that ``/info`` gives.
    """

    def __init__(self, limit: int, model: str) -> None:
        self.limit, self.in_flight = limit, 0
        facts = {"model_id": model, "model_sha": "0" * 40, "max_concurrent_requests": limit, "version": "3.3.5"}
        self.pages = {b"/info": response("200 OK", facts)}

    def page(self, path: bytes) -> bytes:
        """The response to a GET."""
        return self.pages.get(path, NOT_FOUND)

    @abstractmethod
    def fault(self, path: bytes) -> str | None:
        """Counts a request, and says how it is spoiled: a key of ``FAULTS``, or None."""

    @abstractmethod
    def reply(self, path: bytes, body: bytes) -> tuple[float, bytes, Reply | None]:
        """How many seconds the answer takes, its bytes, and what it is for the account."""

    @abstractmethod
    def ended(self, path: bytes, what: str | None, reply: Reply | None) -> None:
        """Counts the end of a request: an answer (None), one ``refused`` for want of a place, or one that was
        ``lost``, its client having gone away."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.buffer = b""
        self.waiting: tuple[bytes, bytes, Reply | None] | None = None  # path, response, and for the account

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        """Frees the place of a request whose client went away."""
        if self.waiting:
            path, _, what = self.waiting
            self.waiting = None
            self.stand.in_flight -= 1
            self.stand.ended(path, "lost", what)

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
        method, path, _ = head.split(b" ", 2)
        if method == b"POST" and path.startswith(b"/v1/chat/completions"):
            self.generate(path, rest)
        else:
            self.transport.write(self.stand.page(path))

    def generate(self, path: bytes, body: bytes) -> None:
        """One generation request: spoiled, refused, or answered once its tokens are written."""
        stand = self.stand
        fault = stand.fault(path)
        if fault == "reset":
            self.transport.abort()
        elif fault:
            self.transport.write(FAULTS[fault])
        elif stand.in_flight >= stand.limit:
            stand.ended(path, "refused", None)
            self.transport.write(FAULTS["429"])
        else:
            seconds, content, what = stand.reply(path, body)
            stand.in_flight += 1
            self.waiting = path, content, what
            if seconds:
                asyncio.get_running_loop().call_later(seconds, self.answer)
            else:
                self.answer()

    def answer(self) -> None:
        """Sends the answer, if its client is still there."""
        if self.waiting:
            path, content, what = self.waiting
            self.waiting = None
            self.stand.in_flight -= 1
            self.stand.ended(path, None, what)
            self.transport.write(content)


class RehearsalStand(Stand):
    """The stand-in of a rehearsal.

    Args:
        account: what it counts into.
        slots: requests that are answered at a time.
        tokens_per_s: that each of them writes.
        fault_seed: of the faults; None for a server without any.
    """

    def __init__(self, account: Account, slots: int, tokens_per_s: float, fault_seed: int | None) -> None:
        super().__init__(slots, STAND_IN)
        self.account, self.tokens_per_s = account, tokens_per_s
        self._draw = Random(fault_seed) if fault_seed is not None else None
        account.begin()

    def fault(self, path: bytes) -> str | None:
        """See ``Stand``."""
        if path == PROBE:
            return None
        self.account.add("requests")
        if self._draw is None:
            return None
        drawn = self._draw.random()
        for fault, share in FAULT_SHARE.items():
            drawn -= share
            if drawn < 0:
                self.account.add(fault)
                return fault
        return None

    def reply(self, path: bytes, body: bytes) -> tuple[float, bytes, Reply | None]:
        """See ``Stand``."""
        try:
            said = reply(body)
        except (LookupError, TypeError, ValueError):
            return 0.0, FAULTS["422"], None
        self.account.add("in_flight")
        content = completion(STAND_IN, said.text, said.finish_reason, said.prompt_tokens, said.completion_tokens)
        return said.completion_tokens / self.tokens_per_s, content, said

    def ended(self, path: bytes, what: str | None, reply: Reply | None) -> None:
        """See ``Stand``."""
        if reply:
            self.account.add("in_flight", -1)
        if what:
            self.account.add(what)
        elif path == PROBE:
            self.account.add("probes")
        elif reply and reply.warm_up:
            self.account.add("warm_ups")
        elif reply:
            self.account.answered(reply.kind, reply.key)


async def serve(stand: Stand, port: int = 0, until_stdin_closes: bool = False) -> None:
    """Serves until it is killed, or until nobody holds its stdin any more; prints its URL when it is ready."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stand), "127.0.0.1", port, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    if not until_stdin_closes:
        return await server.serve_forever()
    closed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    await closed.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--account", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--tokens-per-s", type=float, default=TOKENS_PER_S, help="of each slot")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault-seed", type=int)
    options = parser.parse_args()
    stand = RehearsalStand(Account(options.account), options.slots, options.tokens_per_s, options.fault_seed)
    uvloop.run(serve(stand, options.port, until_stdin_closes=True))


if __name__ == "__main__":
    main()

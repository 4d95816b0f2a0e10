"""HTTP for the test hub: bodies, tokens, answers, scripted faults, and the record of what was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.fake_hub_requests import ROUTES, Answer, Asked, find_route
from tests.fake_hub_routes import Routes
from tests.fake_hub_store import Refusal

_OPEN = ("lfs_upload", "lfs_complete")  # the key in their links stands for the token
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What goes wrong at which requests of a route.

    Args:
        route: a name of `fake_hub_requests.ROUTES`.
        at: ordinals from 0 among the requests of this route, in order of arrival.
        kind: a status to answer with; ``reset``: the connection is closed and nothing done; ``hang``: no answer while
            the hub lasts; ``lost``: all is done, but the connection is closed before the answer.

    Raises:
        ValueError: there is no such route.
    """

    route: str
    at: frozenset[int] | set[int]
    kind: int | Literal["reset", "hang", "lost"]

    def __post_init__(self) -> None:
        if self.route not in ROUTES:
            raise ValueError(f"no such route: {self.route}; known: {', '.join(ROUTES)}")


@dataclass
class Seen:
    """A request as it is remembered, without token and bodies."""

    method: str
    route: str
    path: str
    authorized: bool  # it came with a token, be it a wrong one
    range: str | None
    status: int | None = None  # None while or if unanswered
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body


class HubServer(ThreadingHTTPServer):
    """Listens on loopback, a thread for each connection.

    Args:
        token: the one that is good.
        faults: what goes wrong.
        user, part_bytes: as for `Access`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, token: str, user: str, part_bytes: int, faults: Iterable[Fault]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token, self.routes, self.lock = token, Routes(self.url, user, part_bytes), threading.Lock()
        self.closing = threading.Event()
        self._seen: list[Seen] = []
        self._arrived: Counter[str] = Counter()
        self._faults: dict[tuple[str, int], int | str] = {}
        self.script(faults)

    def script(self, faults: Iterable[Fault]) -> None:
        """Replaces what goes wrong; ordinals count from here."""
        with self.lock:
            self._arrived.clear()
            self._faults = {(fault.route, ordinal): fault.kind for fault in faults for ordinal in fault.at}

    def arrive(self, seen: Seen) -> int | str | None:
        """Remembers a request; gives the fault that it meets."""
        with self.lock:
            self._seen.append(seen)
            self._arrived[seen.route] += 1
            return self._faults.get((seen.route, self._arrived[seen.route] - 1))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def seen(self) -> list[Seen]:
        """What was asked so far, in order of arrival."""
        with self.lock:
            return [replace(one) for one in self._seen]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True
    server: HubServer

    def _serve(self) -> None:
        route, parts, query = find_route(self.command, self.path)
        sent_token, span = self.headers.get("Authorization"), self.headers.get("Range")
        seen = Seen(self.command, route, self.path.partition("?")[0], sent_token is not None, span)
        fault = self.server.arrive(seen)
        if fault == "hang":
            self.server.closing.wait()
        body = None if fault in ("hang", "reset") else self._body()
        if body is None:
            return self._drop()
        seen.received = len(body)
        try:
            if isinstance(fault, int):
                raise Refusal(fault, "scripted")
            asked = Asked(route, parts, query, self._authorized(route, sent_token), span, body)
            with self.server.lock:
                answer = self.server.routes.answer(asked)
        except Refusal as refusal:
            answer = _told(refusal)
        except Exception as error:  # a request that nobody thought of; 501 is not asked again
            answer = _told(Refusal(501, f"the test hub failed at {self.command} {self.path}: {error!r}"))
        if fault == "lost":
            return self._drop()
        self._send(answer, seen)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _authorized(self, route: str, sent: str | None) -> bool:
        if sent is None or route in _OPEN:
            return False
        if sent != f"Bearer {self.server.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def _body(self) -> bytes | None:
        """The body, or None where the client went away in the middle of it."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size)
            return body if len(body) == size else None
        chunks = []
        while line := self.rfile.readline():
            size = int(line, 16)
            chunks.append(self.rfile.read(size + 2)[:-2])
            if size == 0:
                return b"".join(chunks)
        return None

    def _send(self, answer: Answer, seen: Seen) -> None:
        raw = isinstance(answer.body, bytes)
        body: bytes = answer.body if raw else json.dumps(answer.body).encode()
        seen.status, seen.sent = answer.status, 0 if self.command == "HEAD" else len(body)
        self.send_response(answer.status)
        kind = "application/octet-stream" if raw else "application/json; charset=utf-8"
        headers: Mapping[str, Any] = {"Content-Type": kind, "Content-Length": len(body), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `Seen` is the log."""


def _told(refusal: Refusal) -> Answer:
    message = " ".join(str(refusal).split()).encode("ascii", "backslashreplace").decode()
    code = {"X-Error-Code": refusal.code} if refusal.code else {}
    return Answer({"error": str(refusal)}, refusal.status, {"X-Error-Message": message, **code, **refusal.headers})

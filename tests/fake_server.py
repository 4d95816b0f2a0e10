"""An aiohttp application on loopback in a thread of its own, which may start slowly, go away and come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import web

_T = TypeVar("_T")
_GRACE_S = 90.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class LocalServer:
    """Serves ``app()`` on ``url`` while its ``with`` block lasts.

    Args:
        port: 0 takes a free one.
        start_delay_s: for so long after the block is entered, the port refuses connections.
    """

    def __init__(self, port: int = 0, start_delay_s: float = 0.0) -> None:
        self.url = ""
        self._port, self._start_delay_s = port, start_delay_s
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def app(self) -> web.Application:
        """What is served."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        """Start the server; return once it listens, or at once where the start is to be slow."""
        self._bind()
        self._port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._thread.start()
        self._ready.result(timeout=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections and stop the thread."""
        if self._thread.is_alive():  # else it was terminated
            self._ready.result().call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)

    def in_loop(self, call: Callable[[], _T]) -> _T:
        """Call a function in the server's thread and give back what it returns."""

        async def run() -> _T:
            return call()

        return self._wait(run())

    def restart(self, down_s: float = 0.0) -> None:
        """Reset every connection and close the port; open it again after ``down_s``. Returns once it is closed."""
        self._wait(self.go_down(down_s))

    def terminate(self) -> None:
        """What SIGTERM does (section 2.3 of tgi-facts.md): no new connection, no idle one; open requests finish."""
        self._wait(self._drain())
        self._thread.join(timeout=30)

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(call, self._ready.result()).result(timeout=_GRACE_S + 30)

    def _bind(self) -> None:
        """Take the port without listening on it: so it refuses connections, and nobody else gets it."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self._port))

    async def _open(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._site = web.SockSite(self._runner, self._socket, backlog=1024)
        await self._site.start()

    async def _serve(self) -> None:
        # handler_cancellation: a client that goes away frees its place, as with hyper (section 2.3)
        self._runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        self._opening = asyncio.create_task(self._open(self._start_delay_s))
        if self._start_delay_s == 0:
            await self._opening
        self._ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        self._opening.cancel()
        await self._runner.cleanup()
        self._socket.close()

    async def _close_port(self) -> None:
        self._opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._opening
        if self._runner.sites:
            await self._site.stop()

    async def ended(self) -> None:
        """Called in the server's thread when a restart has reset the connections, before the port opens again."""

    async def go_down(self, down_s: float) -> None:
        """What `restart` does in the server's thread."""
        await self._close_port()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                peer = connection.transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                connection.transport.abort()
        await self.ended()
        self._socket.close()
        self._bind()
        self._opening = asyncio.create_task(self._open(down_s))

    async def _drain(self) -> None:
        await self._close_port()
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()
        await self._runner.server.shutdown(timeout=_GRACE_S)
        self._stop.set()


_Self = TypeVar("_Self", bound=LocalServer)

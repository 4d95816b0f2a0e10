"""The fake TGI server's capacity: permits, a FIFO queue, the batch that runs, and what makes a whole batch fail.

References are to the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fake_tgi_metrics import COUNTS, Metrics
from tests.fake_tgi_requests import Refusal, failed


@dataclass
class Settings:
    """What may be changed while the server runs."""

    max_concurrent_requests: int = 128  # permits; 429 above
    batch_slots: int | None = None  # of the permitted, so many run at once and the others queue; None: all run
    latency_s: float = 0.0  # of one generation, the queue left out
    api_key: str | None = None
    model_id: str = "fake/Model-Instruct"
    poison: str | None = None  # a prompt that holds it fails, and all that runs with it
    fault_rate: float = 0.0
    fault_kinds: tuple[str, ...] = ()
    healthy: bool = True  # False: /health says 503
    frozen: bool = False  # True: what needs the model is taken and not answered until it is False again


@dataclass(eq=False)
class _Entry:
    """One backend request, in the queue and then in the batch."""

    reserved: int  # tokens
    breaks: str | None  # the shard's error message, which the whole batch gets
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Engine:
    """Router's permits and backend's batch (sections 1.6, 2.3 and 3.2); used in the server's thread alone."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.in_flight, self.max_in_flight, self.suspect = 0, 0, False
        self._queue: deque[_Entry] = deque()
        self._running: dict[_Entry, None] = {}
        self._reserved = 0
        self._held: list[_Entry] = []  # their time is up, but the model is frozen
        self._thawed = asyncio.Event()

    @property
    def queued(self) -> int:
        """Requests that hold a permit and wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @contextlib.contextmanager
    def permits(self, count: int) -> Iterator[None]:
        """Permits are tried, never awaited, and held until the answer is sent (section 2.3)."""
        if count == 0 or self.in_flight + count > self.settings.max_concurrent_requests:
            raise Refusal(429, "Model is overloaded", "overloaded")
        self.in_flight += count
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= count

    async def run(self, prompt: str, reserved: int, breaks: str | None = None) -> float:
        """Wait for a slot and run for the latency; gives the seconds spent in the queue.

        Args:
            reserved: the tokens for which the backend reserves memory.
            breaks: an error of the shard that this request causes, for itself and all that run with it.
        """
        if self.settings.poison is not None and self.settings.poison in prompt:
            breaks = "poisonous prompt"
        loop, entry = asyncio.get_running_loop(), _Entry(reserved, breaks)
        start = loop.time()
        self._queue.append(entry)
        self.settle()
        try:
            await entry.admitted
            waited = loop.time() - start
            await entry.done
            return waited
        finally:
            if entry in self._running:
                del self._running[entry]
                self._reserved -= reserved
            elif entry in self._queue:
                self._queue.remove(entry)
            self.settle()

    def settle(self) -> None:
        """Follow a change: of the settings, or of who waits and runs."""
        slots = self.settings.batch_slots
        while self._queue and (slots is None or len(self._running) < slots):
            entry = self._queue.popleft()
            if not entry.admitted.done():  # else its client has gone
                self._admit(entry)
        self.metrics.gauge("tgi_queue_size", len(self._queue))
        self.metrics.gauge("tgi_batch_current_size", len(self._running))
        self.metrics.gauge("tgi_batch_current_max_tokens", self._reserved)
        if not self.settings.frozen:
            self._thawed.set()
            held, self._held = self._held, []
            for entry in held:
                self._finish(entry)
        else:
            self._thawed.clear()

    def fail_batch(self, problem: str) -> int:
        """The shard fails: 424 for all that runs, while the queue goes on (section 1.5); gives their number."""
        hit = [entry for entry in self._running if not entry.done.done()]
        for entry in hit:
            entry.done.set_exception(failed(problem))
        self.suspect = True
        self.metrics.count("tgi_batch_inference_failure", 'method="prefill"')
        return len(hit)

    async def thawed(self) -> None:
        """Return once the model is not frozen."""
        while self.settings.frozen:
            await self._thawed.wait()

    def prefill(self) -> None:
        """One run of the model without a request behind it, as the health check needs after a failure."""
        self.suspect = False
        self._count("prefill")

    def _admit(self, entry: _Entry) -> None:
        if self._running:
            self.metrics.count("tgi_batch_concat", 'reason="chunking"')
        self._running[entry] = None
        self._reserved += entry.reserved
        entry.admitted.set_result(None)
        self.metrics.observe("tgi_batch_next_size", len(self._running), COUNTS)
        if entry.breaks is not None:
            self.fail_batch(entry.breaks)
            return
        self._count("prefill")
        asyncio.get_running_loop().call_later(self.settings.latency_s, self._finish, entry)

    def _finish(self, entry: _Entry) -> None:
        if self.settings.frozen:
            self._held.append(entry)
        elif not entry.done.done():
            self._count("decode", self.settings.latency_s)
            entry.done.set_result(None)

    def _count(self, method: str, seconds: float = 0.0) -> None:
        self.metrics.observe("tgi_batch_inference_duration", seconds, labels=f'method="{method}"')
        self.metrics.count("tgi_batch_inference_count", f'method="{method}"')
        self.metrics.count("tgi_batch_inference_success", f'method="{method}"')

"""One endpoint as the scheduler sees it: its limit, its breaker, and what is in flight on it."""

import asyncio
import logging
import time

from ..errors import ServerError, StopRun, Transient
from .breaker import Breaker
from .client import Endpoint
from .limit import START_LIMIT, AdaptiveLimit

logger = logging.getLogger(__name__)


class Lane:
    """A connected endpoint with its limit and its breaker.

    Args:
        endpoint: connected, so that its ``info`` names the model that the run is bound to.
        max_in_flight: ceiling of the limit; the server's own limit lowers it.
        start_limit: where the limit begins.
        stall_s: a server that holds requests and gives no sign for as long is taken to hang.
    """

    def __init__(
        self, endpoint: Endpoint, max_in_flight: int, start_limit: float = START_LIMIT, stall_s: float = 300.0
    ) -> None:
        served = endpoint.info.max_concurrent_requests if endpoint.info else None
        self.endpoint = endpoint
        self.limit = AdaptiveLimit(min(max_in_flight, served) if served else max_in_flight, start_limit)
        self.breaker = Breaker()
        self.answers = 0
        self.last_failure: Transient | None = None
        self.clocks: set[asyncio.Timeout] = set()  # of the requests in flight
        self.isolation = asyncio.Lock()
        self.reserved = False  # for one request that is asked alone
        self.idle = asyncio.Event()
        self._start_limit, self._stall_s = start_limit, stall_s
        self._sign_at = time.monotonic()  # of life

    @property
    def free(self) -> bool:
        """Whether one more request may start."""
        if self.reserved or self.breaker.state == "open":
            return False
        return self.limit.free if self.breaker.state == "closed" else not self.limit.in_flight

    def take(self) -> None:
        """Takes a place."""
        if not self.limit.in_flight:
            self.touch()
            self.idle.clear()
        self.limit.in_flight += 1

    def give_place_back(self) -> None:
        """Frees a place."""
        self.limit.in_flight -= 1
        if not self.limit.in_flight:
            self.idle.set()

    def touch(self) -> None:
        """Notes a sign of life."""
        self._sign_at = time.monotonic()

    def answered(self, limit_stamp: int, queue_share: float) -> None:
        """Counts an answer to a request that began at ``limit_stamp``."""
        self.answers += 1
        self.touch()
        self.limit.answered(limit_stamp, queue_share)
        if self.breaker.answered():
            logger.warning("%s answers again", self.endpoint.url)

    def failed(self, breaker_stamp: int, failure: Transient) -> None:
        """Counts a failure of a request that began at ``breaker_stamp``."""
        self.last_failure = failure
        self.touch()
        if self.breaker.failed(breaker_stamp, str(failure)):
            self._announce()

    def timed_out(self, timeout_s: float) -> Transient:
        """The failure of a request that was not answered in time."""
        return Transient(f"{self.endpoint.url}: no answer in {timeout_s:g} s", endpoint=self.endpoint.url)

    def check_stall(self) -> None:
        """Lets go of all requests, to be asked elsewhere or later, if the server holds them and gives no sign."""
        silent_s = time.monotonic() - self._sign_at
        if not self.clocks or silent_s < self._stall_s:
            return
        self.breaker.open(f"it holds {len(self.clocks)} requests and has answered none for {silent_s:.0f} s")
        self._announce()
        now = asyncio.get_running_loop().time()
        for clock in self.clocks:
            clock.reschedule(now)

    async def probe(self) -> bool:
        """Asks a server whose pause is over whether it is there again; returns whether requests may be tried.

        Raises:
            StopRun: it now serves another model, or refuses the key.
        """
        before = self.endpoint.info
        try:
            info = await self.endpoint.connect()
            await self.endpoint.check_health()
        except StopRun:
            raise
        except ServerError as error:
            self.breaker.open(str(error))
            self._announce()
            return False
        if before and (info.model_id, info.model_sha) != (before.model_id, before.model_sha):
            raise StopRun(
                f"{self.endpoint.url} now serves {info.model_id} (sha {info.model_sha}); this run began with "
                f"{before.model_id} (sha {before.model_sha})"
            )
        self.limit.restart(self._start_limit)
        self.breaker.state = "half_open"
        return True

    def _announce(self) -> None:
        seconds = max(0.0, self.breaker.retry_at - time.monotonic())
        logger.warning("%s is left alone for %.0f s: %s", self.endpoint.url, seconds, self.breaker.reason)

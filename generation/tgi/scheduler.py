"""Spreads requests over endpoints: a limit per endpoint that is found, not configured, and retries outside it.

The limit of an endpoint doubles for every limit's worth of answers until the server first says 429; from then on it
grows by one and falls by a quarter at each burst of 429 (slow start, then additive increase and multiplicative
decrease, as TCP does it: RFC 5681). A request that fails gives its place back at once; its back-off,
jittered, is slept outside.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ..config import Server
from ..errors import Overloaded, RequestRefused, StopRun, Transient
from .client import API_KEY_VARIABLE, Answer, Endpoint, Request, ServerInfo
from .embedded import embedded_server

T = TypeVar("T")
START_LIMIT = 8.0
DECREASE = 0.75
BACKOFF_CEILING_S = 30.0
CONNECT_ATTEMPTS = 4


class AdaptiveLimit:
    """How many requests one endpoint may hold at a time.

    Args:
        ceiling: never more than this.
        start: where it begins.
    """

    def __init__(self, ceiling: int, start: float = START_LIMIT) -> None:
        self.ceiling = ceiling
        self.value = min(start, float(ceiling))
        self.in_flight = 0
        self._answers_since_cut = 0
        self._refused = False

    @property
    def free(self) -> bool:
        """Whether one more request may start."""
        return self.in_flight < int(self.value)

    def answered(self) -> None:
        """Counts an answer: the limit grows by one, after the first 429 by ``1 / limit``, if it was in use."""
        self._answers_since_cut += 1
        if self.in_flight >= int(self.value) - 1:
            step = 1 / self.value if self._refused else 1.0
            self.value = min(self.value + step, float(self.ceiling))

    def refused(self) -> None:
        """Counts a 429: the limit falls, once for all the refusals of one burst."""
        self._refused = True
        if self._answers_since_cut:
            self.value = max(1.0, self.value * DECREASE)
            self._answers_since_cut = 0


class Scheduler:
    """Asks the least loaded of its endpoints, and asks again what failed.

    Args:
        endpoints: connected endpoints, all serving one model.
        max_in_flight: ceiling of each endpoint's limit; the server's own limit lowers it.
        retries: how often a request that failed in transit or on the server is asked again.
        start_limit: where each endpoint's limit begins.
    """

    def __init__(
        self, endpoints: Iterable[Endpoint], max_in_flight: int, retries: int, start_limit: float = START_LIMIT
    ) -> None:
        self.endpoints = list(endpoints)
        self.limits = [AdaptiveLimit(_ceiling(e.info, max_in_flight), start_limit) for e in self.endpoints]
        self.answers = 0
        self.requests = 0
        self.retries: dict[str, int] = {"Overloaded": 0, "Transient": 0}
        self._waiting: deque[asyncio.Future[int]] = deque()
        wait = wait_random_exponential(multiplier=0.25, max=BACKOFF_CEILING_S)
        # A 429 says that the request is good, so it is never given up; other failures are.
        self._patient = AsyncRetrying(retry=retry_if_exception_type(Overloaded), wait=wait, reraise=True)
        self._bounded = AsyncRetrying(
            retry=retry_if_exception_type(Transient), wait=wait, stop=stop_after_attempt(retries + 1), reraise=True
        )

    @property
    def workers(self) -> int:
        """How many requests can be in flight at most."""
        return sum(limit.ceiling for limit in self.limits)

    @property
    def model_id(self) -> str:
        """The model that all endpoints serve."""
        info = self.endpoints[0].info
        assert info is not None
        return info.model_id

    async def ask(self, request: Request) -> Answer:
        """The answer to ``request``, from whichever endpoint.

        Raises:
            RequestRefused: the server refuses this very prompt.
            Transient: all retries failed, though other requests were answered meanwhile: this prompt is to blame.
            StopRun: all retries failed and nothing else was answered meanwhile, or the endpoint is unusable.
        """
        before = self.answers
        try:
            try:
                answer = await self._ask_once(request)
            except (Overloaded, Transient) as failure:
                answer = await self._ask_again(request, failure)
        except Transient as error:
            if self.answers == before:
                raise StopRun(f"{error}. No request was answered since; is the server still up?") from error
            raise
        self.answers += 1
        return answer

    async def warm_up(self, request: Request) -> None:
        """Sends one short request to every endpoint, so that a schema, sampling value or key that the server does not
        take stops the run before it has touched a row.

        Raises:
            StopRun: an endpoint refuses it or fails it.
        """
        for endpoint in self.endpoints:
            try:
                await self._retrying(partial(endpoint.ask, replace(request, max_tokens=16)))()
            except (RequestRefused, Transient) as error:
                raise StopRun(f"the warm-up request of prompt {request.prompt.name} failed: {error}") from error

    async def _ask_again(self, request: Request, failure: Overloaded | Transient) -> Answer:
        """Retries, with ``failure`` as the first attempt: the common case, success, pays nothing for the machinery."""
        failures = [failure]

        async def attempt() -> Answer:
            if failures:
                raise failures.pop()
            return await self._ask_once(request)

        return await self._retrying(attempt)()

    def _retrying(self, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        return self._bounded.wraps(self._patient.wraps(attempt))

    async def _ask_once(self, request: Request) -> Answer:
        place = await self._take_place()
        limit = self.limits[place]
        self.requests += 1
        try:
            answer = await self.endpoints[place].ask(request)
            limit.answered()
            return answer
        except Overloaded:
            self.retries["Overloaded"] += 1
            limit.refused()
            raise
        except Transient:
            self.retries["Transient"] += 1
            raise
        finally:
            self._give_place_back(limit)

    async def _take_place(self) -> int:
        """The number of an endpoint with a place, which is then taken; waits in line while there is none."""
        place = self._freest()
        if place is not None and not self._waiting:
            self.limits[place].in_flight += 1
            return place
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_place_back(self.limits[turn.result()])
            raise

    def _give_place_back(self, limit: AdaptiveLimit) -> None:
        """Frees a place and hands what is free to those in line, whose places count as taken from then on."""
        limit.in_flight -= 1
        while self._waiting and (place := self._freest()) is not None:
            turn = self._waiting.popleft()
            if not turn.done():
                self.limits[place].in_flight += 1
                turn.set_result(place)

    def _freest(self) -> int | None:
        """The endpoint with the smallest share of its limit in use, or None if no limit has room."""
        free = [number for number, limit in enumerate(self.limits) if limit.free]
        return min(free, key=lambda i: self.limits[i].in_flight / self.limits[i].value, default=None)


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Scheduler]:
    """Connects to the endpoints of a recipe, or starts the embedded default, and yields a scheduler over them.

    Raises:
        StopRun: an endpoint cannot be reached or used, or two of them serve different models.
    """
    # aiohttp would never open more than 100 connections by default.
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=server.timeout_s)
    async with AsyncExitStack() as stack:
        urls, ceiling, start = server.endpoints, server.max_in_flight, START_LIMIT
        if not urls:
            urls = (stack.enter_context(embedded_server(server.embedded)),)
            ceiling = start = server.embedded.slots  # what it can serve is known
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        key = os.environ.get(API_KEY_VARIABLE)
        endpoints = [Endpoint(url, session, server.api, key) for url in urls]
        await _connect_all(endpoints)
        yield Scheduler(endpoints, ceiling, server.retries, start)


async def _connect_all(endpoints: list[Endpoint]) -> None:
    connecting = AsyncRetrying(
        retry=retry_if_exception_type((Transient, Overloaded)),
        wait=wait_random_exponential(multiplier=0.5, max=4),
        stop=stop_after_attempt(CONNECT_ATTEMPTS),
        reraise=True,
    )
    try:
        infos = await asyncio.gather(*(connecting.wraps(endpoint.connect)() for endpoint in endpoints))
    except (Transient, Overloaded) as error:
        raise StopRun(f"endpoint cannot be reached: {error}") from error
    models = {(info.model_id, info.model_sha): endpoint.url for endpoint, info in zip(endpoints, infos, strict=True)}
    if len(models) > 1:
        served = "; ".join(f"{url} serves {model}" for (model, _), url in models.items())
        raise StopRun(f"all endpoints must serve one model at one revision, but {served}")


def _ceiling(info: ServerInfo | None, max_in_flight: int) -> int:
    served: Any = info.max_concurrent_requests if info else None
    return min(max_in_flight, served) if served else max_in_flight

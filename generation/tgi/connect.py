"""From the recipe's ``server`` section to a scheduler over connected endpoints, watched until it is done with."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ..config import Server
from ..errors import Overloaded, StopRun, Transient
from .client import Endpoint
from .embedded import embedded_server
from .lane import Lane
from .limit import START_LIMIT
from .protocol import API_KEY_VARIABLE
from .scheduler import Scheduler

logger = logging.getLogger(__name__)
CONNECT_ATTEMPTS = 4
SOCKET_CONNECT_S = 10.0
WATCH_S = 0.25  # between two looks at a lane
QUEUE_LOOKS = 8  # looks at a lane for each look at its /metrics


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Scheduler]:
    """Connects to the endpoints of a recipe, or starts the embedded default, and yields a scheduler over them.

    Raises:
        StopRun: an endpoint cannot be reached or used, or two of them serve different models.
    """
    async with AsyncExitStack() as stack:
        urls, ceiling, start = server.endpoints, server.max_in_flight, START_LIMIT
        if not urls:
            urls = (stack.enter_context(embedded_server(server.embedded)),)
            ceiling = start = server.embedded.slots  # what it can serve is known
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the default is 100 connections
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=SOCKET_CONNECT_S),
            )
        )
        key = os.environ.get(API_KEY_VARIABLE)
        endpoints = [Endpoint(url, session, server.api, key) for url in urls]
        await _connect_all(endpoints)
        lanes = [Lane(endpoint, ceiling, start, server.stall_s) for endpoint in endpoints]
        scheduler = Scheduler(lanes, server.retries, server.timeout_s, server.give_up_s)
        watches = [asyncio.create_task(_watch(scheduler, lane)) for lane in lanes]
        try:
            yield scheduler
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)


async def _watch(scheduler: Scheduler, lane: Lane) -> None:
    """Looks after a lane: hung servers, servers that come back, queues, and the end of patience."""
    looks = 0
    try:
        while True:
            await asyncio.sleep(WATCH_S)
            looks += 1
            lane.check_stall()
            scheduler.check_progress()
            if lane.breaker.due and await lane.probe():
                scheduler.hand_out()
            if looks % QUEUE_LOOKS == 0 and lane.breaker.state == "closed":
                lane.limit.queued(await lane.endpoint.queue_size() or 0)
    except StopRun as error:
        scheduler.stop(error)
    except Exception as error:
        scheduler.stop(StopRun(f"{lane.endpoint.url}: the watch over it failed: {error!r}"))
        raise


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

"""From the recipe's ``server`` section to a scheduler over connected endpoints."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ..config import Server
from ..errors import FatalServerError
from .client import Endpoint, open_session
from .embedded import EMBEDDED_SLOTS, embedded_server
from .endpoint_state import EndpointState, keep_trying, same_model
from .limit import START_LIMIT
from .scheduler import Scheduler


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Scheduler]:
    """Yield a scheduler over the endpoints, or over the embedded model; servers that are loading are waited for.

    FatalServerError: an endpoint cannot be reached or used, or two of them serve different models.
    """
    async with AsyncExitStack() as stack:
        urls, slots = server.endpoints, START_LIMIT
        if not urls:
            urls, slots = (stack.enter_context(embedded_server()),), EMBEDDED_SLOTS
        session = await stack.enter_async_context(open_session())
        endpoints = [Endpoint(url, server, session) for url in urls]
        infos = await asyncio.gather(*(keep_trying(e.connect, e.url, server.give_up_s) for e in endpoints))
        if not all(same_model(infos[0], info) for info in infos):
            served = (f"{e.url}: {i.model_id} ({i.model_revision})" for e, i in zip(endpoints, infos, strict=True))
            raise FatalServerError("All endpoints must serve one model at one revision, but: " + "; ".join(served))
        scheduler = Scheduler([EndpointState(endpoint, server, slots) for endpoint in endpoints], server)
        stack.push_async_callback(scheduler.close)
        yield scheduler

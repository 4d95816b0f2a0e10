"""From the recipe's ``server`` section to a scheduler over connected endpoints."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ..config import Server
from .client import Endpoint, open_session
from .embedded import EMBEDDED_SLOTS, embedded_server
from .endpoint_state import EndpointState
from .limit import START_LIMIT
from .scheduler import Scheduler


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Scheduler]:
    """Yield a scheduler over the endpoints, or over the embedded model, once one of them answers.

    FatalServerError: an endpoint cannot be used, none answers, or two of them serve different models.
    """
    async with AsyncExitStack() as stack:
        urls, slots = server.endpoints, START_LIMIT
        if not urls:
            urls, slots = (stack.enter_context(embedded_server()),), EMBEDDED_SLOTS
        session = await stack.enter_async_context(open_session())
        scheduler = Scheduler([EndpointState(Endpoint(url, server, session), server, slots) for url in urls], server)
        stack.push_async_callback(scheduler.close)
        await scheduler.connect()
        yield scheduler

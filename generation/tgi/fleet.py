"""The endpoints of a run: connect to them, see that they serve one model, choose the least loaded."""

import asyncio
from collections.abc import Sequence

from ..config import Server
from ..errors import FatalServerError
from .endpoint_state import FAILURES_IN_A_ROW, EndpointState
from .protocol import Request, ServerInfo

MAY_PASS = (None, 408, 429, 502, 503, 504)  # HTTP status of a server that is not there yet


class Fleet:
    """Endpoints that serve one model. One that is away is tried again."""

    def __init__(self, states: Sequence[EndpointState], settings: Server) -> None:
        self.states, self.settings, self.loop = states, settings, asyncio.get_running_loop()
        self.infos: list[ServerInfo] = []  # what the endpoints have said of themselves; the first began the run
        self.good: Request | None = None  # answered before

    @property
    def running(self) -> int:
        """Requests in flight."""
        return sum(state.running for state in self.states)

    def body(self, request: Request) -> bytes:
        """Return the JSON of a request as an endpoint is sent it."""
        return next(state.endpoint for state in self.states if state.endpoint.info).body(request)

    def least_loaded(self) -> EndpointState | None:
        """Return the free endpoint with the smallest share of its limit in use."""
        free = [state for state in self.states if state.is_free()]
        return min(free, key=lambda state: state.running / state.limit.value, default=None)

    def failures(self) -> str:
        """Return how each endpoint failed last."""
        return "; ".join(str(state.last_failure or f"{state.endpoint.url}: no answer") for state in self.states)

    async def connect(self) -> None:
        """Wait until one endpoint can be used; FatalServerError: one cannot, or none answers."""
        start, failures = self.loop.time(), 0
        while True:
            await asyncio.gather(*(state.check(None, self.agree) for state in self.states))
            if any(state.reachable for state in self.states):
                return
            statuses = [state.last_failure.status for state in self.states if state.last_failure]
            failures += not {*statuses} & {*MAY_PASS}
            seconds, wait_s = self.loop.time() - start, min(s.check_at for s in self.states) - self.loop.time()
            if failures >= FAILURES_IN_A_ROW or seconds + wait_s >= self.settings.give_up_s:
                raise FatalServerError(f"{self.failures()} (tried for {seconds:.0f} s)", statuses[0])
            await asyncio.sleep(wait_s)

    def agree(self, url: str, info: ServerInfo) -> None:
        """Note what an endpoint serves; FatalServerError: another model than the others, as far as they say."""
        first = self.infos[0] if self.infos else info
        models, revisions = {first.model_id, info.model_id}, {first.model_revision, info.model_revision}
        if len(models - {"unknown"}) > 1 or len(revisions - {None}) > 1:
            raise FatalServerError(
                f"{url} serves {info.model_id} ({info.model_revision}), but this run began with {first.model_id} "
                f"({first.model_revision}): all endpoints must serve one model at one revision"
            )
        self.infos += [] if info in self.infos else [info]

    async def warm_up(self, requests: Sequence[Request]) -> None:
        """Have ``requests`` answered before any row, one for each prompt and schema with its longest values: by one
        endpoint now, by the others as they come. FatalServerError: one is refused, too long, or gets no text."""
        for state in self.states:
            state.trials, state.reachable = requests, False
        await self.connect()
        self.good = requests[0] if requests else None

"""A fake Text Generation Inference 3.3 server: its routes, checks, errors and headers, without a model.

Written from sections 1 to 3 of the TGI fact sheet (tgi-facts.md), to which the docstrings refer. Its parts: routes in
`fake_tgi_routes`, what it takes in `fake_tgi_requests`, capacity in `fake_tgi_engine`, faults in `fake_tgi_faults`,
what it says in `fake_tgi_answers` and `fake_tgi_bodies`. In a test: `with FakeTGI() as server: ... server.url`.
As a process: `python -m tests.fake_tgi --port 0 --latency-s 0.05`, which prints its URL when ready; it is then
changed over `POST /_control`, such as `{"batch_slots": 4}`, `{"fail_batch": true}` or `{"restart": {"down_s": 2}}`.
Left out: streamed tool calls, prefill log probabilities and the documentation routes.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from tests.fake_server import LocalServer
from tests.fake_tgi_engine import Engine, Settings
from tests.fake_tgi_faults import KINDS, Fault, FaultScript
from tests.fake_tgi_metrics import Metrics
from tests.fake_tgi_requests import Refusal
from tests.fake_tgi_routes import Routes, json_response

__all__ = ["FakeTGI", "Fault"]
_SETTINGS = {field.name for field in dataclasses.fields(Settings)}


class FakeTGI(LocalServer):
    """The server in a thread of its own: `with FakeTGI() as server:` serves on `server.url` until the block ends.

    Args:
        faults: what goes wrong at which generation requests.
        fault_rate: the share of the other generation requests at which one of `fault_kinds` happens.
        fault_seed: decides which these are.
        settings: those of `Settings`, all of which `configure` changes while the server runs.
    """

    def __init__(
        self,
        max_concurrent_requests: int = 128,
        api_key: str | None = None,
        latency_s: float = 0.0,
        faults: Iterable[Fault] = (),
        model_id: str = "fake/Model-Instruct",
        port: int = 0,
        *,
        batch_slots: int | None = None,
        poison: str | None = None,
        fault_rate: float = 0.0,
        fault_kinds: Iterable[str] = (),
        fault_seed: int = 0,
        start_delay_s: float = 0.0,
    ) -> None:
        super().__init__(port, start_delay_s)
        self.settings = Settings(max_concurrent_requests, batch_slots, latency_s, api_key, model_id, poison)
        self._engine, self._script = Engine(self.settings), FaultScript(faults, fault_seed)
        self._routes = Routes(self._engine, self._script)
        self._restart_as: str | None = None
        self._later: asyncio.Task[None] | None = None
        self._change({"fault_rate": fault_rate, "fault_kinds": tuple(fault_kinds)})

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What arrived so far, in order: route, body and status (None while or if unanswered)."""
        with self._routes.lock:
            return [dict(entry) for entry in self._routes.entries]

    @property
    def max_in_flight(self) -> int:
        """The most permits ever held at once."""
        return self._engine.max_in_flight

    @property
    def in_flight(self) -> int:
        """The permits held now, by those that run and those that wait for a slot."""
        return self._engine.in_flight

    @property
    def queued(self) -> int:
        """The requests that wait for a slot now."""
        return self._engine.queued

    @property
    def faults_given(self) -> Counter[str]:
        """How many requests met a fault of `faults` or `fault_rate`, by kind."""
        return Counter(self._script.given)

    def configure(self, **changes: Any) -> None:
        """Change settings while the server runs: `server.configure(batch_slots=4, max_concurrent_requests=64)`.

        Raises:
            ValueError: no such setting or kind of fault, or a rate of no kind.
        """
        self.in_loop(lambda: self._change(changes, running=True))

    def fail_batch(self) -> int:
        """Fail all that runs now with one 424 each (sections 1.5 and 2.3); gives their number."""
        return self.in_loop(lambda: self._engine.fail_batch("scripted"))

    def restart(self, down_s: float = 0.0, model_id: str | None = None) -> None:
        """Reset every connection and close the port; open it again after `down_s`, it may be with another model.

        Returns once the port is closed. Metrics start anew, and a freeze ends.
        """
        self._restart_as = model_id
        super().restart(down_s)

    async def ended(self) -> None:
        """Once the requests are gone, what a new process does not know is forgotten."""
        while self._engine.in_flight:
            await asyncio.sleep(0)
        self._engine.metrics, self._engine.suspect, self.settings.frozen = Metrics(), False, False
        self.settings.model_id = self._restart_as or self.settings.model_id

    def app(self) -> web.Application:
        """TGI's routes and `/_control`."""
        app = self._routes.app()
        app.add_routes([web.post("/_control", self._control)])
        return app

    def _change(self, changes: dict[str, Any], running: bool = False) -> None:
        unknown = (set(changes) - _SETTINGS) | (set(changes.get("fault_kinds", ())) - set(KINDS))
        if unknown:
            raise ValueError(f"no such setting or kind of fault: {', '.join(sorted(unknown))}")
        if changes.get("fault_rate") and not changes.get("fault_kinds", self.settings.fault_kinds):
            raise ValueError("a fault rate needs fault kinds")
        for name, value in changes.items():
            setattr(self.settings, name, value)
        if running:
            self._engine.settle()

    async def _control(self, request: web.Request) -> web.Response:
        """Settings by name, `fail_batch` and `restart`; answers with how the server stands."""
        asked = await request.json()
        again, fail = asked.pop("restart", None), asked.pop("fail_batch", False)
        try:
            self._change(asked, running=True)
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        failed = self._engine.fail_batch("scripted") if fail else 0
        if again is not None:
            self._later = asyncio.create_task(self._restart_soon(**again))
        return json_response(
            {
                "settings": dataclasses.asdict(self.settings),
                "in_flight": self.in_flight,
                "max_in_flight": self.max_in_flight,
                "queued": self.queued,
                "failed": failed,
                "requests": len(self._routes.entries),
                "faults_given": self.faults_given,
            }
        )

    async def _restart_soon(self, down_s: float = 0.0, model_id: str | None = None) -> None:
        await asyncio.sleep(0.05)  # the answer to the control request goes out first
        self._restart_as = model_id
        await self.go_down(down_s)


def main() -> None:
    """Serve until interrupted or terminated; print one line with the URL when ready."""
    parser = argparse.ArgumentParser(prog="tests.fake_tgi", description="A fake TGI server on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--max-concurrent-requests", type=int, default=128)
    parser.add_argument("--batch-slots", type=int)
    parser.add_argument("--api-key")
    parser.add_argument("--model-id", default="fake/Model-Instruct")
    parser.add_argument("--poison")
    parser.add_argument("--fault-rate", type=float, default=0.0)
    parser.add_argument("--fault-kinds", nargs="*", default=[], choices=KINDS)
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--start-delay-s", type=float, default=0.0)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with FakeTGI(**vars(parser.parse_args())) as server:
        print(server.url, flush=True)
        over.wait()
        server.terminate()


if __name__ == "__main__":
    main()

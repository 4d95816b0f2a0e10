"""An event loop on a virtual clock: waiting costs no time, and waiting for nothing is an error."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(BaseException):
    """Everybody waits and no timer is due, or something goes round in circles while the clock stands."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, moves the clock."""

    now, rounds = 0.0, 0

    def select(self, timeout: float | None = None) -> Any:
        self.rounds = 0 if timeout else self.rounds + 1
        if timeout is None or self.rounds > 20_000:
            raise Stuck("nothing is scheduled" if timeout is None else f"at {self.now} s")
        self.now += timeout
        return super().select(0)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop whose ``time()`` moves to the next timer whenever nothing else is to do."""

    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        early = max(self.time(), math.floor(when * 1000) / 1000)  # uvloop's timers count whole milliseconds
        return super().call_at(early, callback, *args, context=context)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Like ``asyncio.run``, on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(work)

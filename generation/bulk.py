"""Asks a server about every row of every shard of a stage: one continuous pool, one journal a shard, exact resume.

Rows stream through the pool without a barrier between shards; when the last row of a shard has ended, its journal is
sealed into Parquet in row order, so that the bytes do not depend on the order of the answers.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

import uvloop

from .ask import BulkTask, I, Row, ask, pin
from .config import Server
from .errors import Stopped, StopRun
from .files import guarded
from .journal import Journal, Record
from .progress import BulkProgress, counted
from .rundir import RunDir
from .sealing import finish_sealing, seal_shard
from .tgi.connect import connect
from .tgi.scheduler import Scheduler, Tally

logger = logging.getLogger(__name__)


def carry_out(run: RunDir, server: Server, task: BulkTask[Any]) -> None:
    """Ends every row of the task's shards that are not sealed yet, on the servers of a recipe.

    Raises:
        RunError: the stage was begun with another model, or its files cannot be written.
        ServerError: the servers cannot be used; what was answered so far is kept.
        Stopped: SIGINT or SIGTERM came; what was answered so far is kept.
    """
    finish_sealing(run, task)
    shards = run.due(task.stage, task.source)
    if not shards:
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_carry_out(run, server, task, shards))


async def _carry_out(run: RunDir, server: Server, task: BulkTask[Any], shards: list[int]) -> None:
    async with connect(server) as scheduler:
        await pin(run, task, scheduler)
        with BulkProgress(task.stage, _rows(task, shards), lambda: scheduler.in_flight) as bar:
            try:
                await _BulkStage(run, task, scheduler, bar).complete(shards, server.grace_s)
            finally:
                run.note(task.stage, sessions=[*run.stage(task.stage).get("sessions", ()), bar.session()])


def _rows(task: BulkTask[Any], shards: list[int]) -> int:
    """How many rows the shards have; some tasks read them to know."""
    return sum(map(task.count, counted(shards, f"{task.stage}, rows", "shard")))


@dataclass
class _OpenShard(Generic[I]):
    """A shard in progress."""

    number: int
    items: list[I]
    journal: Journal
    waiting: int = 0  # items that have not ended


@dataclass
class _BulkStage(Generic[I]):
    """One stage of a run in which every row is asked about."""

    run: RunDir
    task: BulkTask[I]
    scheduler: Scheduler
    progress: BulkProgress
    _open: dict[int, _OpenShard[I]] = field(default_factory=dict)
    _stopping: bool = False

    async def complete(self, shards: Iterable[int], grace_s: float) -> None:
        """Asks about the rows of ``shards`` that no journal has the end of, and seals each shard."""
        pending = self._pending(shards)
        workers: list[asyncio.Task[None]] = []

        def stop() -> None:
            """At the first signal asks no more; at the second, or after ``grace_s``, drops what is in flight."""
            if not self._stopping:
                self._stopping = True
                self.scheduler.stop(StopRun("stopped by a signal"))
                logger.warning("stopping: what is in flight has %g s; a second signal drops it", grace_s)
                asyncio.get_running_loop().call_later(grace_s, stop)
            else:
                for worker in workers:
                    worker.cancel()

        try:
            with _on_signals(stop):
                async with asyncio.TaskGroup() as group:
                    regular = [group.create_task(self._work(pending)) for _ in range(self.scheduler.places)]
                    workers += regular + [group.create_task(self._stand_in(pending)) for _ in regular]
                    await asyncio.wait(regular)
                    for _ in regular:
                        self.scheduler.naps.release()  # the stand-ins end, too
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for shard in self._open.values():
                shard.journal.close()
        if self._stopping:
            raise Stopped("stopped by a signal; nothing that was answered is lost")

    async def _work(self, pending: Iterator[tuple[_OpenShard[I], I]]) -> None:
        for shard, item in pending:
            await self._end(shard, item)

    async def _stand_in(self, pending: Iterator[tuple[_OpenShard[I], I]]) -> None:
        """Ends one item for each request of another worker that sleeps in its back-off, so that its place is used."""
        while await self.scheduler.naps.acquire() and (taken := next(pending, None)):
            await self._end(*taken)

    async def _end(self, shard: _OpenShard[I], item: I) -> None:
        tally = Tally()
        earlier = shard.journal.again.get(item.id, {})
        try:
            row = await ask(self.task, self.scheduler, item, tally, earlier.get("attempts", 0))
        except StopRun:
            if self._stopping:
                return
            raise
        shard.journal.append(_record(row, tally, earlier))
        shard.waiting -= 1
        self.progress.ended(row, tally)
        if not shard.waiting:
            self._seal(shard)

    def _pending(self, shards: Iterable[int]) -> Iterator[tuple[_OpenShard[I], I]]:
        """The items of all shards that have not ended, each with its shard, which is opened when it is reached."""
        for number in shards:
            path = self.run.journal_path(self.task.stage, number)
            guarded(path.parent, lambda: path.parent.mkdir(parents=True, exist_ok=True))  # noqa: B023
            journal = Journal(path)
            shard = _OpenShard(number, self.task.load(number), journal)
            self._open[number] = shard
            waiting = [item for item in shard.items if item.id not in journal.answered]
            shard.waiting = len(waiting)
            self.progress.skipped(len(shard.items) - shard.waiting)
            if not waiting:
                self._seal(shard)
            for item in waiting:
                if self._stopping:
                    return
                yield shard, item

    def _seal(self, shard: _OpenShard[I]) -> None:
        shard.journal.close()
        seal_shard(self.run, self.task, shard.number, shard.items, shard.journal)
        del self._open[shard.number]


def _record(row: Row, tally: Tally, earlier: Record) -> Record:
    """A journal's record of an ended item; ``earlier`` is that of its attempts before it was driven again."""
    for key in ("prompt_tokens", "completion_tokens"):
        row[key] += earlier.get(key, 0)
    record: Record = {"id": row["id"], "row": row, "requests": tally.requests}
    return record | {"retries": tally.retries} if tally.retries else record


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Has SIGINT and SIGTERM call ``act`` while the block runs."""
    loop, before = asyncio.get_running_loop(), {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

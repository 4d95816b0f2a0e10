"""Asks a server about every row of every shard of a stage: one continuous pool, one journal a shard, exact resume.

Rows stream through the pool without a barrier between shards; when the last row of a shard is answered, its journal is
sealed into Parquet in row order, so that the bytes do not depend on the order of the answers.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from .journal import Journal
from .records import REJECTED_SCHEMA
from .rundir import RunDir


class Item(Protocol):
    """What is asked about: anything with an id."""

    @property
    def id(self) -> str:
        """Ten digits, as in ``records``."""


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Outcome:
    """How one row ended: with a row for the stage's table, or with one for the rejected table (it has ``reason``)."""

    row: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the row goes into the stage's table."""
        return "reason" not in self.row


@dataclass
class _OpenShard(Generic[I]):
    """A shard in progress."""

    number: int
    items: list[I]
    journal: Journal
    waiting: int = 0  # items without an answer


class BulkStage(Generic[I]):
    """One stage of a run in which every row is asked about.

    Args:
        run: the run directory.
        stage: the stage's folder.
        schema: of the stage's table.
        load: the items of a shard, in row order.
        ask: ends one item for good; what it raises stops the run, with the journals intact.
        on_done: called once for every row that ended.
    """

    def __init__(
        self,
        run: RunDir,
        stage: str,
        schema: pa.Schema,
        load: Callable[[int], list[I]],
        ask: Callable[[I], Awaitable[Outcome]],
        on_done: Callable[[int], object],
    ) -> None:
        self.run, self.stage, self.schema = run, stage, schema
        self.load, self.ask, self.on_done = load, ask, on_done
        self._open: dict[int, _OpenShard[I]] = {}

    async def complete(self, shards: Iterable[int], workers: int) -> None:
        """Asks about the rows of ``shards`` that no journal answers yet, ``workers`` at a time; seals each shard."""
        pending = self._pending(shards)

        async def work() -> None:
            for shard, item in pending:
                outcome = await self.ask(item)
                shard.journal.append({"id": item.id, "row": outcome.row})
                shard.waiting -= 1
                self.on_done(1)
                if not shard.waiting:
                    self._seal(shard)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for shard in self._open.values():
                shard.journal.close()

    def _pending(self, shards: Iterable[int]) -> Iterator[tuple[_OpenShard[I], I]]:
        """The unanswered items of all shards, each with its shard; opens a shard when its first item is taken."""
        for number in shards:
            shard = _OpenShard(number, self.load(number), Journal(self.run.journal_path(self.stage, number)))
            self._open[number] = shard
            unanswered = [item for item in shard.items if item.id not in shard.journal.answered]
            shard.waiting = len(unanswered)
            self.on_done(len(shard.items) - shard.waiting)
            if not unanswered:
                self._seal(shard)
            for item in unanswered:
                yield shard, item

    def _seal(self, shard: _OpenShard[I]) -> None:
        shard.journal.close()
        outcomes = [Outcome(shard.journal.answered[item.id]["row"]) for item in shard.items]
        rows = [outcome.row for outcome in outcomes if outcome.accepted]
        rejected = [outcome.row for outcome in outcomes if not outcome.accepted]
        self.run.seal_tables(
            self.stage,
            shard.number,
            pa.Table.from_pylist(rows, self.schema),
            pa.Table.from_pylist(rejected, REJECTED_SCHEMA),
            rejected_by_reason=dict(sorted(Counter(row["reason"] for row in rejected).items())),
            prompt_tokens=sum(outcome.row["prompt_tokens"] for outcome in outcomes),
            completion_tokens=sum(outcome.row["completion_tokens"] for outcome in outcomes),
        )
        shard.journal.path.unlink()
        del self._open[shard.number]

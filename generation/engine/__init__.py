"""Ask text-generation servers about every item that has no row: one pool of requests over all due shards of all tasks.

There is no barrier between shards or tasks. A shard is committed once its last item is finished, in the order of its
items, so that its bytes do not depend on the order of the answers. Resuming after a kill, asking rejected rows again
and taking in rows that were added upstream are one loop: ask about what ``UnfinishedShard`` has no row for.
"""

import asyncio
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import uvloop

from ..config import Server
from ..errors import FatalServerError, Interrupted, RequestRejected, StageFailed
from ..logs import Progress
from ..rows import Row
from ..store import Run
from ..tgi.connect import connect
from ..tgi.protocol import Answer
from ..tgi.scheduler import RequestStats, Scheduler
from .journal import TOKENS, Item, UnfinishedShard
from .work import REFUSED, GenerationTask, Work, require_accepted

__all__ = ["GenerationTask", "Item", "generate", "retry"]

logger = logging.getLogger(__name__)

GRACE_S = 10.0  # for requests in flight after the first signal
TICK_S = 0.5  # between looks at the figures and at the number of workers


def generate(run: Run, tasks: Sequence[GenerationTask], server: Server, rank: int = 0, world_size: int = 1) -> None:
    """Finish the due shards of all tasks. No server is contacted if there is nothing to ask.

    Args:
        run: the run.
        tasks: stages that do not read each other's rows.
        server: where requests go.
        rank: number of this process among ``world_size`` that share the shards. A shard that another process holds is
            left to it.
        world_size: how many processes there are.

    Raises:
        RunError: a stage was begun with another model or prompt, or files cannot be read or written.
        ServerError: the servers cannot be used.
        StageFailed: the first rows all failed for the same reason, or no row was accepted at all.
        Interrupted: SIGINT or SIGTERM came.
        In each case everything that was answered is kept, and the same call goes on from there.
    """
    works = [Work(run, task, rank, world_size) for task in tasks]
    try:
        if any(work.shards for work in works):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_Session(run, server, [work for work in works if work.shards]).run_all())
        for task in tasks:
            require_accepted(run, task)
    except StageFailed:
        retry(run, [work.task for work in works if not work.proven], None)
        raise


def retry(run: Run, tasks: Sequence[GenerationTask], reasons: Collection[str] | None) -> dict[str, int]:
    """Make rejected rows due again; ``generate`` then asks about them with sampling seeds that were not used yet.

    Args:
        run: the run.
        tasks: where to look for rejected rows.
        reasons: the reason codes of the rows to ask again; None: all.

    Returns:
        How many rows of each stage became due; stages without such rows are left out.
    """
    found = Counter[str]()
    for stage in (task.stage for task in tasks):
        for shard in run.shards(stage.source) if stage.source else []:
            with run.claim(stage, shard) as mine:
                if mine:
                    found[stage.name] += UnfinishedShard(run, stage, shard).reopen_rejected(reasons)
                else:
                    logger.warning("%s: another process works on it; left as it is", run.file(stage, shard))
    return {name: rows for name, rows in found.items() if rows}


class _Session:
    """One call of ``generate``: workers that take items from one iterator over all shards."""

    def __init__(self, run: Run, server: Server, works: Sequence[Work]) -> None:
        self.run, self.server, self.works = run, server, works
        self.scheduler: Scheduler
        self.start = 0.0  # of the first request, on the monotonic clock
        self.signals, self.shown, self.exhausted = 0, 0, False
        self.open: dict[UnfinishedShard, ExitStack] = {}  # shards in progress, and what releases them
        # By worker: requests of its row, and how many of them were sent before the present one.
        self.workers: dict[asyncio.Task[None], tuple[RequestStats, int]] = {}

    async def run_all(self) -> None:
        """Connect, bind the stages to the model, warm up, and ask. Raises what ``generate`` raises."""
        main = asyncio.current_task()
        assert main is not None
        try:
            with _on_signals(lambda: self._stop(main)):
                async with connect(self.server) as self.scheduler:
                    info = self.scheduler.infos[0]
                    served = {"server": info.kind, "model": info.model_id, "model_revision": info.model_revision}
                    for prompt, stage in ((work.task.prompt, work.task.stage) for work in self.works):
                        self.run.begin(stage, {"prompt": prompt.name, "prompt_sha256": prompt.sha256, **served})
                    await self._warm_up()
                    await self._ask_all()
        except asyncio.CancelledError:
            if not self.signals:
                raise
        if self.signals:
            raise Interrupted("stopped by a signal; nothing that was answered is lost, and the same command goes on")

    async def _warm_up(self) -> None:
        """See that the servers take the longest request of each task, or if they refuse these rows, the shortest."""
        requests = [[work.task.request(item, 1) for item in work.extremes] for work in self.works if work.extremes]
        longest, shortest = ([pair[place] for pair in requests] for place in (0, 1))
        try:
            await self.scheduler.warm_up(longest)
        except FatalServerError as error:
            if error.status is None:  # not the answer to one request
                raise
            logger.warning("%s. Trying the shortest request", error)
            await self.scheduler.warm_up(shortest)

    def _stop(self, main: asyncio.Task[Any]) -> None:
        """Send no more requests; at the second signal, or after the grace period, abort those in flight."""
        self.signals += 1
        if self.signals > 1 or not self.workers:
            main.cancel()
            return
        text = "Stopping: waiting up to %g s for requests in flight. Press Ctrl-C again to abort them."
        logger.warning(text, GRACE_S)
        asyncio.get_running_loop().call_later(GRACE_S, main.cancel)
        for worker, (stats, before) in self.workers.items():
            if stats.requests == before:  # waits to be sent
                worker.cancel()

    async def _ask_all(self) -> None:
        items, waiting = sum(work.items for work in self.works), sum(work.waiting for work in self.works)
        self.start, todo = time.monotonic(), self._todo()
        with Progress(self.works[0].task.stage.command, items, items - waiting, delay_s=0.0) as bar:
            try:
                async with asyncio.TaskGroup() as group:
                    while not (self.exhausted or self.signals) or self.workers:
                        missing = 0 if self.exhausted or self.signals else self.scheduler.capacity - len(self.workers)
                        for _ in range(missing):
                            worker = group.create_task(self._work(todo))
                            self.workers[worker] = RequestStats(), 0
                            worker.add_done_callback(self.workers.pop)
                        await asyncio.wait(list(self.workers), timeout=TICK_S)
                        self._show(bar)
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                self._show(bar)
                self._end()

    def _todo(self) -> Iterator[tuple[Work, UnfinishedShard, Item]]:
        """Yield the items of all shards that have no row; a shard is claimed and read when it is reached."""
        for work in self.works:
            task = work.task
            for number in work.shards:
                with ExitStack() as claim:
                    mine = claim.enter_context(self.run.claim(task.stage, number))
                    if not mine or not self.run.is_due(task.stage, number, task.extra):
                        continue  # another process makes it, or has made it
                    shard = UnfinishedShard(self.run, task.stage, number, task.items(self.run, number))
                    self.open[shard] = claim.pop_all()
                self._commit_if_finished(work, shard)
                for item in shard.todo:
                    if self.signals:
                        return
                    yield work, shard, item
        self.exhausted = True

    async def _work(self, todo: Iterator[tuple[Work, UnfinishedShard, Item]]) -> None:
        for work, shard, item in todo:
            stats = RequestStats()
            row = await self._row(work.task, item, shard.journal.again.get(item.key, {}), stats)
            if row is None:
                return
            shard.append(row, stats.retries)
            work.add(row, stats)
            self._commit_if_finished(work, shard)

    async def _row(self, task: GenerationTask, item: Item, before: Row, stats: RequestStats) -> Row | None:
        """Return the row of an item, accepted or rejected; None if a signal came before it was finished.

        Args:
            task: what is asked.
            item: about what.
            before: attempts and tokens of the item until it was rejected in an earlier session.
            stats: updated in place.
        """
        me = asyncio.current_task()
        assert me is not None
        answers: list[Answer] = []
        columns: Row = {}
        earlier = before.get("attempts", 0)
        for attempt in range(earlier + 1, earlier + task.attempts + 1):
            if self.signals:
                return None
            request = task.request(item, attempt)
            self.workers[me] = stats, stats.requests
            try:
                answers.append(await self.scheduler.ask(request, stats))
            except RequestRejected as error:
                columns = {"reason": REFUSED, "raw": str(error)}
                break
            verdict = task.accept(item, answers)
            if not isinstance(verdict, str):
                columns = verdict
                break
            columns = {"reason": verdict, "raw": answers[-1].text}
        if "reason" in columns:
            columns["request"] = self.scheduler.states[0].endpoint.body(request).decode()
        return {
            **columns,
            "id": item.id,
            "input_hash": item.input_hash,
            "prompt": task.prompt.name,
            "model": self.scheduler.infos[0].model_id,
            "sampling_seed": request.seed,
            "attempts": attempt,
            **{name: sum(getattr(answer, name) for answer in answers) + before.get(name, 0) for name in TOKENS},
        }

    def _commit_if_finished(self, work: Work, shard: UnfinishedShard) -> None:
        if not shard.waiting:
            shard.commit(work.task.extra)
            self.open.pop(shard).close()

    def _show(self, bar: Progress) -> None:
        sums = sum((work.sums for work in self.works), Counter[str]())
        bar.update(
            sums["rows"] - self.shown,
            tokens_per_s=round(sums["completion_tokens"] / max(time.monotonic() - self.start, 1e-3), 1),
            requests=sums["requests"],
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            rejected=sum(work.rejected.total() for work in self.works),
            retried=sum(work.retries.total() for work in self.works),
        )
        self.shown = sums["rows"]

    def _end(self) -> None:
        """Release the shards that are not finished, and log the session of each stage."""
        for shard, claim in self.open.items():
            with claim:
                shard.journal.close()
        seconds = round(time.monotonic() - self.start, 3)
        servers = [{"kind": i.kind, "version": i.version, "model": i.model_id} for i in self.scheduler.infos]
        for work in self.works:
            facts = {"seconds": seconds, "servers": servers, "rejected": work.rejected, "retries": work.retries}
            sums = {name: work.sums[name] for name in ("rows", "requests", *TOKENS)}
            self.run.log_session(work.task.stage, facts | sums)


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call ``act`` in the block, also where SIGINT is ignored (background jobs of a shell)."""
    main = threading.current_thread() is threading.main_thread()  # others may not handle signals
    before = {number: signal.getsignal(number) for number in ((signal.SIGINT, signal.SIGTERM) if main else ())}
    loop = asyncio.get_running_loop()
    for number in before:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

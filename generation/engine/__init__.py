"""Ask text-generation servers about every item that has no row: one pool of requests over all shards of all tasks.

Resuming after a kill, asking rejected rows again and taking in rows that were added upstream are one loop. A shard is
committed once its last item is finished, in the order of its items: its bytes do not depend on that of the answers.
"""

import asyncio
import gc
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack

import uvloop

from ..config import Server
from ..errors import FatalServerError, Interrupted, RequestRejected, StageFailed
from ..limits import GRACE_S, REFRESH_S
from ..logs import Progress
from ..stages import Row
from ..store import Run
from ..tgi.client import Answer
from ..tgi.scheduler import RequestStats, Scheduler, connect
from .work import REFUSED, TOKENS, GenerationTask, Item, UnfinishedShard, Work

__all__ = ["GenerationTask", "Item", "UnfinishedShard", "generate", "retry"]

logger = logging.getLogger(__name__)
STOPPING = "Stopping: waiting up to %g s for requests in flight. Press Ctrl-C again to abort them."
STOPPED = "stopped by a signal; nothing that was answered is lost, and the same command goes on"


def generate(run: Run, tasks: Sequence[GenerationTask], server: Server, rank: int = 0, world_size: int = 1) -> None:
    """Finish the due shards of all tasks, which do not read each other's rows. If none is due, contact no server.

    This process is ``rank`` of ``world_size`` that share the shards; a shard that another one holds is left to it.
    Raises RunError (files; a stage was begun with another model or prompt), ServerError, StageFailed (the first rows
    failed for the same reason, or no row was accepted at all) or Interrupted (SIGINT, SIGTERM). What was answered is
    kept in each case, and the same call goes on from there.
    """
    works = [Work(run, task, rank, world_size) for task in tasks]
    try:
        if busy := [work for work in works if work.shards]:
            gc.set_threshold(10_000)  # hundreds of requests in flight are no reason to look for cycles each time
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_Session(run, server, busy).run_all())
        for work in works:
            work.require_accepted()
    except StageFailed:
        retry(run, [work.task for work in works if not work.proven], None)
        raise


def retry(run: Run, tasks: Sequence[GenerationTask], reasons: Collection[str] | None) -> dict[str, int]:
    """Make rejected rows of these reason codes (None: all) due again, so that ``generate`` asks about them with fresh
    sampling seeds; return how many, by stage that has any."""
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
        self.signals, self.exhausted = 0, False  # exhausted: no further item is taken
        self.open: dict[UnfinishedShard, ExitStack] = {}  # shards in progress, and what releases them
        self.workers: set[asyncio.Task[None]] = set()

    async def run_all(self) -> None:
        """Connect, begin the stages, and ask, until all is done or a signal comes."""
        main, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert main is not None
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        with ExitStack() as handlers:
            for number in signals:  # SIGINT also where a shell has it ignored, in background jobs
                handlers.callback(signal.signal, number, signal.getsignal(number))
                loop.add_signal_handler(number, self._stop, main)
                handlers.callback(loop.remove_signal_handler, number)
            try:
                async with connect(self.server) as self.scheduler:
                    await self._begin()
                    await self._ask_all()
            except asyncio.CancelledError:
                if not self.signals:
                    raise
        if self.signals:
            raise Interrupted(STOPPED)

    def _stop(self, main: asyncio.Task[None]) -> None:
        """Send no more requests; at the second signal, or after the grace period, abort those in flight."""
        self.signals, self.exhausted = self.signals + 1, True
        if self.signals > 1 or not self.workers:
            main.cancel()
            return
        logger.warning(STOPPING, GRACE_S)
        asyncio.get_running_loop().call_later(GRACE_S, main.cancel)
        self.scheduler.stop(Interrupted(STOPPED), abandon=False)

    async def _begin(self) -> None:
        """Bind the stages to prompt and model (a server that does not name its revision agrees with any), and see that
        the servers take the longest request of each task, or if they refuse these rows, the shortest."""
        infos = self.scheduler.infos
        info = next((info for info in infos if info.model_id != "unknown"), infos[0])
        for task in (work.task for work in self.works):
            known = self.run.facts(task.stage).get("identity", {})
            begun, model = known.get("model_revision", info.model_revision), known.get("model", info.model_id)
            identity = {"prompt": task.prompt.name, "prompt_sha256": task.prompt.sha256}
            identity["model"] = model if info.model_id == "unknown" else info.model_id
            identity["model_revision"] = info.model_revision if begun and info.model_revision else begun
            self.run.begin(task.stage, identity)
        requests = [[work.task.request(item, 1) for item in work.extremes] for work in self.works if work.extremes]
        try:
            await self.scheduler.warm_up([longest for longest, _ in requests])
        except FatalServerError as error:
            if error.status is None:  # not the answer to one request
                raise
            logger.warning("%s. Trying the shortest request", error)
            await self.scheduler.warm_up([shortest for _, shortest in requests])

    async def _ask_all(self) -> None:
        items, done = sum(work.items for work in self.works), sum(work.items - work.waiting for work in self.works)
        start, todo = time.monotonic(), self._todo()
        with Progress(self.works[0].task.stage.command, items, done, delay_s=0.0) as bar:
            try:
                async with asyncio.TaskGroup() as group:
                    while self.workers or not self.exhausted:
                        for _ in range(0 if self.exhausted else self.scheduler.capacity - len(self.workers)):
                            self.workers.add(worker := group.create_task(self._work(todo)))
                            worker.add_done_callback(self.workers.discard)
                        await asyncio.wait(list(self.workers), timeout=REFRESH_S)
                        self._show(bar, done, time.monotonic() - start)
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                self._show(bar, done, time.monotonic() - start)
                for shard, claim in self.open.items():
                    with claim:
                        shard.journal.close()
                servers = [{"kind": i.kind, "version": i.version, "model": i.model_id} for i in self.scheduler.infos]
                for work in self.works:
                    facts: Row = {name: work.sums[name] for name in ("rows", "requests", *TOKENS)}
                    facts |= {"rejected": work.rejected, "retries": work.retries, "servers": servers}
                    self.run.log_session(work.task.stage, facts | {"seconds": round(time.monotonic() - start, 3)})

    def _show(self, bar: Progress, done: int, seconds: float) -> None:
        sums = sum((work.sums for work in self.works), Counter[str]())
        rate = round(sums["completion_tokens"] / max(seconds, 1e-3), 1)
        traffic = {"running": self.scheduler.running, "waiting": self.scheduler.waiting}
        failed = {name: sum(getattr(work, name).total() for work in self.works) for name in ("rejected", "retries")}
        facts = {"tokens_per_s": rate, "requests": sums["requests"], **traffic, **failed}
        bar.update(done + sums["rows"] - bar.done, **facts)

    def _todo(self) -> Iterator[tuple[Work, UnfinishedShard, Item]]:
        """Yield the items of all shards that have no row; a shard is claimed and read when it is reached."""
        for work in self.works:
            for number in work.shards:
                with ExitStack() as claim:
                    if shard := claim.enter_context(work.claimed(number)):
                        self.open[shard] = claim.pop_all()
                        yield from ((work, shard, item) for item in shard.todo)
        self.exhausted = True

    async def _work(self, todo: Iterator[tuple[Work, UnfinishedShard, Item]]) -> None:
        """Finish one item after the other, until there are no more or a signal comes."""
        for work, shard, item in todo:
            stats = RequestStats()
            try:
                row = await self._row(work.task, item, shard.journal.again.get(item.key, {}), stats)
            except Interrupted:
                return
            shard.journal.append({"row": row, "retries": Counter(stats.retries)} if stats.retries else {"row": row})
            shard.waiting -= 1
            work.add(row, stats)
            if not shard.waiting:
                shard.commit(work.task.extra)
                self.open.pop(shard).close()

    async def _row(self, task: GenerationTask, item: Item, before: Row, stats: RequestStats) -> Row:
        """Return the row of an item, accepted or rejected; ``before``: its attempts and tokens in earlier sessions."""
        answers: list[Answer] = []
        earlier = before.get("attempts", 0)
        for attempt in range(earlier + 1, earlier + task.attempts + 1):
            request = task.request(item, attempt)
            try:
                answers.append(await self.scheduler.ask(request, stats))
            except RequestRejected as error:
                columns: Row = {"reason": REFUSED, "raw": str(error)}
                break
            verdict = task.accept(item, answers)
            columns = {"reason": verdict, "raw": answers[-1].text} if isinstance(verdict, str) else verdict
            if columns is verdict:
                break
        if "reason" in columns:
            columns["request"] = self.scheduler.body(request).decode()
        made = {"prompt": task.prompt.name, "model": self.scheduler.infos[0].model_id, "sampling_seed": request.seed}
        spent = {name: sum(getattr(answer, name) for answer in answers) + before.get(name, 0) for name in TOKENS}
        return {**columns, "id": item.id, "input_hash": item.input_hash, **made, "attempts": attempt, **spent}

"""Ask text-generation servers about every item that has no row: one pool of requests over all due shards of all tasks.

There is no barrier between shards or tasks. A shard is committed once its last item is finished, in the order of its
items, so that its bytes do not depend on the order of the answers. Resuming after a kill, asking rejected rows again
and taking in rows that were added upstream are one loop: ask about what ``UnfinishedShard`` has no row for.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Sequence

import uvloop

from ..config import Server
from ..errors import StageFailed
from ..store import Run
from .journal import Item, UnfinishedShard
from .session import Session
from .work import GenerationTask, Work, left_journals, require_accepted

__all__ = ["GenerationTask", "Item", "generate", "retry"]

logger = logging.getLogger(__name__)


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
        StageFailed: the first rows all failed for the same reason, or no row was accepted at all; the next call asks
            again.
        Interrupted: SIGINT or SIGTERM came.
        In each case everything that was answered is kept, and the same call goes on from there.
    """
    works = [Work(run, task, rank, world_size) for task in tasks]
    try:
        if any(work.shards for work in works):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(Session(run, server, [work for work in works if work.shards]).run_all())
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
        for shard in sorted({*run.shards(stage), *left_journals(run, stage)}):
            with run.claim(stage, shard) as mine:
                if mine:
                    found[stage.name] += UnfinishedShard(run, stage, shard).reopen_rejected(reasons)
                else:
                    logger.warning("%s: another process works on it; left as it is", run.file(stage, shard))
    return {name: rows for name, rows in found.items() if rows}

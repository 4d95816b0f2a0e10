"""Whole shards over several processes, one a GPU. Each has an encoder of its own; vectors come back over a pipe, so
that the parent alone writes to the run."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..config import Embed
from ..errors import EmbeddingError
from . import Encoded, TextEncoder, load_encoder

AHEAD = 2  # shards handed out for each worker: one that it encodes, and one that waits for it
Packed = tuple[npt.NDArray[np.float16], int]  # an ``Encoded`` on its way: numpy's arrays need no shared memory

_encoder: TextEncoder  # of a worker process


def worker_count(settings: Embed) -> int:
    """How many processes encode: as the recipe says, or one a GPU; 1 means this one."""
    return settings.workers or max(1, torch.cuda.device_count())


def encode_shards(
    encoder: TextEncoder,
    settings: Embed,
    directory: Path,
    shards: Sequence[int],
    texts: Callable[[int], list[str]],
    on_rows: Callable[[int], object],
) -> Generator[tuple[int, Encoded], None, None]:
    """Encodes shards, and gives each as soon as it is done, in any order.

    Args:
        encoder: this process's, used if no other encodes; it need not have loaded its weights.
        settings: the recipe's ``embed`` section; the workers load their encoders by it.
        directory: the recipe's.
        shards: their numbers.
        texts: reads the texts of a shard.
        on_rows: told how many texts were encoded, now and then.

    Yields:
        The shard's number and its vectors, float16 [n, d].

    Raises:
        EmbeddingError: an encoder cannot be loaded, or a worker was killed.
    """
    workers = min(worker_count(settings), len(shards))
    if workers <= 1:
        for shard in shards:
            yield shard, encoder.encode(texts(shard), on_rows, torch.float16)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ranks = context.SimpleQueue()
    for rank in range(workers):
        ranks.put(rank)
    threads = max(1, torch.get_num_threads() // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin, (settings, directory, ranks, threads))
    try:
        for shard, (vectors, truncated) in _bounded(pool, workers * AHEAD, shards, texts):
            on_rows(len(vectors))
            yield shard, Encoded(torch.from_numpy(vectors), truncated)
    except BrokenProcessPool as error:
        raise EmbeddingError(
            "an encoder's process was killed, perhaps for lack of memory; the shards that are done are kept: "
            "lower embed.workers or embed.batch_tokens and give the same command again"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # a shard that nobody waits for is not encoded to its end


def _bounded(
    pool: ProcessPoolExecutor, limit: int, shards: Iterable[int], texts: Callable[[int], list[str]]
) -> Iterator[tuple[int, Packed]]:
    """The results of all shards, of which no more than ``limit`` are handed out at a time."""
    waiting = iter(shards)
    pending: dict[Future[Packed], int] = {}
    while True:
        for shard in islice(waiting, limit - len(pending)):
            pending[pool.submit(_encode, texts(shard))] = shard
        if not pending:
            return
        for done in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(done), done.result()


def _begin(settings: Embed, directory: Path, ranks: "multiprocessing.SimpleQueue[int]", threads: int) -> None:
    """Gives a worker its GPU, or its share of the cores. What fails in loading is told with its first shard."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback; the parent tells the user
    torch.set_num_threads(threads)
    rank, gpus = ranks.get(), torch.cuda.device_count()
    _encoder = load_encoder(settings, directory, f"cuda:{rank % gpus}" if gpus else "cpu")


def _encode(texts: list[str]) -> Packed:
    encoded = _encoder.encode(texts, dtype=torch.float16)
    return encoded.vectors.numpy(), encoded.truncated

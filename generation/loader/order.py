"""Which rows make up which batch, in which order, of which rank and worker: arithmetic over one permutation an epoch.

Step s of all ranks together takes rows ``order[s * B * R : (s + 1) * B * R]`` (B rows a batch, R ranks), rank r every
R-th of them from the r-th on. Of its batches a DataLoader worker w of W makes numbers w, w + W, ..., and as a
DataLoader asks its workers in turn, they arrive as numbers 0, 1, 2, ... whatever W is. So a position is one number,
the rows that all ranks have taken, and what is left after it does not depend on how the rest is divided:

    resumed with the same B and R       the very batches that were left, with any number of workers
    with another B or R                 the very rows that were left, in the same order, cut into other batches

No row is dropped, repeated or padded with. So where rows do not divide evenly, the last batch is short, and higher
ranks may have one batch less than lower ones (DistributedDataParallel then waits for ever, unless run under ``Join``);
``drop_last`` gives every rank the same number of whole batches.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, get_worker_info

from ..errors import DatasetError


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..rows-1, int64, that depends on its arguments alone: rows sorted by the raw output of Philox,
    which NumPy keeps as it is (NEP 19), unlike ``Generator.permutation``."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(rows)
    return np.argsort(bits, kind="stable")


def batch_rows(order: np.ndarray, begin: int, batch: int, size: int, rank: int, ranks: int) -> np.ndarray:
    """The rows of a rank's ``batch`` (from 0), counted from position ``begin``; int64, at most ``size``."""
    first = begin + batch * size * ranks
    return order[first : first + size * ranks][rank::ranks]


def batch_count(rows: int, begin: int, size: int, rank: int, ranks: int, drop_last: bool) -> int:
    """How many batches a rank has from position ``begin`` on."""
    steps, ragged = divmod(rows - begin, size * ranks)
    return steps + (not drop_last and ragged > rank)


class EpochBatches(Sampler[list[int]]):
    """The batches of this rank, epoch by epoch: a ``batch_sampler`` for a map-style data set, and what
    ``UnicornStream`` walks along.

    Args:
        rows: of the data set.
        batch_size: rows of a rank's batch.
        seed: of the order, not negative.
        shuffle: False takes the rows as they are stored.
        drop_last: see above.
        rank: 0..world_size-1; ``$RANK``, as torchrun sets it, or 0 if None.
        world_size: ``$WORLD_SIZE`` or 1 if None.

    Raises:
        DatasetError: a number out of range.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.shuffle, self.drop_last = (
            rows,
            batch_size,
            seed,
            shuffle,
            drop_last,
        )
        self.rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        self.world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if batch_size < 1 or not 0 <= self.rank < self.world_size or not 0 <= seed < 2**63:
            raise DatasetError(
                f"batch_size {batch_size}, rank {self.rank} of {self.world_size}, seed {seed}: wanted a batch_size "
                "from 1, a rank in 0..world_size-1 and a seed in 0..2^63-1"
            )
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # workers see it change
        self._start = (0, 0, 0)  # epoch, position, batches that this worker has made since
        self._taken = 0  # batches of this process since that position

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, from its beginning; the one that was resumed keeps its position.

        Raises:
            DatasetError: it is negative.
        """
        if epoch < 0:
            raise DatasetError(f"epoch {epoch}: wanted 0 or more")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return batch_count(self.rows, self._begin()[0], self.batch_size, self.rank, self.world_size, self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        begin, self._taken = self._begin()
        return self._walk(begin, *_worker())

    def state_dict(self) -> dict[str, int | bool]:
        """The position, as torchdata's ``StatefulDataLoader`` keeps it. In one of several workers it is that worker's,
        which fits only as many workers; else it is that of all ranks (``state_after``)."""
        begin, workers = self._begin()[0], _worker()[1]
        if workers == 1:
            return self.state_after(self._taken)
        return self._state(begin) | {"taken": self._taken, "workers": workers, "step": self._step}

    def state_after(self, batches: int) -> dict[str, int | bool]:
        """The position after ``batches`` batches from where this epoch was begun or resumed: what a trainer over a
        plain ``DataLoader`` saves, who counts her steps. It is the same on all ranks, and fits any number of workers,
        ranks and rows a batch."""
        return self._state(min(self._begin()[0] + batches * self._step, self.rows))

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Goes on at a position; to be called before workers are started.

        Raises:
            DatasetError: it is of another data set, seed or order, or of one of another number of workers.
        """
        own = self._state(0)
        for key in ("seed", "shuffle", "length"):
            if state.get(key) != own[key]:
                raise DatasetError(f"the position is of {key} {state.get(key)!r}; these batches have {own[key]!r}")
        layout = {"workers": _worker()[1], "step": self._step}
        if "taken" in state and any(state[key] != value for key, value in layout.items()):
            raise DatasetError(
                f"the position is that of one of {state['workers']} workers at {state['step']} rows a step, and here "
                f"are {layout}; save state_after(batches) to resume with others"
            )
        self._epoch.fill_(state["epoch"])
        self._start = (state["epoch"], state["position"], state.get("taken", 0))
        self._taken = self._start[2]

    @property
    def _step(self) -> int:
        return self.batch_size * self.world_size

    def _begin(self) -> tuple[int, int]:
        """Position, and batches made since by this worker, where the next iteration begins."""
        epoch, position, taken = self._start
        return (position, taken) if epoch == self.epoch else (0, 0)

    def _state(self, position: int) -> dict[str, Any]:
        order = {"seed": self.seed, "shuffle": self.shuffle, "length": self.rows}
        return order | {"epoch": self.epoch, "position": position}

    def _walk(self, begin: int, worker: int, workers: int) -> Iterator[list[int]]:
        order = epoch_order(self.rows, self.seed, self.epoch) if self.shuffle else np.arange(self.rows)
        batches = batch_count(self.rows, begin, self.batch_size, self.rank, self.world_size, self.drop_last)
        for batch in range(worker + workers * self._taken, batches, workers):
            self._taken += 1
            yield batch_rows(order, begin, batch, self.batch_size, self.rank, self.world_size).tolist()


def _worker() -> tuple[int, int]:
    """The number of this DataLoader worker, and how many there are; (0, 1) outside of one."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)

"""The batches of a data set for one rank of a training run, and how they become tensors."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DatasetError
from .dataset import Batch, UnicornDataset


class UnicornStream(IterableDataset[Batch]):
    """The batches of this rank: ``DataLoader(stream, batch_size=None, num_workers=..., collate_fn=...)``.

    Step s of all R ranks takes ``order[s * B * R : (s + 1) * B * R]`` (B rows a batch), rank r every R-th row of it
    from the r-th on; worker w of W makes batches w, w + W, ... So a position is one number, and resumes exactly with
    any number of workers; with another B or R the same rows are left. Without ``drop_last`` the last batch is short,
    and higher ranks may have one batch less. Seed and epoch decide the order; without ``shuffle`` it is the stored
    one. ``rank`` and ``world_size`` are torchrun's ``$RANK`` and ``$WORLD_SIZE``, or else 0 and 1.
    """

    def __init__(
        self, dataset: UnicornDataset, batch_size: int, *, seed: int = 0, shuffle: bool = True,
        drop_last: bool = False, rank: int | None = None, world_size: int | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.seed, self.shuffle = seed, shuffle
        self.rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        self.world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if batch_size < 1 or not 0 <= self.rank < self.world_size or not 0 <= seed < 2**63:
            given = f"batch_size {batch_size}, rank {self.rank} of {self.world_size}, seed {seed}"
            raise DatasetError(f"{given}: batch_size >= 1, 0 <= rank < world_size and 0 <= seed < 2^63 are needed")
        self._start = (0, 0)  # epoch, and rows that all ranks had taken of it when it was resumed

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the one that was resumed goes on from its position."""
        self.dataset.set_epoch(epoch)

    def _begin(self) -> int:
        return self._start[1] if self._start[0] == self.dataset.epoch else 0

    def __len__(self) -> int:
        steps, rest = divmod(len(self.dataset) - self._begin(), self.batch_size * self.world_size)
        return steps + (not self.drop_last and rest > self.rank)

    def __iter__(self) -> Iterator[Batch]:
        info, begin, step = get_worker_info(), self._begin(), self.batch_size * self.world_size
        order = np.arange(len(self.dataset))
        if self.shuffle:  # Philox's raw output is kept for good (NEP 19), unlike ``Generator.permutation``
            key = np.array([self.seed, self.dataset.epoch], np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(len(order)), kind="stable")
        for number in range(info.id if info else 0, len(self), info.num_workers if info else 1):
            first = begin + number * step
            yield self.dataset.__getitems__(order[first : first + step][self.rank :: self.world_size])

    def state_after(self, batches: int) -> dict[str, int | bool]:
        """Return the position after ``batches`` batches of this epoch, counted from where it was begun or resumed."""
        position = min(self._begin() + batches * self.batch_size * self.world_size, len(self.dataset))
        identity = {"seed": self.seed, "shuffle": self.shuffle, "rows": len(self.dataset)}
        return identity | {"epoch": self.dataset.epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Go on at a position of ``state_after``, of the same data set, seed and order, before workers are started."""
        for key, own in self.state_after(0).items():
            if key not in ("epoch", "position") and state.get(key) != own:
                raise DatasetError(f"the position is of {key} {state.get(key)!r}, and this stream has {own!r}")
        self._start = int(state["epoch"]), int(state["position"])
        self.set_epoch(self._start[0])


@dataclass
class Collate:
    """A ``collate_fn``: what ``tokenize`` makes of B conversations (tensors [B, ...], such as ``input_ids`` and
    ``labels``, by the model's own chat template), and ``embeds`` [B, d], one vector each."""

    tokenize: Callable[[list[Any]], Mapping[str, Any]]
    dtype: torch.dtype = torch.float16  # of the vectors

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Return a batch as tensors; a DatasetError says that ``tokenize`` returned another number of rows."""
        tokens, rows = dict(self.tokenize(batch["conversations"])), len(batch["embeds"])
        if wrong := [name for name, tensor in tokens.items() if len(tensor) != rows]:
            raise DatasetError(f"tokenize must return {rows} rows of '{wrong[0]}', not {len(tokens[wrong[0]])}")
        return tokens | {"embeds": batch["embeds"].to(self.dtype)}

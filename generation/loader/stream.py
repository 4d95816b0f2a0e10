"""A built data set as an iterable of whole batches, shuffled, sharded and resumable."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from .dataset import Batch, UnicornDataset
from .order import EpochBatches


class UnicornStream(IterableDataset[Batch]):
    """The batches of this rank: ``DataLoader(stream, batch_size=None, collate_fn=...)``, with any number of workers.

    ``state_dict`` and ``load_state_dict`` are what torchdata's ``StatefulDataLoader`` asks for, which resumes with as
    many workers as it had. ``state_after`` fits any number of them and a plain ``DataLoader``. Either way the resumed
    run gives exactly the batches that were left, and each the same noise.

    Args:
        dataset: the rows.
        batch_size: rows of a batch.
        options: ``seed``, ``shuffle``, ``drop_last``, ``rank``, ``world_size``; see ``EpochBatches``.

    Raises:
        DatasetError: a number out of range.
    """

    def __init__(self, dataset: UnicornDataset, batch_size: int, **options: Any) -> None:
        self.dataset = dataset
        self.batches = EpochBatches(len(dataset), batch_size, **options)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of."""
        return self.batches.epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.dataset.__getitems__, self.batches)

    def set_epoch(self, epoch: int) -> None:
        """See ``EpochBatches.set_epoch``; the noise is of that epoch, too."""
        self.batches.set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | bool]:
        """See ``EpochBatches.state_dict``."""
        return self.batches.state_dict()

    def state_after(self, batches: int) -> dict[str, int | bool]:
        """See ``EpochBatches.state_after``."""
        return self.batches.state_after(batches)

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """See ``EpochBatches.load_state_dict``."""
        self.batches.load_state_dict(state)
        self.dataset.set_epoch(self.batches.epoch)

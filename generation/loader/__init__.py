"""Built data sets as PyTorch takes them: text mapped from a cache, vectors mapped from their safetensors shards.

    texts         captions and conversations, decoded once and then mapped
    vectors       embedding shards, mapped; what proves that they belong to these texts
    dataset       both, joined by shard and row: map-style
    order         which rows make up which batch of which rank and worker, in which order; positions
    stream        the same rows as an iterable that can be resumed
    collate       what a trainer is given

It stands on the files of a data set alone, as ``unicorn_1_2m.py`` and ``unicorn_471k_instruction.py`` write them.
"""

from .collate import Collate
from .dataset import Batch, UnicornDataset
from .order import EpochBatches
from .stream import UnicornStream

__all__ = ["Batch", "Collate", "EpochBatches", "UnicornDataset", "UnicornStream"]

"""Built data sets for trainers: texts and vectors mapped into memory, shuffled, divided over ranks, and resumable.

    dataset      rows of text and vector, map style; another transfer method at load time
    stream       batches of this rank, resumable; ``Collate``
    built_files  what a data set is made of, checked; texts decoded once into an Arrow file in a cache

All processes and DataLoader workers share the mapped files through the page cache.
"""

from ..transfer import apply_to_images, image_mean
from .dataset import UnicornDataset
from .stream import Collate, UnicornStream

__all__ = ["Collate", "UnicornDataset", "UnicornStream", "apply_to_images", "image_mean"]

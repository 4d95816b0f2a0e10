"""Built data sets for trainers: texts and vectors mapped into memory, shuffled, divided over ranks, and resumable."""

from ..transfer import apply_to_images, image_mean
from .dataset import UnicornDataset
from .stream import Collate, UnicornStream

__all__ = ["Collate", "UnicornDataset", "UnicornStream", "apply_to_images", "image_mean"]

"""A stand-in for an encoder, for rehearsals: made-up vectors of the right shape, gap and spectrum that mean nothing.

A text's vector is drawn by a hash of the text: its first half is that of one of ``POOL`` text vectors of the ground
truth, its second half that of another, both of equal norm. So it is the same for the same text, wherever and in
whatever order it is encoded, and costs no more than its bytes.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from ..config import STAND_IN
from ..ground_truth import GroundTruth
from . import Encoded

DIMENSION = 1280  # that of LLM2CLIP's vectors
POOL = 4_096
BATCH_ROWS = 1_000


class StandInEncoder:
    """Made-up vectors, [n, 1280]; see ``encoders.TextEncoder``."""

    dimension = DIMENSION

    def provenance(self) -> dict[str, Any]:
        """See ``encoders.TextEncoder``; the model is named ``config.STAND_IN``, and nothing else bears that name."""
        return {
            "model": STAND_IN,
            "revision": None,
            "pooling": "no",  # halves of ``POOL`` made-up vectors
            "max_tokens": "any number of",
            "dimension": DIMENSION,
            "dtype": "float16",
            "joint_with_images": True,  # in the space of the ground truth's images
            "image_tower": False,
        }

    def encode(
        self,
        texts: Sequence[str],
        on_batch: Callable[[int], object] = lambda rows: None,
        dtype: torch.dtype = torch.float32,
    ) -> Encoded:
        """See ``encoders.TextEncoder``; no text is too long."""
        vectors = torch.empty(len(texts), 2, DIMENSION // 2, dtype=dtype)
        for first in range(0, len(texts), BATCH_ROWS):
            batch = texts[first : first + BATCH_ROWS]
            hashes = torch.from_numpy(np.array([zlib.crc32(text.encode()) for text in batch], np.int64))
            for half, chosen in enumerate((hashes % POOL, hashes // POOL % POOL)):
                vectors[first : first + len(batch), half] = self._halves[half][chosen].to(dtype)
            on_batch(len(batch))
        return Encoded(vectors.view(len(texts), DIMENSION), 0)

    @cached_property
    def _halves(self) -> torch.Tensor:
        """Halves of vectors, each of squared norm 0.5, float16 [2, POOL, 640]."""
        rows = GroundTruth(DIMENSION).pairs(0, POOL)[0].view(POOL, 2, DIMENSION // 2)
        halves: torch.Tensor = normalize(rows, dim=2) * 0.5**0.5
        return halves.half().transpose(0, 1).contiguous()

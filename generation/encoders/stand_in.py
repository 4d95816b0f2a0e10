"""A stand-in for an encoder, for rehearsals: made-up vectors of the right shape, gap and spectrum that mean nothing.

A text's vector is drawn by a hash of the text: its first half is that of one of ``POOL`` text vectors of the ground
truth, its second half that of another, both of equal norm, and the last three of a number's ten bits of mantissa are
turned at random, so that files of such vectors cannot be compressed better than files of real ones. The same text has
the same vector wherever it is encoded, for little more than the price of copying it.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from ..config import STAND_IN
from ..ground_truth import GroundTruth
from . import Encoded

DIMENSION = 1280  # that of LLM2CLIP's vectors
POOL = 4_096
NOISES = 256  # with two of the pool 2^32 vectors, one for each hash
BATCH_ROWS = 1_000


class StandInEncoder:
    """Made-up vectors, [n, 1280]; see ``encoders.TextEncoder``."""

    dimension = DIMENSION

    def provenance(self) -> dict[str, Any]:
        """See ``encoders.TextEncoder``; the model is named ``config.STAND_IN``, and nothing else bears that name."""
        return {
            "model": STAND_IN,
            "revision": None,
            "pooling": "no",
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
        vectors = torch.empty(len(texts), DIMENSION, dtype=dtype)
        for first in range(0, len(texts), BATCH_ROWS):
            batch = texts[first : first + BATCH_ROWS]
            hashes = np.array([zlib.crc32(text.encode()) for text in batch], np.int64)
            bits = self._halves[0][hashes % POOL], self._halves[1][hashes // POOL % POOL]
            made = np.concatenate(bits, axis=1) ^ self._noises[hashes // POOL**2]
            vectors[first : first + len(batch)] = torch.from_numpy(made.view(np.float16)).to(dtype)
            on_batch(len(batch))
        return Encoded(vectors, 0)

    @cached_property
    def _halves(self) -> NDArray[np.uint16]:
        """Halves of vectors, each of squared norm 0.5: the bits of float16 [2, POOL, 640]."""
        rows = GroundTruth(DIMENSION).pairs(0, POOL)[0].view(POOL, 2, DIMENSION // 2)
        halves: torch.Tensor = normalize(rows, dim=2) * 0.5**0.5
        return halves.transpose(0, 1).numpy().astype(np.float16).view(np.uint16)

    @cached_property
    def _noises(self) -> NDArray[np.uint16]:
        """Bits to be turned, [NOISES, 1280]."""
        return np.random.default_rng(0).integers(0, 8, (NOISES, DIMENSION), np.uint16)

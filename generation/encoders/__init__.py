"""Text encoders behind one small protocol: texts in, float32 unit vectors out, truncation counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..config import Embed


@dataclass(frozen=True)
class Encoded:
    """Vectors in the order of their texts.

    Attributes:
        vectors: float32 [n, d], each row of norm 1.
        truncated: how many texts were longer than the encoder takes.
    """

    vectors: torch.Tensor
    truncated: int


class TextEncoder(Protocol):
    """What the embed stage asks of an encoder."""

    dimension: int

    def provenance(self) -> dict[str, Any]:
        """Model, hash of its weights, pooling, longest input and dtype, as JSON values."""

    def encode(self, texts: Sequence[str], on_batch: Callable[[int], object] = ...) -> Encoded:
        """Encodes ``texts``; ``on_batch`` is told how many were encoded, batch by batch."""


def load_encoder(settings: Embed) -> TextEncoder:
    """The encoder that a recipe names: ``embedded``, or a directory with a transformers encoder to be mean-pooled.

    Raises:
        EmbeddingError: it is not installed, or the directory holds no such model.
    """
    from .mean_pooling import MeanPoolingEncoder, embedded_model

    path = embedded_model() if settings.encoder == "embedded" else settings.encoder
    return MeanPoolingEncoder(path, settings.batch_tokens)

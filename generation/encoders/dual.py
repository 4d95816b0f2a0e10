"""Any transformers dual encoder (CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ...): one space for texts and images.

Most of them take short texts (CLIP 77 tokens, SigLIP 64), so that a dense caption is cut: it is counted and warned of.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel

from .base import TokenEncoder
from .batches import Tokens
from .checkpoint import Checkpoint, Runtime
from .image_tower import encode_pictures, image_processor

if TYPE_CHECKING:
    from PIL.Image import Image


class DualEncoder(TokenEncoder):
    """``get_text_features`` and ``get_image_features`` of a model, L2-normalised.

    Texts are padded as the model was trained: SigLIP's always to its full length
    (https://huggingface.co/docs/transformers/model_doc/siglip), the others' to the longest of a batch. An attention
    mask is given if the model's tokenizer makes one.

    Args:
        checkpoint: the model's files.
        runtime: where and how it runs.

    Raises:
        EmbeddingError: the directory holds no such model.
    """

    pooling = "the model's own"

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        super().__init__(checkpoint, runtime)
        self._config = checkpoint.auto_config()
        text = getattr(self._config, "text_config", self._config)
        self.max_tokens = int(min(getattr(text, "max_position_embeddings", 1 << 30), self._tokenizer.model_max_length))
        self._full_length = self._config.model_type.startswith("siglip")

    @cached_property
    def dimension(self) -> int:
        """d of the vectors: as configured (CLIP's and SigLIP's names for it), or found by encoding a word."""
        for part, name in ((self._config, "projection_dim"), (self._config.text_config, "projection_size")):
            if size := getattr(part, name, None):
                return int(size)
        with torch.inference_mode():
            return self._features(self._tokenise(["a"])[0]).shape[1]

    def provenance(self) -> dict[str, Any]:
        """See ``TextEncoder``."""
        return super().provenance() | {"joint_with_images": True, "image_tower": True}

    def encode_images(
        self, images: Sequence["Path | Image"], on_batch: Callable[[int], object] = lambda rows: None
    ) -> torch.Tensor:
        """See ``ImageEncoder``."""
        return encode_pictures(
            images, self._image_processor, self._image_features, self.dimension, self.runtime, on_batch
        )

    def _lengths(self, rows: list[Tokens]) -> list[int]:
        return [self.max_tokens] * len(rows) if self._full_length else super()._lengths(rows)

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        full = {"padding": "max_length", "max_length": self.max_tokens} if self._full_length else {}
        return _tensor(self._model.get_text_features(**self._padded(rows, **full)))

    def _image_features(self, **inputs: torch.Tensor) -> torch.Tensor:
        return _tensor(self._model.get_image_features(**inputs))

    @cached_property
    def _model(self) -> Any:
        return self.checkpoint.model(AutoModel, self.runtime)

    @cached_property
    def _image_processor(self) -> Any:
        return image_processor(self.checkpoint)


def _tensor(features: Any) -> torch.Tensor:
    """[rows, d]: transformers 5 puts it into an output object, remote code written for 4 gives it as it is."""
    tensor: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return tensor

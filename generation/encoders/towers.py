"""Encoders that are one model of transformers: sentence encoders with mean pooling, and dual encoders."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from transformers import AutoImageProcessor

from ..errors import EmbeddingError
from .base import Encoder, Tokens
from .checkpoint import Checkpoint


class SentenceEncoder(Encoder):
    """Mean of the last hidden states over a text's tokens. Text generators and models of other pooling are refused."""

    kind = "sentence"
    pooling = "mean"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        config, pooling = checkpoint.config(), checkpoint.json("1_Pooling/config.json")
        if config.model_type == "llama":
            raise EmbeddingError(
                f"encoder {checkpoint.path} is a Llama: as the text tower of LLM2CLIP it needs the CLIP checkpoint "
                "that it was trained with; name that as embed.text_head"
            )
        if config.is_encoder_decoder or any("ForCausalLM" in name for name in config.architectures or ()):
            kind = config.model_type
            raise EmbeddingError(f"encoder {checkpoint.path} generates text ({kind}): give a text encoder")
        if not pooling.get("pooling_mode_mean_tokens", pooling.get("pooling_mode", "mean") == "mean"):
            raise EmbeddingError(f"encoder {checkpoint.path} was not trained for mean pooling (1_Pooling/config.json)")
        self.dimension, limit = int(config.hidden_size), self._tokenizer.model_max_length
        stated = checkpoint.json("sentence_bert_config.json").get("max_seq_length")  # of sentence-transformers
        self.max_tokens = int(stated or min(limit, getattr(config, "max_position_embeddings", limit)))

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        inputs = self._padded(rows)
        hidden = self.model(**inputs).last_hidden_state  # [rows, tokens, d]
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled: torch.Tensor = (hidden * mask).sum(1, dtype=torch.float32) / mask.sum(1, dtype=torch.float32)
        return pooled


class DualEncoder(Encoder):
    """``get_text_features`` and ``get_image_features`` of CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ...

    Most take short texts (CLIP 77 tokens, SigLIP 64), so that dense captions are cut. Texts are padded as in training:
    SigLIP's to the full length without a mask (https://huggingface.co/docs/transformers/model_doc/siglip), the others'
    to the longest of the batch.
    """

    kind = "dual"
    pooling = "model"  # the model's own

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        config = checkpoint.config()
        text, limit = getattr(config, "text_config", config), self._tokenizer.model_max_length
        self.max_tokens = int(min(limit, getattr(text, "max_position_embeddings", limit)))
        whole = {"padding": "max_length", "max_length": self.max_tokens}
        self._padding = whole if config.model_type.startswith("siglip") else {}
        self.dimension = self._unit_rows(self.tokenise(["a"])[0]).shape[1]  # configurations name it differently

    @cached_property
    def _image_tower(self) -> tuple[Any, Callable[..., torch.Tensor]]:
        processor = self.checkpoint.load("image processor", AutoImageProcessor.from_pretrained, backend="pil")
        return processor, lambda **inputs: self._tensor(self.model.get_image_features(**inputs))

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        return self._tensor(self.model.get_text_features(**self._padded(rows, **self._padding)))

    def _tensor(self, features: Any) -> torch.Tensor:
        tensor: torch.Tensor = getattr(features, "pooler_output", features)  # remote code may return it as it is
        return tensor

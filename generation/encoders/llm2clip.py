"""LLM2CLIP, the paper's encoder (Unicorn, Stage 3; LLM2CLIP: https://arxiv.org/abs/2411.04997), without llm2vec, which
cannot be installed beside transformers 5.

A caption is put into Llama 3's template as a user's turn, goes through the language model with attention in both
directions, and the hidden states of its own tokens and the end-of-turn token are averaged: the template's other tokens
are seen, but not pooled. That is what llm2vec 0.2.3 does (``LLM2Vec.tokenize``, ``get_pooling``): its separator
``!@#$%^&*()`` only marks where the caption begins, and is cut out before the model sees the text. Then comes the text
adapter of the CLIP checkpoint. Two things differ from llm2vec: the average is taken in float32, and of a text that is
cut only the caption's tokens are pooled (llm2vec's mask then reaches into the template).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

from ..errors import EmbeddingError
from .adapter import adapter_of, load_adapter, tensor_shapes
from .base import TokenEncoder
from .batches import Tokens, tokenise
from .checkpoint import Checkpoint, Runtime
from .image_tower import encode_pictures, image_processor

if TYPE_CHECKING:
    from PIL.Image import Image

BEFORE = "<|start_header_id|>user<|end_header_id|>\n\n"
AFTER = "<|eot_id|>"
MAX_TOKENS = 512  # paper, Stage 3; the template's included


class LLM2CLIPEncoder(TokenEncoder):
    """The language model, mean pooling, and the text adapter; images by the CLIP checkpoint's vision tower.

    Args:
        checkpoint: the language model, such as LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned.
        head: the CLIP checkpoint, such as LLM2CLIP-Openai-L-14-336.
        runtime: where and how the towers run; the adapter runs in float32.

    Raises:
        EmbeddingError: one is no such checkpoint, or they do not fit each other.
    """

    pooling = "mean"  # of the caption's tokens; then comes the text adapter

    def __init__(self, checkpoint: Checkpoint, head: Checkpoint, runtime: Runtime) -> None:
        super().__init__(checkpoint, runtime)
        if (kind := checkpoint.config().get("model_type")) != "llama":
            raise EmbeddingError(f"encoder {checkpoint.path} is a {kind!r}; with embed.text_head it must be a 'llama'")
        known = self._tokenizer.get_vocab()
        if missing := [token for token in ("<|start_header_id|>", "<|end_header_id|>", AFTER) if token not in known]:
            raise EmbeddingError(f"encoder {checkpoint.path}: its tokenizer lacks {', '.join(missing)} of Llama 3")
        self.head = head
        self.max_tokens = MAX_TOKENS
        self._config = LlamaConfig.from_pretrained(checkpoint.path, local_files_only=True)
        self._dimension = adapter_of(head, self._config.hidden_size).dimension
        self._before = np.asarray(self._tokenizer(BEFORE)["input_ids"], dtype=np.int32)

    @property
    def dimension(self) -> int:
        """d of the vectors, 1280 in the paper's."""
        return self._dimension

    def provenance(self) -> dict[str, Any]:
        """See ``TextEncoder``; ``text_head`` is the CLIP checkpoint."""
        tower = self._vision_width == self.dimension or self.head.trust_remote_code
        return super().provenance() | {"text_head": self._head_facts, "joint_with_images": True, "image_tower": tower}

    def encode_images(
        self, images: Sequence["Path | Image"], on_batch: Callable[[int], object] = lambda rows: None
    ) -> torch.Tensor:
        """See ``ImageEncoder``. Where the checkpoint has no preprocessing of its own, as the released one, CLIP's."""
        return encode_pictures(
            images, self._image_processor, self._image_features, self.dimension, self.runtime, on_batch
        )

    def _tokenise(self, texts: Sequence[str]) -> tuple[list[Tokens], int]:
        """The tokens that are pooled; those before them are the same for all texts."""
        turns = [text.strip() + AFTER for text in texts]
        room = self.max_tokens - len(self._before)
        return tokenise(self._tokenizer, turns, room, add_special_tokens=False)

    def _lengths(self, rows: list[Tokens]) -> list[int]:
        return [len(self._before) + len(row) for row in rows]

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        pooled = pooled_states(self._model, self._before, rows)
        features: torch.Tensor = self._adapter(pooled)
        return features

    def _image_features(self, **inputs: torch.Tensor) -> torch.Tensor:
        features = self._vision(**inputs)
        return features if isinstance(features, torch.Tensor) else features.image_embeds

    @cached_property
    def _head_facts(self) -> dict[str, Any]:
        return self.head.facts()

    @cached_property
    def _model(self) -> Any:
        return both_directions(self.checkpoint.model(LlamaModel, self.runtime, config=self._config))

    @cached_property
    def _adapter(self) -> Any:
        return load_adapter(self.head, self._config.hidden_size, self.runtime.device)

    @cached_property
    def _vision_width(self) -> int | None:
        """Of the space that the vision tower's tensors lead to; None where transformers' own CLIP has no place for
        them."""
        shape = tensor_shapes(self.head, "visual_projection.").get("visual_projection.weight", ())
        return shape[0] if len(shape) == 2 and tensor_shapes(self.head, "vision_model.embeddings.") else None

    @cached_property
    def _vision(self) -> Callable[..., Any]:
        if self._vision_width == self.dimension:
            written = self.head.config().get("vision_config", {})
            config = CLIPVisionConfig(**written | {"projection_dim": self.dimension})
            tower: Callable[..., Any] = self.head.model(CLIPVisionModelWithProjection, self.runtime, config=config)
            return tower
        if self.head.trust_remote_code:
            features: Callable[..., Any] = self.head.model(AutoModel, self.runtime).get_image_features
            return features
        raise EmbeddingError(
            f"text head {self.head.path} has no CLIP vision tower with a projection to {self.dimension} dimensions; "
            "images need one, or embed.trust_remote_code with pinned revisions"
        )

    @cached_property
    def _image_processor(self) -> Any:
        return image_processor(self.head, self.head.config().get("vision_config", {}).get("image_size"))


def both_directions(model: Any) -> Any:
    """Has every token of a Llama see every other: the mask is made by the configuration's word, and the attention
    kernels that need no mask ask their layer."""
    model.config.is_causal = False
    for layer in model.layers:
        layer.self_attn.is_causal = False
    return model


def pooled_states(model: Any, before: Tokens, rows: list[Tokens]) -> torch.Tensor:
    """The mean of the last hidden states over each row's own tokens.

    Args:
        model: as ``both_directions`` leaves it.
        before: ids that come before every row, and are not pooled.
        rows: ids of each row.

    Returns:
        float32 [rows, width], of any norm.
    """
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), len(before) + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    pool = torch.zeros(ids.shape)
    for place, row in enumerate(rows):  # padded on the left
        filled = np.concatenate([before, row])
        ids[place, -len(filled) :] = torch.from_numpy(filled)
        mask[place, -len(filled) :] = 1
        pool[place, -len(row) :] = 1 / len(row)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as without padding
    inputs = {"input_ids": ids, "position_ids": positions}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    hidden = model(**{name: value.to(model.device) for name, value in inputs.items()}, use_cache=False)
    return torch.einsum("rt,rtd->rd", pool.to(model.device), hidden.last_hidden_state.float())

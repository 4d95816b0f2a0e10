"""What all text encoders share: tokens once, batches by budget, vectors of norm 1, a record of what they are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import normalize

from ..errors import EmbeddingError
from . import Encoded
from .batches import Tokens, encode_batches, tokenise
from .checkpoint import Checkpoint, Runtime


class TokenEncoder(ABC):
    """An encoder of token ids. A subclass sets ``max_tokens``, and says how a batch becomes vectors.

    Args:
        checkpoint: the model's files.
        runtime: where and how it runs.
    """

    max_tokens: int
    pooling: str

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.checkpoint, self.runtime = checkpoint, runtime
        checkpoint.weights()  # a directory without any is told at once, by name
        self._tokenizer = checkpoint.tokenizer()

    @property
    @abstractmethod
    def dimension(self) -> int:
        """d of the vectors."""

    @abstractmethod
    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        """The vectors of a batch, [rows, d], of any norm."""

    def provenance(self) -> dict[str, Any]:
        """See ``TextEncoder``. The weights are hashed once."""
        return self._checkpoint_facts | {
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "dimension": self.dimension,
            "dtype": str(self.runtime.dtype).removeprefix("torch."),
            "joint_with_images": False,
            "image_tower": False,
        }

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        on_batch: Callable[[int], object] = lambda rows: None,
        dtype: torch.dtype = torch.float32,
    ) -> Encoded:
        """See ``TextEncoder``. Texts of like length go together, so that little is padded.

        Raises:
            EmbeddingError: the model cannot be loaded, or its device has too little memory.
        """
        rows, truncated = self._tokenise(texts)
        try:
            vectors = encode_batches(
                rows,
                self._lengths(rows),
                self.runtime.batch_tokens,
                lambda batch: normalize(self._features(batch).float(), dim=-1),
                torch.empty(len(texts), self.dimension, dtype=dtype),
                on_batch,
            )
        except torch.OutOfMemoryError as error:
            raise EmbeddingError(
                f"{self.runtime.device} has too little memory for batches of {self.runtime.batch_tokens} tokens of "
                f"{self.checkpoint.name}; lower embed.batch_tokens and give the same command again: {error}"
            ) from error
        return Encoded(vectors, truncated)

    def _tokenise(self, texts: Sequence[str]) -> tuple[list[Tokens], int]:
        return tokenise(self._tokenizer, texts, self.max_tokens)

    def _lengths(self, rows: list[Tokens]) -> list[int]:
        """Tokens that each row takes in a batch."""
        return [len(row) for row in rows]

    def _padded(self, rows: list[Tokens], **options: Any) -> Any:
        """The model's inputs for a batch, on its device, by the tokenizer's own rules of padding."""
        options = {"padding": "longest"} | options
        inputs = self._tokenizer.pad({"input_ids": [row.tolist() for row in rows]}, return_tensors="pt", **options)
        return inputs.to(self.runtime.device)

    @cached_property
    def _checkpoint_facts(self) -> dict[str, Any]:
        return self.checkpoint.facts()

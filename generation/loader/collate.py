"""From rows to what a trainer of Unicorn's kind takes: token ids of the user's tokenizer, and one vector a sample."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import DatasetError
from .dataset import Batch, Turn


class Collate:
    """A DataLoader's ``collate_fn``: what ``tokenize`` gives, and ``embeds`` [B, d].

    The model repeats each vector (576 times in the paper) and projects it; here it is one. Whatever becomes of
    ``<image>``, of roles and of what carries no loss is up to ``tokenize``: it knows the model's chat template.

    Args:
        tokenize: from B conversations in LLaVA's form to tensors [B, ...], such as ``input_ids``, ``attention_mask``
            and ``labels``; picklable, where workers are spawned.
        dtype: of ``embeds``: float16, as stored, bfloat16 or float32.
    """

    def __init__(
        self, tokenize: Callable[[list[list[Turn]]], Mapping[str, Any]], dtype: torch.dtype = torch.float16
    ) -> None:
        self.tokenize, self.dtype = tokenize, dtype

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The batch as tensors.

        Raises:
            DatasetError: ``tokenize`` gave something for another number of rows.
        """
        tokens = dict(self.tokenize(batch.conversations()))
        for name, tensor in tokens.items():
            if len(tensor) != len(batch.rows):
                raise DatasetError(
                    f"tokenize gave {len(tensor)} rows of '{name}' for {len(batch.rows)} conversations; it must give "
                    "one row each"
                )
        return tokens | {"embeds": batch.embeds.to(self.dtype)}

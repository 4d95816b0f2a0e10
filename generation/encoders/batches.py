"""Texts to tokens, once, and tokens to batches: of like length, as many rows as a budget of padded tokens allows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Tokens = npt.NDArray[np.int32]

CHUNK_TEXTS = 1024  # tokenised at a time: ids as Python integers take nine times the memory


def tokenise(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, add_special_tokens: bool = True
) -> tuple[list[Tokens], int]:
    """The ids of each text, cut to ``max_tokens``, and how many texts were cut.

    A text that is cut keeps its closing special tokens, as by the tokenizer's own truncation.

    Args:
        tokenizer: a transformers tokenizer.
        texts: in any order.
        max_tokens: special tokens included.
        add_special_tokens: the tokenizer's own; without them nothing but the text's end is cut.

    Returns:
        int32 [tokens] for each text, and a count.
    """
    closing = _closing_tokens(tokenizer) if add_special_tokens else 0
    rows: list[Tokens] = []
    truncated = 0
    for first in range(0, len(texts), CHUNK_TEXTS):
        chunk = list(texts[first : first + CHUNK_TEXTS])
        for ids in tokenizer(chunk, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]:
            if len(ids) > max_tokens:
                ids = ids[: max_tokens - closing] + ids[len(ids) - closing :]
                truncated += 1
            rows.append(np.asarray(ids, dtype=np.int32))
    return rows, truncated


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Row numbers, longest first, as many to a batch as fit into ``budget`` once padded to the batch's longest.

    A row longer than the budget is a batch of its own. Padding takes fewer than
    ``budget * (1 + ln(longest / shortest))`` tokens over all batches, since each begins with a row no longer than
    the last row of the one before.

    Args:
        lengths: tokens of each row.
        budget: padded tokens in a batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def encode_batches(
    rows: Sequence[Tokens],
    lengths: Sequence[int],
    budget: int,
    encode: Callable[[list[Tokens]], torch.Tensor],
    out: torch.Tensor,
    on_batch: Callable[[int], object],
) -> torch.Tensor:
    """Runs all rows through ``encode``, batch by batch, and puts each row's vector in its place.

    Args:
        rows: the ids of each text.
        lengths: tokens that each row takes in a batch.
        budget: padded tokens in a batch.
        encode: the ids of a batch to its vectors, [rows, d] on any device.
        out: [n, d] on the CPU, to be filled; the vectors are converted to its dtype.
        on_batch: told how many rows were encoded.

    Returns:
        ``out``.
    """
    for batch in token_batches(lengths, budget):
        out[batch] = encode([rows[row] for row in batch]).to("cpu", out.dtype)
        on_batch(len(batch))
    return out


def _closing_tokens(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return list(reversed(mask)).index(0) if 0 in mask else 0

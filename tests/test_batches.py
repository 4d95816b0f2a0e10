"""Batches by token budget, and tokens made once: properties over any lengths."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from generation.encoders.batches import encode_batches, token_batches, tokenise
from generation.encoders.mean_pooling import embedded_model
from tests.conftest import CAPTIONS

LENGTHS = st.lists(st.integers(1, 600), max_size=300)
TEXTS = CAPTIONS.read_text(encoding="utf-8").splitlines()[:60]


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 4000))
def test_every_row_is_in_one_batch_within_the_budget_and_little_is_padded(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    padded = 0
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        padded += len(batch) * longest
    if lengths:
        assert padded - sum(lengths) <= budget * (1 + math.log(max(lengths) / min(lengths)))


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 4000))
def test_a_batch_is_as_full_as_the_budget_allows(lengths: list[int], budget: int) -> None:
    for batch, _ in pairwise(token_batches(lengths, budget)):
        assert (len(batch) + 1) * max(lengths[row] for row in batch) > budget


def test_the_longest_come_first_and_equal_ones_in_their_order() -> None:
    assert list(token_batches([3, 5, 3, 9, 5], 10)) == [[3], [1, 4], [0, 2]]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 2000))
def test_each_vector_lands_in_its_own_row(lengths: list[int], budget: int) -> None:
    rows = [np.full(length, row, dtype=np.int32) for row, length in enumerate(lengths)]
    told: list[int] = []
    out = encode_batches(
        rows,
        lengths,
        budget,
        lambda batch: torch.tensor([[row[0], len(row)] for row in batch], dtype=torch.float64),
        torch.empty(len(rows), 2),
        told.append,
    )
    assert out.dtype == torch.float32
    assert out.tolist() == [[row, length] for row, length in enumerate(lengths)]
    assert sum(told) == len(rows)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_model())


def test_tokens_are_those_of_the_tokenizer_and_cut_as_by_it(tokenizer: Any) -> None:
    for limit in (8, 16, 512):
        rows, truncated = tokenise(tokenizer, TEXTS, limit)
        assert [row.tolist() for row in rows] == tokenizer(TEXTS, truncation=True, max_length=limit)["input_ids"]
        assert truncated == sum(len(ids) > limit for ids in tokenizer(TEXTS)["input_ids"])
        assert all(row.dtype == np.int32 for row in rows)
    assert truncated == 0


def test_without_special_tokens_the_end_alone_is_cut(tokenizer: Any) -> None:
    rows, truncated = tokenise(tokenizer, TEXTS, 8, add_special_tokens=False)
    whole = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert [row.tolist() for row in rows] == [ids[:8] for ids in whole]
    assert truncated == sum(len(ids) > 8 for ids in whole)


def test_each_text_is_tokenised_once(tokenizer: Any) -> None:
    seen: list[str] = []

    class Counting:
        def __call__(self, texts: Any, **options: Any) -> Any:
            if isinstance(texts, list):
                seen.extend(texts)
            return tokenizer(texts, **options)

    tokenise(Counting(), TEXTS * 40, 8)
    assert seen == TEXTS * 40

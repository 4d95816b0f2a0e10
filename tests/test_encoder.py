"""The embedded encoder: real weights, real tokenizer."""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from generation.config import Embed
from generation.encoders import TextEncoder, load_encoder
from generation.encoders.mean_pooling import MeanPoolingEncoder, embedded_model
from generation.errors import EmbeddingError
from tests.conftest import CAPTIONS

TEXTS = CAPTIONS.read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture(scope="module")
def encoder() -> Iterator[TextEncoder]:
    yield load_encoder(Embed())


def test_vectors_are_those_of_the_model_used_by_hand(encoder: TextEncoder) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(embedded_model()), AutoModel.from_pretrained(embedded_model())
    made = encoder.encode(TEXTS).vectors
    for row, text in enumerate(TEXTS[:5]):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert float(made[row] @ wanted) > 0.9999


def test_vectors_are_float32_unit_rows_in_the_order_of_the_texts(encoder: TextEncoder) -> None:
    made = encoder.encode(TEXTS)
    assert made.vectors.dtype == torch.float32
    assert made.vectors.shape == (40, encoder.dimension)
    assert (made.vectors.norm(dim=1) - 1).abs().max() < 1e-5
    backwards = encoder.encode(TEXTS[::-1]).vectors.flip(0)
    assert (made.vectors * backwards).sum(1).min() > 0.9999


def test_small_batches_give_the_same_vectors_and_every_row_is_reported_once() -> None:
    told: list[int] = []
    small = MeanPoolingEncoder(embedded_model(), batch_tokens=64).encode(TEXTS, told.append)
    large = MeanPoolingEncoder(embedded_model(), batch_tokens=100_000).encode(TEXTS)
    assert sum(told) == 40
    assert len(told) > 5
    assert (small.vectors * large.vectors).sum(1).min() > 0.9999


def test_truncated_texts_are_counted(encoder: TextEncoder) -> None:
    long = "word " * 400
    assert encoder.encode([*TEXTS[:3], long, long]).truncated == 2
    assert encoder.encode(TEXTS).truncated == 0


def test_no_text_gives_no_vector(encoder: TextEncoder) -> None:
    assert encoder.encode([]).vectors.shape == (0, encoder.dimension)


def test_provenance_names_the_model_and_the_hash_of_its_weights(encoder: TextEncoder) -> None:
    facts = encoder.provenance()
    assert facts["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert len(facts["weights_sha256"]) == 64
    assert (facts["dimension"], facts["max_tokens"], facts["joint_with_images"]) == (384, 256, False)


def test_a_directory_without_a_model_is_refused_by_name() -> None:
    with pytest.raises(EmbeddingError, match="/tmp holds no model"):
        load_encoder(Embed(encoder="/tmp"))

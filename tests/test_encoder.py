"""The embedded encoder: real weights, real tokenizer."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from generation.config import Embed
from generation.encoders import TextEncoder, load_encoder
from generation.encoders.checkpoint import Runtime
from generation.encoders.mean_pooling import MeanPoolingEncoder, embedded_checkpoint
from generation.errors import EmbeddingError, RecipeError
from generation.recipe import load_recipe
from tests.conftest import CAPTIONS, write_recipe

TEXTS = CAPTIONS.read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture(scope="module")
def encoder() -> Iterator[TextEncoder]:
    yield load_encoder(Embed())


def test_vectors_are_those_of_the_model_used_by_hand(encoder: TextEncoder) -> None:
    path = embedded_checkpoint().path
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    made = encoder.encode(TEXTS).vectors
    for row, text in enumerate(TEXTS[:5]):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert float(made[row] @ wanted) > 0.9999


def test_a_text_that_is_cut_has_the_vector_of_the_tokenizers_own_truncation(encoder: TextEncoder) -> None:
    path = embedded_checkpoint().path
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    long = " ".join(TEXTS)
    with torch.inference_mode():
        inputs = tokenizer(long, truncation=True, max_length=256, return_tensors="pt")
        wanted = torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0)
    made = encoder.encode([TEXTS[0], long])
    assert made.truncated == 1
    assert float(made.vectors[1] @ wanted) > 0.9999


def test_vectors_are_unit_rows_in_the_order_of_the_texts_in_the_dtype_asked_for(encoder: TextEncoder) -> None:
    made = encoder.encode(TEXTS)
    assert made.vectors.dtype == torch.float32
    assert made.vectors.shape == (40, encoder.dimension)
    assert (made.vectors.norm(dim=1) - 1).abs().max() < 1e-5
    backwards = encoder.encode(TEXTS[::-1]).vectors.flip(0)
    assert (made.vectors * backwards).sum(1).min() > 0.9999
    half = encoder.encode(TEXTS, dtype=torch.float16).vectors
    assert torch.equal(half, made.vectors.half())


def test_small_batches_give_the_same_vectors_and_every_row_is_reported_once() -> None:
    told: list[int] = []

    def with_budget(tokens: int) -> MeanPoolingEncoder:
        return MeanPoolingEncoder(embedded_checkpoint(), Runtime.of(Embed(batch_tokens=tokens)))

    small = with_budget(64).encode(TEXTS, told.append)
    large = with_budget(100_000).encode(TEXTS)
    assert sum(told) == 40
    assert len(told) > 5
    assert (small.vectors * large.vectors).sum(1).min() > 0.9999


def test_truncated_texts_are_counted(encoder: TextEncoder) -> None:
    long = "word " * 400
    assert encoder.encode([*TEXTS[:3], long, long]).truncated == 2
    assert encoder.encode(TEXTS).truncated == 0


def test_a_device_with_too_little_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MeanPoolingEncoder, rows: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(MeanPoolingEncoder, "_features", full)
    with pytest.raises(
        EmbeddingError, match="cpu has too little memory for batches of 8192 tokens.*embed.batch_tokens"
    ):
        load_encoder(Embed()).encode(TEXTS[:1])


def test_no_text_gives_no_vector(encoder: TextEncoder) -> None:
    assert encoder.encode([]).vectors.shape == (0, encoder.dimension)


def test_provenance_names_the_model_and_the_hash_of_its_weights(encoder: TextEncoder) -> None:
    facts = encoder.provenance()
    assert facts["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert len(facts["weights_sha256"]) == 64
    assert (facts["dimension"], facts["max_tokens"], facts["dtype"], facts["revision"]) == (384, 256, "float32", None)
    assert (facts["joint_with_images"], facts["image_tower"]) == (False, False)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_directory_that_lacks_a_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    for file in embedded_checkpoint().path.iterdir():
        if file.is_file() and file.name not in (name, "vocab.txt"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(EmbeddingError, match=f"encoder {tmp_path}.*({name}|tokenizer)"):
        load_encoder(Embed(encoder=str(tmp_path)))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((embedded_checkpoint().path / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(EmbeddingError, match="holds no model.safetensors.*pickled weights are not loaded"):
        load_encoder(Embed(encoder=str(tmp_path)))


def test_a_relative_directory_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(embedded_checkpoint().path)
    assert load_encoder(Embed(encoder="mine"), tmp_path).dimension == 384
    with pytest.raises(EmbeddingError, match="is no directory; give 'embedded'"):
        load_encoder(Embed(encoder="others"), tmp_path)


def test_a_hub_id_without_a_commit_is_refused() -> None:
    with pytest.raises(EmbeddingError, match="openai/clip is no directory under .* give its commit"):
        load_encoder(Embed(encoder="openai/clip"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"encoder": "m", "revision": "main"}, "'embed.revision' = 'main'"),
        ({"encoder": "m", "trust_remote_code": True}, "trust_remote_code needs embed.revision: code that runs"),
        (
            {"encoder": "m", "text_head": "h", "trust_remote_code": True, "revision": COMMIT},
            "trust_remote_code needs embed.text_head_revision",
        ),
        ({"text_head": "h"}, "'embedded', which takes no text_head"),
        ({"encoder": "m", "text_head_revision": COMMIT}, "text_head_revision is given, but no text_head"),
        ({"dtype": "int8"}, "'embed.dtype' = 'int8'"),
        ({"workers": 0}, "'embed.workers' = 0"),
        ({"text_heads": "h"}, "nearest known: 'embed.text_head'"),
    ],
)
def test_an_embed_section_that_cannot_be_is_refused(section: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(write_recipe(tmp_path, embed=section))

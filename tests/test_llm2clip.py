"""LLM2CLIP on a tiny random Llama and a tiny random CLIP checkpoint, against references written here."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaModel

from generation.config import Embed
from generation.encoders import load_encoder
from generation.encoders.adapter import TextAdapter, load_adapter
from generation.encoders.checkpoint import Checkpoint
from generation.encoders.llm2clip import AFTER, BEFORE, LLM2CLIPEncoder, both_directions
from generation.errors import EmbeddingError
from tests.tiny_models import TEXTS, adapter_tensors, tiny_clip, tiny_head, tiny_llama

TEMPLATE = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"  # llm2vec 0.2.3, prepare_for_tokenization


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_head(tmp_path_factory.mktemp("models") / "tiny-head")


def load(llama: Path, head: Path, **settings: Any) -> LLM2CLIPEncoder:
    encoder = load_encoder(Embed(encoder=str(llama), text_head=str(head), **settings))
    assert isinstance(encoder, LLM2CLIPEncoder)
    return encoder


def hidden_states(llama: Path, ids: list[int]) -> torch.Tensor:
    """[tokens, width] with an explicit mask that lets every token see every other, by plain (eager) attention."""
    model = LlamaModel.from_pretrained(llama, attn_implementation="eager").eval()
    mask = torch.zeros(1, 1, len(ids), len(ids))
    with torch.inference_mode():
        hidden: torch.Tensor = model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    return hidden


def adapted(pooled: torch.Tensor, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """The adapter in float64 numpy."""
    w = {name.removeprefix("text_adapter.adaptor."): t.double().numpy() for name, t in tensors.items()}
    x = pooled.double().numpy()
    x = x / np.linalg.norm(x)

    def layer_norm(x: np.ndarray, at: str) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{at}.weight"] + w[f"{at}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    for block in range(4):
        inner = w[f"{block}.fn.0.weight"] @ layer_norm(x, f"{block}.ln") + w[f"{block}.fn.0.bias"]
        x = x + w[f"{block}.fn.3.weight"] @ gelu(inner) + w[f"{block}.fn.3.bias"]
    x = w["5.weight"] @ layer_norm(x, "4") + w["5.bias"]
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_every_token_sees_every_other_as_by_an_explicit_mask(kernel: str, padded: bool, llama: Path) -> None:
    model = both_directions(LlamaModel.from_pretrained(llama, attn_implementation=kernel).eval())
    assert not any(layer.self_attn.is_causal for layer in model.layers)  # what flash-attention-2 asks
    ids = list(range(10, 22))
    inputs = {"input_ids": torch.tensor([ids])}
    if padded:
        inputs["input_ids"] = torch.tensor([[0] * 4 + ids])
        inputs["attention_mask"] = torch.tensor([[0] * 4 + [1] * len(ids)])
    with torch.inference_mode():
        made = model(**inputs).last_hidden_state[0, -len(ids) :]
    wanted = hidden_states(llama, ids)
    assert (made - wanted).abs().max() < 2e-5
    causal = LlamaModel.from_pretrained(llama).eval()
    with torch.inference_mode():
        assert (causal(torch.tensor([ids])).last_hidden_state[0] - wanted).abs().max() > 1e-2


def test_a_vector_is_the_adapted_mean_over_the_caption_and_the_end_of_turn(llama: Path, head: Path) -> None:
    made = load(llama, head).encode(TEXTS[:6]).vectors
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for row, text in enumerate(TEXTS[:6]):
        ids = tokenizer(TEMPLATE.format(text))["input_ids"]
        own = tokenizer(text + "<|eot_id|>", add_special_tokens=False)["input_ids"]
        assert ids[-len(own) :] == own  # so that llm2vec's mask, by the number of own tokens, is exact
        assert len(ids) - len(own) == 5  # begin of text, three of the header, two line ends as one
        pooled = hidden_states(llama, ids)[-len(own) :].mean(0)
        np.testing.assert_allclose(made[row].double().numpy(), adapted(pooled, adapter_tensors()), atol=2e-5)


def test_the_separator_of_llm2vec_is_cut_out_of_what_the_model_sees(llama: Path, head: Path) -> None:
    encoder = load(llama, head)
    rows, _ = encoder._tokenise(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for text, row in zip(TEXTS, rows, strict=True):
        assert [*encoder._before, *row] == tokenizer(BEFORE + text + AFTER)["input_ids"]


def test_a_vector_does_not_depend_on_what_is_padded_beside_it(llama: Path, head: Path) -> None:
    together = load(llama, head, batch_tokens=100_000).encode(TEXTS).vectors
    alone = load(llama, head, batch_tokens=1).encode(TEXTS).vectors
    assert (together - alone).abs().max() < 2e-5
    assert (together.norm(dim=1) - 1).abs().max() < 1e-5


def test_a_long_caption_is_cut_at_512_tokens_with_the_template_and_counted(llama: Path, head: Path) -> None:
    encoder = load(llama, head)
    long = " ".join(TEXTS * 3)
    made = encoder.encode([TEXTS[0], long])
    assert made.truncated == 1
    ids = AutoTokenizer.from_pretrained(llama)(TEMPLATE.format(long))["input_ids"][:512]
    wanted = adapted(hidden_states(llama, ids)[5:].mean(0), adapter_tensors())
    np.testing.assert_allclose(made.vectors[1].double().numpy(), wanted, atol=2e-5)


def test_images_go_through_the_checkpoint_s_vision_tower_with_clip_s_preprocessing(llama: Path, head: Path) -> None:
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    made = load(llama, head).encode_images([picture, picture.rotate(90)])
    config = CLIPVisionConfig(
        **json.loads((head / "config.json").read_text())["vision_config"] | {"projection_dim": 12}
    )
    tower = CLIPVisionModelWithProjection.from_pretrained(head, config=config).eval()
    scaled = picture.resize((21, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(np.array(scaled)).float() / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.inference_mode():
        wanted = normalize(tower(pixels).image_embeds, dim=-1)
    assert (made[:1] - wanted).abs().max() < 1e-3
    assert made.shape == (2, 12)


def test_a_checkpoint_without_a_vision_tower_encodes_texts_and_refuses_images(llama: Path, tmp_path: Path) -> None:
    encoder = load(llama, tiny_head(tmp_path / "head", vision=False))
    assert encoder.provenance()["image_tower"] is False
    assert encoder.encode(TEXTS[:2]).vectors.shape == (2, 12)
    with pytest.raises(EmbeddingError, match="has no CLIP vision tower with a projection to 12 dimensions"):
        encoder.encode_images([Image.new("RGB", (16, 16))])


def test_provenance_names_both_checkpoints(llama: Path, head: Path) -> None:
    facts = load(llama, head).provenance()
    assert (facts["model"], facts["text_head"]["model"]) == ("tiny-llama", "tiny-head")
    assert facts["weights_sha256"] != facts["text_head"]["weights_sha256"]
    assert (facts["dimension"], facts["max_tokens"]) == (12, 512)
    assert facts["joint_with_images"] is facts["image_tower"] is True


def test_the_paper_s_adapter_has_274_million_parameters() -> None:
    with torch.device("meta"):
        adapter = TextAdapter(4096, 8192, 4, 1280, bias=True)
    assert (
        sum(p.numel() for p in adapter.parameters())
        == 4 * (2 * 4096 * 8192 + 8192 + 3 * 4096) + 2 * 4096 + 4096 * 1280 + 1280
    )


WRONG = {
    "text_adapter.adaptor.2.fn.3.weight": torch.zeros(32, 63),
    "text_adapter.adaptor.5.bias": torch.zeros(13),
    "text_adapter.adaptor.4.weight": torch.zeros(1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_of_another_shape_is_refused_by_name(name: str, llama: Path, tmp_path: Path) -> None:
    wrong = tiny_head(tmp_path / "head", adapter_tensors() | {name: WRONG[name]})
    with pytest.raises(EmbeddingError, match=rf"tmp.*head: {name} has shape \({WRONG[name].shape[0]},.*must have"):
        load(llama, wrong)


def test_missing_and_foreign_tensors_of_the_adapter_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    tensors = adapter_tensors()
    del tensors["text_adapter.adaptor.1.ln.bias"]
    with pytest.raises(EmbeddingError, match=r"adaptor\.1\.ln\.bias has shape None, but must have \(32,\)"):
        load(llama, tiny_head(tmp_path / "missing", tensors))
    more = adapter_tensors() | {"text_adapter.gate": torch.zeros(1)}
    with pytest.raises(EmbeddingError, match=r"text_adapter\.gate has shape \(1,\), but must have None"):
        load(llama, tiny_head(tmp_path / "more", more))
    with pytest.raises(EmbeddingError, match="for hidden states of width 32"):
        load(llama, tiny_head(tmp_path / "wide", adapter_tensors(width=40)))


def test_a_head_without_an_adapter_and_an_encoder_that_is_no_llama_are_refused(
    llama: Path, head: Path, tmp_path: Path
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    with pytest.raises(EmbeddingError, match="clip holds no text adapter of LLM2CLIP"):
        load(llama, clip)
    with pytest.raises(EmbeddingError, match="clip is a 'clip'; with embed.text_head it must be a 'llama'"):
        load(clip, head)
    with pytest.raises(EmbeddingError, match=r"is a Llama.*name that as embed\.text_head"):
        load_encoder(Embed(encoder=str(llama)))


def test_a_tokenizer_without_llama_3_s_tokens_is_refused(llama: Path, head: Path, tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    (clip / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(EmbeddingError, match=r"tokenizer lacks <\|start_header_id\|>, .* of Llama 3"):
        load(clip, head)


def test_an_adapter_in_half_precision_runs_in_float32(tmp_path: Path, head: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    save_file(
        {name: t.half() for name, t in load_file(head / "model.safetensors").items()}, half / "model.safetensors"
    )
    adapter = load_adapter(Checkpoint(half, "half"), 32, torch.device("cpu"))
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {torch.float32}

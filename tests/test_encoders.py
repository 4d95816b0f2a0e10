"""Encoders against the same models used by hand: tiny and random, but of the real classes and in real files."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, linear, normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, LlamaModel

from generation.config import Embed
from generation.encoders import base, load_encoder
from generation.encoders.checkpoint import locate
from generation.encoders.llm2clip import ADAPTER
from generation.errors import EmbeddingError, RunError
from tests.tiny_models import TEXTS, adapter_tensors, tiny_clip, tiny_head, tiny_llama, tiny_siglip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG = " ".join(TEXTS * 3)
TEMPLATE = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"  # llm2vec 0.2.3, prepare_for_tokenization
KINDS = ("embedded", "clip", "siglip", "llm2clip")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for make, name in ((tiny_clip, "clip"), (tiny_siglip, "siglip"), (tiny_llama, "llama"), (tiny_head, "head")):
        make(path / name)
    shutil.copytree(path / "clip", path / "odd")  # a Llama with another tokenizer
    shutil.copy(path / "llama" / "config.json", path / "odd")
    return path


def load(models: Path, kind: str, **section: Any) -> base.Encoder:
    named = {"encoder": "llama", "text_head": "head"} if kind == "llm2clip" else {"encoder": kind}
    return load_encoder(Embed(**named | section), models)


def by_hand(models: Path, kind: str, text: str) -> torch.Tensor:
    """Return the vector of one text, unpadded (SigLIP: padded to its full length), straight from transformers."""
    path = locate("llama" if kind == "llm2clip" else kind, models).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    if kind == "llm2clip":  # by eager attention under an explicit mask that lets every token see every other
        ids = tokenizer(TEMPLATE.format(text), return_tensors="pt")["input_ids"][:, :512]
        llama = LlamaModel.from_pretrained(path, attn_implementation="eager")
        with torch.inference_mode():
            mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
            pooled = llama(ids, attention_mask=mask).last_hidden_state[0, 5:].mean(0)
            return adapted(normalize(pooled, dim=0))
    model, limit = AutoModel.from_pretrained(path), {"embedded": 256, "clip": 20, "siglip": 16}[kind]
    padding = "max_length" if kind == "siglip" else False
    inputs = tokenizer(text, truncation=True, max_length=limit, padding=padding, return_tensors="pt")
    with torch.inference_mode():
        if kind == "embedded":
            return normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0)
        return normalize(model.get_text_features(**inputs).pooler_output[0], dim=0)


def adapted(x: torch.Tensor) -> torch.Tensor:
    """Apply LLM2CLIP's text adapter to [32] (https://github.com/microsoft/LLM2CLIP, llm2clip/eva_clip/model.py)."""
    tensors = {name.removeprefix(ADAPTER): tensor for name, tensor in adapter_tensors().items()}

    def layer(function: Any, x: torch.Tensor, name: str, *shape: Any) -> torch.Tensor:
        return function(x, *shape, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    for block in range(4):
        hidden = gelu(layer(linear, layer(layer_norm, x, f"{block}.ln", (32,)), f"{block}.fn.0"))
        x = x + layer(linear, hidden, f"{block}.fn.3")
    return normalize(layer(linear, layer(layer_norm, x, "4", (32,)), "5"), dim=0)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_model_used_by_hand(kind: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(models, kind)
    texts = [*TEXTS[:6], LONG, *TEXTS[6:11], "A dog."]
    made = encoder.encode(texts)
    assert (made.dtype, made.shape) == (torch.float32, (13, encoder.dimension))
    for row in (0, 3, 6, 12):
        torch.testing.assert_close(made[row], by_hand(models, kind, texts[row]), atol=2e-5, rtol=0)
    assert (made.norm(dim=1) - 1).abs().max() < 1e-5
    # neither the order of the texts nor what they are padded with matters
    torch.testing.assert_close(encoder.encode(texts[::-1]).flip(0), made, atol=2e-5, rtol=0)
    monkeypatch.setitem(base.BATCH_TOKENS, "cpu", 1)
    torch.testing.assert_close(encoder.encode(texts), made, atol=2e-5, rtol=0)
    assert encoder.encode([]).shape == (0, encoder.dimension)
    if kind == "llm2clip":
        assert not any(layer.self_attn.is_causal for layer in encoder.model.layers)  # what flash-attention-2 asks


@pytest.mark.parametrize(("kind", "limit"), [("embedded", 256), ("clip", 20), ("siglip", 16), ("llm2clip", 512)])
def test_tokens_are_cut_as_by_the_tokenizer_and_the_cut_texts_counted(kind: str, limit: int, models: Path) -> None:
    encoder = load(models, kind)
    tokenizer = AutoTokenizer.from_pretrained(encoder.checkpoint.path)
    texts = [*TEXTS, LONG, "A dog."]
    own = [TEMPLATE.format(text) if kind == "llm2clip" else text for text in texts]
    rows, truncated = encoder.tokenise(texts)
    assert [row.tolist() for row in rows] == tokenizer(own, truncation=True, max_length=limit)["input_ids"]
    assert truncated == sum(len(ids) > limit for ids in tokenizer(own)["input_ids"]) > 0


def test_a_batch_too_large_for_memory_is_halved_a_text_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(models, "clip")
    real, wanted, largest = encoder._features, encoder.encode(TEXTS), 3

    def features(rows: list[Any]) -> torch.Tensor:
        if len(rows) > largest:
            raise torch.OutOfMemoryError("out of memory")
        return real(rows)

    monkeypatch.setattr(encoder, "_features", features)
    torch.testing.assert_close(encoder.encode(TEXTS), wanted, atol=2e-5, rtol=0)
    largest = 0
    with pytest.raises(EmbeddingError, match=r"cpu has too little memory to encode one text of 20 tokens with clip"):
        encoder.encode(TEXTS)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=300), st.integers(1, 4000))
def test_every_row_is_in_one_batch_within_the_budget_and_little_is_padded(lengths: list[int], budget: int) -> None:
    batches = list(base.token_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    padded = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert all(len(batch) == 1 or size <= budget for batch, size in zip(batches, padded, strict=True))
    assert sum(padded) - sum(lengths) <= budget * (1 + math.log(max(lengths) / min(lengths)))


@pytest.mark.parametrize("kind", ["clip", "siglip", "llm2clip"])
def test_pictures_go_through_the_tower_with_the_model_s_preprocessing(kind: str, models: Path, tmp_path: Path) -> None:
    pictures = [Image.effect_noise((40, 30), 90).convert("RGB").rotate(angle) for angle in range(0, 350, 10)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number:02}.png")
    encoder = load(models, kind)
    made = encoder.encode_images(sorted(tmp_path.iterdir()))
    assert (made.dtype, made.shape) == (torch.float32, (35, encoder.dimension))
    assert torch.equal(made, encoder.encode_images(pictures))
    own = models / ("clip" if kind == "llm2clip" else kind)  # its head has the weights of this CLIP
    processor = AutoImageProcessor.from_pretrained(own, backend="pil")
    with torch.inference_mode():
        features = AutoModel.from_pretrained(own).get_image_features(**processor(images=pictures, return_tensors="pt"))
    torch.testing.assert_close(made, normalize(features.pooler_output, dim=-1), atol=1e-5, rtol=0)


def test_pictures_that_cannot_be_encoded_are_an_error_that_says_why(models: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="all-MiniLM-L6-v2 has no image tower: it embeds text only.*CLIP"):
        load(models, "embedded").encode_images([tmp_path])
    Image.effect_noise((400, 300), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("torn.jpg", "text.png", "missing.png"):
        with pytest.raises(EmbeddingError, match=f"cannot read picture .*{name}"):
            load(models, "clip").encode_images([tmp_path / "whole.jpg", tmp_path / name])
    blind = load(models, "llm2clip", text_head=str(tiny_head(tmp_path / "blind", vision=False)))
    assert blind.encode(TEXTS[:2]).shape == (2, 12)
    with pytest.raises(EmbeddingError, match=r"blind lacks \d+ weights: vision_model"):
        blind.encode_images([tmp_path / "whole.jpg"])


def test_the_identity_names_all_that_decides_the_vectors(models: Path) -> None:
    facts = {kind: load(models, kind).identity for kind in KINDS}
    head = facts["llm2clip"].pop("text_head")
    assert len({fact.pop("weights_sha256") for fact in [*facts.values(), head]}) == 5 and head["model"] == "head"
    assert all(fact.pop("commit") is None and fact.pop("dtype") == "float32" for fact in facts.values())
    keys = ("model", "kind", "pooling", "max_tokens", "dimension", "joint_with_images")
    assert {kind: [fact.pop(key) for key in keys] for kind, fact in facts.items()} == {
        "embedded": ["sentence-transformers/all-MiniLM-L6-v2", "sentence", "mean", 256, 384, False],
        "clip": ["clip", "dual", "model", 20, 12, True],
        "siglip": ["siglip", "dual", "model", 16, 16, True],
        "llm2clip": ["llama", "llm2clip", "mean", 512, 12, True],
    }
    assert not any(facts.values())
    half, whole = load(models, "clip", dtype="bfloat16"), load(models, "clip")
    made = half.encode(TEXTS)
    assert (half.identity["dtype"], half.model.dtype, made.dtype) == ("bfloat16", torch.bfloat16, torch.float32)
    assert 0.98 < float((made * whole.encode(TEXTS)).sum(1).min()) < 0.9999999


def test_an_encoder_that_cannot_be_is_refused(models: Path) -> None:
    for encoder, more, said in (
        ("others", {}, "there is no directory .*others; give 'embedded'"),
        ("openai/clip@main", {}, "there is no directory .*owner/name@<40 hex digits>"),
        ("clip", {"trust_remote_code": True}, "trust_remote_code needs a commit"),
        ("llama", {}, r"is a Llama: .* as embed\.text_head"),
        ("clip", {"text_head": "head"}, "clip is a 'clip'; with embed.text_head it must be a 'llama'"),
        ("llama", {"text_head": "clip"}, "clip has no text adapter of LLM2CLIP"),
        ("odd", {"text_head": "head"}, r"tokenizer lacks <\|start_header_id\|>, .* of Llama 3"),
    ):
        with pytest.raises(EmbeddingError, match=said):
            load_encoder(Embed(encoder=encoder, **more), models)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", None, "cannot load its model: .*model.safetensors"),
        ("model.safetensors", b"not safetensors", "cannot load its model"),
        ("config.json", None, "cannot load its configuration"),
        ("config.json", b"{", "config.json: Expecting"),
        ("tokenizer.json", None, "tokenizer"),
        ("1_Pooling/config.json", b'{"pooling_mode_mean_tokens": false}', "mean pooling"),
    ],
)
def test_a_damaged_directory_is_refused_by_name(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    for file in locate("embedded", tmp_path).path.iterdir():
        if file.is_file() and file.name not in (name, "vocab.txt"):
            (tmp_path / file.name).symlink_to(file)
    if content is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")  # pickles are not loaded
    with pytest.raises((EmbeddingError, RunError), match=f"(?s){tmp_path}.*{said}"):
        load_encoder(Embed(encoder=str(tmp_path))).encode(TEXTS[:1])


def test_missing_weights_are_named_and_not_drawn_at_random(models: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(models / "clip", tmp_path / "copy")) / "model.safetensors"
    tensors = load_file(file)
    for name in ("text_projection.weight", "vision_model.post_layernorm.bias"):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
        with pytest.raises(EmbeddingError, match=f"copy lacks 1 weights: {name}"):
            load(tmp_path, "copy").encode(TEXTS[:1])


def test_a_hub_model_is_the_commit_that_the_recipe_names_and_its_code_runs_only_if_a_commit_pins_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # stands in for the Hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = Path(shutil.copytree(models / "clip", tmp_path / "models--owner--clip" / "snapshots" / COMMIT))
    identity = load(models, f"owner/clip@{COMMIT}").identity
    assert (identity["model"], identity["commit"], "weights_sha256" in identity) == ("owner/clip", COMMIT, False)
    with pytest.raises(EmbeddingError, match="owner/clip@f{40}: cannot fetch it from the Hub"):
        load(models, f"owner/clip@{'f' * 40}")
    (cached / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own, other = "set embed.trust_remote_code", "code of another repository, which no commit pins: .*else/where"
    for trusted, code, said in ((False, "model.Model", own), (True, "else/where--model.Model", other)):
        config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": code, "AutoModel": code}}
        (cached / "config.json").write_text(json.dumps(config))
        with pytest.raises(EmbeddingError, match=f"(?s){said}"):
            load(models, f"owner/clip@{COMMIT}", trust_remote_code=trusted)
    assert not (tmp_path / "ran").exists()


def test_a_text_adapter_of_another_shape_is_refused_and_may_lack_its_last_bias(models: Path, tmp_path: Path) -> None:
    own, bias = adapter_tensors(), f"{ADAPTER}5.bias"
    for change, said in (
        ({"2.fn.3.weight": torch.zeros(32, 63)}, "63"),
        ({"5.bias": torch.zeros(13)}, "13"),
        ({"4.weight": torch.zeros(1)}, "32"),
        ({"1.ln.bias": None}, r"1\.ln\.bias"),
        ({"gate": torch.zeros(1), "gate2": torch.zeros(1)}, "gate"),
        ({name.removeprefix(ADAPTER): tensor for name, tensor in adapter_tensors(width=40).items()}, "40"),
    ):
        changed = own | {ADAPTER + name: value for name, value in change.items()}
        head = tiny_head(tmp_path / "head", {name: value for name, value in changed.items() if value is not None})
        with pytest.raises(EmbeddingError, match=f"(?s)head has no text adapter .* of width 32; give .*{said}"):
            load(models, "llm2clip", text_head=str(head))
    own[bias] *= 0
    zero = load(models, "llm2clip", text_head=str(tiny_head(tmp_path / "zero", own))).encode(TEXTS)
    del own[bias]
    none = load(models, "llm2clip", text_head=str(tiny_head(tmp_path / "none", own))).encode(TEXTS)
    torch.testing.assert_close(none, zero, atol=1e-6, rtol=0)

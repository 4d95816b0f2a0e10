"""CLIP and SigLIP, tiny and random, but of the real classes and in real files, against the models used by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from generation.config import Embed
from generation.encoders import ImageEncoder, TextEncoder, load_encoder
from generation.encoders.dual import DualEncoder, _tensor
from generation.errors import EmbeddingError
from tests.tiny_models import TEXTS, tiny_clip, tiny_siglip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_siglip(tmp_path_factory.mktemp("models") / "tiny-siglip")


def load(path: Path, **settings: Any) -> DualEncoder:
    encoder = load_encoder(Embed(encoder=str(path), **settings))
    assert isinstance(encoder, DualEncoder)
    return encoder


def agree(made: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool(torch.allclose(made, normalize(wanted.float(), dim=-1), atol=1e-5))


@torch.inference_mode()
def test_clip_s_vectors_are_those_of_each_text_alone(clip: Path) -> None:
    made = load(clip).encode(TEXTS)
    model, tokenizer = CLIPModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    for row, text in enumerate(TEXTS):
        inputs = tokenizer(text, truncation=True, max_length=20, return_tensors="pt")
        assert agree(made.vectors[row : row + 1], model.get_text_features(**inputs).pooler_output)
    assert made.truncated == sum(len(ids) > 20 for ids in tokenizer(TEXTS)["input_ids"])
    assert 0 < made.truncated <= 40


@torch.inference_mode()
def test_siglip_s_texts_are_padded_to_the_full_length_without_a_mask(siglip: Path) -> None:
    short = [" ".join(text.split()[:3]) for text in TEXTS]
    made = load(siglip).encode(short).vectors
    model, tokenizer = SiglipModel.from_pretrained(siglip), AutoTokenizer.from_pretrained(siglip)
    options: dict[str, Any] = {"truncation": True, "max_length": 16, "return_tensors": "pt"}
    inputs = tokenizer(short, padding="max_length", **options)
    assert set(inputs) == {"input_ids"}
    assert agree(made, model.get_text_features(**inputs).pooler_output)
    one = tokenizer(short[0], **options)  # not padded: SigLIP pools the last position, so that this is another vector
    assert not agree(made[:1], model.get_text_features(**one).pooler_output)


@torch.inference_mode()
def test_pictures_go_through_the_processor_and_the_image_tower(clip: Path, siglip: Path, tmp_path: Path) -> None:
    files = []
    for number in range(3):
        picture = Image.effect_noise((40 + 7 * number, 30), 90).convert("RGB")
        files.append(tmp_path / f"{number}.png")
        picture.save(files[-1])
    for path, kind in ((clip, CLIPModel), (siglip, SiglipModel)):
        encoder = load(path)
        made = encoder.encode_images(files)
        inputs = encoder._image_processor(images=[Image.open(file) for file in files], return_tensors="pt")
        assert agree(made, kind.from_pretrained(path).get_image_features(**inputs).pooler_output)
        assert torch.equal(made, encoder.encode_images([Image.open(file) for file in files]))
        assert (made.dtype, made.shape) == (torch.float32, (3, encoder.dimension))


def test_what_get_text_features_gives_may_be_a_tensor_or_an_output_object() -> None:
    class Output:
        pooler_output = torch.ones(2, 3)

    assert torch.equal(_tensor(Output()), _tensor(torch.ones(2, 3)))


def test_provenance_names_all_that_moves_the_vectors(clip: Path, siglip: Path) -> None:
    facts = load(clip, revision="a" * 40).provenance()
    assert (facts["model"], facts["revision"], facts["dimension"]) == ("tiny-clip", "a" * 40, 12)
    assert (facts["max_tokens"], facts["pooling"], facts["dtype"]) == (20, "the model's own", "float32")
    assert facts["joint_with_images"] is facts["image_tower"] is True
    assert (load(siglip).max_tokens, load(siglip).dimension) == (16, 16)


def test_a_dual_encoder_is_an_image_encoder_and_the_embedded_default_is_not(clip: Path) -> None:
    encoders: list[TextEncoder] = [load(clip), load_encoder(Embed())]
    assert [isinstance(encoder, ImageEncoder) for encoder in encoders] == [True, False]


def test_a_recipe_s_dtype_is_that_of_the_weights(clip: Path) -> None:
    half, full = load(clip, dtype="bfloat16"), load(clip)
    assert half.provenance()["dtype"] == "bfloat16"
    made, wanted = half.encode(TEXTS).vectors, full.encode(TEXTS).vectors
    assert half._model.dtype == torch.bfloat16
    assert made.dtype == torch.float32
    assert 0.98 < float((made * wanted).sum(1).min()) < 0.9999999


@pytest.mark.parametrize("name", ["text_projection.weight", "vision_model.post_layernorm.bias"])
def test_missing_weights_are_refused_by_name_and_not_drawn_at_random(name: str, clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in clip.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tensors = load_file(copy / "model.safetensors")
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmbeddingError, match=rf"lacks weights: {name} \(1 in all\)$"):
        load(copy).encode(TEXTS[:1])


def test_several_files_of_weights_are_hashed_together_and_a_missing_one_is_named(clip: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    for file in clip.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (tmp_path / file.name).symlink_to(file)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    encoder = load(tmp_path)
    assert torch.equal(encoder.encode(TEXTS).vectors, load(clip).encode(TEXTS).vectors)
    assert encoder.provenance()["weights_sha256"] != load(clip).provenance()["weights_sha256"]
    parts[1].unlink()
    with pytest.raises(EmbeddingError, match=f"lacks {parts[1].name}"):
        load(tmp_path)


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_comes_with_a_model_is_not_run_unless_it_is_pinned(
    trusted: bool, clip: Path, tmp_path: Path
) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    code = "else/where--model.Model" if trusted else "model.Model"
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": code, "AutoModel": code}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "tokenizer_config.json").write_text((clip / "tokenizer_config.json").read_text())
    wanted = "another repository .else/where" if trusted else "set embed.trust_remote_code and revision"
    with pytest.raises(EmbeddingError, match=wanted):
        load_encoder(Embed(encoder=str(tmp_path), revision="b" * 40, trust_remote_code=trusted))
    assert not (tmp_path / "ran").exists()

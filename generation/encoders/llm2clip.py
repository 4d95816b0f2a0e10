"""LLM2CLIP, the paper's encoder (Unicorn, Stage 3; https://arxiv.org/abs/2411.04997), without the llm2vec package,
which cannot be installed next to transformers 5."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, CLIPImageProcessorPil, CLIPVisionConfig, LlamaModel
from transformers import CLIPVisionModelWithProjection as VisionTower

from ..errors import EmbeddingError
from .base import Encoder, Tokens
from .checkpoint import Checkpoint

BEFORE, AFTER = "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
ADAPTER = "text_adapter.adaptor."  # prefix of the adapter's tensors


class LLM2CLIPEncoder(Encoder):
    """A language model (``checkpoint``) with text adapter and vision tower of a CLIP checkpoint (``head``).

    Hidden states of a caption's tokens and of the end-of-turn token, with attention in both directions, are averaged
    as by llm2vec 0.2.3 (``LLM2Vec.tokenize``, ``get_pooling``; its separator ``!@#$%^&*()`` never reaches the model),
    but in float32, and without tokens of the template where a text is cut. The adapter maps the average to the images.
    """

    kind, pooling = "llm2clip", "mean"  # of the caption's tokens
    template = f"{BEFORE}{{}}{AFTER}"  # Llama 3's
    max_tokens = 512  # paper, Stage 3; the template's tokens included
    head: Checkpoint

    def __init__(self, checkpoint: Checkpoint, head: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        self.head, config, known = head, checkpoint.json("config.json"), self._tokenizer.get_vocab()
        if (kind := config.get("model_type")) != "llama":
            raise EmbeddingError(f"encoder {checkpoint.path} is a {kind!r}; with embed.text_head it must be a 'llama'")
        if missing := [token for token in ("<|start_header_id|>", "<|end_header_id|>", AFTER) if token not in known]:
            raise EmbeddingError(f"encoder {checkpoint.path}: its tokenizer lacks {', '.join(missing)} of Llama 3")
        self._before = len(self._tokenizer(BEFORE)["input_ids"])
        self._adapter, self.dimension = load_adapter(head, int(config.get("hidden_size", 0)), device)

    @cached_property
    def model(self) -> Any:
        """The language model; its weights are loaded at the first use."""
        return bidirectional(self.checkpoint.model(LlamaModel, self.device, self.dtype))

    @cached_property
    def _image_tower(self) -> tuple[Any, Callable[..., Any]]:
        # the released config.json states another projection_dim than the tensors have
        written = self.head.json("config.json").get("vision_config", {}) | {"projection_dim": self.dimension}
        vision = self.head.model(VisionTower, self.device, self.dtype, config=CLIPVisionConfig(**written))
        if (self.head.path / "preprocessor_config.json").is_file():
            processor = self.head.load("image processor", AutoImageProcessor.from_pretrained, backend="pil")
        else:  # as in the released checkpoint: CLIP's own
            side = vision.config.image_size
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return processor, lambda **inputs: vision(**inputs).image_embeds

    def _features(self, rows: list[Tokens]) -> Any:
        return self._adapter(pooled_states(self.model, rows, self._before))


def bidirectional(model: Any) -> Any:
    """Let every token of a Llama see every other token: sdpa and eager attention take the mask from the
    configuration, flash-attention asks the layer."""
    model.config.is_causal = False
    for layer in model.layers:
        layer.self_attn.is_causal = False
    return model


def pooled_states(model: Any, rows: list[Tokens], before: int) -> torch.Tensor:
    """Return the mean of a bidirectional model's last hidden states over each row, float32 [rows, width], scaled to
    norm 1; the first ``before`` tokens of a row are not pooled."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask, pool = torch.zeros_like(ids), torch.zeros(ids.shape)
    for index, row in enumerate(rows):  # padded on the left
        ids[index, -len(row) :] = torch.from_numpy(row)
        mask[index, -len(row) :] = 1
        pool[index, before - len(row) :] = 1
    inputs = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}  # positions as without padding
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    hidden = model(**{name: value.to(model.device) for name, value in inputs.items()}, use_cache=False)
    return normalize(torch.einsum("rt,rtd->rd", pool.to(model.device), hidden.last_hidden_state.float()), dim=-1)


class AdapterBlock(nn.Module):
    """A residual block of the text adapter (https://github.com/microsoft/LLM2CLIP, ``llm2clip/eva_clip/model.py``)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(), nn.Linear(hidden, width))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, width] for the same."""
        return x + self.fn(self.ln(x))  # type: ignore[no-any-return]


def text_adapter(width: int, hidden: int, dimension: int, blocks: int = 4, bias: bool = True) -> nn.Sequential:
    """Return a text adapter without weights: unit rows [n, width] to the images' space, [n, d], of any norm."""
    with torch.device("meta"):
        parts = [*(AdapterBlock(width, hidden) for _ in range(blocks)), nn.LayerNorm(width)]
        return nn.Sequential(*parts, nn.Linear(width, dimension, bias)).eval().requires_grad_(False)


def load_adapter(head: Checkpoint, width: int, device: torch.device) -> tuple[nn.Sequential, int]:
    """Return the float32 text adapter of LLM2CLIP's CLIP checkpoint (274M numbers in the released ones), and its d; an
    ``EmbeddingError`` if it cannot be read, has other tensors, or does not fit hidden states of ``width``."""
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in sorted(head.path.glob("*.safetensors")):
            with safe_open(path, "pt", device=str(device)) as file:
                names = [name for name in sorted(file.keys()) if name.startswith(ADAPTER)]
                weights |= {name.removeprefix(ADAPTER): file.get_tensor(name).float() for name in names}
        blocks = sum(name.endswith(".fn.0.weight") for name in weights)
        hidden, dimension = len(weights["0.fn.0.weight"]), len(weights[f"{blocks + 1}.weight"])
        adapter = text_adapter(width, hidden, dimension, blocks, f"{blocks + 1}.bias" in weights)
        adapter.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, LookupError, RuntimeError) as error:
        fault = f"has no text adapter of LLM2CLIP ({ADAPTER}*) for hidden states of width {width}"
        remedy = "give the CLIP checkpoint of this language model as embed.text_head"
        raise EmbeddingError(f"text head {head.path} {fault}; {remedy}: {error}") from error
    return adapter, dimension

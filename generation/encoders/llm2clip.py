"""LLM2CLIP, the paper's encoder (Unicorn, Stage 3; https://arxiv.org/abs/2411.04997), without the llm2vec package,
which cannot be installed next to transformers 5.

A caption in Llama 3's template goes through the language model with attention in both directions. The hidden states of
the caption's tokens and of the end-of-turn token are averaged; the template's other tokens are seen but not pooled.
llm2vec 0.2.3 does the same (``LLM2Vec.tokenize``, ``get_pooling``): its separator ``!@#$%^&*()`` only marks where the
caption begins and is removed before the model sees the text. The text adapter of the CLIP checkpoint then maps the
average into the space of the images. Two differences: the average is taken in float32, and of a text that is cut only
the caption's tokens are pooled (llm2vec's mask then reaches into the template).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.functional import gelu, layer_norm, linear, normalize
from transformers import AutoImageProcessor, CLIPImageProcessorPil, CLIPVisionConfig, LlamaModel
from transformers import CLIPVisionModelWithProjection as VisionTower

from ..errors import EmbeddingError
from .base import Encoder, Tokens
from .checkpoint import Checkpoint

BEFORE, AFTER = "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
ADAPTER = "text_adapter.adaptor."  # prefix of the adapter's tensors


class LLM2CLIPEncoder(Encoder):
    """Language model, mean pooling and text adapter; images by the CLIP checkpoint's vision tower.

    ``checkpoint`` is the language model, such as LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned, and ``head`` the CLIP
    checkpoint, such as LLM2CLIP-Openai-L-14-336. The adapter runs in float32. Other checkpoints are refused.
    """

    kind = "llm2clip"
    pooling = "mean"  # of the caption's tokens
    max_tokens = 512  # paper, Stage 3; the template's tokens included

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
    def identity(self) -> dict[str, Any]:
        """What decides the vectors; ``text_head`` is the CLIP checkpoint."""
        return super().identity | {"text_head": self.head.identity()}

    @cached_property
    def model(self) -> Any:
        """The language model; its weights are loaded at the first use."""
        return bidirectional(self.checkpoint.model(LlamaModel, self.device, self.dtype))

    @cached_property
    def _image_tower(self) -> tuple[Any, Callable[..., torch.Tensor]]:
        # the released config.json states another projection_dim than the tensors have
        written = self.head.json("config.json").get("vision_config", {}) | {"projection_dim": self.dimension}
        vision = self.head.model(VisionTower, self.device, self.dtype, config=CLIPVisionConfig(**written))
        if (self.head.path / "preprocessor_config.json").is_file():
            processor: Any = self.head.load("image processor", AutoImageProcessor.from_pretrained, backend="pil")
        else:  # as in the released checkpoint: CLIP's own
            side = vision.config.image_size
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return processor, lambda **inputs: vision(**inputs).image_embeds

    def tokenise(self, texts: Sequence[str]) -> tuple[list[Tokens], int]:
        """Return what ``Encoder.tokenise`` does, of each text in its template."""
        return super().tokenise([BEFORE + text.strip() + AFTER for text in texts])

    def _features(self, rows: list[Tokens]) -> torch.Tensor:
        return adapted(self._adapter, pooled_states(self.model, rows, self._before))


def bidirectional(model: Any) -> Any:
    """Let every token of a Llama see every other token: sdpa and eager attention take the mask from the
    configuration, flash-attention asks the layer."""
    model.config.is_causal = False
    for layer in model.layers:
        layer.self_attn.is_causal = False
    return model


def pooled_states(model: Any, rows: list[Tokens], before: int) -> torch.Tensor:
    """Return the mean of a bidirectional model's last hidden states over each row, float32 [rows, width]; the first
    ``before`` tokens of a row are not pooled."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask, pool = torch.zeros_like(ids), torch.zeros(ids.shape)
    for index, row in enumerate(rows):  # padded on the left
        ids[index, -len(row) :] = torch.from_numpy(row)
        mask[index, -len(row) :] = 1
        pool[index, before - len(row) :] = 1 / (len(row) - before)
    inputs = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}  # positions as without padding
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    hidden = model(**{name: value.to(model.device) for name, value in inputs.items()}, use_cache=False)
    return torch.einsum("rt,rtd->rd", pool.to(model.device), hidden.last_hidden_state.float())


def load_adapter(head: Checkpoint, width: int, device: torch.device) -> tuple[dict[str, torch.Tensor], int]:
    """Return the float32 text adapter of LLM2CLIP's CLIP checkpoint (274M numbers in the released ones), and its d; an
    ``EmbeddingError`` if it cannot be read, has other tensors, or does not fit hidden states of ``width``."""
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in sorted(head.path.glob("*.safetensors")):
            with safe_open(path, "pt", device=str(device)) as file:
                names = [name for name in sorted(file.keys()) if name.startswith(ADAPTER)]
                weights |= {name.removeprefix(ADAPTER): file.get_tensor(name).float() for name in names}
        dimension = adapted(weights, torch.ones(1, width, device=device)).shape[1]
        if (len(weights) - 3) % 6 > 1:  # six tensors a block, three after them, and perhaps a last bias
            raise ValueError(f"it has {len(weights)} tensors, some of another architecture")
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise EmbeddingError(
            f"text head {head.path} has no text adapter of LLM2CLIP ({ADAPTER}*) for hidden states of width {width}; "
            f"give the CLIP checkpoint of this language model as embed.text_head: {error}"
        ) from error
    return weights, dimension


def adapted(weights: dict[str, torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
    """Map pooled states [n, width] into the space of the images, [n, d], of any norm: residual blocks, LayerNorm, a
    linear layer (https://github.com/microsoft/LLM2CLIP, ``llm2clip/eva_clip/model.py``)."""

    def of(layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    x, shape = normalize(pooled, dim=-1), pooled.shape[1:]
    blocks = sum(name.endswith(".fn.0.weight") for name in weights)
    for block in range(blocks):
        hidden = gelu(linear(layer_norm(x, shape, *of(f"{block}.ln")), *of(f"{block}.fn.0")))
        x = x + linear(hidden, *of(f"{block}.fn.3"))
    last = weights[f"{blocks + 1}.weight"], weights.get(f"{blocks + 1}.bias")
    return linear(layer_norm(x, shape, *of(f"{blocks}")), *last)

"""LLM2CLIP's text adapter, read from the CLIP checkpoint's tensors: residual blocks that map a language model's pooled
state into the space of the images (https://github.com/microsoft/LLM2CLIP, ``llm2clip/eva_clip/model.py``; 274M
parameters in the released checkpoints).
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.functional import normalize

from ..errors import EmbeddingError
from .checkpoint import Checkpoint

PREFIX = "text_adapter."
T = TypeVar("T")


class ResidualBlock(nn.Module):
    """x + MLP(LayerNorm(x)). The names of its parts, and the place left empty, are those of the checkpoint's tensors.

    Args:
        width: of the input and output.
        hidden: of the layer between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] to [n, width]."""
        out: torch.Tensor = x + self.fn(self.ln(x))
        return out


class TextAdapter(nn.Module):
    """L2-norm, the residual blocks, LayerNorm, a linear layer.

    Args:
        width: of the language model's hidden states.
        hidden: of the blocks.
        blocks: how many.
        dimension: of the space of the images.
        bias: whether the last layer has one.
    """

    def __init__(self, width: int, hidden: int, blocks: int, dimension: int, bias: bool) -> None:
        super().__init__()
        self.dimension = dimension
        last = nn.Linear(width, dimension, bias=bias)
        self.adaptor = nn.Sequential(*(ResidualBlock(width, hidden) for _ in range(blocks)), nn.LayerNorm(width), last)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """[n, width] to [n, dimension], not normalised."""
        out: torch.Tensor = self.adaptor(normalize(pooled, dim=-1))
        return out


def tensor_shapes(checkpoint: Checkpoint, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors whose names begin with ``prefix``, from the files' headers alone."""
    return _read(checkpoint, prefix, lambda file, name: tuple(file.get_slice(name).get_shape()))


def adapter_of(checkpoint: Checkpoint, width: int) -> TextAdapter:
    """The adapter that a checkpoint holds, on torch's meta device: its shape, without its weights.

    Args:
        checkpoint: the CLIP checkpoint of LLM2CLIP.
        width: of the language model's hidden states, 4096 in the paper's.

    Raises:
        EmbeddingError: the tensors are missing, too many, or of other shapes; they are named.
    """
    found = {name.removeprefix(PREFIX): shape for name, shape in tensor_shapes(checkpoint, PREFIX).items()}
    blocks = len([name for name in found if re.fullmatch(r"adaptor\.\d+\.fn\.0\.weight", name)])
    first, last = found.get("adaptor.0.fn.0.weight", ()), found.get(f"adaptor.{blocks + 1}.weight", ())
    if len(first) != 2 or len(last) != 2:
        raise EmbeddingError(
            f"text head {checkpoint.path} holds no text adapter of LLM2CLIP ({PREFIX}adaptor.0.fn.0.weight and "
            f"{PREFIX}adaptor.{blocks + 1}.weight, two matrices); give LLM2CLIP's CLIP checkpoint as embed.text_head"
        )
    with torch.device("meta"):
        adapter = TextAdapter(width, first[0], blocks, last[0], f"adaptor.{blocks + 1}.bias" in found)
    wanted = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise EmbeddingError(
            f"text head {checkpoint.path}: {PREFIX}{name} has shape {found.get(name)}, but must have "
            f"{wanted.get(name)} for hidden states of width {width} ({len(wrong)} such tensors); is it the head of "
            "this language model?"
        )
    return adapter


def load_adapter(checkpoint: Checkpoint, width: int, device: torch.device) -> TextAdapter:
    """``adapter_of`` with its weights, in float32.

    Raises:
        EmbeddingError: as ``adapter_of``.
    """
    adapter = adapter_of(checkpoint, width)
    tensors = _read(checkpoint, PREFIX, lambda file, name: file.get_tensor(name).to(device, torch.float32))
    adapter.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, assign=True)
    return adapter.eval().requires_grad_(False)


def _read(checkpoint: Checkpoint, prefix: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    """What ``read`` makes of each tensor whose name begins with ``prefix``."""
    found: dict[str, T] = {}
    for path in checkpoint.weights():
        try:
            with safe_open(path, "pt") as file:
                found |= {name: read(file, name) for name in sorted(file.keys()) if name.startswith(prefix)}
        except (OSError, SafetensorError) as error:
            raise EmbeddingError(f"{path} cannot be read as safetensors: {error}") from error
    return found

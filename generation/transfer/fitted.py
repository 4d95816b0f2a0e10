"""A fitted method, as ``transfer/<method>.safetensors`` holds it, and how it treats texts and real images."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import EmbeddingError
from .methods import USER_IMAGE_MEAN
from .ops import apply_ops
from .rows import one_part


@dataclass(frozen=True)
class Fitted:
    """A method with its statistics: all that is needed to treat further texts, and real images, alike.

    Attributes:
        tensors: float64, by the names that the operations use: ``mean_text`` [d], ``mean_image`` [d], ``scale`` [] ...
        facts: ``method``, ``version``, ``text_ops``, ``image_ops``, ``image_mean`` (``user``, ``included`` or
            ``none``), ``rows``, ``noise``, and what the stage adds: encoder, hashes of all inputs.
    """

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def to_text(self, rows: torch.Tensor) -> torch.Tensor:
        """Text embeddings [n, d], as an encoder gives them, made synthetic image embeddings, float32 [n, d]; clean,
        that is without the noise of a method that has noise.

        Raises:
            EmbeddingError: another dimension, or a row that has no direction.
        """
        return apply_ops(self._copy(rows), self.facts["text_ops"], self.tensors)

    @classmethod
    def load(cls, path: Path) -> "Fitted":
        """Reads ``transfer/<method>.safetensors``.

        Raises:
            EmbeddingError: it is no such file.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                facts = json.loads((file.metadata() or {})["unicorn"])
            if "mean_text" in tensors and {"text_ops", "image_ops"} <= facts.keys():
                return cls(tensors, facts)
            raise KeyError("mean_text, text_ops or image_ops")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise EmbeddingError(f"{path} holds no transfer's statistics: {error!r}") from error

    def _copy(self, rows: torch.Tensor) -> torch.Tensor:
        rows, dimension = torch.as_tensor(rows), len(self.tensors["mean_text"])
        if rows.ndim != 2 or rows.shape[1] != dimension:
            raise EmbeddingError(f"embeddings of shape {list(rows.shape)}; this transfer is of [n, {dimension}]")
        return rows.to(torch.float32, copy=True)


def apply_to_images(fitted: Fitted, rows: torch.Tensor, image_mean: torch.Tensor | None = None) -> torch.Tensor:
    """Treats real image embeddings as the method demands, so that a model trained on the synthetic ones can take them.

    Args:
        fitted: from ``Fitted.load("transfer/<method>.safetensors")``.
        rows: [n, d], of the same encoder's image tower, of any norm.
        image_mean: [d], of the unit image embeddings that the model will see (``image_mean``). Methods fitted on text
            alone need it (paper, section 3.3: the mean of the test images is subtracted); others take none.

    Returns:
        float32 [n, d]. By the paper's rule rows of ``unicorn`` are not of norm 1 here, though those trained on are;
        ``transfer.unit_images`` in the recipe makes them so.

    Raises:
        EmbeddingError: another dimension, a row without direction, or a mean is missing, of no use, or misshapen.
    """
    method, ops = fitted.facts["method"], fitted.facts["image_ops"]
    wanted = f"sub:{USER_IMAGE_MEAN}" in ops
    if wanted != (image_mean is not None):
        raise EmbeddingError(
            f"method {method} subtracts the mean of your own image embeddings, which text cannot supply: give "
            "image_mean=image_mean(rows of your images)"
            if wanted
            else f"method {method} takes no image_mean: real images are used as {ops}"
        )
    tensors: Mapping[str, torch.Tensor] = fitted.tensors
    if image_mean is not None:
        if image_mean.shape != fitted.tensors["mean_text"].shape or not bool(image_mean.isfinite().all()):
            raise EmbeddingError(f"image_mean must be finite, of shape {list(fitted.tensors['mean_text'].shape)}")
        tensors = fitted.tensors | {USER_IMAGE_MEAN: image_mean}
    return apply_ops(fitted._copy(rows), ops, tensors)


def image_mean(chunks: Callable[[], Iterable[torch.Tensor]]) -> torch.Tensor:
    """The mean of unit image embeddings, float64 [d], exact (see ``sums``).

    Args:
        chunks: gives them, float16 or float32 [any, d].

    Raises:
        EmbeddingError: a row is no finite unit vector, or there is none.
    """
    return one_part("images", chunks).sums().mean()


def used_tensors(fitted: Fitted) -> dict[str, torch.Tensor]:
    """The statistics that the operations name, and ``mean_text``, which says what was shifted."""
    named = {op.partition(":")[2] for op in (*fitted.facts["text_ops"], *fitted.facts["image_ops"])}
    together = {"frame": {"radii_text", "radii_image", "spread", "centre"}}
    wanted = named | {"mean_text", "mean_image"} | {name for key in named & together.keys() for name in together[key]}
    return {name: tensor.contiguous() for name, tensor in fitted.tensors.items() if name in wanted}

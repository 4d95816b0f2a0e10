"""Fitting a method: its statistics out of one pass over the texts for each mean, and one over the images."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..config import Transfer
from ..errors import EmbeddingError
from ..validation import validate
from . import experimental
from .fitted import Fitted
from .methods import USER_IMAGE_MEAN, VERSION, needs_images, noise_ratio, operations
from .noise import Noise, conventions
from .rows import Rows, one_part
from .sums import Sums


def fit(
    method: str, chunks: Callable[[], Iterable[torch.Tensor]], images: torch.Tensor | None = None, **settings: Any
) -> Fitted:
    """Fits a method to text embeddings at hand.

    Args:
        method: a key of ``METHODS``.
        chunks: gives the unit text embeddings, float16 or float32 [any, d]; called once a pass.
        images: unpaired unit image embeddings [m, d] of the same encoder, where the method needs them.
        settings: further keys of a recipe's ``transfer`` section.

    Raises:
        RecipeError: an unknown method or key.
        EmbeddingError: see ``fit_rows``.
    """
    asked: Transfer = validate(Transfer, {"method": method, **settings}, "transfer")
    pictures = None if images is None else one_part("images", lambda: [images])
    return fit_rows(asked, one_part("texts", chunks), pictures)


def fit_rows(
    settings: Transfer, texts: Rows, images: Rows | None, basis: torch.Tensor | None = None, seed: int = 0
) -> Fitted:
    """Fits a method: one pass over the texts for their mean, one over the images if need be, one more for each further
    mean, which is of the rows as the operations before it have left them.

    Args:
        settings: the recipe's section.
        texts: all text embeddings.
        images: unpaired image embeddings.
        basis: ``image_basis``, float [d, r] with orthonormal columns, for the method that projects on it.
        seed: of what is sampled, and of baked noise.

    Raises:
        EmbeddingError: images or basis are missing or have another dimension, or a row is no finite unit vector.
    """
    text_ops, image_ops = operations(settings)
    text_sums = texts.sums()
    tensors = {"mean_text": text_sums.mean()}
    image_sums = _image_statistics(settings, images, tensors)
    if basis is not None:
        tensors["image_basis"] = basis.double()
    if "recall:memory" in image_ops:
        count = min(settings.memory_rows, text_sums.rows)
        tensors["memory"] = texts.sample(count, text_sums.rows, seed).half()
    for place, op in enumerate(text_ops):
        name = op.partition(":")[2]
        if name.startswith("mean_") and name not in tensors:
            tensors[name] = texts.sums(text_ops[1:place], tensors).mean()  # stored rows are unit rows already
        elif name == "block_map" and images:
            image_cov = experimental.covariance(images.second_moment((), {}), tensors["mean_image"])
            tensors[name] = experimental.block_map(texts.second_moment(text_ops[1:place], tensors), image_cov)
        elif name == "frame" and images and image_sums:
            tensors |= experimental.radii(texts, text_sums.rows, images, image_sums.rows, tensors, seed)
    return Fitted(tensors, _facts(settings, text_ops, image_ops, text_sums, image_sums, seed))


def _image_statistics(settings: Transfer, images: Rows | None, tensors: dict[str, torch.Tensor]) -> Sums | None:
    """Adds ``mean_image``, ``shift`` and ``scale``, where the method needs them."""
    if not needs_images(settings.method):
        return None
    if images is None:
        raise EmbeddingError(
            f"method {settings.method} needs unpaired image embeddings of the same encoder: name a folder of images, "
            "or a .safetensors or .npy file, as transfer.images in the recipe"
        )
    sums = images.sums()
    mean_text, mean_image = tensors["mean_text"], sums.mean()
    if mean_image.shape != mean_text.shape:
        raise EmbeddingError(
            f"{len(mean_image)} dimensions of images and {len(mean_text)} of texts: not one encoder's"
        )
    tensors["mean_image"] = mean_image
    tensors["shift"] = settings.strength * (mean_image - mean_text)
    # The traces of unit rows are 1 - |mean|^2, so that ReVision's pass for them is not needed.
    tensors["scale"] = ((1 - mean_image.square().sum()) / (1 - mean_text.square().sum())).sqrt()
    return sums


def _facts(
    settings: Transfer, text_ops: list[str], image_ops: list[str], texts: Sums, images: Sums | None, seed: int
) -> dict[str, Any]:
    """What a user must know to treat real image embeddings alike."""
    own = f"sub:{USER_IMAGE_MEAN}" in image_ops
    facts: dict[str, Any] = {
        "method": settings.method,
        "version": VERSION,
        "text_ops": text_ops,
        "image_ops": image_ops,
        "image_mean": "user" if own else "included" if images else "none",
        "rows": texts.rows,
        "noise": None,
    }
    if images:
        spread = 1 - float(images.mean().square().sum())
        facts["images"] = {"rows": images.rows, "error_of_mean": math.sqrt(spread / images.rows)}
    if (eta := noise_ratio(settings)) is not None:
        centred = 1 - float(texts.mean().square().sum()) if "sub:mean_text" in text_ops else 1.0
        facts["noise"] = {
            **conventions(eta, len(texts.total)),
            "eta_of_rows": eta / math.sqrt(centred),  # on rows that were normalised after the shift
            "sphere": "noise:sphere" in text_ops,
            "baked": settings.bake_noise,
            "seed": seed if settings.bake_noise else None,
        }
    return facts


def baked_noise(facts: Mapping[str, Any], numbers: torch.Tensor) -> Noise | None:
    """The noise that goes into rows of these numbers; None for clean ones."""
    noise = facts["noise"]
    return Noise(noise["eta"], noise["seed"], numbers) if noise and noise["baked"] else None

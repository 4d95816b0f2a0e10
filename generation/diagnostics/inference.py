"""Real images as a method wants them: which of two cosines is meant depends on it, so each table names the image."""

import torch

from ..transfer import Fitted, apply_to_images
from ..transfer.methods import USER_IMAGE_MEAN

Pairs = tuple[torch.Tensor, torch.Tensor]  # texts and images, float32 [n, d] each


def takes_image_mean(fitted: Fitted) -> bool:
    """Whether the method subtracts a mean of the images that it meets."""
    return f"sub:{USER_IMAGE_MEAN}" in fitted.facts["image_ops"]


def takes_raw_images(fitted: Fitted) -> bool:
    """Whether unit image embeddings are used as they are."""
    return bool(fitted.facts["image_ops"] == ["l2norm"])


def image_name(fitted: Fitted) -> str:
    """What is done to images, in a word or two."""
    if takes_raw_images(fitted):
        return "raw"
    if not takes_image_mean(fitted):
        return "recalled from texts"
    return "centred, normalised" if fitted.facts["image_ops"][-1] == "l2norm" else "centred"


def treated(fitted: Fitted, images: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    """Images as the method wants them.

    Args:
        fitted: the method.
        images: [n, d].
        mean: the mean to subtract, [d]; None takes that of these images, as the paper does with its test images.

    Returns:
        float32 [n, d].
    """
    if not takes_image_mean(fitted):
        return apply_to_images(fitted, images)
    return apply_to_images(fitted, images, images.double().mean(0) if mean is None else mean)


def labelled_pairs(method: str, fitted: Fitted, pairs: Pairs) -> dict[str, Pairs]:
    """Pairs before and after the transfer, by a label that names the image."""
    texts, images = pairs
    moved = fitted.to_text(texts)
    labelled = {"text, raw image": pairs, f"{method}, raw image": (moved, images)}
    if not takes_raw_images(fitted):
        labelled[f"{method}, image {image_name(fitted)}"] = (moved, treated(fitted, images))
    return labelled

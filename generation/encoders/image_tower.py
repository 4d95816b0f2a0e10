"""Pictures to unit vectors: decoding, the checkpoint's own preprocessing, and the image tower of a dual encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, CLIPImageProcessorPil

from ..errors import EmbeddingError
from .checkpoint import Checkpoint, Runtime

BATCH_IMAGES = 32


def decode(image: Path | Image.Image) -> Image.Image:
    """A picture in RGB.

    Raises:
        EmbeddingError: the file cannot be read or is no picture that PIL decodes to its end; names it.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EmbeddingError(f"image {image} cannot be decoded: {error}; mend it or take it away") from error


def image_processor(checkpoint: Checkpoint, image_size: int | None = None) -> Any:
    """The preprocessing that comes with a checkpoint, by PIL and not by torchvision.

    Args:
        checkpoint: a model's files.
        image_size: pixels a side; where the checkpoint has no ``preprocessor_config.json``, CLIP's preprocessing at
            that size (https://github.com/openai/CLIP, ``_transform``) is taken. None: it must have one.

    Raises:
        EmbeddingError: it has none, or one that cannot be loaded.
    """
    if image_size is not None and not (checkpoint.path / "preprocessor_config.json").is_file():
        side = {"height": image_size, "width": image_size}
        return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    try:
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint.path, backend="pil", local_files_only=True, trust_remote_code=checkpoint.trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise EmbeddingError(f"encoder {checkpoint.path}: its image processor cannot be loaded: {error}") from error


@torch.inference_mode()
def encode_pictures(
    images: Sequence[Path | Image.Image],
    processor: Any,
    features: Callable[..., torch.Tensor],
    dimension: int,
    runtime: Runtime,
    on_batch: Callable[[int], object],
) -> torch.Tensor:
    """Encodes pictures, a few at a time.

    Args:
        images: files or PIL images.
        processor: the checkpoint's image processor.
        features: the tower: what the processor gives, as keywords, to [rows, d].
        dimension: d.
        runtime: where the tower runs, and in which dtype.
        on_batch: told how many were encoded.

    Returns:
        float32 [n, d], unit rows in the order of ``images``, on the CPU.

    Raises:
        EmbeddingError: a file cannot be decoded.
    """
    vectors = torch.empty(len(images), dimension)
    for first in range(0, len(images), BATCH_IMAGES):
        batch = [decode(image) for image in images[first : first + BATCH_IMAGES]]
        inputs = processor(images=batch, return_tensors="pt").to(runtime.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(runtime.dtype)
        vectors[first : first + len(batch)] = normalize(features(**inputs).float(), dim=-1).cpu()
        on_batch(len(batch))
    return vectors

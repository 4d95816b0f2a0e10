"""Encoders: texts to unit vectors, and pictures too where the model has an image tower. sentence-transformers is not
used: it is no faster, does not count cut texts, batches by rows and not by tokens, and knows no LLM2CLIP or SigLIP."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Embed

if TYPE_CHECKING:  # transformers takes seconds to import
    from .base import Encoder


def load_encoder(settings: Embed, directory: Path = Path(), device: str | None = None) -> "Encoder":
    """Return the encoder that a recipe in ``directory`` names, on a device by torch's name of it (None: the first GPU,
    or the CPU if there is none); an ``EmbeddingError`` if it cannot be found or fetched, or is of no usable kind."""
    import torch

    from .base import ModelEncoder
    from .checkpoint import locate
    from .llm2clip import LLM2CLIPEncoder

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, settings.dtype.replace("auto", "float32" if place.type == "cpu" else "bfloat16"))
    checkpoint = locate(settings.encoder, directory, settings.trust_remote_code)
    if settings.text_head is None:
        return ModelEncoder(checkpoint, place, dtype)
    head = locate(settings.text_head, directory, settings.trust_remote_code)
    return LLM2CLIPEncoder(checkpoint, head, place, dtype)

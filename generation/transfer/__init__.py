"""Stage 3b: text embeddings become synthetic image embeddings, by statistics that real images need as well."""

from .fitting import fit, image_mean, parse_transfer
from .methods import METHODS, Statistics, apply_to_images

__all__ = ["METHODS", "Statistics", "apply_to_images", "fit", "image_mean", "parse_transfer"]

"""Stage 3b: text embeddings become synthetic image embeddings, by statistics that also say how to treat real images.

    methods        each method as a list of operations; ``Statistics``, which applies and inverts them
    fitting        the statistics of a method: means of texts and of unpaired images
    image_vectors  unpaired images: a folder of pictures, or a file of vectors
    stage          the transfer of a run

The vectors are moved text embeddings, not embeddings of images.
"""

from .fitting import fit, parse_transfer
from .image_vectors import image_mean
from .methods import METHODS, Statistics, apply_to_images

__all__ = ["METHODS", "Statistics", "apply_to_images", "fit", "image_mean", "parse_transfer"]

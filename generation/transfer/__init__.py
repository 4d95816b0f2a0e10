"""Stage 3b: modality representation transfer, text embeddings -> synthetic image embeddings.

    ops           what can be done to a row
    methods       each method as operations in order, for texts and for real images
    sums, rows    exact sums; passes over many shards at once
    fitting       a method's statistics out of its rows
    fitted        what is kept of it, and ``apply_to_images``
    noise         the noise of some methods
    stage         the stage over a run

The vectors are moved text embeddings, not embeddings of images.
"""

from .fitted import Fitted, apply_to_images, image_mean
from .fitting import fit
from .methods import METHODS

__all__ = ["METHODS", "Fitted", "apply_to_images", "fit", "image_mean"]

"""The transfer methods: what each does to a text's embedding u, and what a real image's embedding v must then undergo.

    none         u
    mean_shift   u - mean(U)                                     Unicorn v1 and its released code
    unicorn      Norm(u - mean(U))                               Unicorn v2, Eq. 3
    anchor       Norm(u + strength (mean(V) - mean(U)))          Unicorn v2, A.5; Liang et al. 2022
    realign      anchor, trace, centroid (below)                 ReVision, section 4
    c3           Norm(u - mean(U) + sigma n)                     C3 (Zhang et al. 2024)
    capdec       Norm(u + sigma n)                               CapDec (Nukrai et al. 2022), by its variance
    close        Norm(u + sigma n)                               CLOSE (Gu et al. 2023)
    lafite       Norm((1 - xi) u + xi n / |n|)                   LAFITE (Zhou et al. 2022)
    decap        u; images become Norm(softmax(v M' / tau) M)    DeCap (Li et al. 2023), M some of the texts

U are the text embeddings, V unpaired image embeddings of the same encoder; all are unit rows. Those named
``experimental_`` are in ``experimental.py``. Where a list names ``USER_IMAGE_MEAN``, text alone cannot supply it: it
is the mean of the image embeddings that a user has at hand.
"""

from dataclasses import dataclass

from ..config import Transfer

VERSION = "2.0.0"
USER_IMAGE_MEAN = "USER_IMAGE_MEAN"
_CENTRED = ("l2norm", f"sub:{USER_IMAGE_MEAN}")


@dataclass(frozen=True)
class Method:
    """Operations in order (see ``ops``), on embeddings as an encoder gives them.

    Attributes:
        text: for texts; statistics are fitted in this order, each ``sub:mean_...`` the mean of the rows so far.
        image: for real images.
        eta: the noise in the method's own code, for those that have noise.
    """

    text: tuple[str, ...]
    image: tuple[str, ...] = ("l2norm",)
    eta: float | None = None


_TO_IMAGE_MEAN = ("add:mean_image", "l2norm")
METHODS = {
    "none": Method(("l2norm",)),
    "mean_shift": Method(("l2norm", "sub:mean_text"), _CENTRED),
    "unicorn": Method(("l2norm", "sub:mean_text", "l2norm"), _CENTRED),
    "anchor": Method(("l2norm", "add:shift", "l2norm")),
    "realign": Method(("l2norm", "sub:mean_text", "mul:scale", *_TO_IMAGE_MEAN, "sub:mean_1", *_TO_IMAGE_MEAN)),
    "c3": Method(("l2norm", "sub:mean_text", "noise", "l2norm"), (*_CENTRED, "l2norm"), eta=2.86),  # std 0.1265, d 512
    "capdec": Method(("l2norm", "noise", "l2norm"), eta=3.20),  # variance 0.016, d 640
    "close": Method(("l2norm", "noise", "l2norm"), eta=2.22),  # std 0.08, d 768, its visual entailment
    "lafite": Method(("l2norm", "noise:sphere", "l2norm"), eta=3.0),  # xi 0.75
    "decap": Method(("l2norm",), ("l2norm", "recall:memory", "l2norm")),
    "experimental_column_space": Method(
        ("l2norm", "sub:mean_text", "project:image_basis", "l2norm"), (*_CENTRED, "l2norm")
    ),
    "experimental_bc_align": Method(
        ("l2norm", "add:shift", "l2norm", "sub:mean_1", "matmul:block_map", *_TO_IMAGE_MEAN)
        + ("sub:mean_2", *_TO_IMAGE_MEAN)
    ),
    "experimental_aniso_init": Method(("l2norm", "add:shift", "radii:frame", "l2norm", "sub:mean_1", *_TO_IMAGE_MEAN)),
}


def needs_images(method: str) -> bool:
    """Whether unpaired image embeddings are needed to fit it."""
    return bool({"add:mean_image", "add:shift"} & set(METHODS[method].text))


def operations(settings: Transfer) -> tuple[list[str], list[str]]:
    """The operations of a method as a recipe sets it: (on texts, on images).

    ReVision's centroid step leaves a small drift, since it normalises at the end; ``centroid_iterations`` repeats it.
    """
    method = METHODS[settings.method]
    text, image = list(method.text), list(method.image)
    for iteration in range(settings.centroid_iterations):
        text += [f"sub:mean_{iteration + 2}", *_TO_IMAGE_MEAN]
    if settings.unit_images and image[-1] != "l2norm":
        image.append("l2norm")
    return text, image


def noise_ratio(settings: Transfer) -> float | None:
    """eta of a method with noise, its own where the recipe names none; None for one without."""
    own = METHODS[settings.method].eta
    return own if own is None or settings.noise_ratio is None else settings.noise_ratio


def text_passes(settings: Transfer) -> int:
    """How often the texts are read for their means."""
    return 1 + sum(op.startswith("sub:mean_") and op != "sub:mean_text" for op in operations(settings)[0])

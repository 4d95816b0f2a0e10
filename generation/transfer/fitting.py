"""The statistics of a method: the mean of the texts, which the encoder's sums give, and for ReAlign one more pass."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import config
from ..errors import EmbeddingError
from ..recipe import validate
from .methods import METHODS, Statistics

MEMORY_ROWS = 65_536  # texts of which ``decap`` makes images
SMALLEST_SPREAD = 1e-5  # 1 - |mean|^2 of unit rows; below it float16 cannot tell them apart
WEAK_COSINE = 0.5  # warn of noise that leaves less of the clean direction
UNSURE_MEAN = 0.02  # warn of a larger standard error of the image mean: a twentieth of the paper's gap

log = logging.getLogger(__name__)


class _Section(config.Section):
    transfer: config.Transfer


def parse_transfer(transfer: str | Mapping[str, Any]) -> config.Transfer:
    """Return a recipe's ``transfer`` section from a method's name or from the keys of the section."""
    keys = {"method": transfer} if isinstance(transfer, str) else dict(transfer)
    if keys.get("method") in ("anchor", "realign"):
        keys = {"images": "given"} | keys
    return validate(_Section, {"transfer": keys}, "transfer").transfer


def fit(
    section: config.Transfer,
    mean_text: torch.Tensor,
    rows: int,
    texts: Iterable[torch.Tensor] = (),
    images: tuple[torch.Tensor, int] | None = None,
    seed: int = 0,
) -> Statistics:
    """Fit a method to ``rows`` text embeddings of mean ``mean_text``, float64 [d].

    Only ``realign`` and ``decap`` read the ``texts`` (unit rows, float32 [any, d] at a time, which are overwritten).
    ``anchor`` and ``realign`` need ``images``: mean, float64 [d], and number of unpaired unit image embeddings.
    ``seed`` is that of baked noise. An EmbeddingError says if images are missing or of another dimension, or if all
    texts are equal.
    """
    method, tensors = METHODS[section.method], {"mean_text": mean_text}
    facts: dict[str, Any] = {"method": section.method, "text_ops": method.text, "image_ops": method.image}
    facts |= {"rows": rows, "images": None, "noise": None}
    spread = 1 - float(mean_text.square().sum())  # of unit rows: mean |u - m|^2 = 1 - |m|^2
    if "sub:mean_text" in method.text and spread < SMALLEST_SPREAD:
        fault = f"all {rows} text embeddings are equal, and without their mean nothing is left"
        raise EmbeddingError(f"method {section.method}: {fault}. Add seeds, or set transfer.method: none")
    if isinstance(section, config.ImageTransfer):
        if images is None or images[0].shape != mean_text.shape:
            found = "none were given" if images is None else f"these have {len(images[0])} dimensions"
            needed = f"method {section.method} needs unpaired image embeddings of the same encoder"
            raise EmbeddingError(f"{needed}, with {len(mean_text)} dimensions, and {found}; name them as images")
        image_spread = 1 - float(images[0].square().sum())
        facts["images"] = {"rows": images[1], "error_of_mean": math.sqrt(image_spread / images[1])}
        tensors |= {"mean_image": images[0], "shift": section.strength * (images[0] - mean_text)}
        if facts["images"]["error_of_mean"] > UNSURE_MEAN:
            log.warning("the error of the mean of %(rows)d images is %(error_of_mean).3f; use 10,000", facts["images"])
    if isinstance(section, config.NoiseTransfer):
        eta = section.noise_ratio or method.eta or 0.0
        tensors["eta"] = torch.tensor(eta, dtype=torch.float64)
        cosine = 1 / math.sqrt(1 + eta**2)  # expected, between a noisy row and the clean one
        facts["noise"] = {"eta": eta, "sigma": eta / len(mean_text) ** 0.5, "cosine": cosine}
        facts["noise"] |= {"baked": section.bake_noise, "seed": seed if section.bake_noise else None}
        if cosine < WEAK_COSINE:
            log.warning("noise leaves a cosine of %.2f to clean rows; set transfer.noise_ratio", cosine)
    if section.method == "realign":
        tensors["scale"] = torch.tensor(math.sqrt(image_spread / spread), dtype=torch.float64)
        first = Statistics(tensors, {"text_ops": method.text[: method.text.index("sub:mean_moved")], "noise": None})
        sums = (first.move(chunk).sum(0, dtype=torch.float64) for chunk in texts)
        tensors["mean_moved"] = sum(sums, torch.zeros_like(mean_text)) / rows
    elif section.method == "decap":  # texts evenly spaced over all shards, float16 [m, d]
        chosen, start, found_rows = torch.arange(MEMORY_ROWS)[:rows] * rows // min(MEMORY_ROWS, rows), 0, []
        for chunk in texts:
            found_rows.append(chunk[chosen[(chosen >= start) & (chosen < start + len(chunk))] - start].half())
            start += len(chunk)
        tensors["memory"] = torch.cat(found_rows)
    return Statistics(tensors, facts)

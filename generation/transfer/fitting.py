"""The statistics of a method: one mean from the sums that the encoder stored, and for ReAlign one more pass.

All sums are exact, so a mean has the same bytes for any number of shards, threads or machines: a stored float16 below
1 is a multiple of 2^-24, and other rows are rounded to that grid; float64 adds up to 2^29 of them without rounding.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from .. import config
from ..errors import EmbeddingError
from ..recipe import validate
from .methods import METHODS, Statistics

MEMORY_ROWS = 65_536  # texts of which ``decap`` makes images
SMALLEST_SPREAD = 1e-5  # 1 - |mean|^2 of unit rows; below it float16 cannot tell them apart
WEAK_COSINE = 0.5  # warn of noise that leaves less of the clean direction
UNSURE_MEAN = 0.02  # warn of a larger standard error of the image mean: a twentieth of the paper's gap
_GRID = 2.0**24

log = logging.getLogger(__name__)

Chunks = Callable[[], Iterable[torch.Tensor]]  # gives unit rows, float32 [any, d], which may be overwritten
T = TypeVar("T")
R = TypeVar("R")


class _Section(config.Section):
    transfer: config.Transfer


def parse_transfer(transfer: str | Mapping[str, Any]) -> config.Transfer:
    """Return a recipe's ``transfer`` section from a method's name or from the keys of the section.

    Raises:
        RecipeError: an unknown method or key.
    """
    keys = {"method": transfer} if isinstance(transfer, str) else dict(transfer)
    if keys.get("method") in ("anchor", "realign"):
        keys = {"images": "given"} | keys
    return validate(_Section, {"transfer": keys}, "transfer").transfer


def fit(
    section: config.Transfer,
    mean_text: torch.Tensor,
    rows: int,
    parts: Sequence[Chunks] = (),
    images: tuple[torch.Tensor, int] | None = None,
    seed: int = 0,
) -> Statistics:
    """Fit a method to text embeddings.

    Args:
        section: the method and its settings.
        mean_text: float64 [d], mean of all texts.
        rows: how many there are.
        parts: all texts, one function a shard; only ``realign`` and ``decap`` read them.
        images: mean (float64 [d]) and number of unpaired unit image embeddings, for the methods that need them.
        seed: of baked noise.

    Raises:
        EmbeddingError: images are missing or of another dimension, or all texts are equal.
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
            log.warning(
                "noise leaves a cosine of %(cosine).2f to clean rows; set transfer.noise_ratio", facts["noise"]
            )
    if section.method == "realign":
        tensors["scale"] = torch.tensor(math.sqrt(image_spread / spread), dtype=torch.float64)
        first = Statistics(tensors, {"text_ops": method.text[: method.text.index("sub:mean_moved")], "noise": None})
        zero = torch.zeros_like(mean_text)
        sums = in_threads(lambda part: sum((exact_sum(first.move(chunk)) for chunk in part()), zero), parts)
        tensors["mean_moved"] = sum(sums, zero) / rows
    elif section.method == "decap":
        tensors["memory"] = _memory(parts, rows)
    return Statistics(tensors, facts)


def exact_sum(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of float32 rows on the grid of 2^-24, float64 [d]; ``rows`` are overwritten."""
    total: torch.Tensor = rows.mul_(_GRID).round_().sum(0, dtype=torch.float64) / _GRID
    return total


def in_threads(act: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the results of ``act`` in order; each core works on an item of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            yield from pool.map(act, items)
    finally:
        torch.set_num_threads(before)


def _memory(parts: Sequence[Chunks], rows: int) -> torch.Tensor:
    """Return up to ``MEMORY_ROWS`` texts, evenly spaced over all shards, float16 [m, d]."""
    count = min(MEMORY_ROWS, rows)
    places, first, found = torch.arange(count) * rows // count, 0, []
    for chunk in (chunk for part in parts for chunk in part()):
        found.append(chunk[places[(places >= first) & (places < first + len(chunk))] - first].half())
        first += len(chunk)
    return torch.cat(found)

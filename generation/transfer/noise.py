"""Noise on embeddings, by one knob that does not depend on the dimension.

eta = sigma * sqrt(d) is the ratio of the noise's norm to that of a unit row. The papers give sigma (C3, CLOSE), its
square (CapDec) or a share of a mixture (LAFITE), each for its own d: copied to another d, a sigma is another noise.
In all of them noise is drawn anew each time a row is trained on, so data sets hold clean rows unless it is asked for.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Noise:
    """The noise of a method, where it is to be baked into the rows.

    Attributes:
        eta: sigma * sqrt(d), the ratio of the noise's norm to that of a unit row.
        seed: with a row's number it decides the row's noise.
        numbers: int64 [n], of the rows at hand.
    """

    eta: float
    seed: int
    numbers: torch.Tensor


def conventions(eta: float, dimension: int) -> dict[str, float]:
    """One noise as every paper would call it: ``eta``, ``sigma`` (C3, CLOSE), ``variance`` (CapDec), ``xi`` (LAFITE),
    and ``kappa``, the expected cosine between a noisy row and the clean one."""
    sigma = eta / math.sqrt(dimension)
    return {
        "eta": eta,
        "sigma": sigma,
        "variance": sigma**2,
        "xi": eta / (1 + eta),
        "kappa": 1 / math.sqrt(1 + eta**2),
    }


def normal(numbers: torch.Tensor, dimension: int, seed: int) -> torch.Tensor:
    """Standard normal rows, float32 [n, d]; each depends on ``seed`` and its own number alone (Philox, a counter-based
    generator), not on the other rows, their order, or how they are cut into shards.

    Args:
        numbers: int64 [n], not negative: a row's id as an integer.
        dimension: d.
        seed: not negative, below 2^64.
    """
    drawn = np.empty((len(numbers), dimension), np.float32)
    for row, number in enumerate(numbers.tolist()):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        generator.standard_normal(out=drawn[row], dtype=np.float32)
    return torch.from_numpy(drawn)


def noise_rows(noise: Noise, dimension: int, sphere: bool = False) -> torch.Tensor:
    """The noise itself, float32 [n, d]: of norm about ``eta`` (exactly, on the ``sphere``)."""
    drawn = normal(noise.numbers, dimension, noise.seed)
    scaled: torch.Tensor = drawn * noise.eta / (drawn.norm(dim=1, keepdim=True) if sphere else dimension**0.5)
    return scaled


def add_noise(rows: torch.Tensor, numbers: torch.Tensor, eta: float, seed: int, sphere: bool = False) -> torch.Tensor:
    """Unit rows with noise, normalised again: what a trainer does each time it takes a row, with another seed.

    Args:
        rows: [n, d], any float dtype, of norm 1.
        numbers: int64 [n], see ``normal``.
        eta: see above; ``noise.eta_of_rows`` in ``transfer/<method>.safetensors``.
        seed: of this epoch.
        sphere: noise of norm ``eta`` exactly, as LAFITE's; ``noise.sphere`` in the same file.

    Returns:
        float32 [n, d], of norm 1.
    """
    noise = Noise(eta, seed, numbers)
    return torch.nn.functional.normalize(rows.float() + noise_rows(noise, rows.shape[1], sphere), dim=1)

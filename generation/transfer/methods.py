"""The transfer methods as lists of operations, applied and computed back; docs/transfer.md has formulas and papers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import EmbeddingError
from ..vectors import read_tensors, write_tensors

SMALLEST_NORM = 1e-5  # a row below it has no direction: float16 rounds a unit row by about as much
RECALL_TEMPERATURE = 0.01  # tau in DeCap's notebook
RECALL_ROWS = 256  # of the memory, with the largest weights; the others weigh less than e^-20 of the first


@dataclass(frozen=True)
class Method:
    """The operations on texts and on real images, in order.

    ``l2norm``: x / |x|. ``sub:NAME``, ``add:NAME``: x -+ a vector [d]; IMAGE_MEAN is the mean of the user's images.
    ``mul:NAME``: x times a number. ``noise``: x + eta n / sqrt(d), n normal; ``noise:sphere``: x + eta n/|n|.
    ``recall:memory``: softmax(x M' / tau) M over the rows of M [m, d]."""

    text: tuple[str, ...]
    image: tuple[str, ...] = ("l2norm",)
    eta: float | None = None  # norm of the noise in the method's own code: sigma sqrt(d), or xi / (1 - xi)


_CENTRED, _TO_IMAGES = ("l2norm", "sub:IMAGE_MEAN"), ("add:mean_image", "l2norm")
METHODS = {
    "none": Method(("l2norm",)),
    "mean_shift": Method(("l2norm", "sub:mean_text"), _CENTRED),  # Unicorn v1 and its released code
    "unicorn": Method(("l2norm", "sub:mean_text", "l2norm"), _CENTRED),  # Unicorn v2 (arXiv 2503.22655), Eq. 3
    "anchor": Method(("l2norm", "add:shift", "l2norm")),  # Unicorn v2, A.5; Liang et al. 2022
    # ReVision (arXiv 2602.07026), section 4: anchor, trace and centroid steps
    "realign": Method(("l2norm", "sub:mean_text", "mul:scale", *_TO_IMAGES, "sub:mean_moved", *_TO_IMAGES)),
    # Zhang et al. 2024: std 0.1265 at d = 512
    "c3": Method(("l2norm", "sub:mean_text", "noise", "l2norm"), (*_CENTRED, "l2norm"), 2.86),
    "capdec": Method(("l2norm", "noise", "l2norm"), eta=3.20),  # Nukrai et al. 2022: variance 0.016 at d = 640
    "close": Method(("l2norm", "noise", "l2norm"), eta=2.22),  # Gu et al. 2023, visual entailment: std 0.08 at d = 768
    "lafite": Method(("l2norm", "noise:sphere", "l2norm"), eta=3.0),  # Zhou et al. 2022: xi 0.75
    "decap": Method(("l2norm",), ("l2norm", "recall:memory", "l2norm")),  # Li et al. 2023; M are some of the texts
}


@dataclass(frozen=True)
class Statistics:
    """A fitted method: ``tensors`` (float64) are what its operations name, and ``mean_text`` [d]; ``facts`` are
    ``method``, ``text_ops``, ``image_ops``, ``rows``, ``images``, ``noise``, and in a run ``settings``, ``encoder``,
    ``inputs``."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read ``transfer/<method>.safetensors``; an EmbeddingError says that it is missing, changed or foreign."""
        tensors, facts = read_tensors(path, "statistics file of a transfer")
        if (recorded := facts.pop("sha256", None)) != (statistics := cls(tensors, facts)).sha256():
            fault = f"its content has another sha256 than the recorded {recorded}"
            raise EmbeddingError(f"{path} is not a sound statistics file of a transfer: {fault}; make it again")
        return statistics

    def save(self, path: Path) -> None:
        """Write the statistics with their sha256; equal statistics give equal bytes."""
        write_tensors(path, self.tensors, self.facts | {"sha256": self.sha256()})

    def sha256(self) -> str:
        """Return the sha256, in hexadecimal, of the facts and of each tensor's name, dtype, shape and bytes.

        It is the same before ``save`` and after ``load``; a bit of the file that flips changes it."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def move(self, rows: torch.Tensor, numbers: Sequence[int] = (), seed: int = 0) -> torch.Tensor:
        """Return unit text embeddings, float32 [n, d], as synthetic image embeddings; ``rows`` are overwritten.
        ``numbers``, the ids of the rows as integers, add the method's noise of (seed, number); baked noise has a seed
        of its own. An EmbeddingError names a row that equals the mean."""
        noise, drawn = self.facts["noise"], None
        if noise and numbers:
            drawn = normal_rows(numbers, noise["seed"] if noise["baked"] else seed, rows.shape[1])
        return _apply(rows, self.facts["text_ops"][1:], self.tensors, drawn)

    def invert(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the unit text embeddings, float32 [n, d], of which ``move`` made these rows; an EmbeddingError says
        that noise is baked into them, or that a shift is so long that two texts fit."""
        method = self.facts["method"]
        if (self.facts["noise"] or {}).get("baked"):
            fault = "noise is baked into these vectors, so no other transfer can start from their text embeddings"
            raise EmbeddingError(f"method {method}: {fault}; make the data set with transfer.bake_noise: false")
        x, shift, unit = rows.to(torch.float32, copy=True), torch.zeros(rows.shape[1]), False
        for op in reversed(self.facts["text_ops"]):  # wanted: c x + shift, where c > 0 is unknown if x was normalised
            verb, _, name = op.partition(":")
            if verb in ("add", "sub"):
                shift = shift + self.tensors[name].float() * (1 if verb == "sub" else -1)
            elif verb == "mul":
                x, shift = x.div_(float(self.tensors[name])), shift / float(self.tensors[name])
            elif verb == "l2norm" and not unit:
                x.add_(shift).div_(torch.linalg.vector_norm(x, dim=1, keepdim=True))
                shift, unit = shift * 0, True
            elif verb == "l2norm":  # of |c x + shift| = 1 follows c
                if (left := 1 - float(shift.square().sum())) <= 0:
                    raise EmbeddingError(f"method {method} moves rows by more than their length")
                along, square = (x @ shift).unsqueeze(1), torch.linalg.vector_norm(x, dim=1, keepdim=True).square()
                x.mul_(((along.square() + square * left).sqrt() - along) / square).add_(shift)
                shift = shift * 0
        return x


def apply_to_images(
    rows: torch.Tensor, statistics: Statistics, image_mean: torch.Tensor | None = None, transfer: str | None = None
) -> torch.Tensor:
    """Return real image embeddings [n, d], of any norm, as a model trained on the synthetic ones takes them: float32,
    of norm 1 except for ``mean_shift`` and ``unicorn``. Methods fitted on text only need ``image_mean`` [d], of unit
    embeddings of images like those to come (Unicorn, section 3.3). ``transfer``: method of the loaded vectors, if
    it is not that of ``statistics``. What does not fit raises an EmbeddingError."""
    tensors, ops, method = statistics.tensors, statistics.facts["image_ops"], transfer or statistics.facts["method"]
    dimension = len(tensors["mean_text"])
    if transfer:
        if transfer not in METHODS or (transfer == "decap" and "memory" not in tensors):
            fault = f"is not one of {', '.join(METHODS)}, or needs its own statistics"
            raise EmbeddingError(f"method {transfer!r} {fault}")
        ops = METHODS[transfer].image
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise EmbeddingError(f"image embeddings of shape {list(rows.shape)}; this transfer needs [n, {dimension}]")
    if "sub:IMAGE_MEAN" in ops:
        if image_mean is None or image_mean.shape != (dimension,) or not bool(image_mean.isfinite().all()):
            needed = "subtracts the mean of your own image embeddings, which text cannot supply"
            raise EmbeddingError(f"method {method} {needed}: give image_mean=, finite and of shape [{dimension}]")
        tensors = tensors | {"IMAGE_MEAN": image_mean}
    return _apply(rows.to(torch.float32, copy=True), ops, tensors)


def normal_rows(numbers: Sequence[int], seed: int, dimension: int) -> torch.Tensor:
    """Return standard normal rows, float32 [n, d]; each depends on its number and the seed alone (Philox)."""
    drawn = np.empty((len(numbers), dimension), np.float32)
    for row, number in zip(drawn, numbers, strict=True):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        generator.standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(drawn)


def _apply(
    rows: torch.Tensor, ops: Sequence[str], tensors: Mapping[str, torch.Tensor], noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply operations in order to float32 [n, d], in place where possible; ``noise``: normal rows."""
    for op in ops:
        verb, _, name = op.partition(":")
        if verb == "l2norm":
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            if len(norms) and not float(norms.min()) >= SMALLEST_NORM:  # true for NaN
                row = int((~(norms >= SMALLEST_NORM)).nonzero()[0, 0])
                raise EmbeddingError(f"row {row} has norm {float(norms[row]):.3g} and no direction: it is the mean")
            rows.div_(norms)
        elif verb in ("sub", "add"):
            rows.add_(tensors[name].float(), alpha=1 if verb == "add" else -1)
        elif verb == "mul":
            rows.mul_(float(tensors[name]))
        elif verb == "noise" and noise is not None:
            lengths = noise.norm(dim=1, keepdim=True) if name == "sphere" else rows.shape[1] ** 0.5
            rows.add_(noise * float(tensors["eta"]) / lengths)
        elif verb == "recall":  # the largest weights only: subnormal ones make the product many times slower
            memory = tensors[name].float()
            scores, nearest = (rows @ memory.T).topk(min(RECALL_ROWS, len(memory)), dim=1)
            weights = torch.softmax(scores / RECALL_TEMPERATURE, dim=1)  # [n, k]
            rows = torch.bmm(weights.unsqueeze(1), memory[nearest]).squeeze(1)
    return rows

"""The statistics of a method, from the mean of the texts, and of unpaired images: pictures, or a file of vectors."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import config
from ..errors import EmbeddingError
from ..limits import IMAGE_ROWS
from ..recipe import validate
from .methods import METHODS, SMALLEST_NORM, Statistics

MEMORY_ROWS = 65_536  # at most, of texts of which ``decap`` makes images
SMALLEST_SPREAD = 1e-5  # 1 - |mean|^2 of unit rows; below it float16 cannot tell them apart
WEAK_COSINE = 0.5  # warn of noise that leaves less of the clean direction
UNSURE_MEAN = 0.02  # warn of a larger standard error of the image mean: a twentieth of the paper's gap
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

Rows = Iterable[torch.Tensor]
Mean = tuple[torch.Tensor, int] | None  # float64 [d], and of how many rows
Encode = Callable[[list[Path]], torch.Tensor]  # pictures -> float32 [n, d]
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
    section: config.Transfer, mean_text: torch.Tensor, rows: int, texts: Rows = (), images: Mean = None, seed: int = 0
) -> Statistics:
    """Fit a method to ``rows`` text embeddings of mean ``mean_text``, float64 [d].

    Only ``realign`` and ``decap`` read the ``texts`` (unit rows, float32 [any, d] at a time, which are overwritten);
    ``images`` are as ``image_mean`` returns them, ``seed`` that of baked noise. An EmbeddingError says that images are
    missing or of another dimension, or that all texts are equal.
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
        cosine = 1 / math.sqrt(1 + eta**2)  # expected, between a noisy row and the clean one
        tensors["eta"] = torch.tensor(eta, dtype=torch.float64)
        facts["noise"] = {"eta": eta, "sigma": eta / len(mean_text) ** 0.5, "cosine": cosine}
        facts["noise"] |= {"baked": section.bake_noise, "seed": seed if section.bake_noise else None}
        if cosine < WEAK_COSINE:
            log.warning("noise leaves a cosine of %.2f to clean rows; set transfer.noise_ratio", cosine)
    if section.method == "realign":
        tensors["scale"] = torch.tensor(math.sqrt(image_spread / spread), dtype=torch.float64)
        first = Statistics(tensors, {"text_ops": method.text[: method.text.index("sub:mean_moved")], "noise": None})
        sums = (first.move(chunk).sum(0, dtype=torch.float64) for chunk in texts)
        tensors["mean_moved"] = sum(sums, torch.zeros_like(mean_text)) / rows
    elif section.method == "decap":  # every so manyth text, float16 [m, d]
        step, start, kept = -(-rows // MEMORY_ROWS), 0, list[torch.Tensor]()
        for chunk in texts:
            kept.append(chunk[-start % step :: step].half())
            start += len(chunk)
        tensors["memory"] = torch.cat(kept)
    return Statistics(tensors, facts)


def image_rows(images: Path | torch.Tensor, encode: Encode | None = None) -> Iterator[torch.Tensor]:
    """Yield unit image embeddings, float32 [at most 1024, d], of vectors [m, d] of any norm, of a .npy file of them,
    of a .safetensors file of one float matrix (or one named ``embeddings`` or ``vectors``), or of a folder of pictures
    in the order of names, by ``encode``. An EmbeddingError names the path or the row that is of no use."""
    where: object = images if isinstance(images, Path) else "images"
    source: torch.Tensor | list[Path]
    try:
        if isinstance(images, torch.Tensor):
            source = images
        elif images.is_dir():
            source = picture_files(images)
        elif images.suffix == ".npy":
            array = np.load(images, allow_pickle=False)
            source = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        elif images.suffix == ".safetensors":
            every = load_file(images).items()
            found = {name: rows for name, rows in every if rows.ndim == 2 and rows.is_floating_point()}
            names = list(found) if len(found) == 1 else [n for n in ("embeddings", "vectors") if n in found]
            if not names:
                raise ValueError(f"its float matrices are {sorted(found)}; name the one of the vectors 'embeddings'")
            source = found[names[0]]
        else:
            raise ValueError("give a folder of pictures, a .safetensors or a .npy file")
    except (OSError, ValueError, EOFError, TypeError, SafetensorError) as error:
        raise EmbeddingError(f"cannot read image embeddings from {where}: {error}") from error
    if isinstance(source, torch.Tensor) and (source.ndim != 2 or not source.is_floating_point()):
        raise EmbeddingError(f"{where}: {source.dtype} {list(source.shape)}, and floats [m, d] are needed")
    if isinstance(source, list) and encode is None:
        raise EmbeddingError(f"{where} is a folder; give a .safetensors or .npy file of its pictures' vectors")
    for first in range(0, len(source), IMAGE_ROWS):
        part = source[first : first + IMAGE_ROWS]
        chunk = (encode(part) if encode and isinstance(part, list) else torch.as_tensor(part)).float()
        norms = chunk.norm(dim=1, keepdim=True)
        if bool((wrong := ~(norms.isfinite() & (norms >= SMALLEST_NORM))).any()):
            row = int(wrong.nonzero()[0, 0])
            fault = "is zero" if bool(norms[row].isfinite()) else "holds NaN or Inf"
            raise EmbeddingError(f"{where}, row {first + row}: the image embedding {fault}; correct or remove the row")
        yield chunk / norms


def image_mean(images: Path | torch.Tensor, encode: Encode | None = None) -> tuple[torch.Tensor, int]:
    """Return the mean, float64 [d], and the number of ``image_rows``: at least two, and not all equal."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for rows in image_rows(images, encode):
        total, count = total + rows.sum(0, dtype=torch.float64), count + len(rows)
    mean = total / max(count, 1)
    if count < 2 or 1 - float(mean.square().sum()) < SMALLEST_SPREAD:
        where, equal = images if isinstance(images, Path) else "images", "s that are all equal" if count > 1 else "(s)"
        fault = f"{where}: {count} image embedding{equal} cannot say where images lie"
        raise EmbeddingError(f"{fault}; give two that differ, or better 10,000: the error of their mean is below 0.01")
    return mean, count


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its sub-folders, in the order of their names."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file()]
    if not found:
        raise EmbeddingError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())

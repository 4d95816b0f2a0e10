"""How far texts and their images lie apart in an encoder's space, before and after a transfer.

Delta_i = v_i - u_i for a pair of text u_i and image v_i; Dbar is their mean. Sums are float64, 4096 rows at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import safetensors

CHUNK_ROWS = 4096

_DESCRIPTION = "The modality gap of pairs of embeddings, before and after a transfer."
_CITATION = "Unicorn, arXiv 2503.22655 (v2), section 2; AnisoAlign, arXiv 2605.07825, section 3, for rho."
_KWARGS = """
Args:
    texts, images: pairs, row for row: lists of vectors, or lists of paths of .safetensors files with a tensor
        `vectors` or `embeddings` [n, d], file for file. Give paths for more than some thousand rows.
    transferred: the same texts after a transfer, in either form.
    treated: the same images as the transfer needs them (such as centred); None: `images`.
Returns:
    pairs: n; gap: |Dbar|, the distance of the means; cosine: mean of cos(u_i, v_i);
    rho: |Dbar|^2 / mean |Delta_i|^2, the share of the gap that one shift closes (nan if every Delta_i is 0);
    gap_cosine: mean of cos(Delta_i, Dbar). With `transferred` also gap_after, cosine_after, rho_after and
    gap_cosine_after.
Examples:
    >>> measurement = EmbeddingGap()
    >>> texts, images = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]
    >>> found = measurement.compute(texts=texts, images=images, transferred=images)
    >>> [round(found[key], 4) for key in ("gap", "cosine", "rho", "gap_cosine")]
    [0.7071, 0.5, 0.5, 0.5]
    >>> found["gap_after"], found["cosine_after"]
    (0.0, 1.0)
"""

Rows = Sequence[str | Path] | Sequence[Sequence[float]]
Array = np.ndarray[Any, np.dtype[np.float64]]


def measure(
    texts: Rows, images: Rows, transferred: Rows | None = None, treated: Rows | None = None
) -> dict[str, float]:
    """Return the figures that ``_KWARGS`` describes.

    Raises:
        ValueError: there is no pair, the shapes do not fit, or a row is zero or not finite; names file and row.
    """
    found = _figures(texts=texts, images=images)
    if transferred is None:
        if treated is not None:
            raise ValueError("treated is given without transferred; give both")
        return found
    after = _figures(transferred=transferred, **{"images": images} if treated is None else {"treated": treated})
    if after["pairs"] != found["pairs"]:
        raise ValueError(f"transferred has {after['pairs']} rows, and texts {found['pairs']}")
    return found | {f"{name}_after": value for name, value in after.items() if name != "pairs"}


def _figures(**both: Rows) -> dict[str, float]:
    pairs, cosines, squares, total, shared = 0, 0.0, 0.0, np.zeros(1), 0.0
    for u, v in _chunks(both):
        pairs += len(u)
        cosines += float(((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)).sum())
        squares += float(np.square(v - u).sum())
        total = total + (v - u).sum(0)
    if not pairs:
        raise ValueError(f"{' and '.join(both)} hold no rows")
    mean = total / pairs
    for u, v in _chunks(both):
        lengths = np.linalg.norm(v - u, axis=1) * np.linalg.norm(mean)
        shared += float(np.divide((v - u) @ mean, lengths, out=np.zeros(len(u)), where=lengths > 0).sum())
    square = float(mean @ mean)
    rho = square / (squares / pairs) if squares else float("nan")
    return {"pairs": pairs, "gap": square**0.5, "cosine": cosines / pairs, "rho": rho, "gap_cosine": shared / pairs}


def _chunks(both: dict[str, Rows]) -> Iterator[list[Array]]:
    """Yield pairs of float64 [at most CHUNK_ROWS, d]."""
    lists = {name: rows if not len(rows) or isinstance(rows[0], str | Path) else [rows] for name, rows in both.items()}
    (one, parts), (other, others) = lists.items()
    if len(parts) != len(others):
        raise ValueError(f"{one} has {len(parts)} files and {other} {len(others)}; give them file for file")
    for pair in zip(parts, others, strict=True):
        (name, u), (other_name, v) = map(_read, lists, pair)
        if u.ndim != 2 or u.shape != v.shape:
            shapes = list(u.shape), list(v.shape)
            raise ValueError(f"{name} is {shapes[0]} and {other_name} {shapes[1]}; both must be the same [n, d]")
        for first in range(0, len(u), CHUNK_ROWS):
            yield [rows[first : first + CHUNK_ROWS].astype(np.float64) for rows in (u, v)]


def _read(name: str, rows: Any) -> tuple[str, np.ndarray[Any, Any]]:
    """Return an array [n, d] of usable vectors, and the name of its file if it has one."""
    if isinstance(rows, str | Path):
        try:
            with safetensors.safe_open(rows, "np") as file:
                array = file.get_tensor("vectors" if "vectors" in file.keys() else "embeddings")  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{name}: {rows} has no tensor 'vectors' or 'embeddings' to read: {error}") from error
        name = str(rows)
    else:
        array = np.asarray(rows, np.float64)
    norms = np.linalg.norm(array.astype(np.float32), axis=-1)
    if len(wrong := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))):
        raise ValueError(f"{name}, row {wrong[0]}: the vector is zero or not finite; remove the pair")
    return name, array


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class EmbeddingGap(evaluate.Measurement):  # type: ignore[misc]
    """Measure the modality gap of pairs."""

    def _info(self) -> evaluate.MeasurementInfo:
        forms = (datasets.Sequence(datasets.Value("float64")), datasets.Value("string"))
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=[datasets.Features({"texts": form, "images": form}) for form in forms],
        )

    def _compute(self, texts: Rows, images: Rows, **after: Rows | None) -> dict[str, float]:
        return measure(texts, images, **after)

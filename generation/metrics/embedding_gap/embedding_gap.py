"""How far apart texts and their images lie in an encoder's space, before a transfer and after it.

Delta_i = v_i - u_i for a pair of a text u_i and an image v_i; Dbar is their mean. All sums are float64, over rows that
are read a few at a time, so that files may be of any size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import safetensors

CHUNK_ROWS = 4096

_DESCRIPTION = "The modality gap of pairs of embeddings, before a transfer and after it."
_CITATION = "Unicorn, arXiv 2503.22655 (v2), section 2; AnisoAlign, section 3, for rho."
_KWARGS = """
Args:
    texts, images: pairs, row for row: lists of vectors, or lists of paths of .safetensors files with a tensor
        `embeddings` [n, d] (as this project writes them), file for file with equal numbers of rows. Vectors are copied
        on their way in, which takes 100 times as long as the measurement: give paths for more than some thousands.
    transferred: the same texts after a transfer, in either form; their figures end in `_after`.
    treated: the same images as the transfer wants them (centred, say); without them, `images`.
Returns:
    pairs: n; gap: |Dbar|, the distance of the means; cosine: mean of cos(u_i, v_i);
    rho: |Dbar|^2 / mean |Delta_i|^2, the share of the gap that one shift closes (nan if every Delta_i is 0);
    gap_cosine: mean of cos(Delta_i, Dbar). With `transferred` also gap_after, cosine_after, rho_after,
    gap_cosine_after.
Examples:
    >>> measurement = EmbeddingGap()
    >>> texts, images = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]
    >>> made = measurement.compute(texts=texts, images=images, transferred=images)
    >>> [round(made[key], 4) for key in ("gap", "cosine", "rho", "gap_cosine")]
    [0.7071, 0.5, 0.5, 0.5]
    >>> made["gap_after"], made["cosine_after"]
    (0.0, 1.0)
"""

Rows = Sequence[str | Path] | Sequence[Sequence[float]]


def measure(
    texts: Rows, images: Rows, transferred: Rows | None = None, treated: Rows | None = None
) -> dict[str, float]:
    """The figures; see the module's ``compute``.

    Raises:
        ValueError: there is no pair, the shapes do not fit, or a row is zero or not finite; names file and row.
    """
    found = _figures(("texts", texts), ("images", images))
    if transferred is not None:
        last = ("images", images) if treated is None else ("treated", treated)
        after = _figures(("transferred", transferred), last)
        if after["pairs"] != found["pairs"]:
            raise ValueError(f"transferred: {after['pairs']} rows, but there are {found['pairs']} texts")
        found |= {f"{name}_after": value for name, value in after.items() if name != "pairs"}
    elif treated is not None:
        raise ValueError("treated: images are treated for a transfer; give transferred, too")
    return found


def _figures(one: tuple[str, Rows], other: tuple[str, Rows]) -> dict[str, float]:
    pairs, cosines, squares, total = 0, 0.0, 0.0, np.zeros(1)
    for u, v in _chunks(one, other):
        deltas = v - u
        pairs += len(u)
        cosines += float(((u * v).sum(1) / (_norms(u) * _norms(v))).sum())
        squares += float(np.square(deltas).sum())
        total = total + deltas.sum(0)
    if not pairs:
        raise ValueError(f"{one[0]}: there is no row; nothing can be measured")
    mean = total / pairs
    shared = 0.0
    for u, v in _chunks(one, other):
        deltas = v - u
        lengths = _norms(deltas) * np.linalg.norm(mean)
        shared += float(np.divide(deltas @ mean, lengths, out=np.zeros(len(u)), where=lengths > 0).sum())
    square = float(mean @ mean)
    return {
        "pairs": pairs,
        "gap": square**0.5,
        "cosine": cosines / pairs,
        "rho": square / (squares / pairs) if squares else float("nan"),
        "gap_cosine": shared / pairs,
    }


def _norms(rows: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(rows, axis=1)
    return norms


def _chunks(one: tuple[str, Rows], other: tuple[str, Rows]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of float64 [at most CHUNK_ROWS, d]."""
    parts, others = (_parts(name, rows) for name, rows in (one, other))
    if len(parts) != len(others):
        raise ValueError(f"{one[0]}: {len(parts)} files, but {other[0]}: {len(others)}; give them file for file")
    for (name, rows), (other_name, other_rows) in zip(parts, others, strict=True):
        shape, other_shape = _shape(rows), _shape(other_rows)
        if len(shape) != 2 or shape != other_shape:
            raise ValueError(f"{name} has shape {shape}, but {other_name} {other_shape}; both must be the same [n, d]")
        for first in range(0, shape[0], CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, shape[0])  # a slice of a file refuses to end beyond it
            yield _checked(name, rows, first, last), _checked(other_name, other_rows, first, last)


def _parts(name: str, rows: Rows) -> list[tuple[str, Any]]:
    """Arrays, or slices of files that are read when they are indexed, each with its name."""
    if not len(rows):
        return []
    if not isinstance(rows[0], str | Path):
        return [(name, np.asarray(rows, np.float64))]
    found = []
    for path in map(str, rows):
        try:
            with safetensors.safe_open(path, "np") as file:
                found.append((path, file.get_slice("embeddings")))
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{name}: {path} is no .safetensors file with a tensor 'embeddings': {error}") from error
    return found


def _shape(rows: Any) -> tuple[int, ...]:
    return tuple(rows.shape if isinstance(rows, np.ndarray) else rows.get_shape())


def _checked(name: str, rows: Any, first: int, last: int) -> np.ndarray:
    chunk = np.asarray(rows[first:last], np.float64)
    norms = _norms(chunk)
    if len(bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))):
        raise ValueError(f"{name}, row {first + bad[0]}: the vector is zero or not finite; mend or leave out the pair")
    return chunk


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class EmbeddingGap(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        forms = (datasets.Sequence(datasets.Value("float64")), datasets.Value("string"))
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=[datasets.Features({"texts": form, "images": form}) for form in forms],
        )

    def _compute(
        self, texts: Rows, images: Rows, transferred: Rows | None = None, treated: Rows | None = None
    ) -> dict[str, float]:
        return measure(texts, images, transferred, treated)

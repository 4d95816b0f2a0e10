"""One shard of embeddings: what it says it was made from, whose rows it holds, and whether they are unit vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import EmbeddingError
from ..tensors import ID_BYTES, EmbeddingShard, byte_rows, open_shard, text_hashes
from ..transfer import Fitted
from ..transfer.sums import CHUNK_ROWS
from .faults import Fault, first_wrong

# Rounding to float16 moves a component by 2^-11 of itself at most, and so the norm: 0.00049.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Rows:
    """Whose the rows of an embedding shard are.

    Attributes:
        file: where they were read, for messages.
        ids: uint8 [n, 10].
        text_sha256: uint8 [n, 32].
    """

    file: str
    ids: np.ndarray
    text_sha256: np.ndarray

    @classmethod
    def of_table(cls, file: str, ids: pa.ChunkedArray, captions: pa.ChunkedArray) -> "Rows":
        """Those of captions at hand, whose ids are ten digits each."""
        joined = "".join(ids.to_pylist()).encode("ascii")
        return cls(file, byte_rows(joined, ID_BYTES).numpy(), text_hashes(captions.to_pylist()).numpy())

    @classmethod
    def of_shard(cls, file: str, shard: EmbeddingShard) -> "Rows":
        """Those of another embedding shard."""
        return cls(file, shard.ids.numpy(), shard.text_sha256.numpy())


def open_checked(directory: Path, name: str) -> EmbeddingShard | Fault:
    """The shard, or what keeps it from being one."""
    try:
        return open_shard(directory / name)
    except EmbeddingError as error:
        return Fault(name, str(error))


def shard_faults(
    name: str, shard: EmbeddingShard, facts: Mapping[str, Any], dimension: int, unit: bool, rows: Rows | None
) -> list[Fault]:
    """Everything about an embedding shard but its bytes.

    Args:
        name: the file.
        shard: open.
        facts: what its metadata must say.
        dimension: d.
        unit: whether its rows are of norm 1; else they must be finite.
        rows: whose they must be, row for row; None where that is not known.
    """
    faults = [
        Fault(name, f"says that its {key} is {_short(shard.facts.get(key))}; by the manifest it is {_short(value)}")
        for key, value in facts.items()
        if shard.facts.get(key) != value
    ]
    if shard.embeddings.shape[1] != dimension:
        faults.append(Fault(name, f"has {shard.embeddings.shape[1]} dimensions; by the manifest {dimension}"))
    if rows is not None:
        faults += owner_faults(name, shard, rows)
    return faults + norm_faults(name, shard.embeddings.numpy(), unit)


def owner_faults(name: str, shard: EmbeddingShard, rows: Rows) -> list[Fault]:
    """Rows of other ids or other texts."""
    if len(shard.ids) != len(rows.ids):
        return [Fault(name, f"has {len(shard.ids)} rows; {rows.file} has {len(rows.ids)}")]
    found = {"id": (shard.ids.numpy(), rows.ids), "text": (shard.text_sha256.numpy(), rows.text_sha256)}
    faults = []
    for what, (own, wanted) in found.items():
        wrong = (own != wanted).any(1)
        faults += first_wrong(name, wrong, f"its {what} is not that of {rows.file}")
    return faults


def norm_faults(name: str, embeddings: np.ndarray, unit: bool) -> list[Fault]:
    """Vectors, float16 [n, d], that are not finite, or not of norm 1 within what float16 rounds."""
    norms = np.zeros(len(embeddings), np.float32)
    for first in range(0, len(embeddings), CHUNK_ROWS):
        rows = embeddings[first : first + CHUNK_ROWS].astype(np.float32)
        norms[first : first + CHUNK_ROWS] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = ~(np.abs(norms - 1) <= UNIT_TOLERANCE) if unit else ~np.isfinite(norms)
    wanted = "norm 1" if unit else "finite"
    return first_wrong(name, wrong, lambda row: f"the vector's norm is {norms[row]:.6g}; wanted {wanted}")


def statistics_faults(name: str, path: Path, wanted: Mapping[str, Any]) -> list[Fault]:
    """A transfer's statistics: readable, finite, and fitted to the rows that the manifest names."""
    try:
        fitted = Fitted.load(path)
    except EmbeddingError as error:
        return [Fault(name, str(error))]
    faults = [
        Fault(name, f"says that its {key} is {_short(fitted.facts.get(key))}; by the manifest it is {_short(value)}")
        for key, value in wanted.items()
        if fitted.facts.get(key) != value
    ]
    strange = [key for key, tensor in fitted.tensors.items() if not bool(tensor.isfinite().all())]
    return faults + [Fault(name, f"{key} is not finite") for key in strange]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

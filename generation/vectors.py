"""Embedding shards: safetensors files of float16 rows with their ids, the hashes of their texts, and their sum.

    vectors       float16 [n, d]
    ids           uint8 [n, 10], ASCII
    input_hashes  int64 [n], ``text_hash`` of the text behind each row
    sum           float64 [d], of the rows as they are stored, added in their order

Because of the stored sums, the mean of all rows is a sum of one vector a shard: the same bytes on any machine and with
any number of threads. Equal arguments give equal files.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from .errors import EmbeddingError

ID_BYTES = 10
UNIT_TOLERANCE = 2e-3  # of a norm: float16 rounds each number by at most 2^-11 = 5e-4 of itself
_CHUNK_ROWS = 4096  # checked at a time, in float32
_LAYOUT = {
    "vectors": (torch.float16, 2),
    "ids": (torch.uint8, 2),
    "input_hashes": (torch.int64, 1),
    "sum": (torch.float64, 1),
}


def write_vectors(
    path: Path, vectors: torch.Tensor, ids: list[str], input_hashes: list[int], metadata: dict[str, Any]
) -> None:
    """Write an embedding shard.

    Args:
        path: the file.
        vectors: float16 [n, d] on the CPU, finite.
        ids: of the rows, ten ASCII characters each.
        input_hashes: ``text_hash`` of the text behind each row.
        metadata: JSON values.

    Raises:
        EmbeddingError: the arguments do not fit together, or a row holds NaN or Inf.
        OSError: the file cannot be written.
    """
    encoded = "".join(ids).encode()
    lengths = (len(vectors), len(ids), len(input_hashes), len(encoded) / ID_BYTES)
    if vectors.dtype != torch.float16 or vectors.ndim != 2 or len(set(lengths)) != 1:
        raise EmbeddingError(
            f"{path}: cannot store {vectors.dtype} {list(vectors.shape)} with {len(ids)} ids and {len(input_hashes)} "
            f"hashes; one id of {ID_BYTES} characters and one hash a row of float16 [n, d] are needed"
        )
    total = vectors.numpy().sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        row = int((~vectors.isfinite().all(1)).nonzero()[0])
        raise EmbeddingError(f"{path}: row {row} (id {ids[row]}) holds NaN or Inf")
    tensors = {
        "vectors": vectors.contiguous(),
        "ids": torch.from_numpy(np.frombuffer(bytearray(encoded), np.uint8).reshape(-1, ID_BYTES)),
        "input_hashes": torch.tensor(input_hashes, dtype=torch.int64),
        "sum": torch.from_numpy(total),
    }
    try:
        save_file(tensors, path, {"unicorn": json.dumps(metadata, sort_keys=True)})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error


class VectorShard:
    """An open embedding shard, whose tensors are views of the memory-mapped file.

    The bytes are not compared with a record: ``Run.verified`` does that. A row that is not finite is found by the sum.

    Args:
        path: the file; only its name if ``content`` is given.
        content: the bytes of a shard that was read from elsewhere, such as the Hub.

    Attributes:
        path: as given.
        vectors: float16 [n, d].
        sum: float64 [d].
        metadata: JSON values.

    Raises:
        EmbeddingError: the file is missing, truncated or not an embedding shard, or holds NaN or Inf.
    """

    def __init__(self, path: Path | str, content: bytes | None = None) -> None:
        self.path = path
        try:
            if content is None:
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in _LAYOUT}
                    self.metadata: dict[str, Any] = json.loads((file.metadata() or {})["unicorn"])
            else:
                tensors = load(content)
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                self.metadata = json.loads(header["__metadata__"]["unicorn"])
            found = {name: (tensors[name].dtype, tensors[name].ndim) for name in _LAYOUT}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise EmbeddingError(f"{path} is not a complete embedding shard: {error}; make it again") from error
        self.vectors, self.sum = tensors["vectors"], tensors["sum"]
        self._ids, self._hashes = tensors["ids"], tensors["input_hashes"]
        rows, columns = self.vectors.shape[0], self.vectors.shape[-1]
        shapes = (self._ids.shape, self._hashes.shape, self.sum.shape)
        if found != _LAYOUT or shapes != ((rows, ID_BYTES), (rows,), (columns,)):
            layout = {name: [str(tensors[name].dtype), *tensors[name].shape] for name in _LAYOUT}
            raise EmbeddingError(f"{path} is not an embedding shard of this project: it holds {layout}")
        if not bool(self.sum.isfinite().all()):
            raise EmbeddingError(f"{path} holds NaN or Inf; make it again")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        """d of the rows."""
        return int(self.vectors.shape[1])

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the rows.

        Raises:
            EmbeddingError: they are not ASCII.
        """
        try:
            ids: list[str] = np.char.decode(self._ids.numpy().reshape(-1).view(f"S{ID_BYTES}"), "ascii").tolist()
            return ids
        except UnicodeDecodeError as error:
            raise EmbeddingError(f"{self.path}: its ids are not ASCII: {error}; make it again") from error

    @cached_property
    def input_hashes(self) -> list[int]:
        """The hashes of the texts behind the rows."""
        hashes: list[int] = self._hashes.tolist()
        return hashes


def check_unit(vectors: torch.Tensor, where: object) -> None:
    """Check that all rows [n, d] are finite and of norm 1.

    Raises:
        EmbeddingError: the first row that is not; it names ``where``.
    """
    for first in range(0, len(vectors), _CHUNK_ROWS):
        norms = vectors[first : first + _CHUNK_ROWS].float().norm(dim=1)
        wrong = ~((norms - 1).abs() <= UNIT_TOLERANCE)  # true for NaN
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise EmbeddingError(
                f"{where}, row {first + row}: its norm is {float(norms[row]):.4g} and must be 1; make the vectors "
                "again, in float32 if this persists"
            )

"""Embedding shards: safetensors files of float16 rows; their stored sums make the mean of a run cheap and exact."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import DatasetError, EmbeddingError
from .stages import text_hash

ID_BYTES = 10
UNIT_TOLERANCE = 2e-3  # of a norm: float16 rounds each number by at most 2^-11 = 5e-4 of itself


def write_vectors(
    path: Path, vectors: torch.Tensor, ids: list[str], input_hashes: list[int], metadata: dict[str, Any]
) -> None:
    """Write an embedding shard of ``vectors``, float16 [n, d] on the CPU; ``metadata`` are JSON values. Equal
    arguments give equal bytes. An EmbeddingError says that they do not fit, or that a row holds NaN or Inf."""
    encoded = "".join(ids).encode()
    lengths = {len(vectors), len(ids), len(input_hashes), len(encoded) / ID_BYTES}
    if vectors.dtype != torch.float16 or vectors.ndim != 2 or len(lengths) != 1:
        given = f"{vectors.dtype} {list(vectors.shape)} with {len(ids)} ids and {len(input_hashes)} hashes"
        needed = f"one id of {ID_BYTES} characters and one hash a row of float16 [n, d] are needed"
        raise EmbeddingError(f"{path}: cannot store {given}; {needed}")
    total = torch.from_numpy(vectors.numpy().sum(axis=0, dtype=np.float64))  # row by row, by one thread
    if not bool(total.isfinite().all()):
        row = int((~vectors.isfinite().all(1)).nonzero()[0])
        raise EmbeddingError(f"{path}: row {row} (id {ids[row]}) holds NaN or Inf")
    tensors = {"vectors": vectors.contiguous(), "input_hashes": torch.tensor(input_hashes, dtype=torch.int64)}
    characters = np.frombuffer(bytearray(encoded), np.uint8).reshape(-1, ID_BYTES)
    tensors |= {"ids": torch.from_numpy(characters), "sum": total}
    write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file, whose ``metadata`` are JSON values; equal arguments give equal bytes."""
    try:
        save_file(tensors, path, {"unicorn": json.dumps(metadata, sort_keys=True)})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error


def read_tensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what ``write_tensors`` wrote: tensors, which are views of the memory-mapped file, and metadata; an
    EmbeddingError says that the file, ``what`` in words, is missing, truncated or foreign."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(json.loads((file.metadata() or {})["unicorn"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{path} is not a complete {what}: {error}; make it again") from error


class VectorShard:
    """An open embedding shard, whose ``tensors`` are views of the memory-mapped file:

    ``vectors`` float16 [n, d]; ``ids`` uint8 [n, 10], ASCII; ``input_hashes`` int64 [n], ``text_hash`` of the text
    behind each row; of text embeddings also ``sum`` float64 [d], of the rows as they are stored, added in their order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, self.metadata = read_tensors(path, "embedding shard")
        self.vectors = self.tensors.get("vectors", torch.empty(0))
        rows, self.dimension = (*map(int, self.vectors.shape), 0, 0)[:2]
        found = {name: [tensor.dtype, *tensor.shape] for name, tensor in self.tensors.items()}
        right = {"vectors": [torch.float16, rows, self.dimension], "ids": [torch.uint8, rows, ID_BYTES]}
        right |= {"input_hashes": [torch.int64, rows], "sum": [torch.float64, self.dimension]}
        if {"sum": right["sum"]} | found != right:
            raise EmbeddingError(f"{path} is not an embedding shard of this project: it holds {found}")
        if "sum" in found and not bool(self.sum.isfinite().all()):  # as it is if a row is not
            raise EmbeddingError(f"{path} holds NaN or Inf; make it again")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def sum(self) -> torch.Tensor:
        """The sum of the rows, if it is stored."""
        if "sum" not in self.tensors:
            raise EmbeddingError(f"{self.path} holds no sum of its rows, as text embeddings do; make it again")
        return self.tensors["sum"]

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the rows."""
        return list(np.char.decode(self.tensors["ids"].numpy().reshape(-1).view(f"S{ID_BYTES}"), "latin-1").tolist())

    @cached_property
    def input_hashes(self) -> list[int]:
        """The hashes of the texts behind the rows."""
        return list(self.tensors["input_hashes"].tolist())


def check_unit(vectors: torch.Tensor, where: object, first: int = 0) -> None:
    """Check that rows [n, d] are finite and of norm 1; the EmbeddingError names ``where`` and the row."""
    norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
    wrong = ~((norms - 1).abs() <= UNIT_TOLERANCE)  # true for NaN
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        fault = f"row {first + row}: its norm is {float(norms[row]):.4g} and must be 1"
        raise EmbeddingError(f"{where}, {fault}; make the vectors again, in float32 if this persists")


def vector_column(shard: VectorShard, table: pa.Table) -> pa.FixedSizeListArray:
    """Return the vectors of a table's rows as ``fixed_size_list<halffloat>[d]``, found by ``embedding_row``; rows in
    order are a view of the mapped file. A DatasetError names a row whose vector is missing or of another text."""
    rows, total, ids, hashes = table["embedding_row"].to_numpy(), len(shard), shard.ids, shard.input_hashes
    for row, id, caption in zip(rows.tolist(), table["id"].to_pylist(), table["caption"].to_pylist(), strict=True):
        if row >= total or ids[row] != id or hashes[row] != text_hash(caption):
            raise DatasetError(f"{shard.path}, row {row}: not the vector of row {id}; take both from one build")
    vectors, first = shard.vectors.numpy(), int(rows[0]) if len(rows) else 0
    straight = np.array_equal(rows, np.arange(first, first + len(rows)))
    chosen = vectors[first : first + len(rows)] if straight else vectors[rows]  # [n, d]
    return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1), pa.float16()), shard.dimension)

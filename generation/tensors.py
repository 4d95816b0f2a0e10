"""Embedding shards: safetensors files that hold float16 rows, the rows' ids and the sha256 of their texts.

Reading maps the file into memory; writing streams the rows, so that neither takes memory that grows with a shard.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from .errors import EmbeddingError

ID_BYTES, HASH_BYTES = 10, 32
_TENSORS = ("embeddings", "ids", "text_sha256")
_ALIGNMENT = 64  # bytes; where the first tensor begins
_NAMES = {torch.float16: "F16", torch.uint8: "U8"}  # safetensors' own


@dataclass(frozen=True)
class EmbeddingShard:
    """An open shard; its tensors are views of the mapped file.

    Attributes:
        path: the file, or its URL.
        embeddings: float16 [n, d].
        ids: uint8 [n, 10], ASCII digits.
        text_sha256: uint8 [n, 32].
        facts: the metadata.
    """

    path: Path | str
    embeddings: torch.Tensor
    ids: torch.Tensor
    text_sha256: torch.Tensor
    facts: dict[str, Any]

    @property
    def companions(self) -> dict[str, torch.Tensor]:
        """What travels with the vectors, unchanged."""
        return {"ids": self.ids, "text_sha256": self.text_sha256}

    def numbers(self) -> torch.Tensor:
        """The ids as integers, int64 [n].

        Raises:
            EmbeddingError: an id is no ten digits; names the row.
        """
        digits = self.ids.to(torch.int64) - ord("0")
        if bool((wrong := ((digits < 0) | (digits > 9)).any(1)).any()):
            row = int(wrong.nonzero()[0])
            raise EmbeddingError(f"{self.path}, row {row}: the id {bytes(self.ids[row].tolist())!r} is no ten digits")
        return (digits * 10 ** torch.arange(ID_BYTES - 1, -1, -1)).sum(1)


def open_shard(path: Path) -> EmbeddingShard:
    """Opens a shard and checks its layout, not its rows.

    Raises:
        EmbeddingError: it is no whole safetensors file, or lacks a tensor, or one has another shape or type.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            facts = json.loads((file.metadata() or {}).get("unicorn", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise EmbeddingError(f"{path} is no whole shard of embeddings: {error}; make it again") from error
    return _checked(EmbeddingShard(path=path, facts=facts, **tensors))


def parse_shard(name: str, content: bytes) -> EmbeddingShard:
    """A shard whose bytes have come over the network; as ``open_shard``, without its facts."""
    try:
        found = load(content)
        tensors = {tensor: found[tensor] for tensor in _TENSORS}
    except (SafetensorError, KeyError) as error:
        raise EmbeddingError(f"{name} is no whole shard of embeddings: {error!r}") from error
    return _checked(EmbeddingShard(path=name, facts={}, **tensors))


def text_hashes(texts: Iterable[str]) -> torch.Tensor:
    """The sha256 of each text's UTF-8 bytes, uint8 [n, 32]."""
    return byte_rows(b"".join(hashlib.sha256(text.encode()).digest() for text in texts), HASH_BYTES)


def byte_rows(content: bytes, width: int) -> torch.Tensor:
    """Bytes as uint8 [n, width]."""
    if not content:
        return torch.zeros(0, width, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, width)


def _checked(shard: EmbeddingShard) -> EmbeddingShard:
    embeddings = shard.embeddings
    wanted = {"ids": [len(embeddings), ID_BYTES], "text_sha256": [len(embeddings), HASH_BYTES]}
    found = {name: list(tensor.shape) for name, tensor in shard.companions.items()}
    if embeddings.dtype != torch.float16 or embeddings.ndim != 2 or found != wanted:
        raise EmbeddingError(
            f"{shard.path}: embeddings {embeddings.dtype} {list(embeddings.shape)} with {found}; wanted float16 "
            f"[n, d] with {wanted}"
        )
    return shard


def write_shard(
    target: Path,
    rows: Iterable[torch.Tensor],
    shape: tuple[int, int],
    companions: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Writes a shard as its rows come, byte for byte the same for the same rows.

    Args:
        target: the file.
        rows: float16 [any, d], contiguous, ``shape[0]`` of them in all.
        shape: (n, d).
        companions: uint8 [n, width] each, by name.
        facts: the metadata, as JSON values.

    Raises:
        EmbeddingError: there were more or fewer rows than ``shape`` says.
    """
    layout: dict[str, Any] = {"__metadata__": {"unicorn": json.dumps(facts, sort_keys=True)}}
    offset = 0
    sizes = {"embeddings": (torch.float16, shape)} | {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in companions.items()
    }
    for name, (dtype, dimensions) in sizes.items():
        end = offset + dimensions[0] * dimensions[1] * dtype.itemsize
        layout[name] = {"dtype": _NAMES[dtype], "shape": dimensions, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(layout, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    with target.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):  # finds a full disk at once, and halves what writing costs
            os.posix_fallocate(file.fileno(), 0, 8 + len(header) + offset)
        file.write(len(header).to_bytes(8, "little") + header)
        written = 0
        for chunk in rows:
            _write(file, chunk)
            written += len(chunk)
        for tensor in companions.values():
            _write(file, tensor.contiguous())
    if written != shape[0]:
        raise EmbeddingError(f"{target}: {written} rows were given for a shard of {shape[0]}")


def _write(file: Any, tensor: torch.Tensor) -> None:
    """All bytes of a contiguous tensor; an unbuffered file may take fewer at once."""
    left = memoryview(tensor.view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]
    while left:
        left = left[file.write(left) :]

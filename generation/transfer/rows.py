"""Passes over many shards of rows at once, a few rows of each in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from ..errors import EmbeddingError
from .ops import apply_ops
from .sums import CHUNK_ROWS, Buffers, Sums, add_exactly

T = TypeVar("T")
Chunks = Callable[[], Iterable[torch.Tensor]]  # float16 or float32 [any, d], unit rows; the same each time

UNIT_TOLERANCE = 1e-2  # of a row's norm


def check_unit(rows: torch.Tensor, where: str, first: int) -> None:
    """Refuses rows that are no finite unit vectors.

    Raises:
        EmbeddingError: names the place and the row.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    low, high = torch.aminmax(norms)
    if not (low >= 1 - UNIT_TOLERANCE and high <= 1 + UNIT_TOLERANCE):  # also catches NaN
        row = int((~((norms - 1).abs() <= UNIT_TOLERANCE)).nonzero()[0])
        raise EmbeddingError(f"{where}, row {first + row}: the embedding is no finite vector of norm 1")


def pieces(chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The chunks, cut into such as fit the buffers."""
    for chunk in chunks:
        for first in range(0, len(chunk), CHUNK_ROWS):
            yield chunk[first : first + CHUNK_ROWS]


def rows_at(places: torch.Tensor, chunks: Iterable[torch.Tensor]) -> torch.Tensor:
    """Some of the rows of all chunks together, float32 [count, d].

    Args:
        places: int64 [count], ascending, from 0.
        chunks: [any, d] each.
    """
    found, first = [], 0
    for chunk in chunks:
        found.append(chunk[places[(places >= first) & (places < first + len(chunk))] - first].float())
        first += len(chunk)
    return torch.cat(found)


class Part:
    """Some of the rows: one shard, or all of what a caller has in memory.

    Args:
        name: where they lie, for messages.
        chunks: gives them, as often as asked.
        sources: see ``Sums``.
    """

    def __init__(self, name: str, chunks: Chunks, sources: Mapping[str, str] | None = None) -> None:
        self.name, self.chunks, self.sources = name, chunks, sources or {}

    def transformed(
        self, ops: Sequence[str], tensors: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, bool, Buffers]]:
        """The rows after ``ops``, a chunk at a time: float32, whether they lie on the grid of 2^-24, and buffers.

        Raises:
            EmbeddingError: a row is no finite unit vector, or has no direction after the operations.
        """
        first, buffers = 0, None
        for chunk in pieces(self.chunks()):
            buffers = buffers or Buffers(chunk.shape[1])
            rows = buffers.rows[: len(chunk)].copy_(chunk)
            check_unit(rows, self.name, first)
            try:
                yield apply_ops(rows, ops, tensors), chunk.dtype == torch.float16 and not ops, buffers
            except EmbeddingError as error:
                raise EmbeddingError(f"{self.name}, from row {first}: {error}") from None
            first += len(chunk)


class Rows:
    """All rows of one kind, in parts that are read side by side.

    Args:
        parts: the rows, in order.
        threads: how many parts are read at once.
        on_part: told the rows of each part that a pass has ended.
    """

    def __init__(self, parts: Sequence[Part], threads: int = 1, on_part: Callable[[int], object] = id) -> None:
        self.parts, self.threads, self.on_part = parts, threads, on_part

    def sums(self, ops: Sequence[str] = (), tensors: Mapping[str, torch.Tensor] | None = None) -> Sums:
        """The exact sum of all rows after ``ops``.

        Raises:
            EmbeddingError: see ``Part.transformed``; or dimensions differ, or there is no row.
        """

        def add_up(part: Part) -> Sums:
            total, count = torch.zeros(0, dtype=torch.int64), 0
            for rows, on_grid, buffers in part.transformed(ops, tensors or {}):
                if not count:
                    total = torch.zeros(rows.shape[1], dtype=torch.int64)
                count += len(rows)
                add_exactly(total, rows, buffers, on_grid)
            return Sums(total, count, part.sources)

        found = [sums for sums in self.each(add_up, lambda sums: sums.rows) if sums.rows]
        if not found:
            raise EmbeddingError("there is no row to take the mean of")
        return sum(found[1:], found[0])

    def second_moment(self, ops: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean of x x' over all rows x after ``ops``, float64 [d, d]; here the order of parts does move last bits."""

        def add_up(part: Part) -> tuple[torch.Tensor | float, int]:
            total: torch.Tensor | float = 0.0
            count = 0
            for rows, _, _ in part.transformed(ops, tensors):
                wide = rows.double()
                total, count = total + wide.T @ wide, count + len(rows)
            return total, count

        found = self.each(add_up, lambda pair: pair[1])
        return torch.as_tensor(sum(total for total, _ in found) / sum(count for _, count in found))

    def sample(self, count: int, total: int, seed: int) -> torch.Tensor:
        """``count`` of the ``total`` rows, drawn without repetition, in their order; float32 [count, d]."""
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
        return rows_at(chosen, (chunk for part in self.parts for chunk in part.chunks()))

    def each(self, act: Callable[[Part], T], size: Callable[[T], int]) -> list[T]:
        """``act`` on every part, ``threads`` at once, the results in order."""
        results = []
        with ThreadPoolExecutor(self.threads) as pool, one_thread_an_operation():
            for result in pool.map(act, self.parts):
                self.on_part(size(result))
                results.append(result)
        return results


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Within, torch does each operation on the thread that asks for it: the parts are what runs side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def one_part(name: str, chunks: Chunks) -> Rows:
    """Rows that a caller has at hand."""
    return Rows([Part(name, chunks)])

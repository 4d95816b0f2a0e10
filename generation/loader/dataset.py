"""A built data set as a map-style ``torch.utils.data.Dataset``: texts and vectors, joined by shard and row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch

from ..records import draw
from ..transfer.noise import add_noise
from .texts import Texts, cached_texts
from .vectors import Vectors, open_vectors, verify

Turn = dict[str, str]  # LLaVA's: {"from": "human" or "gpt", "value": ...}; <image> once a conversation


@dataclass(frozen=True)
class Batch:
    """Some rows. Texts are read when they are asked for.

    Attributes:
        rows: int64 [B], their numbers in the data set.
        embeds: [B, d], float16 as stored, float32 where noise was added.
        texts: of the whole data set.
    """

    rows: np.ndarray
    embeds: torch.Tensor
    texts: Texts

    def ids(self) -> list[str]:
        """Their ids, ten digits each; those of the captions."""
        return [f"{number:010d}" for number in self.texts.numbers[self.rows].tolist()]

    def captions(self) -> pa.LargeStringArray:
        """Their captions, as Arrow; ``.to_pylist()`` makes them Python strings."""
        return self.texts.take("caption", self.rows)

    def conversations(self) -> list[list[Turn]]:
        """Their conversations in LLaVA's form."""
        return [orjson.loads(text) for text in self.texts.take("conversations", self.rows).to_pylist()]


class UnicornDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Unicorn-1.2M or Unicorn-471K-Instruction with its vectors.

    Text is mapped from a cache that is made at the first use, vectors from their shards; a process that opens the data
    set holds no copy of either, and workers, forked or spawned, map them again. Vectors of a method with noise that is
    not baked in (``c3``, ``capdec``, ``close``, ``lafite``) get theirs here, drawn anew each epoch by (seed, epoch,
    id).

    Args:
        directory: as ``unicorn_1_2m.py`` or ``unicorn_471k_instruction.py`` wrote it.
        embeddings: the directory of Unicorn-1.2M; None if it is ``directory``.
        seed: of the noise.
        cache: where the decoded text is kept; see ``cached_texts``.

    Raises:
        DatasetError, EmbeddingError, RunError: see ``cached_texts`` and ``open_vectors``.
    """

    def __init__(
        self,
        directory: str | Path,
        embeddings: str | Path | None = None,
        *,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.directory, self.embeddings = Path(directory), Path(embeddings or directory)
        self.seed = seed
        self.texts: Texts = cached_texts(self.directory, Path(cache) if cache else None)
        self.vectors: Vectors = open_vectors(self.directory, self.embeddings, self.texts)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # workers see it change

    @property
    def dimension(self) -> int:
        """d of the vectors."""
        return self.vectors.dimension

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the noise is of."""
        self._epoch.fill_(epoch)

    def verify(self) -> None:
        """Reads all files and proves that every vector belongs to its caption; see ``vectors.verify``."""
        verify(self.embeddings, self.texts, self.vectors)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """``id``, ``caption``, ``conversations`` and ``embeds`` [d] of one row.

        Raises:
            IndexError: there is no such row.
        """
        batch = self.__getitems__([row])
        return {
            "id": batch.ids()[0],
            "caption": batch.captions()[0].as_py(),
            "conversations": batch.conversations()[0],
            "embeds": batch.embeds[0],
        }

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """What a DataLoader asks for: a whole batch at once.

        Raises:
            IndexError: there is no such row.
        """
        chosen = np.asarray(rows, np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(self):
            raise IndexError(f"rows {list(rows)} of {self.directory}, which has 0..{len(self) - 1}")
        return Batch(chosen, self._noisy(chosen, self.vectors.take(self.texts.places[chosen])), self.texts)

    def _noisy(self, rows: np.ndarray, embeds: torch.Tensor) -> torch.Tensor:
        noise = self.vectors.noise
        if not noise or noise["baked"]:
            return embeds
        numbers = torch.from_numpy(self.texts.numbers[rows])
        seed = draw("noise", self.seed, int(self._epoch))
        return add_noise(embeds, numbers, noise["eta_of_rows"], seed, noise.get("sphere", False))

"""A built data set as a map-style ``torch.utils.data.Dataset``: texts and vectors, joined by shard and row."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from ..errors import DatasetError
from ..logs import counted
from ..rows import stable_hash, text_hash
from ..transfer import Statistics, fit, image_mean, parse_transfer
from ..vectors import VectorShard
from .built_files import CHUNK_ROWS, decoded, open_built, vector_files

Batch = dict[str, Any]  # "id", "caption", "conversations": lists; "embeds": tensor [B, d]


class UnicornDataset(Dataset[dict[str, Any]]):
    """Unicorn-1.2M or Unicorn-471K-Instruction with its vectors, as a map-style data set.

    A row is ``id``, ``caption``, ``conversations`` (list of ``{"from": "human" or "gpt", "value": ...}``, ``<image>``
    once) and ``embeds`` [d], float16 as stored, or float32 if vectors are moved or noise is added. Vectors of a method
    with noise that is not baked in get it here, drawn anew each epoch by (seed, epoch, id).

    Args:
        directory: a built data set.
        embeddings: the built Unicorn-1.2M that holds the vectors; None: ``directory``.
        transfer: another method (or the keys of a recipe's ``transfer`` section) to move the vectors by.
        images: for ``anchor`` and ``realign``: unpaired image vectors [m, d], or a .safetensors or .npy file of them.
        seed: of the noise.
        cache: directory for decoded texts; None: ``$XDG_CACHE_HOME/unicorn-data``.

    Attributes:
        statistics: of the transfer that the vectors have when they are loaded, for ``apply_to_images``.
        dimension: d.

    Raises:
        DatasetError: this is not a built data set, or vectors and rows do not belong together.
        EmbeddingError: a shard or the images cannot be used, or baked noise prevents another transfer.
        RecipeError: an unknown method.
    """

    def __init__(
        self,
        directory: str | Path,
        embeddings: str | Path | None = None,
        *,
        transfer: str | Mapping[str, Any] | None = None,
        images: str | Path | torch.Tensor | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self._rows, self._source = open_built(directory), open_built(embeddings or directory)
        self._paths = vector_files(self._rows, self._source)
        self._texts, self.seed = decoded(self._rows, cache), seed
        self._map()
        self._compare_ids()
        method = self._rows.manifest["method"]
        self._stored = Statistics.load(self._source.file(f"transfer/{method}.safetensors", verify=False))
        self.statistics = self._stored if transfer is None else self._fit(transfer, images)
        noise = self.statistics.facts["noise"]
        self._moves = transfer is not None or bool(noise and not noise["baked"])
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call] # with workers

    def _map(self) -> None:
        """Map the files into memory: in the first process, and in each worker that was not forked from it."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self._texts))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(
                f"the cache {self._texts} is damaged: {error}; remove it to have it made again"
            ) from error
        self._numbers = table["id"].to_numpy()  # int64 [n], ids as integers
        self._places = np.stack([table["embedding_shard"].to_numpy(), table["embedding_row"].to_numpy()], 1)
        self._columns = {name: table[name].chunks for name in ("caption", "conversations")}
        self._ends = np.cumsum([len(chunk) for chunk in table["id"].chunks])
        self._vectors = {number: VectorShard(path).vectors for number, path in self._paths.items()}
        self.dimension = int(next(iter(self._vectors.values())).shape[1])
        self._bytes = {
            number: rows.view(torch.uint8).numpy().reshape(-1).data for number, rows in self._vectors.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_numbers", "_places", "_columns", "_vectors", "_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _compare_ids(self) -> None:
        for number, path in self._paths.items():
            rows = np.flatnonzero(self._places[:, 0] == number)
            places, ids = self._places[rows, 1], np.array(VectorShard(path).ids, dtype=np.int64)
            if len(rows) and (places.max() >= len(ids) or (ids[places] != self._numbers[rows]).any()):
                raise DatasetError(f"{path}: its ids are not those of the rows; take both data sets from one build")

    def _fit(self, transfer: str | Mapping[str, Any], images: str | Path | torch.Tensor | None) -> Statistics:
        """Return the statistics of another method, from the stored ones and perhaps a pass over the vectors."""
        known, found, shards = self._stored, None, list(self._vectors.values())
        if images is not None:
            found = image_mean(images if isinstance(images, torch.Tensor) else Path(images))
        elif "mean_image" in known.tensors:
            found = known.tensors["mean_image"], known.facts["images"]["rows"]
        known.invert(shards[0][:1])  # refuses vectors that cannot be moved
        parts = [partial(_text_vectors, known, rows) for rows in shards]
        return fit(parse_transfer(transfer), known.tensors["mean_text"], known.facts["rows"], parts, found, self.seed)

    @property
    def epoch(self) -> int:
        """The epoch of the noise, and of the order of a ``UnicornStream``."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also in workers that are running."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> Batch:
        """Return a batch of rows; a DataLoader calls this in place of ``__getitem__`` for each.

        Raises:
            IndexError: there is no such row.
        """
        chosen = np.asarray(rows, np.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()}: {self._rows.url} has {len(self)} rows")
        numbers = self._numbers[chosen].tolist()
        return {
            "id": [f"{number:010d}" for number in numbers],
            "caption": self._take("caption", chosen),
            "conversations": [orjson.loads(text) for text in self._take("conversations", chosen)],
            "embeds": self._embeds(chosen, numbers),
        }

    def _take(self, column: str, rows: np.ndarray[Any, Any]) -> list[str]:
        """Return texts one by one, which is faster for random rows than ``pyarrow.take`` over many chunks."""
        chunks, numbers = self._columns[column], np.searchsorted(self._ends, rows, "right")
        places = rows - np.concatenate([[0], self._ends])[numbers]
        return [chunks[number][place].as_py() for number, place in zip(numbers.tolist(), places.tolist(), strict=True)]

    def _embeds(self, rows: np.ndarray[Any, Any], numbers: list[int]) -> torch.Tensor:
        """Return vectors [k, d]: bytes joined row by row, since random rows leave one or two a shard."""
        width = 2 * self.dimension
        parts = [self._bytes[shard][row * width : (row + 1) * width] for shard, row in self._places[rows].tolist()]
        embeds = torch.frombuffer(bytearray().join(parts), dtype=torch.float16).view(-1, self.dimension)
        if not self._moves:
            return embeds
        noise = self.statistics.facts["noise"]
        seed = noise["seed"] if noise and noise["baked"] else stable_hash("noise", self.seed, self.epoch)
        return self.statistics.move(self._stored.invert(embeds), numbers if noise else (), seed)

    def verify(self) -> None:
        """Read everything: the sha256 of each file, and for each row whether its vector was made from its caption.

        Raises:
            DatasetError: a file was changed, or a vector belongs to another text.
        """
        for built, folder in ((self._rows, "data/"), (self._source, "image_embeddings/")):
            for name in (name for name in built.manifest["files"] if name.startswith(folder)):
                built.file(name)
        hashes = {number: VectorShard(path).input_hashes for number, path in self._paths.items()}
        for first in counted(range(0, len(self), CHUNK_ROWS), "verify captions", "chunk"):
            rows = np.arange(first, min(first + CHUNK_ROWS, len(self)))
            for row, caption in zip(rows.tolist(), self._take("caption", rows), strict=True):
                shard, place = self._places[row].tolist()
                if hashes[shard][place] != text_hash(caption):
                    where = f"{self._paths[shard]}, row {place}"
                    raise DatasetError(f"{where}: made from another text than the caption {self._numbers[row]:010d}")


def _text_vectors(stored: Statistics, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    for first in range(0, len(rows), CHUNK_ROWS):
        yield stored.invert(rows[first : first + CHUNK_ROWS])

"""A built data set, map style: texts, decoded once into an Arrow file in a cache, and vectors, by shard and row."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from ..builders.published import PublishedDataset
from ..errors import DatasetError
from ..files import explained, write_atomically
from ..limits import READ_ROWS
from ..logs import counted
from ..stages import stable_hash
from ..transfer import Statistics, fit, image_mean, parse_transfer
from ..vectors import VectorShard

_TEXTS = {"id": pa.int64(), "caption": pa.large_string(), "conversations": pa.large_string()}
SCHEMA = pa.schema(_TEXTS | {"embedding_shard": pa.int32(), "embedding_row": pa.int32()})

Batch = dict[str, Any]  # "id", "caption", "conversations": lists; "embeds": tensor [B, d]


class UnicornDataset(Dataset[dict[str, Any]]):
    """Unicorn-1.2M or Unicorn-471K-Instruction with its vectors, as a map-style data set.

    A row is ``id``, ``caption``, ``conversations`` (list of ``{"from": "human" or "gpt", "value": ...}``, ``<image>``
    once) and ``embeds`` [d], float16 as stored, or float32 if vectors are moved or noise is added: noise that is not
    baked in is drawn anew each epoch, by (seed, epoch, id). ``statistics`` are of the transfer that the vectors have.
    A DatasetError says that ``directory`` is not a built data set, or that vectors and rows do not belong together; an
    EmbeddingError, that a shard or the images cannot be used, or that baked noise prevents another transfer.
    """

    def __init__(
        self,
        directory: str | Path,  # a built data set
        embeddings: str | Path | None = None,  # the built Unicorn-1.2M that holds the vectors; None: directory
        *,
        transfer: str | Mapping[str, Any] | None = None,  # another method, or the keys of a recipe's section
        images: str | Path | torch.Tensor | None = None,  # anchor, realign: unpaired vectors [m, d], or their file
        seed: int = 0,  # of the noise
        cache: str | Path | None = None,  # directory for decoded texts; None: $XDG_CACHE_HOME/unicorn-data
    ) -> None:
        self._rows, source, self.seed = _opened(directory), _opened(embeddings or directory), seed
        wanted, files = self._rows.manifest["vectors"], source.manifest["files"]
        if not wanted.keys() & files.keys():
            raise DatasetError(f"{source.url} holds no vectors of these rows; give embeddings=, their Unicorn-1.2M")
        for name, own in wanted.items():
            if (other := files.get(name, {}).get("sha256")) != own:
                raise DatasetError(f"{source.url}/{name}: sha256 {other}, and the rows were built with {own}")
        self._paths = {int(Path(name).stem): source.file(name, verify=False) for name in wanted}  # by shard
        self._texts = _decoded(self._rows, cache)
        self._map()
        for number, path in self._paths.items():
            rows = np.flatnonzero(self._places[:, 0] == number)
            places, ids = self._places[rows, 1], np.array(VectorShard(path).ids, np.int64)
            if len(rows) and (places.max() >= len(ids) or (ids[places] != self._numbers[rows]).any()):
                raise DatasetError(f"{path}: its ids are not those of the rows; take both data sets from one build")
        name = f"transfer/{self._rows.manifest['method']}.safetensors"
        self._stored = Statistics.load(source.file(name, verify=False))
        self.statistics = known = self._stored
        if transfer is not None:
            given = images if images is None or isinstance(images, torch.Tensor) else Path(images)
            found = None if given is None else image_mean(given)
            if images is None and "mean_image" in known.tensors:
                found = known.tensors["mean_image"], known.facts["images"]["rows"]
            shards, mean = [torch.from_numpy(rows) for rows in self._vectors.values()], known.tensors["mean_text"]
            known.invert(shards[0][:1])  # refuses vectors that cannot be moved
            texts = (known.invert(rows) for shard in shards for rows in torch.split(shard, READ_ROWS))
            fitted = fit(parse_transfer(transfer), mean, known.facts["rows"], texts, found, seed)
            self.statistics = Statistics(fitted.tensors, fitted.facts | {"encoder": known.facts.get("encoder", {})})
        noise = self.statistics.facts["noise"]
        self._moves = transfer is not None or bool(noise and not noise["baked"])
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call] # with workers

    def _map(self) -> None:
        """Map the files into memory: in the first process, and in each worker that was not forked from it."""
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self._texts))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(f"the cache {self._texts} is damaged: {error}; remove it") from error
        self._numbers = self._table["id"].to_numpy()  # int64 [n], ids as integers
        self._places = np.stack([self._table[name].to_numpy() for name in ("embedding_shard", "embedding_row")], 1)
        self._vectors = {number: VectorShard(path).vectors.numpy() for number, path in self._paths.items()}
        self.dimension = int(next(iter(self._vectors.values())).shape[1])

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_table", "_numbers", "_places", "_vectors")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

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
        """Return a batch of rows, as a DataLoader asks for it; raise IndexError if there is no such row."""
        chosen = np.asarray(rows, np.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()}: {self._rows.url} has {len(self)} rows")
        numbers, columns = self._numbers[chosen].tolist(), (self._table["caption"], self._table["conversations"])
        captions, turns = ([column[row].as_py() for row in chosen.tolist()] for column in columns)  # faster than take
        places = self._places[chosen].tolist()
        embeds = torch.from_numpy(np.stack([self._vectors[shard][row] for shard, row in places]))
        if self._moves:
            seed = stable_hash("noise", self.seed, self.epoch)
            embeds = self.statistics.move(self._stored.invert(embeds), numbers, seed)
        ids, talks = [f"{number:010d}" for number in numbers], list(map(orjson.loads, turns))
        return {"id": ids, "caption": captions, "conversations": talks, "embeds": embeds}


def _opened(directory: str | Path) -> PublishedDataset:
    """Open a built directory; a DatasetError says if it is something else, such as a run or a name of the Hub."""
    path = Path(directory)
    if not path.is_dir():
        download = f'huggingface_hub.snapshot_download("{directory}", repo_type="dataset", revision="v1.0.0")'
        raise DatasetError(f"{directory} is not a directory. Download a data set of the Hub first: {download}")
    if (path / "run.json").exists():
        line = f"python unicorn_1_2m.py --run-dir {path} --output DIR"
        raise DatasetError(f"{path} is a run; build a data set from it: {line}")
    return PublishedDataset(str(path))


def _decoded(built: PublishedDataset, cache: str | Path | None) -> Path:
    """Return the Arrow file of a data set's rows, of ``SCHEMA``; one process makes it, others wait."""
    names = sorted(name for name in built.manifest["files"] if name.startswith("data/"))
    paths = [built.file(name, verify=False) for name in names]
    state = [built.manifest["digest"], [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]]
    home = Path(cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unicorn-data")
    target = home / f"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.arrow"
    if not target.exists():  # or it may be in a cache that cannot be written
        with explained(target):
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock")):
                if not target.exists():
                    write_atomically(target, partial(_decode, paths))
    return target


def _decode(paths: list[Path], target: Path) -> None:
    """Write ids as integers, and conversations as JSON, which is parsed faster than Arrow's nested lists."""
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for path in counted(paths, "decode texts", "file"):
            try:
                with pq.ParquetFile(path) as parquet:
                    for batch in parquet.iter_batches(READ_ROWS, columns=SCHEMA.names, use_threads=False):
                        columns = {name: batch[name] for name in SCHEMA.names}
                        talks = batch["conversations"].to_pylist()
                        columns["conversations"] = pa.array(orjson.dumps(turns).decode() for turns in talks)
                        writer.write(pa.table(columns).cast(SCHEMA))
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DatasetError(f"cannot read the rows of {path}: {error}; download or build it again") from error

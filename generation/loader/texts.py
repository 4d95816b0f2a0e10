"""Captions and conversations as columns that are mapped into memory, decoded once from a data set's Parquet files.

A row of Parquet cannot be read without decoding its page, and an Arrow file keeps the batches it was written in: over
20 of them pyarrow's ``take`` gives 13,000 random rows/s, over one array 5 million. So a text column is cached as
Arrow's ``large_string`` is in memory: UTF-8 bytes end to end, and n + 1 int64 offsets. Mapped, it is one array of any
size, shared by all processes through the page cache, and no anonymous memory. Conversations are kept as JSON, which
orjson makes Python objects of faster than pyarrow does of nested lists.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DatasetError
from ..files import guarded
from ..manifest import read_manifest
from ..progress import progress

BATCH_ROWS = 4096  # decoded at once
VERSION = 1  # of the cache's layout
COLUMNS = ("id", "caption", "conversations", "embedding_shard", "embedding_row")
_TEXTS = ("caption", "conversations")
_NUMBERS = {"numbers": np.int64, "places": np.int32}


class Texts:
    """The rows of a data set without their vectors, mapped.

    Args:
        folder: made by ``cached_texts``.

    Attributes:
        numbers: int64 [n], the ids as integers.
        places: int32 [n, 2], shard and row of each row's vector.

    Raises:
        DatasetError: a file of the cache is missing or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.numbers = _mapped(folder / "numbers", np.int64)
            self.places = _mapped(folder / "places", np.int32).reshape(-1, 2)
            self._columns = {name: self._column(name) for name in _TEXTS}
        except (OSError, ValueError) as error:
            raise DatasetError(f"the cache {folder} is damaged: {error}; remove it, and it is made again") from error

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[type["Texts"], tuple[Path]]:
        return Texts, (self.folder,)  # another process maps the files itself

    def take(self, column: str, rows: np.ndarray) -> pa.LargeStringArray:
        """``caption`` or ``conversations`` (JSON) of ``rows``, int64 [k]."""
        return self._columns[column].take(pa.array(rows))

    def _column(self, name: str) -> pa.LargeStringArray:
        offsets = _mapped(self.folder / f"{name}.offsets", np.int64)
        text = _mapped(self.folder / f"{name}.utf8", np.uint8)
        if len(offsets) != len(self) + 1 or len(self.places) != len(self) or offsets[-1] != len(text):
            raise ValueError(f"{name} has {len(offsets)} offsets and {len(text)} bytes for {len(self)} rows")
        return pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(text))


def cached_texts(directory: Path, cache: Path | None = None) -> Texts:
    """The texts of a built data set; decoded if the cache has none of exactly these files yet. Of several processes
    one does it, and the others wait.

    Args:
        directory: as a builder wrote it.
        cache: where caches lie; ``$XDG_CACHE_HOME/unicorn-data`` (``~/.cache/unicorn-data``) if None.

    Raises:
        DatasetError: there is no such data set, or a file is missing, cut short or cannot be read.
        RunError: the cache cannot be written, or the manifest cannot be read.
    """
    paths = _parquet_files(directory)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (cache or home / "unicorn-data") / _key(directory, paths)
    if not folder.is_dir():
        guarded(folder, lambda: _make(folder, paths))
    return Texts(folder)


def _parquet_files(directory: Path) -> list[Path]:
    """The files of ``default``, those that the manifest names, by their sizes."""
    manifest = read_manifest(directory / "manifest.json") if (directory / "manifest.json").is_file() else {}
    files = manifest.get("built", {"files": {}})["files"]
    if not (names := sorted(name for name in files if name.startswith("data/"))):
        raise DatasetError(
            f"{directory} is no built data set (it needs a manifest.json that names data/*.parquet); make one with "
            "unicorn_1_2m.py or unicorn_471k_instruction.py"
        )
    for name in names:
        if not (path := directory / name).is_file() or path.stat().st_size != files[name]["bytes"]:
            state = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
            raise DatasetError(
                f"{path} {state}; the manifest has {files[name]['bytes']} bytes; fetch or build it again"
            )
    return [directory / name for name in names]


def _mapped(path: Path, dtype: type) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, "r"))  # a memmap's own indexing is slower


def _key(directory: Path, paths: list[Path]) -> str:
    """What names a cache: the manifest, which holds the hashes of all that was built from; and the files' state."""
    digest = hashlib.sha256(b"%d" % VERSION + (directory / "manifest.json").read_bytes())
    for path in paths:
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _make(folder: Path, paths: list[Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return  # another process has made it meanwhile
        new = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            _decode(paths, new)
            os.rename(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _decode(paths: list[Path], folder: Path) -> None:
    names = [*_NUMBERS, *(f"{name}.{kind}" for name in _TEXTS for kind in ("offsets", "utf8"))]
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in names}
        ends = dict.fromkeys(_TEXTS, 0)
        for name in _TEXTS:
            files[f"{name}.offsets"].write(np.int64(0).tobytes())
        for batch in _batches(paths):
            files["numbers"].write(batch["id"].tobytes())
            files["places"].write(np.stack([batch["embedding_shard"], batch["embedding_row"]], 1).tobytes())
            for name in _TEXTS:
                ends[name] = _append(files, name, batch[name], ends[name])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())


def _append(files: Mapping[str, IO[bytes]], name: str, texts: list[bytes], end: int) -> int:
    """Adds to a column that has ``end`` bytes so far; returns how many it has then."""
    ends = end + np.cumsum([len(text) for text in texts], dtype=np.int64)
    files[f"{name}.offsets"].write(ends.tobytes())
    files[f"{name}.utf8"].write(b"".join(texts))
    return int(ends[-1])


def _batches(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """At most ``BATCH_ROWS`` rows at once: numbers as numpy arrays, texts as lists of UTF-8 bytes."""
    with progress("texts", len(paths), 0, "file") as bar:
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS), use_threads=False):
                        yield _plain(path, batch)
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DatasetError(f"{path} cannot be read as rows of a built data set: {error}") from error
            bar.update()


def _plain(path: Path, batch: pa.RecordBatch) -> dict[str, Any]:
    for name in COLUMNS:
        if batch.column(name).null_count:
            raise DatasetError(f"{path}: column '{name}' has empty cells; build the data set again")
    return {
        "id": batch["id"].cast(pa.int64()).to_numpy(),
        "embedding_shard": batch["embedding_shard"].cast(pa.int32()).to_numpy(),
        "embedding_row": batch["embedding_row"].cast(pa.int32()).to_numpy(),
        "caption": batch["caption"].cast(pa.binary()).to_pylist(),
        "conversations": [orjson.dumps(turns) for turns in batch["conversations"].to_pylist()],
    }

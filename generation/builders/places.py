"""Where a builder reads: a run, a built directory, or a revision of the Hub (``hf://datasets/USER/NAME@v1.0.0``).

All three hold a ``manifest.json`` with the sha256 of every file, and the vectors in the same place; what is read is
held against those hashes, so that a changed file or another revision is refused by name.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RunError
from ..files import check_unchanged, mending
from ..rundir import RunDir
from ..tensors import EmbeddingShard, open_shard, parse_shard
from .columns import vector_column

BATCH_ROWS = 8_000  # of a streamed Parquet file


def transfer_method(manifest: Mapping[str, Any], where: object) -> str:
    """The one transfer method of a run.

    Raises:
        RunError: the transfer has not been run, or with several methods.
    """
    methods = _methods(manifest)
    if len(methods) != 1:
        raise RunError(
            f"{where} holds embeddings of {' and '.join(methods)}; a data set takes one: name it as --method (method=)"
            if methods
            else f"{where} holds no embeddings yet; run the stages embed and transfer first"
        )
    return methods[0]


def open_run(path: Path, method: str | None = None) -> RunDir:
    """A run as if it had been transferred by one method alone.

    Args:
        path: the run directory.
        method: which; None leaves all, of which there must then be one.

    Raises:
        RunError: it is no run directory, or has no embeddings by that method.
    """
    run = RunDir(path)
    if method is not None and method not in (methods := _methods(run.manifest)):
        raise RunError(f"{path} holds no embeddings by {method}, but by {' and '.join(methods) or 'no method'}")
    if method is not None:
        for other in set(methods) - {method}:
            del run.manifest["stages"][f"image_embeddings/{other}"]
    return run


def _methods(manifest: Mapping[str, Any]) -> list[str]:
    return [stage.split("/")[1] for stage in manifest["stages"] if stage.startswith("image_embeddings/")]


class Place:
    """A directory with a manifest.

    Args:
        url: a path, or an ``hf://`` URL with a revision.

    Raises:
        RunError: the URL names no revision.
    """

    def __init__(self, url: str) -> None:
        if url.startswith("hf://") and "@" not in url:
            raise RunError(f"{url} names no revision, so that its rows may change; pin one: {url}@v1.0.0")
        self.url = url.rstrip("/")
        self._local = "://" not in url

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The directory's manifest.

        Raises:
            RunError: there is none.
        """
        found: dict[str, Any] = json.loads(self._bytes("manifest.json"))
        return found

    def vectors(self, shard: int, wanted: Mapping[str, Any]) -> EmbeddingShard:
        """The embedding shard that another manifest (or this place's own) refers to.

        Args:
            shard: its number.
            wanted: the manifest that the rows come with.

        Raises:
            RunError: there is no such file here, or it is not the one that the rows were built with.
        """
        stage = f"image_embeddings/{transfer_method(wanted, self.url)}"
        name = f"{stage}/{shard:05d}.safetensors"
        known = wanted["stages"][stage]["files"][name]["sha256"]
        own = self.manifest["stages"].get(stage, {"files": {}})["files"].get(name, {}).get("sha256")
        if own != known:
            raise RunError(
                f"{self.url} holds {'another' if own else 'no'} {name} than the rows were built with (sha256 "
                f"{str(own)[:12]}, wanted {known[:12]}); name the revision that belongs to them"
            )
        if self._local:
            self._check(name, known)
            return open_shard(Path(self.url) / name)
        content = self._bytes(name)
        if (found := hashlib.sha256(content).hexdigest()) != known:
            raise RunError(f"{self.url}/{name} was changed: sha256 {found}, recorded {known}")
        return parse_shard(f"{self.url}/{name}", content)

    def parquet_files(self, folder: str) -> list[str]:
        """The names of the built Parquet files of a folder, in order.

        Raises:
            RunError: the place is no built directory, or has none there.
        """
        files = self.manifest.get("built", {"files": {}})["files"]
        if not (found := sorted(name for name in files if name.startswith(f"{folder}/"))):
            raise RunError(
                f"{self.url} holds no built {folder}/*.parquet; build it with unicorn_1_2m.py or its sister"
            )
        return found

    def tables(self, name: str) -> Iterator[pa.Table]:
        """The rows of a built Parquet file, a few thousand at a time."""
        if self._local:
            self._check(name, self.manifest["built"]["files"][name]["sha256"])
        # pre_buffer would read in threads of Arrow, one of which may abort an early exit (apache/arrow#45214)
        with self._open(name) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield pa.Table.from_batches([batch])

    def joined_tables(self, name: str, vectors: "Place") -> Iterator[pa.Table]:
        """As ``tables``, with the rows' embeddings, which lie in another place, as a further column.

        Raises:
            RunError: a shard is missing or not the one that the rows were built with, or was made from other texts.
        """
        shard = None
        for table in self.tables(name):
            number = int(table["embedding_shard"][0].as_py())  # that of all rows of the file
            shard = shard or vectors.vectors(number, self.manifest)
            yield table.append_column("image_embedding", vector_column(shard, table))

    def _check(self, name: str, known: str) -> None:
        check_unchanged(Path(self.url) / name, known, "built", mending(Path(self.url)))

    def _bytes(self, name: str) -> bytes:
        with self._open(name) as file:
            content: bytes = file.read()
            return content

    def _open(self, name: str) -> Any:
        try:
            return fsspec.open(f"{self.url}/{name}", "rb").open()
        except FileNotFoundError as error:
            raise RunError(f"{self.url} holds no {name}: {error}") from error

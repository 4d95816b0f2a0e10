"""A built data set as its manifest describes it: a local directory, or ``hf://datasets/USER/NAME@REVISION``.

A file that is read whole is compared with the sha256 in the manifest, so that a changed file, or vectors of another
revision, are refused by name.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DatasetError
from ..files import read_json, sha256
from ..vectors import VectorShard
from .finished import vector_column

BATCH_ROWS = 8_000  # of a Parquet file at a time
_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)")


class PublishedDataset:
    """A directory with a ``manifest.json``.

    Args:
        url: a path, or an ``hf://`` URL with a revision.

    Raises:
        DatasetError: the URL names no revision, or is of another kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._hub = _HUB.fullmatch(self.url)
        if "://" in url and not self._hub:
            raise DatasetError(f"{url}: give a directory, or a pinned revision as hf://datasets/USER/NAME@v1.0.0")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            DatasetError: there is none, or it is not one of this project's.
        RunError: it is not JSON.
        """
        found = read_json(self.file("manifest.json", verify=False))
        if not found.keys() >= {"name", "version", "digest", "files", "vectors"}:
            raise DatasetError(f"{self.url}/manifest.json is not the manifest of a data set that this project built")
        return found

    def file(self, name: str, verify: bool = True) -> Path:
        """Return a local path of a file; one of the Hub is downloaded into the cache of ``huggingface_hub``.

        Raises:
            DatasetError: it is missing, cannot be downloaded, or its bytes are not those of the manifest.
        """
        if self._hub:
            from huggingface_hub import hf_hub_download

            revision = self._hub["revision"].replace("%2F", "/")
            try:
                path = Path(hf_hub_download(self._hub["repo"], name, repo_type="dataset", revision=revision))
            except (OSError, ValueError) as error:  # huggingface_hub's errors are OSErrors
                raise DatasetError(f"{self.url}/{name} cannot be read: {error}") from error
        elif not (path := Path(self.url) / name).is_file():
            remedy = "It is a run: give it as run_dir" if (path.parent / "run.json").exists() else "Build it again"
            raise DatasetError(f"{self.url} has no {name}. {remedy}")
        if verify and (found := sha256(path)) != (known := self.manifest["files"][name]["sha256"]):
            raise DatasetError(f"{self.url}/{name} was changed: sha256 {found}, recorded {known}. Build it again")
        return path

    def vectors(self, shard: int, wanted: dict[str, Any]) -> VectorShard:
        """Return the shard of vectors that rows refer to.

        Args:
            shard: its number.
            wanted: the manifest that the rows come with.

        Raises:
            DatasetError: there is no such shard here, or it is not the one that the rows were built with.
        """
        name = f"image_embeddings/{wanted['method']}/{shard:05d}.safetensors"
        own, known = self.manifest["files"].get(name, {}).get("sha256"), wanted["vectors"][name]
        if own != known:
            raise DatasetError(
                f"{self.url} has {'another' if own else 'no'} {name} ({str(own)[:12]}, the rows were built with "
                f"{known[:12]}); name the version of Unicorn-1.2M that the rows were built with"
            )
        return VectorShard(self.file(name))

    def tables(self, name: str) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file, a few thousand at a time; a file of the Hub is read by ranges."""
        if self._hub:
            import fsspec

            opened = fsspec.open(f"{self.url}/{name}", "rb").open()
        else:
            opened = self.file(name).open("rb")
        # pre_buffer would read in threads of Arrow, one of which may abort an early exit (apache/arrow#45214)
        with opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield pa.Table.from_batches([batch])

    def joined_tables(self, name: str, vectors: "PublishedDataset") -> Iterator[pa.Table]:
        """Yield as ``tables``, with the vectors of another built data set as a further column."""
        number, shard = -1, None
        for table in self.tables(name):
            for wanted in table["embedding_shard"].unique().to_pylist():  # rows of one shard lie together
                if wanted != number or shard is None:
                    number, shard = wanted, vectors.vectors(wanted, self.manifest)
                part = table.filter(pc.equal(table["embedding_shard"], wanted))
                yield part.append_column("image_embedding", vector_column(shard, part))

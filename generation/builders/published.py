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
import torch

from ..errors import DatasetError
from ..files import read_json, sha256
from ..vectors import VectorShard
from .finished import vector_column

BATCH_ROWS = 8_000  # of a Parquet file at a time
COMPARED_SHARDS = 4  # of vectors, evenly spread; those of the Hub must be downloaded
_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)")


class PublishedDataset:
    """A directory with a ``manifest.json``; a DatasetError says that ``url`` is no path and no pinned revision."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._hub = _HUB.fullmatch(self.url)
        if "://" in url and not self._hub:
            raise DatasetError(f"{url}: give a directory, or a pinned revision as hf://datasets/USER/NAME@v1.0.0")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest; a DatasetError or RunError says that there is none of this project's."""
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

    def tables(self, name: str) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file, a few thousand at a time; a file of the Hub is read by ranges."""
        if self._hub:
            import fsspec

            opened = fsspec.open(f"{self.url}/{name}", "rb").open()
        else:
            opened = self.file(name).open("rb")
        # pre_buffer would read in threads of Arrow, one of which may abort an early exit (apache/arrow#45214)
        with opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            yield from (pa.table(batch) for batch in file.iter_batches(BATCH_ROWS, use_threads=False))

    def joined_tables(self, name: str, source: "PublishedDataset") -> Iterator[pa.Table]:
        """Yield as ``tables``, with the vectors of another built data set as a further column.

        Raises:
            DatasetError: it lacks a shard of vectors, or has not the one that the rows were built with.
        """
        path, shard = "", None
        for table in self.tables(name):
            for number in table["embedding_shard"].unique().to_pylist():  # rows of one shard lie together
                wanted = f"image_embeddings/{self.manifest['method']}/{number:05d}.safetensors"
                if wanted != path or shard is None:
                    own = source.manifest["files"].get(wanted, {}).get("sha256")
                    if own != (known := self.manifest["vectors"][wanted]):
                        raise DatasetError(
                            f"{source.url} has {'another' if own else 'no'} {wanted} ({str(own)[:12]}, the rows were "
                            f"built with {known[:12]}); name the version of Unicorn-1.2M that the rows were built with"
                        )
                    path, shard = wanted, VectorShard(source.file(wanted))
                part = table.filter(pc.equal(table["embedding_shard"], number))
                yield part.append_column("image_embedding", vector_column(shard, part))

    def changelog(self, new: dict[str, Any], directory: Path) -> list[list[str]]:
        """Return this data set's changelog carried on by the build in ``directory``, whose manifest is ``new``: the
        versions with their changes in numbers, newest first. A DatasetError says that the new version is lower."""
        old, version = self.manifest, new["version"]
        if old["name"] != new["name"]:
            return [[version, "first version"]]
        if [int(part) for part in version.split(".")] < [int(part) for part in old["version"].split(".")]:
            raise DatasetError(f"version {version} is lower than {old['version']}, which {self.url} holds; raise it")
        entries: list[list[str]] = old["changelog"]
        text = "; ".join(self._changes(new, directory)) or "the same contents"
        if old["version"] != version:
            return [[version, text], *entries]
        if old["digest"] == new["digest"] or len(entries) == 1:
            return entries
        return [[version, f"{entries[0][1]}; then {text}"], *entries[1:]]

    def _changes(self, new: dict[str, Any], directory: Path) -> Iterator[str]:
        old = self.manifest
        for column, words in (("source", "from source"), ("task", "of task")):
            before, now = old["counts"][column], new["counts"][column]
            for name in sorted(before.keys() | now.keys()):
                if moved := now.get(name, 0) - before.get(name, 0):
                    yield f"{moved:+,} rows {words} {name}"
        for what in ("text", "vectors"):
            common = sorted(old[what].keys() & new[what].keys())
            if changed := [name for name in common if old[what][name] != new[what][name]]:
                every = len(changed) == len(common) and what == "vectors"
                said = "all vectors moved" if every else f"{what} changed in {len(changed)} of {len(common)} shards"
                chosen = changed[:: -(-len(changed) // COMPARED_SHARDS)] if what == "vectors" else []
                shards = [(self.file(name), directory / name) for name in chosen if name in old["files"]]
                cosines = [_smallest_cosine(*map(VectorShard, pair)) for pair in shards]
                yield said + (f", smallest cosine {min(cosines):.3f}" if cosines else "")


def _smallest_cosine(old: VectorShard, new: VectorShard) -> float:
    """Return the smallest cosine between the old and the new vector of a row; 1 if no row is in both."""
    places = {id: row for row, id in enumerate(old.ids)}
    rows = [row for row, id in enumerate(new.ids) if id in places]
    if not rows or old.dimension != new.dimension:
        return 1.0
    before = old.vectors[[places[new.ids[row]] for row in rows]].float()  # [n, d]
    return float(torch.nn.functional.cosine_similarity(before, new.vectors[rows].float(), dim=1).min())

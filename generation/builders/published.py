"""A built data set as its manifest describes it: a local directory, or ``hf://datasets/USER/NAME@REVISION``.

A file that is read whole is compared with the sha256 in the manifest, so that a changed file, or vectors of another
revision, are refused by name.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..errors import DatasetError
from ..files import read_json
from ..store import damage
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
        if verify and (what := damage(path, self.manifest["files"][name])):
            raise DatasetError(f"{self.url}/{name} was changed: {what}. Build it again")
        return path

    def tables(self, name: str) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file, a few thousand at a time; a file of the Hub is read by ranges."""
        import fsspec

        opened = fsspec.open(f"{self.url}/{name}", "rb").open() if self._hub else self.file(name).open("rb")
        # pre_buffer would read in threads of Arrow, one of which may abort an early exit (apache/arrow#45214)
        with opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            yield from (pa.table(batch) for batch in file.iter_batches(BATCH_ROWS, use_threads=False))

    def joined_tables(self, name: str, source: "PublishedDataset") -> Iterator[pa.Table]:
        """Yield as ``tables``, with the vectors of another built data set as a further column. A DatasetError says
        that it has not the shard of vectors that the rows were built with."""
        shard = lru_cache(1)(lambda name: VectorShard(source.file(name)))  # rows of one shard lie together
        for table in self.tables(name):
            for number in table["embedding_shard"].unique().to_pylist():
                wanted = f"image_embeddings/{self.manifest['method']}/{number:05d}.safetensors"
                own, known = source.manifest["files"].get(wanted, {}).get("sha256"), self.manifest["vectors"][wanted]
                if own != known:
                    raise DatasetError(
                        f"{source.url} has {'another' if own else 'no'} {wanted} ({str(own)[:12]}, and the rows were "
                        f"built with {known[:12]}). Name the version of Unicorn-1.2M that they were built with"
                    )
                part = table.filter(pc.equal(table["embedding_shard"], number))
                yield part.append_column("image_embedding", vector_column(shard(wanted), part))

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
            moved = Counter(new["counts"][column])
            moved.subtract(old["counts"][column])
            yield from (f"{rows:+,} rows {words} {name}" for name, rows in sorted(moved.items()) if rows)
        for what in ("text", "vectors"):
            common = sorted(old[what].keys() & new[what].keys())
            if changed := [name for name in common if old[what][name] != new[what][name]]:
                said = f"{what} changed in {len(changed)} of {len(common)} shards"
                chosen = [name for name in changed[:: -(-len(changed) // COMPARED_SHARDS)] if name in old["files"]]
                pairs = [(self.file(name), directory / name) for name in chosen]  # text is in no file of its own
                cosines = [f"{_smallest_cosine(*map(VectorShard, pair)):.3f}" for pair in pairs]
                said = "all vectors moved" if what == "vectors" and changed == common else said
                yield f"{said}, smallest cosine {min(cosines)}" if cosines else said


def _smallest_cosine(old: VectorShard, new: VectorShard) -> float:
    """Return the smallest cosine between the old and the new vector of a row; 1 if no row is in both."""
    places = {id: row for row, id in enumerate(old.ids)}
    rows = [row for row, id in enumerate(new.ids) if id in places]
    if not rows or old.dimension != new.dimension:
        return 1.0
    before = old.vectors[[places[new.ids[row]] for row in rows]].float()  # [n, d]
    return float(torch.nn.functional.cosine_similarity(before, new.vectors[rows].float(), dim=1).min())

"""A built data set as its manifest describes it, a local directory or ``hf://datasets/USER/NAME@REVISION``, and how it
is published: one commit, then a tag that is never moved. A changed file is refused by name. On the Hub only files of
the last manifest are replaced: what somebody added is kept, and what somebody edited is refused."""

import logging
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from httpx2 import HTTPError  # what huggingface_hub raises
from huggingface_hub import HfApi, RepoFile, get_token, hf_hub_download
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import DatasetError
from ..files import read_json, sha256
from ..limits import READ_ROWS
from ..store import damage
from ..vectors import VectorShard, vector_column

logger = logging.getLogger(__name__)
COMPARED_SHARDS = 4  # of vectors, evenly spread; those of the Hub must be downloaded
_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)")


class PublishedDataset:
    """A directory with a ``manifest.json``; a DatasetError says that ``url`` is neither path nor pinned revision."""

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
        """Return a local path of a file; one of the Hub is downloaded into the cache of ``huggingface_hub``. A
        DatasetError says that it is missing, cannot be downloaded, or has other bytes than the manifest says."""
        if self._hub:
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
        opened = fsspec.open(f"{self.url}/{name}", "rb").open() if self._hub else self.file(name).open("rb")
        # pre_buffer would read in threads of Arrow, one of which may abort an early exit (apache/arrow#45214)
        with opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            yield from (pa.table(batch) for batch in file.iter_batches(READ_ROWS, use_threads=False))

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
        if old["method"] != new["method"]:
            yield f"vectors by {new['method']} instead of {old['method']}"
        for column, words in (("source", "from source"), ("task", "of task")):
            moved = Counter(new["counts"][column])
            moved.subtract(old["counts"][column])
            yield from (f"{rows:+,} rows {words} {name}" for name, rows in sorted(moved.items()) if rows)
        for what in ("text", "vectors"):
            common = sorted(old[what].keys() & new[what].keys())
            if changed := [name for name in common if old[what][name] != new[what][name]]:
                said = f"{what} changed in {len(changed)} of {len(common)} shards"
                some = changed[:: -(-len(changed) // COMPARED_SHARDS)] if old["dimension"] == new["dimension"] else []
                chosen = [name for name in some if name in old["files"]]
                said = "all vectors moved" if what == "vectors" and changed == common else said
                pairs = ((self.file(name), directory / name) for name in chosen)  # text is in no file of its own
                yield f"{said}, smallest cosine {_smallest_cosine(pairs):.3f}" if chosen else said


def _smallest_cosine(pairs: Iterable[tuple[Path, Path]]) -> float:
    """Return the smallest cosine between the old and the new vector of a row of two shards; 1 if no row is in both."""
    smallest = 1.0
    for paths in pairs:
        old, new = map(VectorShard, paths)
        _, before, after = np.intersect1d(old.ids, new.ids, assume_unique=True, return_indices=True)
        if len(before):
            both = old.vectors[before].float(), new.vectors[after].float()  # [n, d]
            smallest = min(smallest, float(torch.nn.functional.cosine_similarity(*both, dim=1).min()))
    return smallest


class Publication:
    """A repository ``USER/NAME`` of the Hub in which a version is to be published, checked before anything is built;
    ``previous`` is what it holds now, or None. The token is ``$HF_TOKEN``, or that of ``hf auth login``. A
    DatasetError says that the name, the token, the tag, the visibility or an edited file is in the way."""

    def __init__(self, repo_id: str, version: str, private: bool, discard_edits: bool) -> None:
        if not re.fullmatch(r"\w[\w.-]*/(?!.*(--|\.\.))\w[\w.-]{0,94}(?<![.-])", repo_id, re.ASCII):
            raise DatasetError(f"--push-to-hub {repo_id}: give USER/NAME, of letters, digits, '-', '_' and '.'")
        if not get_token():
            raise DatasetError("--push-to-hub needs a token of the Hub that may write: set $HF_TOKEN to it")
        self.repo_id, self._private, self._tag, self._discard = repo_id, private, f"v{version}", discard_edits
        self._place: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset"}
        self._hub, self._head, self._files = HfApi(), None, dict[str, RepoFile]()
        self.previous: PublishedDataset | None = None
        with self._explained("cannot be read"):
            who = self._hub.whoami()
            role = who.get("auth", {}).get("accessToken", {}).get("role")  # a fine-grained token has another
            names = [who["name"], *(group["name"] for group in who.get("orgs", []))]
            if role == "read" or (role == "write" and repo_id.split("/")[0] not in names):
                may = "only read" if role == "read" else f"write for {', '.join(names)} only"
                raise DatasetError(f"--push-to-hub {repo_id}: the token may {may}; set $HF_TOKEN to another")
            if not self._hub.repo_exists(**self._place):
                return
            info, refs = self._hub.dataset_info(repo_id), self._hub.list_repo_refs(**self._place)
            tree = self._hub.list_repo_tree(recursive=True, revision=info.sha, **self._place)
            self._files, self._head = {item.path: item for item in tree if isinstance(item, RepoFile)}, info.sha
        if private and not info.private:
            raise DatasetError(f"--private: {repo_id} exists and is public; change that in its settings on the Hub")
        if self._tag in [ref.name for ref in refs.tags]:
            raise DatasetError(f"{repo_id} already has a tag {self._tag}, and tags are never moved: raise --version")
        known, edited = dict[str, Any](), self._files.keys() & {"README.md"}  # written on the Hub
        if "manifest.json" in self._files:
            edited.clear()
            self.previous = PublishedDataset(f"hf://datasets/{repo_id}@{info.sha}")
            known = self.previous.manifest["files"]
            for name, file in ((name, self._files[name]) for name in self._files.keys() & known):
                found = file.lfs.sha256 if file.lfs else sha256(self.previous.file(name, verify=False))
                edited |= {name} if found != known[name]["sha256"] else set()
        self._refuse(edited, "edited")
        if foreign := sorted(self._files.keys() - known - {"manifest.json", ".gitattributes", "README.md"}):
            logger.warning("%s: kept files that no build wrote: %s", repo_id, ", ".join(foreign))

    def _refuse(self, names: Collection[str], what: str) -> None:
        if names and not self._discard:
            remedy = "Move what is to stay into the recipe's section 'card' or the template, then give --discard-edits"
            raise DatasetError(f"{self.repo_id}: somebody {what} {', '.join(sorted(names))} on the Hub. {remedy}")

    def upload(self, directory: Path, manifest: dict[str, Any]) -> None:
        """Upload a built directory and tag it. Interrupted, the same call goes on: what arrived is not sent again. A
        DatasetError says that the version was published with other contents, that a file of somebody else would be
        replaced, or what the Hub refuses."""
        old = self.previous.manifest if self.previous else {"version": None, "files": {}}
        if old["version"] == manifest["version"] and old["digest"] != manifest["digest"]:
            raise DatasetError(f"{self.repo_id} holds version {old['version']} with other contents; raise --version")
        self._refuse((self._files.keys() & manifest["files"]) - old["files"].keys(), "added")
        gone = sorted((old["files"].keys() & self._files.keys()) - manifest["files"].keys())
        logger.info("%s: uploading %d files", self.repo_id, len(manifest["files"]))
        if not sys.stderr.isatty():
            disable_progress_bars()
        with self._explained("was not published; nothing is tagged, and the same command goes on where it stopped"):
            self._hub.create_repo(private=self._private or None, exist_ok=True, **self._place)
            change: Any = {"commit_message": f"Version {manifest['version']}", "delete_patterns": gone or None}
            change |= {"folder_path": directory, "parent_commit": self._head}
            commit = self._hub.upload_folder(**change, **self._place)
            self._hub.create_tag(tag=self._tag, revision=commit.oid, **self._place)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn errors of the Hub in the block into a ``DatasetError``."""
        try:
            yield
        except (HTTPError, RuntimeError, OSError, ValueError) as error:  # RuntimeError: a file that did not arrive
            cause = error.__cause__ or error
            status = getattr(getattr(cause, "response", None), "status_code", None)
            remedy = ". Check $HF_TOKEN" if status in (401, 403) else ""
            raise DatasetError(f"{self.repo_id} {what}. {self._hub.endpoint}: {cause}{remedy}") from error

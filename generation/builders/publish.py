"""A built directory on the Hub: one commit, then a tag that is never moved.

Only files of the last manifest are replaced or removed. Files that somebody added are named and kept; files that
somebody edited are named and refused, unless their edits are to be discarded.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx2 import HTTPError  # what huggingface_hub raises
from huggingface_hub import HfApi, RepoFile, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import DatasetError
from ..files import sha256
from ..logs import Progress
from .published import PublishedDataset

logger = logging.getLogger(__name__)


class Publication:
    """A repository ``USER/NAME`` of the Hub in which a version is to be published, checked before anything is built;
    ``previous`` is what it holds now, or None. The token is ``$HF_TOKEN``, or that of ``hf auth login``.

    Raises:
        DatasetError: the name, the token, the tag, the visibility or an edited file is in the way.
    """

    def __init__(self, repo_id: str, version: str, private: bool, discard_edits: bool) -> None:
        if not re.fullmatch(r"\w[\w.-]*/(?!.*(--|\.\.))\w[\w.-]{0,94}(?<![.-])", repo_id, re.ASCII):
            raise DatasetError(f"--push-to-hub {repo_id}: give USER/NAME, of letters, digits, '-', '_' and '.'")
        if not get_token():
            raise DatasetError("--push-to-hub needs a token of the Hub that may write: set $HF_TOKEN to it")
        self.repo_id, self._private, self._tag = repo_id, private, f"v{version}"
        self._hub, self._head, self._files = HfApi(), None, dict[str, RepoFile]()
        self.previous: PublishedDataset | None = None
        with self._explained("cannot be read"):
            who = self._hub.whoami()
            role = who.get("auth", {}).get("accessToken", {}).get("role")  # a fine-grained token has another
            names = [who["name"], *(group["name"] for group in who.get("orgs", []))]
            if role == "read" or (role == "write" and repo_id.split("/")[0] not in names):
                may = "only read" if role == "read" else f"write for {', '.join(names)} only"
                raise DatasetError(f"--push-to-hub {repo_id}: the token may {may}; set $HF_TOKEN to another")
            try:
                info = self._hub.dataset_info(repo_id)
            except RepositoryNotFoundError:
                return
            tags = {ref.name for ref in self._hub.list_repo_refs(repo_id, repo_type="dataset").tags}
            tree = self._hub.list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type="dataset")
            self._files, self._head = {item.path: item for item in tree if isinstance(item, RepoFile)}, info.sha
        if private and not info.private:
            raise DatasetError(f"--private: {repo_id} exists and is public; change that in its settings on the Hub")
        if self._tag in tags:
            raise DatasetError(f"{repo_id} already has a tag {self._tag}, and tags are never moved: raise --version")
        if "manifest.json" in self._files:
            self.previous = PublishedDataset(f"hf://datasets/{repo_id}@{info.sha}")
        self._check_edits(discard_edits)

    def _check_edits(self, discard_edits: bool) -> None:
        edited = [] if self.previous else [name for name in self._files if name == "README.md"]  # written on the Hub
        known = self.previous.manifest["files"] if self.previous else {}
        for name, file in self._files.items():
            if self.previous and name in known:
                found = file.lfs.sha256 if file.lfs else sha256(self.previous.file(name, verify=False))
                edited += [name] if found != known[name]["sha256"] else []
        if edited and not discard_edits:
            raise DatasetError(
                f"{self.repo_id}: somebody edited {', '.join(edited)} on the Hub. Move the edits into the recipe's "
                "section 'card' or the template, then give --discard-edits"
            )
        if foreign := sorted(self._files.keys() - known - {"manifest.json", ".gitattributes", *edited}):
            logger.warning("%s: kept files that no build wrote: %s", self.repo_id, ", ".join(foreign))

    def upload(self, directory: Path, manifest: dict[str, Any]) -> None:
        """Upload a built directory and tag it. Interrupted, the same call goes on: what arrived is not sent again. A
        DatasetError says that the version was published with other contents, or what the Hub refuses."""
        old = self.previous.manifest if self.previous else {"version": None, "files": {}}
        if old["version"] == manifest["version"] and old["digest"] != manifest["digest"]:
            raise DatasetError(f"{self.repo_id} holds version {old['version']} with other contents; raise --version")
        gone = sorted((old["files"].keys() & self._files.keys()) - manifest["files"].keys())
        if not sys.stderr.isatty():
            disable_progress_bars()
        with (
            self._explained("was not published; nothing is tagged, and the same command goes on where it stopped"),
            Progress(f"publish {self.repo_id}", 1, unit="commit", delay_s=0.0) as bar,
        ):
            self._hub.create_repo(self.repo_id, repo_type="dataset", private=self._private or None, exist_ok=True)
            commit = self._hub.upload_folder(
                repo_id=self.repo_id,
                folder_path=directory,
                repo_type="dataset",
                commit_message=f"Version {manifest['version']}",
                delete_patterns=gone or None,
                parent_commit=self._head,
            )
            self._hub.create_tag(self.repo_id, tag=self._tag, revision=commit.oid, repo_type="dataset")
            bar.update()

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

"""A built directory on the Hub: one commit, then a tag that is never moved.

Only files of the last manifest are replaced or removed. Files that somebody added are named and kept; files that
somebody edited are named and refused, unless their edits are to be discarded.
"""

import logging
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx2 import HTTPError  # what huggingface_hub raises
from huggingface_hub import HfApi, RepoFile, get_token
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import DatasetError
from ..files import sha256
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
            self.previous = PublishedDataset(f"hf://datasets/{repo_id}@{info.sha}")
            known = self.previous.manifest["files"]
            edited = {name for name in self._files.keys() & known if self._sha256(name) != known[name]["sha256"]}
        self._refuse(edited, "edited")
        if foreign := sorted(self._files.keys() - known - {"manifest.json", ".gitattributes", "README.md"}):
            logger.warning("%s: kept files that no build wrote: %s", repo_id, ", ".join(foreign))

    def _sha256(self, name: str) -> str:
        large = self._files[name].lfs
        return str(large.sha256) if large else sha256(self.previous.file(name, verify=False))  # type: ignore[union-attr]

    def _refuse(self, names: Collection[str], what: str) -> None:
        if names and not self._discard:
            raise DatasetError(
                f"{self.repo_id}: somebody {what} {', '.join(sorted(names))} on the Hub. Move edits of the card into "
                "the recipe's section 'card' or the template, then give --discard-edits"
            )

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

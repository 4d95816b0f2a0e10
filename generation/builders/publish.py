"""A built directory on the Hub: one commit, then a tag that is never moved.

Only files of the last manifest are replaced or removed. Files that somebody added stay and are named; files that
somebody edited are named and refused, unless the edits are to be discarded.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import translate
from pathlib import Path
from typing import Any

from httpx2 import HTTPError  # what huggingface_hub raises
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from .. import logs
from ..errors import DatasetError
from .published import PublishedDataset

logger = logging.getLogger(__name__)


class Publication:
    """A repository of the Hub that a version is to be published in, checked before anything is built.

    The token is huggingface_hub's (``$HF_TOKEN``, or the one of ``hf auth login``).

    Args:
        repo_id: ``USER/NAME``.
        version: of the data set; its tag must not exist.
        private: the repository must be private; it is made so if it is new.
        discard_edits: replace files that somebody edited on the Hub.

    Attributes:
        previous: what the repository holds now, or None.

    Raises:
        DatasetError: the name, the token, the tag, the visibility or an edited file stands in the way.
    """

    def __init__(self, repo_id: str, version: str, private: bool, discard_edits: bool) -> None:
        if not re.fullmatch(r"[\w.-]+/(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])", repo_id, re.ASCII):
            raise DatasetError(f"--push-to-hub {repo_id}: give USER/NAME, of letters, digits, '-', '_' and '.'")
        if not get_token():
            raise DatasetError("--push-to-hub needs a token of the Hub that may write: set $HF_TOKEN to one")
        self.repo_id, self.private, self.tag = repo_id, private, f"v{version}"
        self.previous: PublishedDataset | None = None
        self._hub, self._commit, self._files = HfApi(), None, dict[str, RepoFile]()
        with self._explained("cannot be looked at"):
            self._check_token(self._hub.whoami())
            try:
                info = self._hub.repo_info(repo_id, repo_type="dataset")
            except RepositoryNotFoundError:
                return
            if private and not info.private:
                raise DatasetError(f"--private: {repo_id} exists and is public. Change it in its settings on the Hub")
            if self.tag in {ref.name for ref in self._hub.list_repo_refs(repo_id, repo_type="dataset").tags}:
                raise DatasetError(f"{repo_id} already has a tag {self.tag}, and tags are never moved: raise --version")
            self._commit = info.sha
            tree = self._hub.list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type="dataset")
            self._files = {item.path: item for item in tree if isinstance(item, RepoFile)}
        if "manifest.json" in self._files:
            self.previous = PublishedDataset(f"hf://datasets/{repo_id}@{info.sha}")
        self._check_edits(discard_edits)

    def _check_token(self, who: dict[str, Any]) -> None:
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        names = [who["name"], *(org["name"] for org in who.get("orgs", []))]
        if role == "read":
            raise DatasetError("--push-to-hub: the token may only read; set $HF_TOKEN to one that may write")
        if role == "write" and self.repo_id.split("/")[0] not in names:
            raise DatasetError(f"--push-to-hub {self.repo_id}: the token may write for {', '.join(names)} only")

    def _check_edits(self, discard_edits: bool) -> None:
        known = self.previous.manifest["files"] if self.previous else {}
        edited = [name for name in self._files.keys() & known if not self._is_as_published(name, known[name])]
        foreign = sorted(self._files.keys() - known - {"manifest.json", ".gitattributes"})
        if self.previous is None:  # nothing here is ours: do not overwrite what a build writes too
            edited, foreign = [name for name in foreign if name == "README.md"], foreign
        if edited and not discard_edits:
            raise DatasetError(
                f"{self.repo_id}: somebody edited {', '.join(sorted(edited))} since the last version. Take the edits "
                "over into the template or the recipe's card section, then publish with --discard-edits"
            )
        if foreign:
            logger.warning("%s: files that no build wrote are kept: %s", self.repo_id, ", ".join(foreign))

    def _is_as_published(self, name: str, facts: dict[str, Any]) -> bool:
        file = self._files[name]
        if file.lfs:
            return bool(file.lfs.sha256 == facts["sha256"])
        assert self.previous is not None
        return hashlib.sha256(self.previous.file(name, verify=False).read_bytes()).hexdigest() == facts["sha256"]

    def upload(self, directory: Path, manifest: dict[str, Any]) -> None:
        """Upload a built directory and tag it. Interrupted, the same call goes on: what arrived is not sent again.

        Raises:
            DatasetError: the version was published with other contents, or the Hub refuses.
        """
        old = self.previous.manifest if self.previous else {"version": None, "files": {}}
        if old["version"] == manifest["version"] and old["digest"] != manifest["digest"]:
            raise DatasetError(
                f"{self.repo_id} holds version {old['version']} with other contents; raise --version and publish again"
            )
        gone = sorted(old["files"].keys() & self._files.keys() - manifest["files"].keys())
        if logs.json_on_stderr():
            disable_progress_bars()
        with self._explained("was not published; nothing is tagged, and the same command goes on where it stopped"):
            self._hub.create_repo(self.repo_id, repo_type="dataset", private=self.private or None, exist_ok=True)
            with logs.Progress(f"publish {self.repo_id}", 1, unit="commit", delay_s=0.0) as bar:
                commit = self._hub.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=directory,
                    repo_type="dataset",
                    commit_message=f"Version {manifest['version']}",
                    allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in (*manifest["files"], "manifest.json")],
                    delete_patterns=gone or None,
                    parent_commit=self._commit,
                )
                bar.update()
            self._hub.create_tag(self.repo_id, tag=self.tag, revision=commit.oid, repo_type="dataset")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the errors of the Hub in the block into a ``DatasetError``."""
        try:
            yield
        except (HTTPError, HfHubHTTPError, RuntimeError, OSError, ValueError) as error:  # RuntimeError: a failed upload
            status = getattr(getattr(error, "response", None), "status_code", None)
            token = " Is $HF_TOKEN right, and may it write?" if status in (401, 403) else ""
            raise DatasetError(
                f"{self.repo_id} {what}: {self._hub.endpoint} says {error.__cause__ or error}.{token}"
            ) from error

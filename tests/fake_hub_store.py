"""What the test hub keeps: repositories as git has them, every commit immutable, every file stored by its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

LFS_SUFFIXES = (".parquet", ".safetensors", ".arrow", ".bin", ".zip", ".gz", ".npy")  # of a new .gitattributes
LFS_BYTES = 10 * 1024**2  # from this size on every file is a large one
_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Refusal(Exception):
    """An error answer of the Hub.

    Args:
        status: HTTP's.
        message: goes into the body and into ``X-Error-Message``.
        code: the Hub's own name (``X-Error-Code``), from which `huggingface_hub` makes its kinds of error.
        headers: further ones.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


@dataclass(frozen=True)
class Blob:
    """One file of a commit.

    ``oid`` is git's: the sha1 of the file, or of the pointer that stands for a large one, whose hash is ``sha256``.
    """

    oid: str
    size: int  # bytes
    sha256: str | None = None

    @property
    def key(self) -> str:
        """The hash under which the bytes are kept; also the file's ETag, and what preupload tells of it."""
        return self.sha256 or self.oid

    @property
    def pointer_size(self) -> int:
        """The bytes of the LFS pointer."""
        return len(_pointer(self.key, self.size))


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    sha: str
    parent: str | None
    title: str
    message: str
    date: str  # ISO 8601, UTC
    files: Mapping[str, Blob]


@dataclass
class Change:
    """What a commit is to do, in the order of its ndjson lines."""

    title: str = ""
    message: str = ""
    parent: str | None = None
    added: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, str] = field(default_factory=dict)  # path: sha256
    deleted: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)


class Repo:
    """A repository of the Hub with its branches, tags and bytes. A new one holds a ``.gitattributes`` only.

    Args:
        kind: ``dataset``, ``model`` or ``space``.
        name: ``namespace/name``.
        private: nobody sees it without the token.
    """

    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.content: dict[str, bytes] = {}  # by `Blob.key`
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._advance("main", Change(title="initial commit", added={".gitattributes": _ATTRIBUTES}), None)

    @property
    def path(self) -> str:
        """Where its pages are below the Hub's URL."""
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a sha or the first seven or more letters of one mean.

        Raises:
            Refusal: 404 ``RevisionNotFound``.
        """
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        sha = self.branches.get(name) or self.tags.get(name)
        known = [one for one in self.commits if re.fullmatch("[0-9a-f]{7,40}", name) and one.startswith(name)]
        if sha is None and len(known) != 1:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha or known[0]]

    def file(self, commit: Commit, path: str) -> Blob:
        """A file of a commit.

        Raises:
            Refusal: 404 ``EntryNotFound``, with the commit in the headers as the Hub has it.
        """
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
        return commit.files[path]

    def store(self, sha256: str, data: bytes) -> None:
        """Keeps a large file.

        Raises:
            Refusal: 400, the bytes have another hash.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refusal(400, f"{len(data)} bytes whose sha256 is not {sha256}")
        self.content[sha256] = data

    def apply(self, branch: str, change: Change) -> Commit:
        """Makes a commit on a branch, whole or not at all.

        Raises:
            Refusal: 404, no such branch or no such file to delete; 412, ``change.parent`` is not its head; 400, a
                large file that was never uploaded.
        """
        if branch not in self.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.commits[self.branches[branch]]
        if change.parent is not None and not head.sha.startswith(change.parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        return self._advance(branch, change, head)

    def _advance(self, branch: str, change: Change, head: Commit | None) -> Commit:
        files = dict(head.files) if head else {}
        for path in change.deleted:
            if files.pop(path, None) is None:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for folder in change.deleted_folders:
            files = {path: blob for path, blob in files.items() if not path.startswith(folder.rstrip("/") + "/")}
        files |= {path: self._large(path, sha256) for path, sha256 in change.large.items()}
        files |= {path: self._regular(data) for path, data in change.added.items()}
        parent, date = head.sha if head else None, datetime.now(UTC).isoformat(timespec="milliseconds")
        facts = [parent, date, change.title, self.name, sorted((path, blob.oid) for path, blob in files.items())]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        commit = Commit(sha, parent, change.title, change.message, date.replace("+00:00", "Z"), files)
        self.commits[sha], self.branches[branch] = commit, sha
        return commit

    def _regular(self, data: bytes) -> Blob:
        blob = Blob(git_sha1(data), len(data))
        self.content[blob.key] = data
        return blob

    def _large(self, path: str, sha256: str) -> Blob:
        if sha256 not in self.content:
            raise Refusal(400, f"the LFS pointer of {path} pointed to a file that does not exist: {sha256}")
        size = len(self.content[sha256])
        return Blob(git_sha1(_pointer(sha256, size)), size, sha256)


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to LFS: by its name, its size in bytes, or because its first bytes are no text."""
    return path.endswith(LFS_SUFFIXES) or size >= LFS_BYTES or b"\0" in sample


def git_sha1(data: bytes) -> str:
    """The name that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()

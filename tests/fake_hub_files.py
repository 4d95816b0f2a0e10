"""How the test hub shows the files of a commit: trees, facts about paths, and their bytes."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import parse_qs

from tests.fake_hub_requests import Access, Answer, Asked
from tests.fake_hub_store import Blob, Commit, Refusal

PAGE, EXPANDED_PAGE = 1000, 50  # entries of a tree in one answer, without and with `expand`


class FileRoutes(Access):
    """Trees, paths and bytes."""

    def _tree(self, asked: Asked) -> Answer:
        """A folder, or with ``recursive`` all below it; further pages by the ``Link`` header, as GitHub has it."""
        repo, commit = self.at(asked)
        folder = asked.parts.get("path", "").strip("/")
        below = f"{folder}/" if folder else ""
        entries = [entry for entry in _entries(commit) if entry["path"].startswith(below)]
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {asked.parts['revision']}", "EntryNotFound")
        if not _true(asked.query, "recursive"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(below) :]]
        expand = _true(asked.query, "expand")
        start, size = int(asked.query.get("cursor", ["0"])[0]), EXPANDED_PAGE if expand else PAGE
        page = [entry | (_expanded(commit) if expand else {}) for entry in entries[start : start + size]]
        headers = {}
        if start + size < len(entries):
            flags = f"recursive={asked.query.get('recursive', ['false'])[0]}&expand={str(expand).lower()}"
            where = f"{self.url}/api/{repo.kind}s/{repo.name}/tree/{commit.sha}/{folder}".rstrip("/")
            headers["Link"] = f'<{where}?{flags}&cursor={start + size}>; rel="next"'
        return Answer(page, headers=headers)

    def _paths_info(self, asked: Asked) -> Answer:
        """Those of the paths that there are; they come as a form."""
        _, commit = self.at(asked)
        form = parse_qs(asked.body.decode())
        more = _expanded(commit) if _true(form, "expand") else {}
        wanted = {path.strip("/") for path in form.get("paths", [])}
        return Answer([entry | more for entry in _entries(commit) if entry["path"] in wanted])

    def _resolve(self, asked: Asked) -> Answer:
        """A file or a range of it. The real Hub redirects who asks for a large file to another host; this one not."""
        repo, commit = self.at(asked)
        blob = repo.file(commit, asked.parts["path"])
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.key}"', "Accept-Ranges": "bytes"}
        if blob.sha256 is not None:
            headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.key}"'}
        data = repo.content[blob.key]
        if asked.range is None:
            return Answer(data, headers=headers)
        first, last = _span(asked.range, blob.size)
        headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        return Answer(data[first : last + 1], 206, headers)


def blob_facts(blob: Blob) -> dict[str, Any]:
    """A file among the siblings of a repository's facts."""
    lfs = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return {"blobId": blob.oid, "size": blob.size} | ({"lfs": lfs} if blob.sha256 else {})


def _entries(commit: Commit) -> list[dict[str, Any]]:
    """All files and folders of a commit, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in commit.files.items():
        entries[path] = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
        if blob.sha256:
            entries[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
        while path := path.rpartition("/")[0]:
            oid = hashlib.sha1(f"{commit.sha}/{path}".encode()).hexdigest()
            entries[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
    return [entries[path] for path in sorted(entries)]


def _expanded(commit: Commit) -> dict[str, Any]:
    """What ``expand`` adds: the last commit (here that which was asked for) and no scan."""
    return {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}


def _true(values: Any, name: str) -> bool:
    return bool(values.get(name, ["false"])[0].lower() == "true")


def _span(asked: str, size: int) -> tuple[int, int]:
    """The first and the last byte of a range of ``size`` bytes (RFC 9110, section 14.1.2).

    Raises:
        Refusal: 416.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    begin, end = found.groups() if found else ("", "")
    if begin:
        first, last = int(begin), min(int(end or size), size - 1)
    else:
        first, last = max(size - int(end or 0), 0), size - 1
    if first > last:
        raise Refusal(416, f"no such range: {asked}", headers={"Content-Range": f"bytes */{size}"})
    return first, last

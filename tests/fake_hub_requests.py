"""Requests to the test hub: its routes, who may ask what, and what an answer is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fake_hub_store import Commit, Refusal, Repo

_API = r"/api/(?P<kind>dataset|model|space)s/(?P<name>[^/]+/[^/]+)"
_PAGES = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
_REVISION = "(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", rf"{_API}(?:/revision/{_REVISION})?", "info"),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"{_API}/paths-info/{_REVISION}", "paths_info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("GET", rf"{_API}/commits/{_REVISION}", "commits"),
    ("POST", rf"{_API}/tag/{_REVISION}", "tag"),
    ("DELETE", rf"{_API}/tag/{_REVISION}", "delete_tag"),
    ("POST", rf"{_API}/branch/{_REVISION}", "branch"),
    ("DELETE", rf"{_API}/branch/{_REVISION}", "delete_branch"),
    ("POST", rf"{_API}/preupload/{_REVISION}", "preupload"),
    ("POST", rf"{_API}/commit/{_REVISION}", "commit"),
    ("POST", rf"{_PAGES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"{_PAGES}\.git/info/lfs/objects/verify", "lfs_verify"),
    ("PUT", r"/lfs/(?P<key>\w+)(?:/(?P<part>\d+))?", "lfs_upload"),
    ("POST", r"/lfs/(?P<key>\w+)", "lfs_complete"),
    ("(?:GET|HEAD)", rf"{_PAGES}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
]
ROUTES = tuple(name for _, _, name in _ROUTES)


@dataclass(frozen=True)
class Asked:
    """A request: the route's name, the named parts of its path, its query, whether the token came, range and body."""

    route: str
    parts: Mapping[str, str]
    query: Mapping[str, list[str]]
    authorized: bool
    range: str | None
    body: bytes

    @property
    def data(self) -> Any:
        """The body, which must be JSON.

        Raises:
            Refusal: 400.
        """
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, f"the body is no JSON: {error}") from None


@dataclass(frozen=True)
class Answer:
    """An answer that is no error. A body that is not bytes is sent as JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Upload:
    """An LFS object that is on its way; who knows its key may send it, without a token."""

    repo: Repo
    sha256: str
    parts: dict[int, bytes] = field(default_factory=dict)


def find_route(method: str, target: str) -> tuple[str, dict[str, str], dict[str, list[str]]]:
    """The route's name, the unquoted parts of the path and the query; the name is ``unknown`` where none fits."""
    split = urlsplit(target)
    for methods, pattern, name in _ROUTES:
        if re.fullmatch(methods, method) and (found := re.fullmatch(pattern, split.path)):
            parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
            return name, parts, parse_qs(split.query)
    return "unknown", {}, {}


class Access:
    """The repositories, and who may see and write them.

    Args:
        url: where the server is, for the links in its answers.
        user: whose token is good; repositories are written in this namespace only.
        part_bytes: larger LFS objects are asked for in parts of this size, if the client can.
    """

    def __init__(self, url: str, user: str, part_bytes: int) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.url, self.user, self.part_bytes = url, user, part_bytes
        self.uploads: dict[str, Upload] = {}

    def repo(self, asked: Asked) -> Repo:
        """The repository; one that may not be seen looks as if it were not there."""
        repo = self.repos.get((asked.parts.get("kind", "model"), asked.parts["name"]))
        if repo is None or (repo.private and not asked.authorized):
            if asked.authorized:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def own(self, asked: Asked) -> Repo:
        """The repository, to be written."""
        repo = self.repo(asked)
        self.may_write(asked, repo.name)
        return repo

    def may_write(self, asked: Asked, name: str) -> None:
        """Refuses who has no token (401), and a namespace that is not the user's (403)."""
        if not asked.authorized:
            raise Refusal(401, "Invalid username or password.")
        if name.split("/")[0] != self.user:
            raise Refusal(403, f"you don't have the rights to write under the namespace of {name}")

    def at(self, asked: Asked) -> tuple[Repo, Commit]:
        """The repository and the commit that the path means; ``main`` where it names none."""
        repo = self.repo(asked)
        return repo, repo.at(asked.parts.get("revision", "main"))

"""A Hugging Face Hub on loopback, for tests: as much of it as ``huggingface_hub`` 2.4 and ``datasets`` 5.2 ask for.

The libraries read where the Hub is when they are imported, so what is to use this one runs in a process of its own,
``hub.run(arguments, home)``. Left out: Xet (turned off), pull requests, gated repositories, rate limits.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".parquet", ".safetensors")
TOKENS = {"hf_write": "write", "hf_read": "read"}
Files = dict[str, bytes]
Reply = tuple[int, Any, Mapping[str, str]]  # status, bytes or JSON value, headers


class Refusal(Exception):
    """An error answer: HTTP status, message, and the Hub's own code, of which the libraries make their exceptions."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.reply: Reply = status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **headers}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def etag(path: str, data: bytes) -> str:
    """Return the name that LFS or git gives to a file."""
    return sha(data) if path.endswith(LFS_SUFFIXES) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: immutable commits, each a mapping of paths to contents; ``main`` and tags name commits."""

    name: str
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # main and tags
    objects: Files = field(default_factory=dict)  # LFS, by sha256

    def commit(self, files: Files) -> str:
        facts = [self.refs.get("main"), len(self.commits), sorted((path, sha(data)) for path, data in files.items())]
        found = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[found], self.refs["main"] = files, found
        return found

    def at(self, revision: str) -> tuple[str, Files]:
        found = self.refs.get(revision, revision)
        if found not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, self.commits[found]


class Request(SimpleNamespace):
    """A request as a route sees it: repo, revision, path, query, body, range, and role (of its token, or None)."""

    @property
    def data(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def files(self) -> Files:
        found: Files = self.repo.at(self.revision)[1]
        return found


_API, _REV = r"/api/datasets/(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_PAGE = r"/datasets/(?P<name>[^/]+/[^/]+?)"
ROUTES = [  # method, path, name
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", rf"{_API}(?:/revision/{_REV})?", "info"),
    ("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"{_API}/paths-info/{_REV}", "paths_info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("POST", rf"{_API}/tag/{_REV}", "tag"),
    ("POST", rf"{_API}/preupload/{_REV}", "preupload"),
    ("POST", rf"{_API}/commit/{_REV}", "commit"),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<name>[^/]+/[^/]+)/(?P<path>\w+)", "lfs_upload"),
    ("(?:GET|HEAD)", rf"{_PAGE}/resolve/{_REV}/(?P<path>.+)", "resolve"),
]


class FakeHub:
    """The Hub in a thread: ``with FakeHub() as hub:`` serves on ``hub.url`` until the block ends.

    ``fail`` is given a route's name and how many requests it had before, and returns the HTTP status to fail with.
    """

    def __init__(self, fail: Callable[[str, int], int | None] = lambda route, number: None) -> None:
        self.repos: dict[str, Repo] = {}
        self.fail, self.seen = fail, Counter[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_HEAD = do_POST = do_PUT = lambda self: hub._serve(self)
            log_message = lambda *_: None  # noqa: E731

        self._server, self._lock = ThreadingHTTPServer(("127.0.0.1", 0), Handler), threading.Lock()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def run(self, arguments: list[object], home: Path) -> "subprocess.CompletedProcess[str]":
        """Run Python with some arguments in a process that takes this for the Hub and keeps its caches in ``home``."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        kept |= {"HF_TOKEN": "hf_write", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=200, check=False)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        try:
            with self._lock:
                status, value, headers = self._answer(handler, body)
        except Refusal as refusal:
            status, value, headers = refusal.reply
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            handler.send_header(name, str(text))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> Reply:
        split, token = urlsplit(handler.path), handler.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = f"{handler.command} {split.path}"
        known = ((route, re.fullmatch(f"{method} {pattern}", asked)) for method, pattern, route in ROUTES)
        route, found = next((one for one in known if one[1]), ("", None))
        if found is None:
            raise Refusal(404, f"the fake Hub has no route {asked}")
        self.seen[route] += 1
        if status := self.fail(route, self.seen[route] - 1):
            raise Refusal(status, "scripted failure")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        parts, role = {key: unquote(value) for key, value in found.groupdict().items() if value}, TOKENS.get(token)
        repo = self.repos.get(parts.get("name", ""), Repo("", private=False))
        if "name" in parts and (not repo.name or (repo.private and not role and route != "lfs_upload")):
            raise Refusal(404 if role else 401, "Repository not found", "RepoNotFound")
        place = {"repo": repo, "revision": parts.get("revision", "main"), "path": parts.get("path", ""), "role": role}
        request = Request(query=parse_qs(split.query), body=body, range=handler.headers.get("Range"), **place)
        reply: Reply = getattr(self, f"_{route}")(request)
        return reply

    def _whoami(self, request: Request) -> Reply:
        if not request.role:
            raise Refusal(401, "Invalid username or password.")
        auth = {"accessToken": {"displayName": "test", "role": request.role}}
        return 200, {"type": "user", "name": "user", "orgs": [{"name": "group"}], "auth": auth}, {}

    def _create(self, request: Request) -> Reply:
        name = f"{request.data.get('organization') or 'user'}/{request.data['name']}"
        if name in self.repos:
            return 409, {"error": "exists", "url": f"{self.url}/datasets/{name}"}, {}
        private = request.data.get("visibility") == "private" or bool(request.data.get("private"))
        self.repos[name] = Repo(name, private)
        self.repos[name].commit({".gitattributes": b"*.parquet filter=lfs\n"})
        return 200, {"url": f"{self.url}/datasets/{name}"}, {}

    def _validate_yaml(self, request: Request) -> Reply:
        return 200, {"errors": [], "warnings": []}, {}

    def _info(self, request: Request) -> Reply:
        repo, (commit, files) = request.repo, request.repo.at(request.revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        facts = {"id": repo.name, "sha": commit, "private": repo.private, "tags": [], "siblings": siblings}
        return 200, facts | {"downloads": 0, "likes": 0}, {}

    def _entries(self, files: Files) -> Iterator[dict[str, Any]]:
        for folder in {str(parent) for path in files for parent in Path(path).parents} - {"."}:
            yield {"type": "directory", "path": folder, "oid": etag("", folder.encode()), "size": 0}
        for path, data in files.items():
            lfs = {"lfs": {"oid": sha(data), "size": len(data), "pointerSize": 130}}
            file = {"type": "file", "path": path, "oid": etag("", data), "size": len(data)}
            yield file | (lfs if path.endswith(LFS_SUFFIXES) else {})

    def _tree(self, request: Request) -> Reply:
        start = f"{request.path.strip('/')}/".lstrip("/")
        return 200, [one for one in self._entries(request.files) if one["path"].startswith(start)], {}

    def _paths_info(self, request: Request) -> Reply:
        wanted = {path.strip("/") for path in parse_qs(request.body.decode()).get("paths", [])}
        return 200, [one for one in self._entries(request.files) if one["path"] in wanted], {}

    def _refs(self, request: Request) -> Reply:
        refs = {name: at for name, at in request.repo.refs.items() if name != "main"}
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in refs.items()]
        return 200, {"branches": [], "converts": [], "tags": tags}, {}

    def _tag(self, request: Request) -> Reply:
        if request.data["tag"] in request.repo.refs:
            raise Refusal(409, "Tag reference exists already")
        request.repo.refs[request.data["tag"]], _ = request.repo.at(request.revision)
        return 200, {}, {}

    def _preupload(self, request: Request) -> Reply:
        found = []
        for path in (file["path"] for file in request.data["files"]):
            known = etag(path, request.files[path]) if path in request.files else None
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return 200, {"files": found}, {}

    def _lfs_batch(self, request: Request) -> Reply:
        objects = []
        for one in request.data["objects"]:
            upload = {"href": f"{self.url}/lfs/{request.repo.name}/{one['oid']}"}
            objects.append(one | ({} if one["oid"] in request.repo.objects else {"actions": {"upload": upload}}))
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _lfs_upload(self, request: Request) -> Reply:
        request.repo.objects[request.path] = request.body
        return 200, b"", {}

    def _commit(self, request: Request) -> Reply:
        repo, files = request.repo, dict(request.files)
        for line in map(json.loads, request.body.splitlines()):
            match line["key"], line["value"]:
                case "file", {"path": path, "content": content}:
                    files[path] = base64.b64decode(content)
                case "lfsFile", {"path": path, "oid": oid}:
                    files[path] = repo.objects[oid]
                case "deletedFile", {"path": path}:
                    del files[path]
        made = repo.commit(files)
        return 200, {"success": True, "commitOid": made, "commitUrl": f"{self.url}/datasets/{repo.name}"}, {}

    def _resolve(self, request: Request) -> Reply:
        (commit, files), path = request.repo.at(request.revision), request.path
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        data, name = files[path], f'"{etag(path, files[path])}"'
        headers = {"X-Repo-Commit": commit, "ETag": name, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": name} if path.endswith(LFS_SUFFIXES) else {}
        if request.range is None:
            return 200, data, headers
        begin, end = request.range.removeprefix("bytes=").split("-")
        first = int(begin) if begin else max(0, len(data) - int(end))
        last = min(int(end), len(data) - 1) if begin and end else len(data) - 1
        return 206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}

"""The test hub over plain HTTP: ranges, bad requests, and what goes wrong on demand."""

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_hub import FakeHub, Fault
from tests.fake_hub_store import git_sha1

DATA = bytes(range(200))
SHA256 = hashlib.sha256(DATA).hexdigest()
API, PAGES = "/api/datasets/user/x", "/datasets/user/x"


def ask(
    hub: FakeHub, method: str, path: str, body: Any = None, token: str | None = "hf_test", **headers: str
) -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and body of an answer; JSON is read, other bodies stay bytes."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=20)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    plain = method == "HEAD" or not response.headers["Content-Type"].startswith("application/json")
    return response.status, response.headers, raw if plain else json.loads(raw)


def lines(*entries: tuple[str, Any]) -> bytes:
    header = ("header", {"summary": "a commit", "description": ""})
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in [header, *entries])


def upload_link(hub: FakeHub, data: bytes) -> str:
    wanted = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    _, _, batch = ask(hub, "POST", f"{PAGES}.git/info/lfs/objects/batch", {"objects": [wanted]})
    href: str = batch["objects"][0]["actions"]["upload"]["href"]
    return href.removeprefix(hub.url)


LARGE = ("lfsFile", {"path": "data.bin", "algo": "sha256", "oid": SHA256, "size": len(DATA)})
SMALL = ("file", {"path": "a.txt", "encoding": "base64", "content": base64.b64encode(b"text").decode()})


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with a public repository that holds one large file and one regular one."""
    with FakeHub() as server:
        fill(server)
        yield server


def fill(hub: FakeHub) -> None:
    assert ask(hub, "POST", "/api/repos/create", {"name": "x", "type": "dataset"})[0] == 200
    assert ask(hub, "PUT", upload_link(hub, DATA), DATA, token=None)[0] == 200
    assert ask(hub, "POST", f"{API}/commit/main", lines(LARGE, SMALL))[0] == 200


# -- files


def test_headers_tell_commit_hash_and_size(hub: FakeHub) -> None:
    head = hub.repo("user/x").at("main").sha
    status, headers, body = ask(hub, "HEAD", f"{PAGES}/resolve/main/data.bin", token=None)
    assert (status, headers["X-Repo-Commit"], headers["X-Linked-Size"], body) == (200, head, "200", b"")
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{SHA256}"' and headers["Content-Length"] == "200"
    status, headers, body = ask(hub, "GET", f"{PAGES}/resolve/{head[:7]}/a.txt", token=None)
    assert (status, body, headers["X-Linked-Size"]) == (200, b"text", None)
    assert headers["ETag"] == f'"{git_sha1(b"text")}"' == '"f3a34851d44d6b97c90fbb99dd3d18c261b9a237"'  # by git itself
    status, headers, _ = ask(hub, "GET", f"{PAGES}/resolve/main/nothing", token=None)
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", head)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(begin=st.none() | st.integers(0, 260), length=st.none() | st.integers(0, 260))
def test_a_range_is_the_slice_or_is_refused(hub: FakeHub, begin: int | None, length: int | None) -> None:
    if begin is None:
        span, expected = f"-{length or 0}", DATA[-length:] if length else b""
    elif length is None:
        span, expected = f"{begin}-", DATA[begin:]
    else:
        span, expected = f"{begin}-{begin + length}", DATA[begin : begin + length + 1]
    status, headers, body = ask(hub, "GET", f"{PAGES}/resolve/main/data.bin", token=None, Range=f"bytes={span}")
    assert (status, body) == (206, expected) if expected else status == 416
    start = begin if begin is not None else len(DATA) - len(expected)
    place = f"{start}-{start + len(expected) - 1}" if expected else "*"
    assert headers["Content-Range"] == f"bytes {place}/{len(DATA)}"


def test_a_range_that_is_none_is_refused(hub: FakeHub) -> None:
    assert ask(hub, "GET", f"{PAGES}/resolve/main/data.bin", Range="lines=1-2")[0] == 416


def test_a_body_may_come_in_chunks(hub: FakeHub) -> None:
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=20)
    connection.request("PUT", upload_link(hub, b"abcd"), iter([b"ab", b"cd"]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert hub.repo("user/x").content[hashlib.sha256(b"abcd").hexdigest()] == b"abcd"


def test_half_a_body_is_no_request(hub: FakeHub) -> None:
    before = hub.repo("user/x").at("main")
    body = lines(SMALL)
    for header in (f"Content-Length: {2 * len(body)}", "Transfer-Encoding: chunked"):
        half = body if header.startswith("C") else f"{len(body):x}\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2])), timeout=20) as client:
            head = f"POST {API}/commit/main HTTP/1.1\r\nAuthorization: Bearer {hub.token}\r\n{header}\r\n\r\n"
            client.sendall(head.encode() + half)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    assert hub.repo("user/x").at("main") is before and hub.seen()[-1].status is None


# -- bad requests


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/api/nothing", None, 404, "no such route"),
        ("POST", f"{API}/commit/main", b"no json\n", 400, "no json"),
        ("POST", f"{API}/commit/main", lines(("wish", {})), 400, "wish"),
        ("POST", f"{API}/commit/main", lines(("lfsFile", {"path": "b.bin", "oid": "0" * 64})), 400, "b.bin"),
        ("POST", f"{API}/commit/v1", lines(), 404, "v1"),
        ("POST", f"{API}/commit/main?create_pr=1", lines(), 400, "pull requests"),
        ("POST", f"{API}/tag/main", b"{", 400, "no JSON"),
        ("POST", f"{API}/tag/main", {}, 501, "KeyError('tag')"),
        ("PUT", "/lfs/0123", b"", 403, "link"),
        ("POST", "/api/validate-yaml", {"content": "---\na: [\n---\n"}, 400, "expected"),
        ("GET", "/api/datasets/user/none", None, 404, "Repository not found"),
        ("GET", f"{API}/tree/v9", None, 404, "v9"),
        ("POST", f"{PAGES}.git/info/lfs/objects/verify", {"oid": SHA256, "size": 1}, 404, "1 bytes"),
    ],
)
def test_a_bad_request_changes_nothing(
    hub: FakeHub, method: str, path: str, body: Any, status: int, said: str
) -> None:
    before = dict(hub.repo("user/x").commits)
    found, _, answer = ask(hub, method, path, body)
    assert found == status and said in json.dumps(answer) and hub.repo("user/x").commits == before
    assert hub.seen()[-1].status == status


def test_bytes_with_another_hash_are_refused(hub: FakeHub) -> None:
    status, _, answer = ask(hub, "PUT", upload_link(hub, b"right"), b"wrong")
    assert status == 400 and "sha256" in answer["error"] and len(hub.repo("user/x").content) == 3


def test_an_object_is_whole_when_the_parts_that_are_named_have_arrived() -> None:
    with FakeHub(part_bytes=120) as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "x", "type": "dataset"})[0] == 200
        link = upload_link(hub, DATA)
        complete = {"oid": SHA256, "parts": [{"partNumber": 1, "etag": "a"}, {"partNumber": 2, "etag": "b"}]}
        assert ask(hub, "PUT", f"{link}/2", DATA[120:], token=None)[0] == 200
        status, _, answer = ask(hub, "POST", link, complete, token=None)
        assert status == 400 and "[2] have arrived" in answer["error"]
        assert ask(hub, "PUT", f"{link}/1", DATA[:120], token=None)[0] == 200
        assert ask(hub, "POST", link, complete, token=None)[0] == 200
        assert hub.repo("user/x").content[SHA256] == DATA


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_nothing_is_written_without_the_token(hub: FakeHub, token: str | None) -> None:
    for method, path in (("POST", "/commit/main"), ("POST", "/tag/main"), ("POST", "/branch/b"), ("DELETE", "/tag/t")):
        assert ask(hub, method, API + path, lines(), token=token)[0] == 401
    assert ask(hub, "POST", "/api/repos/create", {"name": "y"}, token=token)[0] == 401
    assert ask(hub, "GET", API, token=token)[0] == (200 if token is None else 401)  # public, but no wrong token


# -- faults


def test_faults_meet_the_requests_that_they_name() -> None:
    with FakeHub(faults=[Fault("create", {0}, 503)]) as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "x", "type": "dataset"})[0] == 503
        fill(hub)
        hub.script(Fault("tag", {1}, "lost"), Fault("tag", {2}, "reset"))
        assert ask(hub, "POST", f"{API}/tag/main", {"tag": "v1"})[0] == 200
        for tag in ("v2", "v3"):
            with pytest.raises((ConnectionError, http.client.BadStatusLine)):
                ask(hub, "POST", f"{API}/tag/main", {"tag": tag})
        assert set(hub.repo("user/x").tags) == {"v1", "v2"}  # what is lost was done
        assert [one.status for one in hub.seen("tag")] == [200, None, None]


def test_what_hangs_is_let_go_when_the_hub_ends() -> None:
    failed = threading.Event()

    def wait(hub: FakeHub) -> None:
        try:
            ask(hub, "GET", "/api/whoami-v2")
        except (ConnectionError, http.client.HTTPException):
            failed.set()

    with FakeHub(faults=[Fault("whoami", {0}, "hang")]) as hub:
        thread = threading.Thread(target=wait, args=(hub,))
        thread.start()
        while not hub.seen("whoami"):
            time.sleep(0.01)
        assert not failed.is_set()
    thread.join(timeout=20)
    assert failed.is_set()


def test_a_fault_of_no_route_is_refused() -> None:
    with pytest.raises(ValueError, match="no such route: upload; known: whoami, create"):
        Fault("upload", {0}, 500)

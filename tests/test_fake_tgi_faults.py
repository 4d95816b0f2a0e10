"""The fake TGI server's capacity and faults: slots, queue, batch-wide failures, freezes, restarts, the control route.

Sections are those of the TGI fact sheet (tgi-facts.md). A frozen server makes the tests independent of time: what is
in the batch and in the queue stays there until it thaws.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import openai
import pytest
from huggingface_hub import errors as hub

from tests.fake_tgi import FakeTGI, Fault
from tests.test_fake_tgi import CHAT, DESERIALIZE, NATIVE, ask, chat_text, hf, oai, until
from tests.test_fake_tgi_routes import sample


class Crowd:
    """Clients that ask at the same time, each in a thread."""

    def __init__(self, server: FakeTGI) -> None:
        self._server, self._pool = server, ThreadPoolExecutor(16)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def ask(self, count: int) -> list[Future[tuple[int, Any, bytes]]]:
        """Send requests one after the other, each when the one before has its permit or its answer."""
        return [self._one() for _ in range(count)]

    def _one(self) -> Future[tuple[int, Any, bytes]]:
        before = self._server.in_flight
        asked = self._pool.submit(ask, self._server, "/generate", {"inputs": "A dog."})
        until(lambda: asked.done() or self._server.in_flight > before)
        return asked


def statuses(asked: list[Future[tuple[int, Any, bytes]]]) -> list[int]:
    return [future.result(timeout=20)[0] for future in asked]


@contextlib.contextmanager
def crowd(server: FakeTGI) -> Iterator[Crowd]:
    """A crowd before a frozen server, which thaws at the end whatever happens."""
    server.configure(frozen=True)
    with Crowd(server) as clients:
        try:
            yield clients
        finally:
            if server.settings.frozen:
                server.configure(frozen=False)


def first_answer(url: str) -> float:
    """When the server answers for the first time after refusing, if it does."""

    def up() -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(urllib.request.urlopen(f"{url}/info", timeout=10).status == 200)
        return False

    until(up)
    return time.monotonic()


# ---- capacity


def test_what_has_no_slot_waits_in_a_queue_that_metrics_show() -> None:
    with FakeTGI(max_concurrent_requests=5, batch_slots=2) as server, crowd(server) as clients:
        asked = clients.ask(5)
        assert (server.in_flight, server.queued) == (5, 3)
        assert (sample(server, "tgi_queue_size"), sample(server, "tgi_batch_current_size")) == (3, 2)
        assert sample(server, "tgi_batch_current_max_tokens") == 2 * (3 + 1024)  # input and block
        assert statuses(clients.ask(1)) == [429]
        server.configure(frozen=False)
        assert statuses(asked) == [200] * 5
        assert sample(server, 'tgi_batch_concat{reason="chunking"}') == 4
        assert (sample(server, "tgi_queue_size"), sample(server, "tgi_batch_current_size")) == (0, 0)


def test_the_queue_is_first_in_first_out() -> None:
    with FakeTGI(batch_slots=1) as server, crowd(server) as clients:
        asked = clients.ask(4)
        for future in asked:
            until(lambda: server.fail_batch() == 1)
            assert future.result(timeout=20)[0] == 424


def test_the_time_in_the_queue_is_told() -> None:
    with FakeTGI(batch_slots=1) as server, crowd(server) as clients:
        asked = clients.ask(3)
        time.sleep(0.1)
        server.configure(frozen=False)
        waits = [int(future.result(timeout=20)[1]["x-queue-time"]) for future in asked]
        assert waits[0] < min(waits[1:]) >= 100
        assert (sample(server, "tgi_request_queue_duration_sum") or 0) >= 0.2


def test_capacity_changes_in_mid_run() -> None:
    with FakeTGI(max_concurrent_requests=8, batch_slots=4) as server, crowd(server) as clients:
        asked = clients.ask(8)
        assert server.queued == 4
        server.configure(batch_slots=6)
        assert server.queued == 2
        server.configure(batch_slots=2, max_concurrent_requests=4)  # what runs goes on
        assert (server.queued, server.in_flight) == (2, 8)
        assert statuses(clients.ask(1)) == [429]
        assert json.loads(ask(server, "/info")[2])["max_concurrent_requests"] == 4
        server.configure(batch_slots=None)
        assert server.queued == 0
        server.configure(frozen=False)
        assert statuses(asked) == [200] * 8


def test_one_that_leaves_the_queue_gives_its_place_up() -> None:
    with FakeTGI(batch_slots=1) as server, crowd(server) as clients:
        first = clients.ask(1)
        with contextlib.closing(http.client.HTTPConnection(server.url[7:])) as leaver:
            leaver.request("POST", "/generate", json.dumps(NATIVE), {"content-type": "application/json"})
            until(lambda: server.queued == 1)
        until(lambda: server.queued == 0)
        last = clients.ask(1)
        server.configure(frozen=False)
        assert statuses(first + last) == [200, 200]


# ---- failures of a whole batch (section 1.5, and threads 3 and 4 of section 6)


def test_a_failing_batch_takes_all_that_run_and_leaves_the_queue() -> None:
    with FakeTGI(batch_slots=3) as server, crowd(server) as clients:
        asked = clients.ask(5)
        assert server.fail_batch() == 3
        assert statuses(asked[:3]) == [424] * 3
        assert json.loads(asked[0].result()[2])["error_type"] == "generation"
        server.configure(frozen=False)
        assert statuses(asked[3:]) == [200] * 2
        assert sample(server, 'tgi_request_failure{err="generation"}') == 3


@pytest.mark.parametrize("cause", ["poison", "fault", "regex"])
def test_one_request_may_fail_all_that_run_with_it(cause: str) -> None:
    faults = [Fault("batch", {2})] if cause == "fault" else []
    with FakeTGI(poison="arsenic", faults=faults) as server, crowd(server) as clients:
        asked = clients.ask(2)
        body: dict[str, Any] = {"inputs": "A dog with arsenic." if cause == "poison" else "A dog."}
        if cause == "regex":
            body["parameters"] = {"grammar": {"type": "regex", "value": "[a-z]+"}}
        assert ask(server, "/generate", body)[0] == 424
        assert statuses(asked) == [424] * 2
        last = clients.ask(1)
        server.configure(frozen=False)
        assert statuses(last) == [200]


def test_a_poisonous_prompt_fails_each_time_until_it_is_lifted() -> None:
    with FakeTGI(poison="brown dog") as server:
        assert [ask(server, "/v1/chat/completions", CHAT)[0] for _ in range(2)] == [424, 424]
        assert ask(server, "/generate", {"inputs": "A cat."})[0] == 200
        server.configure(poison=None)
        assert chat_text(server)


# ---- a freeze


def test_a_frozen_server_takes_requests_and_answers_them_when_it_thaws() -> None:
    with FakeTGI(max_concurrent_requests=3) as server, crowd(server) as clients:
        asked = clients.ask(3)
        for path in ("/health", "/"):
            with pytest.raises(TimeoutError), urllib.request.urlopen(server.url + path, timeout=0.1):
                pass
        assert [ask(server, path)[0] for path in ("/info", "/metrics", "/v1/models")] == [200] * 3
        assert not any(future.done() for future in asked) and statuses(clients.ask(1)) == [429]
        server.configure(frozen=False)
        assert statuses(asked) == [200] * 3 and ask(server, "/health")[0] == 200


# ---- single answers


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("empty_429", 429, ""),
        ("empty_500", 500, ""),
        ("empty_502", 502, ""),
        ("unauthorized", 401, ""),
        ("deserialize", 422, DESERIALIZE),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_without_json(kind: Any, status: int, said: str, stream: bool) -> None:
    with FakeTGI(faults=[Fault(kind, {0})]) as server:
        found, headers, raw = ask(server, "/v1/chat/completions", CHAT | {"stream": stream})
        assert found == status and raw.decode().startswith(said) and bool(raw) == bool(said)
        assert not raw or headers["content-type"] == "text/plain; charset=utf-8"
        assert server.faults_given == {kind: 1} and ask(server, "/v1/chat/completions", CHAT)[0] == 200


def test_foreign_clients_meet_the_new_errors() -> None:
    kinds: tuple[Any, ...] = ("unauthorized", "empty_429", "deserialize", "template", "template_variable")
    faults = [Fault(kind, {ordinal}) for ordinal, kind in enumerate(kinds)]
    with FakeTGI(faults=faults) as server, oai(server) as client:
        expected = (openai.AuthenticationError, openai.RateLimitError, *[openai.UnprocessableEntityError] * 3)
        for error in expected:
            with pytest.raises(error) as raised:
                client.chat.completions.create(model="tgi", stream=True, **CHAT)
        assert raised.value.response.json()["error_type"] == "missing_template_variable"
        assert sample(server, 'tgi_request_failure{err="template"}') == 1
    with FakeTGI(poison="dog") as server, hf(server) as hub_client, pytest.raises(hub.GenerationError):
        hub_client.text_generation("A dog.")


def test_the_key_may_change_in_mid_run() -> None:
    with FakeTGI(api_key="old") as server:
        assert ask(server, "/generate", NATIVE, authorization="Bearer old")[0] == 200
        server.configure(api_key="new")
        assert ask(server, "/generate", NATIVE, authorization="Bearer old")[::2] == (401, b"")
        assert ask(server, "/generate", NATIVE, authorization="Bearer new")[0] == 200


def test_a_miscount_is_in_the_body_alone() -> None:
    with FakeTGI(faults=[Fault("miscount", {0, 1})]) as server:
        _, headers, raw = ask(server, "/v1/chat/completions", CHAT)
        usage, (prompt, made) = json.loads(raw)["usage"], (headers["x-prompt-tokens"], headers["x-generated-tokens"])
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (int(prompt) + 7, int(made) + 3)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        body = NATIVE | {"parameters": {"details": True}}
        for path in ("/generate", "/"):
            _, headers, raw = ask(server, path, body)
            answered = json.loads(raw)
            count = (answered[0] if path == "/" else answered)["details"]["generated_tokens"]
            assert count - int(headers["x-generated-tokens"]) == (3 if path == "/generate" else 0)


def test_a_share_of_the_requests_fails_in_the_same_places_for_the_same_seed() -> None:
    def run(seed: int) -> tuple[list[int], int]:
        kinds = ("overloaded", "unavailable", "incomplete")
        with FakeTGI(fault_rate=0.3, fault_kinds=kinds, fault_seed=seed) as server:
            found = [ask(server, "/generate", NATIVE)[0] for _ in range(60)]
            assert set(server.faults_given) == set(kinds)
            return found, server.faults_given.total()

    found, count = run(1)
    assert set(found) == {200, 429, 500, 503} and sum(status != 200 for status in found) == count
    assert 5 < count < 35 and run(1) == (found, count) and run(2)[0] != found


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="earthquake"):
        FakeTGI(fault_rate=0.5, fault_kinds=["earthquake"])
    with pytest.raises(ValueError, match="a fault rate needs fault kinds"):
        FakeTGI(fault_rate=0.5)
    with FakeTGI() as server, pytest.raises(ValueError, match="batchslots"):
        server.configure(batchslots=4)


# ---- start, restart and end (section 2.3)


def test_a_slow_start_refuses_connections_on_the_port_it_will_have() -> None:
    start = time.monotonic()
    with FakeTGI(start_delay_s=0.3) as server:
        assert first_answer(server.url) - start >= 0.3


def test_a_server_that_ends_before_it_has_started_ends() -> None:
    with FakeTGI(start_delay_s=60) as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))


def test_a_restart_resets_what_is_open_and_comes_back_on_the_same_port() -> None:
    with FakeTGI(batch_slots=1) as server, crowd(server) as clients:
        ask(server, "/generate", {"inputs": ""})
        asked = clients.ask(2)
        start = time.monotonic()
        server.restart(down_s=0.3, model_id="another/Model")
        for future in asked:  # one ran and one was in the queue
            with pytest.raises((ConnectionResetError, urllib.error.URLError)):
                future.result(timeout=20)
        assert first_answer(server.url) - start >= 0.3
        assert json.loads(ask(server, "/info")[2])["model_id"] == "another/Model"
        assert ask(server, "/metrics")[2] == b"" and (server.in_flight, server.queued) == (0, 0)
        assert ask(server, "/generate", NATIVE)[0] == 200  # the freeze is over
        assert [entry["status"] for entry in server.requests if entry["route"] == "/generate"] == [
            422,
            None,
            None,
            200,
        ]
        server.restart()
        assert first_answer(server.url) and json.loads(ask(server, "/info")[2])["model_id"] == "another/Model"


def test_terminated_it_takes_nothing_new_and_finishes_what_is_open() -> None:
    with FakeTGI() as server, crowd(server) as clients, ThreadPoolExecutor(1) as ending:
        idle = http.client.HTTPConnection(server.url[7:], timeout=10)
        idle.request("GET", "/info")
        idle.getresponse().read()
        asked = clients.ask(1)
        ended = ending.submit(server.terminate)
        until(lambda: not listens(server.url))
        assert idle.sock.recv(1) == b""  # closed
        idle.close()
        assert not asked[0].done() and not ended.done()
        server.configure(frozen=False)
        assert statuses(asked) == [200]
        ended.result(timeout=20)


def listens(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    except ConnectionRefusedError:
        return False
    return True


# ---- as a process


def control(url: str, **changes: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/_control", json.dumps(changes).encode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_process_is_changed_over_its_control_route() -> None:
    command = [sys.executable, "-m", "tests.fake_tgi", "--batch-slots", "1", "--api-key", "k", "--poison", "arsenic"]
    command += ["--fault-rate", "1", "--fault-kinds", "overloaded"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(4) as pool,
        contextlib.ExitStack() as at_last,
    ):
        at_last.callback(process.kill)
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        def generate(inputs: str = "A dog.") -> int:
            headers = {"content-type": "application/json", "authorization": "Bearer k"}
            body = json.dumps({"inputs": inputs}).encode()
            try:
                return int(urllib.request.urlopen(urllib.request.Request(f"{url}/generate", body, headers)).status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert generate() == 429
        status, standing = control(url, fault_rate=0, frozen=True)
        assert (status, standing["faults_given"], standing["settings"]["frozen"]) == (200, {"overloaded": 1}, True)
        asked = [pool.submit(generate) for _ in range(3)]
        until(lambda: control(url)[1]["in_flight"] == 3)
        assert control(url)[1]["queued"] == 2 and control(url, batch_slots=2)[1]["queued"] == 1
        assert control(url, fail_batch=True)[1]["failed"] == 2
        assert control(url, frozen=False)[0] == 200
        assert sorted(future.result(timeout=20) for future in asked) == [200, 424, 424]
        assert generate("arsenic") == 424
        assert control(url, earthquake=1) == (400, b"no such setting or kind of fault: earthquake")
        assert control(url)[1]["requests"] == 5  # the control requests are not among them
        control(url, restart={"down_s": 0, "model_id": "c/d"})

        def renamed() -> bool:
            with contextlib.suppress(OSError):
                return bool(json.load(urllib.request.urlopen(f"{url}/info"))["model_id"] == "c/d")
            return False

        until(renamed)
        control(url, frozen=True)
        last = pool.submit(generate)
        until(lambda: control(url)[1]["in_flight"] == 1)
        process.terminate()
        until(lambda: not listens(url))
        assert not last.done()
        process.kill()
        with pytest.raises((ConnectionError, urllib.error.URLError)):
            last.result(timeout=20)

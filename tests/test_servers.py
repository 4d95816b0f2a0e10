"""One recipe, unchanged, on every kind of server; SGLang's gateway and vLLM as they are, where they are installed.

PATH=$PATH:VENV/bin pytest tests/test_servers.py        VENV: with the wheel sglang-router
VLLM_CPU=FOLDER pytest -m slow tests/test_servers.py    FOLDER: for benchmarks/vllm_cpu.sh, which sets it up
"""

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from socket import socket

import pytest

from generation.__main__ import main
from generation.stages import CAPTIONS, INSTRUCTIONS, Row
from generation.store import Run
from generation.tgi.client import Answer, Endpoint, Request
from generation.tgi.embedded import MODEL, embedded_server
from tests.conftest import ROOT, write_recipe
from tests.fake_server import KINDS, FakeServer, Reply

WORDS = ("stone", "paper", "wicker", "copper", "velvet", "marble", "cotton", "timber")


def make(recipe: Path, folder: Path, url: str, *stages: str) -> Run:
    """Ask a server for the captions and conversations of a recipe."""
    assert main(["seeds", "--config", str(recipe), "--run-dir", str(folder)]) == 0
    for stage in stages or ("captions", "instructions"):
        assert main([stage, "--config", str(recipe), "--run-dir", str(folder), "--endpoint", url]) == 0
    return Run(folder)


def accepted(run: Run) -> list[Row]:
    stages = [stage for stage in (CAPTIONS, *INSTRUCTIONS.values()) if run.directory(stage).exists()]
    rows = [row for stage in stages for shard in run.shards(stage) for row in run.table(stage, shard).to_pylist()]
    return [{key: value for key, value in row.items() if not key.endswith("_tokens")} for row in rows]


def test_one_recipe_gives_equal_rows_on_every_kind_of_server(tmp_path: Path) -> None:
    recipe, rows = write_recipe(tmp_path, server={"model_name": "a/Model"}), dict[str, list[Row]]()
    for kind in KINDS:
        with FakeServer(kind) as server:
            rows[kind] = accepted(make(recipe, tmp_path / kind, server.url))
    assert len(rows["tgi"]) == 18 + 27 and all(found == rows["tgi"] for found in rows.values())


@pytest.mark.slow
def test_the_rows_of_a_real_server_are_those_of_any_other_that_says_the_same(tmp_path: Path) -> None:
    said, ask = dict[str, Reply](), Endpoint.ask

    async def record(endpoint: Endpoint, request: Request, timeout_s: float) -> Answer:
        answer = await ask(endpoint, request, timeout_s)
        said[f"{request.messages} {request.seed}"] = Reply(answer.text, answer.finish_reason)
        return answer

    own = {"captions": [{"name": "own", "path": "seeds.txt", "license": "MIT", "limit": 6}]}
    names = ("multiple_choice", "question_answering", "complex_reasoning")
    tasks = {name: {"prompt": f"{name}_small", "fraction": 0.2, "items": [1, 2]} for name in names}
    prompt, named = {"prompt": "expand_caption_small"}, {"model_name": MODEL}
    recipe = write_recipe(tmp_path, seeds=own, captions=prompt, instructions=tasks, server=named, attempts=20)
    with embedded_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "ask", record)
        real = accepted(make(recipe, tmp_path / "real", url))
    assert len(real) > 6
    for kind in set(KINDS) - {"openai"}:  # transformers serve cannot continue an answer
        with FakeServer(kind, script=lambda body, n: said.get(f"{body['messages']} {body['seed']}")) as server:
            assert accepted(make(recipe, tmp_path / kind, server.url)) == real


@contextmanager
def serving(*command: object, start_s: float) -> Iterator[str]:
    """Run a server's command, whose {} are a free port, and yield its URL once it lists its models."""
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = [str(part).replace("{}", str(port)) for part in command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline, up = f"http://127.0.0.1:{port}", time.monotonic() + start_s, False
    try:
        while not up:
            assert process.poll() is None and time.monotonic() < deadline, arguments
            time.sleep(0.2)
            with suppress(OSError):
                up = urllib.request.urlopen(f"{url}/v1/models", timeout=5).status == 200
        yield url
    finally:
        process.terminate()
        process.wait(60)


def mortal(n: int) -> FakeServer:
    """Return a server that dies at its n-th request, with all that is in flight, and is back after two seconds."""
    server = FakeServer("sglang", latency_s=0.2, slots=8)
    server.script = lambda body, number: server.spawn(server.die(2.0)) if number == n else None
    return server


@pytest.mark.skipif(not shutil.which("sglang-router"), reason="needs the command of the wheel sglang-router")
def test_behind_sglangs_gateway_both_servers_may_die_in_turn(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    seeds = [f"A {one} box on a {two} table by a {three} chair." for one, two, three in product(WORDS, repeat=3)]
    (tmp_path / "seeds.txt").write_text("\n".join(seeds))
    quick = ("--health-check-interval-secs", 1, "--cb-timeout-duration-secs", 2, "--policy", "round_robin")
    with mortal(30) as one, mortal(200) as two:
        command = ("sglang-router", "launch", "--port", "{}", *quick, "--worker-urls", one.url, two.url)
        with serving(*command, start_s=60) as url:
            run = make(recipe, tmp_path / "run", url, "captions")
    assert sorted(row["seed"] for row in accepted(run)) == sorted(seeds)
    assert one.counts["requests"] > 60 and two.counts["requests"] > 200  # each was asked again after its death


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("VLLM_CPU" not in os.environ, reason="needs a folder for benchmarks/vllm_cpu.sh in $VLLM_CPU")
def test_the_demo_on_a_real_vllm(tmp_path: Path) -> None:
    demo = ROOT / "generation/configs/demo.yaml"
    with serving(ROOT / "benchmarks/vllm_cpu.sh", os.environ["VLLM_CPU"], "{}", start_s=1200) as url:
        assert main(["run", "--config", str(demo), "--run-dir", str(tmp_path), "--endpoint", url]) == 0
    run = Run(tmp_path)
    for stage in (CAPTIONS, *INSTRUCTIONS.values()):
        logged = run.sessions(stage)[0]
        assert [server["kind"] for server in logged["servers"]] == ["vllm"] and logged["retries"] == {}
        assert not logged["rejected"]  # the model is small, but it may try ten times

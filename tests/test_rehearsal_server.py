"""The stand-in server as a process, asked by the project's own client; and the stand-in encoder."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from generation.config import STAND_IN, Embed, Server
from generation.encoders import load_encoder
from generation.encoders.stand_in import DIMENSION
from generation.errors import RecipeError, RehearsalError
from generation.prompts import load_prompt
from generation.recipe import load_recipe
from generation.rehearsal.account import COUNTS, Account, difference
from generation.rehearsal.ground import ServerProcess
from generation.rehearsal.load import capacity
from generation.rehearsal.sources import write_recipe
from generation.tgi.connect import connect
from generation.tgi.protocol import Answer, Question, Request, chat_frame
from tests.test_rehearsal_answers import bodies

SLOTS = 16
TEXTS = [f"A potter with {number} jars stands at the edge of an orchard." for number in range(400)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "counts", tmp_path / "server.err", SLOTS, 50_000.0, fault_seed=3) as process:
        yield process


@pytest.fixture
def account(server: ServerProcess, tmp_path: Path) -> Account:
    return Account(tmp_path / "counts")


def ask(url: str, texts: list[str], warm_up: bool = False) -> list[Answer]:
    """The answers about seeds, by the real client and scheduler."""

    async def run() -> list[Answer]:
        question = Question(load_prompt("expand_caption"))
        async with connect(Server(endpoints=(url,))) as scheduler:
            if warm_up:
                await scheduler.warm_up(question)
            requests = [Request(question, {"seed": text}, number) for number, text in enumerate(texts, 1)]
            return await asyncio.gather(*map(scheduler.ask, requests))

    return asyncio.run(run())


def test_the_real_client_gets_every_answer_through_all_faults_and_the_account_knows(
    server: ServerProcess, account: Account
) -> None:
    answers = ask(server.url, TEXTS, warm_up=True)
    assert [text.rstrip(".") in answer.text for text, answer in zip(TEXTS, answers, strict=True)].count(False) < 30
    assert all(answer.tokens_agree for answer in answers)
    counts = account.counts()
    failed = counts["429"] + counts["500"] + counts["reset"]
    assert failed > 0
    assert counts["captions"] == account.answers() == len(TEXTS)
    assert counts["warm_ups"] == 1
    assert counts["requests"] == len(TEXTS) + 1 + failed
    assert counts["in_flight"] == counts["lost"] == counts["refused"] == 0
    assert account.answered_again() == 0


def test_kill_9_loses_no_count_and_the_server_comes_back_on_its_port(server: ServerProcess, account: Account) -> None:
    first = ask(server.url, TEXTS[:50])
    before, url = account.counts(), server.url
    server.kill()
    assert account.counts() == before
    server.start()
    assert server.url == url
    assert ask(url, TEXTS[:60])[:50] == first
    assert account.answered_again() == 50
    assert difference(before, account.counts())["captions"] == 60


def test_a_client_that_goes_away_gets_no_answer_and_frees_its_place(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "counts", tmp_path / "err", SLOTS, 1.0, fault_seed=0) as slow:  # minutes an answer
        question = Question(load_prompt("expand_caption"))

        async def leave() -> None:
            async with connect(Server(endpoints=(slow.url,))) as scheduler:
                async with asyncio.timeout(0.5):
                    await scheduler.ask(Request(question, {"seed": TEXTS[0]}, 1))

        with pytest.raises(TimeoutError):
            asyncio.run(leave())
        account = Account(tmp_path / "counts")
        for _ in range(200):
            if account.counts()["lost"]:
                break
            asyncio.run(asyncio.sleep(0.01))
        assert account.counts()["lost"] == 1
        assert account.counts()["in_flight"] == account.answers() == 0


def test_more_requests_than_slots_are_refused_and_a_foreign_one_is_named(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "counts", tmp_path / "err", 1, 1.0, fault_seed=0) as one:
        (body,) = bodies("captions", TEXTS[:1])
        for content, status in ((b'{"messages": []}', 422), (b"no JSON", 422)):
            assert post(one.url, content)[0] == status

        async def two() -> list[int]:
            posts = [asyncio.create_task(asyncio.to_thread(post, one.url, body, 1.0)) for _ in range(2)]
            return [(await each)[0] for each in posts]

        assert sorted(asyncio.run(two())) == [0, 429]


def post(url: str, body: bytes, timeout_s: float = 10.0) -> tuple[int, Any]:
    """Status (0 for none in time) and JSON of a request by urllib."""
    try:
        with urllib.request.urlopen(f"{url}/v1/chat/completions", body, timeout=timeout_s) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except TimeoutError:
        return 0, None


def test_info_says_that_it_is_no_model(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/info", timeout=10) as reply:
        facts = json.load(reply)
    assert facts["model_id"] == STAND_IN
    assert facts["max_concurrent_requests"] == SLOTS


def test_the_capacity_is_asked_for_apart_from_what_counts(server: ServerProcess, account: Account) -> None:
    question = Question(load_prompt("expand_caption"))
    body = chat_frame(question, None).fill(Request(question, {"seed": TEXTS[0]}, 1))
    head = f"POST /v1/chat/completions?probe HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    assert capacity(server.url, [head + body], SLOTS, 0.2) > 0
    counts = account.counts()
    assert counts["probes"] > SLOTS
    assert counts["captions"] == counts["requests"] == counts["refused"] == account.answered_again() == 0


def test_the_server_ends_when_its_parent_does(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "counts", tmp_path / "err", SLOTS, 1000.0, fault_seed=0)
    assert process.process.stdin is not None
    process.process.stdin.close()
    assert process.process.wait(10) == 0


def test_a_port_that_is_taken_is_told(server: ServerProcess, tmp_path: Path) -> None:
    other = ServerProcess(tmp_path / "other", tmp_path / "other.err", SLOTS, 1000.0, fault_seed=0)
    other.kill()
    other._port = server._port
    with pytest.raises(RehearsalError, match=r"other\.err"):
        other.start()
    other.kill()


def test_an_account_counts_what_it_is_told_to(tmp_path: Path) -> None:
    account = Account(tmp_path / "counts")
    for key in (1, 2, 2, 2**63 - 1):
        account.answered("captions", key)
    account.add("429", 3)
    assert Account(tmp_path / "counts").counts() == dict.fromkeys(COUNTS, 0) | {"captions": 4, "429": 3}
    assert account.answered_again() == 1
    with pytest.raises(KeyError):
        account.add("418")


# -- the encoder ---------------------------------------------------------------------------------------------------


def test_made_up_vectors_are_those_of_their_texts_in_any_order_and_of_norm_1() -> None:
    encoder = load_encoder(Embed(encoder=STAND_IN))
    assert encoder.dimension == DIMENSION
    assert encoder.provenance()["model"] == STAND_IN
    texts = [f"{text} {number}" for number in range(5) for text in TEXTS]
    seen: list[int] = []
    vectors = encoder.encode(texts, seen.append, torch.float16).vectors
    assert sum(seen) == len(texts)
    assert vectors.dtype == torch.float16
    assert (vectors.double().norm(dim=1) - 1).abs().max() < 1e-3  # what `verify` asks for
    order = np.random.default_rng(0).permutation(len(texts))
    again = load_encoder(Embed(encoder=STAND_IN)).encode([texts[place] for place in order], dtype=torch.float16)
    assert torch.equal(again.vectors, vectors[order])
    assert len({bytes(row) for row in vectors.numpy()}) == len(texts)
    assert again.truncated == 0


def test_made_up_vectors_have_a_mean_and_cannot_be_compressed_more_than_real_ones() -> None:
    vectors = load_encoder(Embed(encoder=STAND_IN)).encode(TEXTS * 1, dtype=torch.float16).vectors
    assert 0.2 < vectors.float().mean(0).norm() < 0.4  # the modality's
    content = vectors.numpy().tobytes()
    assert len(pa.Codec("zstd").compress(content)) > 0.9 * len(content)


def test_a_stand_in_takes_no_settings_of_real_encoders(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 200)
    recipe.write_text(recipe.read_text().replace(f"encoder: {STAND_IN}", f"encoder: {STAND_IN}\n  text_head: clip"))
    with pytest.raises(RecipeError, match="'stand-in', which takes no text_head"):
        load_recipe(recipe)


def test_nothing_heavy_is_imported_by_the_server() -> None:
    code = "import sys, generation.rehearsal.server; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"

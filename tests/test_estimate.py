"""A dry run: what would be requested, counted and priced, with nothing written."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from generation.captions import make_captions
from generation.errors import FatalServerError
from generation.estimate import estimate_run
from generation.recipe import load_recipe
from generation.seeds import make_seeds
from generation.stages import CAPTIONS
from generation.store import Run
from tests.conftest import write_recipe
from tests.fake_server import FakeServer, Reply


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("tgi") as server:
        yield server


def figure(text: str, name: str) -> float:
    return float(re.findall(rf"  {name}\s+([\d.,]+)", text)[0].replace(",", ""))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_run_that_does_not_exist_is_estimated_and_stays_so(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, server={"endpoints": [server.url]}))
    estimate_run(tmp_path / "run", recipe, 4, usd_per_million=(1.0, 3.0), usd_per_hour=7200.0)
    said = capsys.readouterr().out
    assert "captions: 18 rows to request, prompt expand_caption@" in said
    assert server.counts["requests"] == 4 + 1  # and the warm-up
    prompt, answer, hours = (figure(said, name) for name in ("prompt tokens", "answer tokens", "time"))
    assert figure(said, "cost") == pytest.approx(18 * (prompt + 3 * answer) / 1e6 + 7200 * hours, abs=40)
    assert "characters a token, as the server counts the probes" in said and "4 probes at once" in said
    found = re.findall(r"longest prompt (\d+) \+ max_tokens (\d+); the server has (\d+)", said)
    longest, limit, context = map(int, found[0])
    assert figure(said, "context") == longest + limit and context == server.max_total_tokens and longest >= prompt
    assert said.count("--- prompt") == 3 and said.count("A red kite in a park.") <= 2
    assert "instructions/multiple_choice: about 9 rows" in said
    estimate_run(tmp_path / "run", recipe, 0)
    said = capsys.readouterr().out
    assert "unknown   (ask for probes)" in said and "cost" not in said
    assert server.counts["requests"] == 4 + 1 and not (tmp_path / "run").exists()


def test_what_is_left_of_a_stopped_run_is_counted_at_the_rate_it_had(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, server={"endpoints": [server.url]}))
    run = Run(tmp_path / "run", recipe, create=True)
    make_seeds(run)
    server.script = lambda body, n: Reply(status=402, body={"error": "no credit"}) if n > 8 else None
    with pytest.raises(FatalServerError, match="no credit"):
        make_captions(run)
    server.script, before = None, contents(run.path)
    ended = sum(path.read_bytes().count(b"\n") for path in run.directory(CAPTIONS).glob("[0-9]*.jsonl"))
    ended += sum(record.rows for record in run.records(CAPTIONS).values())
    capsys.readouterr()
    estimate_run(run.path, recipe, 0)
    said = capsys.readouterr().out
    assert 0 < ended < 18 and f"captions: {18 - ended} rows to request" in said
    assert f"this run, {run.sessions(CAPTIONS)[-1]['time']}" in said
    assert contents(run.path) == before
    make_captions(run)
    estimate_run(run.path, recipe, 2)
    said = capsys.readouterr().out
    assert "captions: nothing left to request" in said and "instructions/multiple_choice: 9 rows to request" in said
    assert said.count("--- prompt") == 9

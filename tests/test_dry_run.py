"""A dry run: what would be asked, counted and priced, with nothing written."""

import re
from pathlib import Path

import pytest

from generation.encoders.mean_pooling import embedded_model
from tests.conftest import generation, manifest, write_recipe
from tests.fake_tgi import FakeTGI
from tests.test_pipeline import answered, start, wait_until


def figure(text: str, name: str) -> float:
    match = re.search(rf"{name}\s+([\d.,]+)", text)
    assert match, text
    return float(match[1].replace(",", ""))


def test_a_run_that_does_not_exist_yet_is_told_of_and_stays_unmade(tmp_path: Path, fake: FakeTGI) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run", "--endpoint", fake.url)
    done = generation("run", *options, "--dry-run", "--probes", "4", "--usd-per-million", "1", "3")
    assert done.returncode == 0, done.stderr
    assert "captions: 18 rows to ask, prompt expand_caption_small@" in done.stdout
    assert answered(fake) == 4 + 1  # and the warm-up
    rows, prompt, answer = 18, figure(done.stdout, "prompt tokens"), figure(done.stdout, "answer tokens")
    cost = rows * (prompt * 1 + answer * 3) / 1e6
    assert abs(figure(done.stdout, "cost") - cost) <= 0.01
    assert "the server's /chat_tokenize" in done.stdout
    assert "4 probes at once" in done.stdout
    assert done.stdout.count("--- prompt") == 3
    assert "instructions/multiple_choice: about 9 rows" in done.stdout
    assert not (tmp_path / "run").exists()


def test_token_counts_agree_with_what_the_server_counts_when_it_is_asked(tmp_path: Path, fake: FakeTGI) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run", "--endpoint", fake.url)
    told = generation("captions", *options, "--dry-run").stdout
    assert generation("run", *options).returncode == 0
    files = manifest(tmp_path / "run")["stages"]["captions"]["files"].values()
    asked, tokens = (sum(file.get(key, 0) for file in files) for key in ("requests", "prompt_tokens"))
    assert figure(told, "prompt tokens") == pytest.approx(tokens / asked, rel=0.05)  # of the first shard's rows


def test_what_is_left_of_a_killed_run_is_told_at_the_rate_it_had_and_the_run_is_not_touched(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--config", write_recipe(tmp_path), "--run-dir", run)
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(max_concurrent_requests=3, latency_s=0.2) as server:
        endpoint = ("--endpoint", server.url)
        process = start("captions", *options, *endpoint)
        wait_until(lambda: answered(server) >= 8)
        process.terminate()
        process.wait()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        ended = sum(content.count(b"\n") for path, content in before.items() if path.suffix == ".jsonl")
        ended += sum(file.get("rows", 0) for file in manifest(run)["stages"]["captions"]["files"].values())
        done = generation("captions", *options, *endpoint, "--dry-run", "--probes", "0")
        assert done.returncode == 0, done.stderr
    assert f"captions: {18 - ended} rows to ask" in done.stdout
    session = manifest(run)["stages"]["captions"]["sessions"][-1]
    assert f"this run, {session['begun']}" in done.stdout
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_without_probes_a_tokenizer_counts_and_the_rate_is_said_to_be_unknown(tmp_path: Path, fake: FakeTGI) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run", "--endpoint", fake.url)
    done = generation("captions", *options, "--dry-run", "--probes", "0", "--tokenizer", embedded_model())
    assert done.returncode == 0, done.stderr
    assert "(the tokenizer given)" in done.stdout
    assert "time           unknown" in done.stdout
    assert answered(fake) == 0
    refused = generation("captions", *options, "--dry-run", "--tokenizer", tmp_path)
    assert f"{tmp_path} holds no tokenizer" in refused.stderr


def test_stages_that_are_done_have_nothing_left_to_ask(run_copy: Path, fake: FakeTGI) -> None:
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy, "--endpoint", fake.url)
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    done = generation("run", *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing left to ask") == 4
    assert answered(fake) == 0
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_conversations_are_told_of_once_there_are_captions(tmp_path: Path, fake: FakeTGI) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run", "--endpoint", fake.url)
    for stage in ("seeds", "captions"):
        assert generation(stage, *options[: 4 if stage == "seeds" else 6]).returncode == 0
    done = generation("run", *options, "--dry-run", "--probes", "2")
    assert done.returncode == 0, done.stderr
    assert "captions: nothing left to ask" in done.stdout
    assert "instructions/multiple_choice: 9 rows to ask" in done.stdout
    assert done.stdout.count("--- prompt") == 9

"""The offline default as it is: the real small model behind llama.cpp's HTTP server, the real encoder, end to end."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

from generation.encoders.mean_pooling import embedded_model
from tests.conftest import ROOT, TASK_NAMES, command, generation, manifest, rows, write_recipe


def start_server(*options: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        command("serve", *options), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


def gone(process: psutil.Process, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage on the real small model; a few rows, with conversations short enough for two shared cores."""
    folder = tmp_path_factory.mktemp("embedded")
    task = {"fraction": 0.5, "min_items": 1, "max_items": 2}
    instructions = {name: {"prompt": f"{name}_small", **task} for name in TASK_NAMES}
    recipe = write_recipe(folder, captions=6, shard_rows=4, instructions={"attempts": 8, **instructions})
    done = generation("run", "--config", recipe, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_every_seed_ends_once_as_a_caption_of_the_small_model_or_as_a_rejected_row(small_run: Path) -> None:
    ended = [row["id"] for stage in ("captions", "rejected/captions") for row in rows(small_run, stage)]
    assert sorted(ended) == [row["id"] for row in rows(small_run, "seeds")]
    captions = rows(small_run, "captions")
    assert len(captions) >= 4
    assert {row["model"] for row in captions} == {"SmolLM2-135M-Instruct-Q4_1"}
    assert all(row["caption"].startswith(row["seed"]) for row in captions)
    assert manifest(small_run)["stages"]["captions"]["demonstration"] is True


def test_conversations_are_well_formed(small_run: Path) -> None:
    conversations = [row for task in TASK_NAMES for row in rows(small_run, f"instructions/{task}")]
    assert len(conversations) >= 4
    for row in conversations:
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == 1


def test_a_reader_who_encodes_the_captions_again_finds_the_same_vectors(small_run: Path, tmp_path: Path) -> None:
    """From the built data set alone, with plain transformers; only the place of the weights is asked of us."""
    output = tmp_path / "unicorn-1.2m"
    script = [sys.executable, "unicorn_1_2m.py", "--run-dir", str(small_run), "--output", str(output)]
    subprocess.run(script, cwd=ROOT, check=True)
    assert (output / "README.md").read_text().split("\n---\n")[1].strip().startswith("> **A demonstration")
    table = pq.read_table(output / "with_embeddings")
    tokenizer, model = AutoTokenizer.from_pretrained(embedded_model()), AutoModel.from_pretrained(embedded_model())
    own = []
    for caption in table["caption"].to_pylist():
        with torch.inference_mode():
            inputs = tokenizer(caption, truncation=True, max_length=256, return_tensors="pt")
            own.append(torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0).numpy())
    mean = load_file(output / "transfer" / "unicorn.safetensors")["mean_text"]
    stored = np.array(table["image_embedding"].to_pylist(), dtype=np.float64)
    wanted = np.array(own) - mean
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(np.linalg.norm(stored, axis=1) - 1).max() < 1e-3
    assert (stored * wanted).sum(1).min() > 0.999


def test_serve_speaks_http_to_anyone_and_ends_when_its_parent_goes() -> None:
    process, url = start_server("--slots", "2", "--until-stdin-closes")
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["choices"][0]["message"]["content"]
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("seconds", [0.0, 0.4, 2.0])  # while it starts, when it is just up, at work
def test_kill_9_of_the_pipeline_takes_its_server_along(seconds: float, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    assert generation("seeds", "--config", recipe, "--run-dir", run).returncode == 0
    pipeline = subprocess.Popen(command("captions", "--config", recipe, "--run-dir", run), cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(pipeline.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(seconds)
    pipeline.kill()
    pipeline.wait()
    assert all(gone(child) for child in children)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, server={"embedded": {"slots": 1, "slot_tokens": 20_000_000}})
    assert generation("seeds", "--config", recipe, "--run-dir", tmp_path / "run").returncode == 0
    failed = generation("captions", "--config", recipe, "--run-dir", tmp_path / "run")
    assert failed.returncode == 1
    assert "1 slots of 20000000 tokens" in failed.stderr
    assert "Traceback" not in failed.stderr

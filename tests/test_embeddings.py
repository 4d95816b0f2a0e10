"""The embed stage with the embedded encoder, in one process and in two."""

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from generation import embeddings
from generation.embeddings import embed
from generation.encoders import Encoded, workers
from generation.encoders.mean_pooling import MeanPoolingEncoder, embedded_model
from generation.errors import EmbeddingError, RunError
from generation.recipe import load_recipe
from generation.rundir import RunDir
from tests.conftest import manifest, write_recipe


def embed_again(run: Path, **section: Any) -> dict[str, dict[str, Any]]:
    """Embeds the captions of a copied run anew; returns the manifest's records of the shards."""
    data = manifest(run)
    for stage in ("text_embeddings", "image_embeddings/unicorn"):
        del data["stages"][stage]
    (run / "manifest.json").write_text(json.dumps(data))
    embed(RunDir(run), load_recipe(write_recipe(run.parent, embed=section)))
    files: dict[str, dict[str, Any]] = manifest(run)["stages"]["text_embeddings"]["files"]
    return files


def test_a_killed_worker_is_told_and_two_processes_in_all_make_the_bytes_of_one(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manifest(run_copy)["stages"]["text_embeddings"]["files"]
    assert len(before) == 3
    real, killed = embeddings._seal, list[int | None]()

    def seal_then_kill(*arguments: Any) -> None:
        real(*arguments)
        if not killed:
            killed.extend(child.pid for child in workers.multiprocessing.active_children())
            for pid in killed:
                os.kill(pid or 0, signal.SIGKILL)

    monkeypatch.setattr(workers, "AHEAD", 1)  # so that the third shard is not handed out when the first is done
    monkeypatch.setattr(embeddings, "_seal", seal_then_kill)
    with pytest.raises(EmbeddingError, match=r"process was killed.*give the same command again"):
        embed_again(run_copy, workers=2)
    assert len(killed) == 2
    assert 1 <= len(RunDir(run_copy).sealed("text_embeddings")) < 3
    embed(RunDir(run_copy), load_recipe(run_copy.parent / "recipe.yaml"))
    assert manifest(run_copy)["stages"]["text_embeddings"]["files"] == before


def test_a_worker_that_cannot_load_its_encoder_tells_why(run_copy: Path, tmp_path: Path) -> None:
    for file in embedded_model().iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (tmp_path / "mine").mkdir(exist_ok=True)
            (tmp_path / "mine" / file.name).symlink_to(file)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(EmbeddingError, match="mine: the model cannot be loaded: [^;]*$"):
        embed_again(run_copy, encoder=str(tmp_path / "mine"), workers=2)


def test_captions_that_are_cut_are_warned_of_with_number_limit_and_alternatives(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MeanPoolingEncoder, "max_tokens", 20, raising=False)
    monkeypatch.setattr(MeanPoolingEncoder, "__init__", _cut_to_20)
    with caplog.at_level(logging.WARNING):
        files = embed_again(run_copy)
    assert sum(record["truncated"] for record in files.values()) == 18
    assert "18 of 18 captions (100.0 %) are longer than the 20 tokens" in caplog.text
    assert "LLM2CLIP (512 tokens)" in caplog.text


_real_init = MeanPoolingEncoder.__init__


def _cut_to_20(self: MeanPoolingEncoder, *arguments: Any) -> None:
    _real_init(self, *arguments)
    self.max_tokens = 20


def test_captions_that_fit_are_not_warned_of(run_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        files = embed_again(run_copy)
    assert sum(record["truncated"] for record in files.values()) == 0
    assert "captions" not in caplog.text


def test_a_vector_that_is_not_finite_is_refused_with_its_id(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: MeanPoolingEncoder, texts: list[str], *arguments: Any) -> Encoded:
        vectors = torch.zeros(len(texts), 384, dtype=torch.float16)
        vectors[1, 3] = float("nan")
        return Encoded(vectors, 0)

    monkeypatch.setattr(MeanPoolingEncoder, "encode", broken)
    with pytest.raises(EmbeddingError, match=r"shard 0, row 1 \(id 0000000001\).*NaN"):
        embed_again(run_copy)


def test_another_encoder_is_refused_on_resume(run_copy: Path) -> None:
    with pytest.raises(RunError, match="dtype: 'float32' -> 'bfloat16'"):
        embed(RunDir(run_copy), load_recipe(write_recipe(run_copy.parent, embed={"dtype": "bfloat16"})))


def test_a_shard_says_which_encoder_made_it(run_copy: Path) -> None:
    with safe_open(run_copy / "text_embeddings" / "00000.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["unicorn"])
    assert facts["encoder"] == manifest(run_copy)["stages"]["text_embeddings"]["fingerprint"]

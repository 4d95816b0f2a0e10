"""The embed stage on a tiny CLIP: what is due is made, once, by any number of processes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from generation import embed, encoders
from generation.config import Embed
from generation.embed import make_text_embeddings
from generation.encoders import base
from generation.errors import EmbeddingError, RunError
from generation.recipe import parse_recipe
from generation.stages import CAPTIONS, SEEDS, TEXT_EMBEDDINGS, row_id, text_hash
from generation.store import Run, parquet
from generation.vectors import VectorShard
from tests.tiny_models import TEXTS, tiny_clip

SHARDS, ROWS = 4, 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def run(tmp_path: Path, clip: Path) -> Run:
    return make_run(tmp_path / "run", clip)


def make_run(path: Path, encoder: Path | str) -> Run:
    """Make a run with captions in four shards."""
    recipe = {"name": "test", "directory": str(path.parent), "embed": {"encoder": str(encoder)}}
    run = Run(path, parse_recipe(recipe, "test"), create=True)
    for shard in range(SHARDS):
        run.commit(SEEDS, shard, ROWS, parquet(pa.table({"id": [row_id(shard, row) for row in range(ROWS)]})))
        write_captions(run, shard, dict(enumerate(TEXTS[shard * ROWS : (shard + 1) * ROWS])))
    return run


def write_captions(run: Run, shard: int, texts: dict[int, str]) -> None:
    table = pa.table({"id": [row_id(shard, row) for row in texts], "caption": list(texts.values())})
    run.commit(CAPTIONS, shard, len(texts), parquet(table))


def content(run: Run) -> dict[str, bytes]:
    """Return the vectors and records of a run."""
    return {file.name: file.read_bytes() for file in run.directory(TEXT_EMBEDDINGS).glob("0????.[js]*")}


def vectors(run: Run, shard: int) -> VectorShard:
    return VectorShard(run.verified(TEXT_EMBEDDINGS, shard))


def test_every_caption_has_the_vector_that_the_encoder_gives_it_and_cuts_are_warned_of(
    run: Run, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_text_embeddings(run)
    assert "10 of 10 captions (100.0%) are longer than the 20 tokens that clip takes" in caplog.text  # at once
    assert "40 of 40 captions" in caplog.text
    assert "embeds text only" not in caplog.text
    encoder = encoders.load_encoder(Embed(encoder=str(clip)))
    for shard in range(SHARDS):
        texts, made = TEXTS[shard * ROWS : (shard + 1) * ROWS], vectors(run, shard)
        assert made.ids == [row_id(shard, row) for row in range(ROWS)]
        assert made.input_hashes == list(map(text_hash, texts))
        torch.testing.assert_close(made.vectors, encoder.encode(texts).half(), atol=1e-3, rtol=0)
        assert made.metadata == {"encoder": encoder.identity, "shard": shard}
        tokens, cut = encoder.tokenise(texts)
        counts = {"tokens": sum(map(len, tokens)), "truncated": cut, "encoded": ROWS}
        assert run.records(TEXT_EMBEDDINGS)[shard].counts == counts
    assert run.facts(TEXT_EMBEDDINGS)["identity"] == encoder.identity
    assert run.require(TEXT_EMBEDDINGS)
    (session,) = run.sessions(TEXT_EMBEDDINGS)
    assert session["rows"] == session["encoded"] == SHARDS * ROWS


def test_only_captions_that_are_new_or_changed_are_encoded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_text_embeddings(run)
    before, first = content(run), vectors(run, 1).vectors.clone()
    monkeypatch.setattr(embed, "load_encoder", lambda *_: pytest.fail("a model was loaded, though nothing is due"))
    make_text_embeddings(run)
    monkeypatch.setattr(embed, "load_encoder", encoders.load_encoder)
    texts = dict(enumerate(TEXTS[10:20])) | {3: "another caption", 11: "a new caption"}
    del texts[5]
    write_captions(run, 1, texts)
    make_text_embeddings(run)
    after, rows = content(run), list(texts)
    assert {name for name in after if after[name] != before[name]} == {"00001.json", "00001.safetensors"}
    made = vectors(run, 1)
    assert run.records(TEXT_EMBEDDINGS)[1].counts["encoded"] == 2
    assert made.ids == [row_id(1, row) for row in rows]
    assert made.input_hashes == [text_hash(text) for text in texts.values()]
    same = [row < ROWS and torch.equal(made.vectors[place], first[row]) for place, row in enumerate(rows)]
    assert same == [row not in (3, 11) for row in rows]
    write_captions(run, 2, {})  # all rows rejected
    make_text_embeddings(run)
    assert vectors(run, 2).vectors.shape == (0, 12)


@pytest.mark.parametrize("damage", ["bytes", "missing", "encoder"])
def test_an_earlier_shard_that_cannot_be_trusted_is_not_reused(
    damage: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    make_text_embeddings(run)
    file = run.file(TEXT_EMBEDDINGS, 1)
    if damage == "encoder":
        tensors = load_file(file)
        run.commit(TEXT_EMBEDDINGS, 1, ROWS, lambda path: save_file(tensors, path, {"unicorn": "{}"}))
    elif damage == "bytes":
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    else:
        file.unlink()
    for changed in (copy, run):
        write_captions(changed, 1, dict(enumerate(TEXTS[10:19])))
        make_text_embeddings(Run(changed.path))
    assert content(run) == content(copy)
    assert ("encoding all captions again" in caplog.text) == (damage != "encoder")


KILLED = """
import os, signal, sys
from pathlib import Path
from generation import embed, store
real, calls = store.write_json, []
def killed(*arguments, **options):  # of a shard whose vectors are written already
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
store.write_json = killed
embed.make_text_embeddings(store.Run(Path(sys.argv[1])))
"""


def test_after_a_kill_the_same_command_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    make_text_embeddings(copy)
    process = subprocess.run([sys.executable, "-c", KILLED, str(run.path)])
    assert process.returncode == -signal.SIGKILL
    made = run.shards(TEXT_EMBEDDINGS)
    assert 0 < len(made) < SHARDS
    before = [run.file(TEXT_EMBEDDINGS, shard).stat().st_mtime_ns for shard in made]
    make_text_embeddings(run)
    assert content(run) == content(copy)
    assert [run.file(TEXT_EMBEDDINGS, shard).stat().st_mtime_ns for shard in made] == before


def test_tasks_and_processes_side_by_side_make_the_bytes_of_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    make_text_embeddings(run)
    used, load = list[str](), encoders.load_encoder
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(embed, "load_encoder", lambda *given: used.append(given[2]) or load(*given[:2]))
    make_text_embeddings(copy, 5, 6)
    make_text_embeddings(copy, 1, 2)
    assert copy.shards(TEXT_EMBEDDINGS) == [1, 3]
    with copy.claim(TEXT_EMBEDDINGS, 2):  # as by another process
        make_text_embeddings(copy)
    assert copy.shards(TEXT_EMBEDDINGS) == [0, 1, 3]
    times = [copy.file(TEXT_EMBEDDINGS, shard).stat().st_mtime_ns for shard in (0, 1, 3)]
    make_text_embeddings(copy)
    assert [copy.file(TEXT_EMBEDDINGS, shard).stat().st_mtime_ns for shard in (0, 1, 3)] == times
    assert content(copy) == content(run)
    assert used == ["cuda:1", "cuda:0", "cuda:0"]  # one GPU a task
    assert "embed uses 1 of 4 GPUs; give --executor local --tasks 4" in caplog.text


def test_what_cannot_be_embedded_is_an_error_and_leaves_nothing(
    run: Run, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = make_run(tmp_path / "own", "embedded")
    make_text_embeddings(own)
    assert vectors(own, 3).vectors.shape == (ROWS, 384)
    assert "all-MiniLM-L6-v2 embeds text only" in caplog.text and "longer than" not in caplog.text
    empty = Run(tmp_path / "empty", run.recipe, create=True)
    with pytest.raises(RunError, match="no captions yet. Run `python -m generation captions --run-dir .*empty`"):
        make_text_embeddings(empty)
    broken = make_run(tmp_path / "broken", shutil.copytree(clip, tmp_path / "bad"))
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(EmbeddingError, match="bad: cannot load its model"):
        make_text_embeddings(broken)
    assert not broken.facts(TEXT_EMBEDDINGS)
    shutil.copy(clip / "model.safetensors", tmp_path / "bad")
    make_text_embeddings(broken)
    tensors = load_file(clip / "model.safetensors") | {"logit_scale": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
    write_captions(broken, 0, {0: "another caption"})
    with pytest.raises(RunError, match="was begun with other settings: weights_sha256"):
        make_text_embeddings(broken)


def test_vectors_that_are_not_of_norm_1_are_refused_and_captions_that_change_meanwhile_stay_due(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, changes = base.Encoder.encode_tokens, iter([None, lambda: write_captions(run, 0, {0: "another caption"})])

    def encode(encoder: Any, *arguments: Any) -> torch.Tensor:
        made = real(encoder, *arguments)
        if change := next(changes, lambda: None):
            change()
        else:
            made[4] *= torch.nan
        return made

    monkeypatch.setattr(base.Encoder, "encode_tokens", encode)
    with pytest.raises(EmbeddingError, match=r"by clip of .*captions/00000\.parquet, row 4: its norm is nan"):
        make_text_embeddings(run)
    assert not run.shards(TEXT_EMBEDDINGS)
    make_text_embeddings(run)
    assert run.due(TEXT_EMBEDDINGS) == [0]
    make_text_embeddings(run)
    assert vectors(run, 0).input_hashes == [text_hash("another caption")]
    assert json.loads(run.file(TEXT_EMBEDDINGS, 0, ".json").read_text())["rows"] == 1

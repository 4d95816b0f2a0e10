"""Captions that repeat, or hold a benchmark's question: counted, and by recipe rejected with what they repeat."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from generation.config import Captions, Decontaminate, Duplicates, Recipe, Seeds
from generation.records import CAPTION_SCHEMA
from generation.rundir import RunDir
from generation.sift import sift_captions
from tests.conftest import generation, manifest, rows, write_recipe
from tests.fake_tgi import FakeTGI


@pytest.fixture
def repeated_run(tmp_path: Path) -> Path:
    """12 seeds, of which four are two pairs of the same words: the fake answers by the prompt's words alone."""
    seeds = [f"A grey heron stands beside pond number {number} at dawn." for number in range(8)]
    seeds += ["A red kite hangs over the hill.", "A red kite hangs over the hill!", "Two cats sit.", "Two cats sit. "]
    (tmp_path / "seeds.jsonl").write_text("".join(f'{{"text": "{seed}"}}\n' for seed in seeds))
    source = {"name": "own", "path": str(tmp_path / "seeds.jsonl"), "license": "MIT"}
    write_recipe(tmp_path, seeds={"shard_rows": 5, "captions": [source]})
    return tmp_path / "run"


def recipe(run: Path, **captions: Any) -> Recipe:
    return Recipe(
        name="own", directory=run.parent, seeds=Seeds(), captions=Captions(prompt="expand_caption_small", **captions)
    )


def made(run: Path) -> RunDir:
    options = ("--config", run.parent / "recipe.yaml", "--run-dir", run)
    with FakeTGI() as server:
        assert generation("seeds", *options).returncode == 0
        assert generation("captions", *options, "--endpoint", server.url).returncode == 0
    opened = RunDir(run)
    first = rows(run, "captions")[0]
    for shard in opened.sealed("captions"):  # one caption comes again, word for word
        table = opened.table("captions", shard).to_pylist()
        if shard == 1:
            table[0]["caption"] = first["caption"].upper()
        counts = {key: opened.record("captions", shard)[key] for key in ("requests", "retries", "rejected_by_reason")}
        opened.seal_tables("captions", shard, pa.Table.from_pylist(table, CAPTION_SCHEMA), None, **counts)
    return opened


def test_what_repeats_is_rejected_with_its_reason_and_what_it_repeats(repeated_run: Path) -> None:
    run = made(repeated_run)
    before = len(rows(repeated_run, "captions"))
    sift_captions(run, recipe(repeated_run, duplicates=Duplicates(action="drop", near_threshold=0.95)))
    sifted = manifest(repeated_run)["stages"]["captions"]["sifted"]
    rejected = [row for row in rows(repeated_run, "rejected/captions") if row["reason"].startswith("duplicate")]
    assert sifted["dropped"] == len(rejected) == sum(sifted["found"].values()) >= 1
    assert all("[duplicate_" in row["raw"] for row in rejected)
    captions = rows(repeated_run, "captions")
    assert len(captions) == before - len(rejected)
    assert len({caption["caption"].lower() for caption in captions}) == len(captions)
    balance = manifest(repeated_run)["stages"]["captions"]["balance"]
    assert (balance["accepted"], balance["pending"]) == (len(captions), 0)


def test_sifting_again_changes_nothing(repeated_run: Path) -> None:
    run = made(repeated_run)
    settings = recipe(repeated_run, duplicates=Duplicates(action="drop"))
    sift_captions(run, settings)
    before = {path: path.read_bytes() for path in repeated_run.rglob("*") if path.is_file()}
    sift_captions(RunDir(repeated_run), settings)
    assert {path: path.read_bytes() for path in repeated_run.rglob("*") if path.is_file()} == before


def test_a_report_alone_drops_nothing(repeated_run: Path) -> None:
    run = made(repeated_run)
    before = rows(repeated_run, "captions")
    sift_captions(run, recipe(repeated_run, duplicates=Duplicates(action="report")))
    assert manifest(repeated_run)["stages"]["captions"]["sifted"]["found"]
    assert rows(repeated_run, "captions") == before


def test_a_caption_that_holds_a_benchmarks_question_is_rejected(repeated_run: Path) -> None:
    run = made(repeated_run)
    caption = rows(repeated_run, "captions")[3]
    question = " ".join(caption["caption"].split()[4:14])
    (repeated_run.parent / "benchmark.txt").write_text(question + "\n")
    sift_captions(run, recipe(repeated_run, decontaminate=Decontaminate(file="benchmark.txt", action="drop")))
    rejected = [row for row in rows(repeated_run, "rejected/captions") if row["reason"] == "contaminated"]
    assert caption["id"] in {row["id"] for row in rejected}
    assert all(question in row["raw"] for row in rejected)


def test_captions_that_a_later_stage_refers_to_stay(repeated_run: Path) -> None:
    run = made(repeated_run)
    options = ("--config", repeated_run.parent / "recipe.yaml", "--run-dir", repeated_run)
    assert generation("embed", *options).returncode == 0
    before = rows(repeated_run, "captions")
    sift_captions(RunDir(run.path), recipe(repeated_run, duplicates=Duplicates(action="drop")))
    assert rows(repeated_run, "captions") == before
    assert manifest(repeated_run)["stages"]["captions"]["sifted"]["dropped"] == 0

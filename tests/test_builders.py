"""The two builder scripts, and what a reader sees who imports nothing of ours."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from safetensors.numpy import load_file

from generation.prompts import load_prompt
from tests.conftest import ROOT, TASK_NAMES, manifest, rows
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

SCRIPTS = {"unicorn-1.2m": "unicorn_1_2m.py", "unicorn-471k-instruction": "unicorn_471k_instruction.py"}


def build(name: str, run: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = ["--run-dir", str(run), "--output", str(output)]
    return subprocess.run(
        [sys.executable, SCRIPTS[name], *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for name in SCRIPTS:
        done = build(name, finished_run, folder / name)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def in_folder(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(built)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    yield built


def test_load_dataset_works_literally_in_a_process_that_knows_nothing_of_us(built: Path, tmp_path: Path) -> None:
    program = """
import numpy as np
from datasets import load_dataset
captions = load_dataset("unicorn-1.2m", split="train")
vectors = load_dataset("unicorn-1.2m", "with_embeddings", split="train").with_format("numpy", dtype=np.float16)
conversations = load_dataset("unicorn-471k-instruction", split="train")
joined = load_dataset("unicorn-471k-instruction", "with_embeddings", split="train")
print(len(captions), len(vectors), len(conversations), len(joined))
assert np.allclose(np.linalg.norm(vectors["image_embedding"][:].astype(np.float32), axis=1), 1, atol=1e-3)
for row in list(captions) + list(conversations):
    speakers = [turn["from"] for turn in row["conversations"]]
    assert speakers == ["human", "gpt"] * (len(speakers) // 2)
    assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == 1
by_id = {row["id"]: row["image_embedding"] for row in load_dataset("unicorn-1.2m", "with_embeddings", split="train")}
assert all(row["image_embedding"] == by_id[row["id"]] for row in joined)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=built, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["18", "18", "27", "27"]


def test_features_are_typed(in_folder: Path) -> None:
    features = datasets.load_dataset("unicorn-1.2m", "with_embeddings", split="train").features
    assert features["image_embedding"] == datasets.List(datasets.Value("float16"), length=384)
    assert features["source"] == datasets.ClassLabel(names=["bundled"])
    assert features["conversations"] == datasets.List(
        {"from": datasets.Value("string"), "value": datasets.Value("string")}
    )
    assert "image_embedding" not in datasets.load_dataset("unicorn-1.2m", split="train").features
    task = datasets.load_dataset("unicorn-471k-instruction", split="train").features["task"]
    assert task.names == ["multiple_choice", "question_answering", "complex_reasoning"]


def test_rows_agree_with_the_run_and_vectors_with_their_shards(in_folder: Path, finished_run: Path) -> None:
    captions = {row["id"]: row for row in rows(finished_run, "captions")}
    for row in datasets.load_dataset("unicorn-1.2m", "with_embeddings", split="train"):
        source = captions.pop(row["id"])
        assert (row["caption"], row["seed"]) == (source["caption"], source["seed"])
        assert row["conversations"] == [
            {"from": "human", "value": source["instruction"]},
            {"from": "gpt", "value": source["caption"]},
        ]
        shard = load_file(
            in_folder / f"unicorn-1.2m/image_embeddings/unicorn/{row['embedding_shard']:05d}.safetensors"
        )
        assert np.array_equal(
            np.float16(row["image_embedding"]), shard["embeddings"][row["embedding_row"]], equal_nan=False
        )
        assert bytes(shard["ids"][row["embedding_row"]]).decode() == row["id"]
    assert not captions


def test_the_class_works_by_itself(finished_run: Path, tmp_path: Path) -> None:
    for cls, count in ((Unicorn12M, 18), (Unicorn471KInstruction, 27)):
        builder = cls(
            config_name="with_embeddings",
            run_dir=str(finished_run),
            hash="run",
            cache_dir=str(tmp_path / cls.__name__),
        )
        builder.download_and_prepare()
        assert len(builder.as_dataset(split="train")) == count
        streamed = list(builder.as_streaming_dataset(split="train"))
        assert len(streamed) == count
        assert len(streamed[0]["image_embedding"]) == 384


def test_the_same_run_builds_the_same_bytes(built: Path, finished_run: Path, tmp_path: Path) -> None:
    for name in SCRIPTS:
        assert build(name, finished_run, tmp_path / name).returncode == 0
        first = {str(p.relative_to(built / name)): p.read_bytes() for p in (built / name).rglob("*") if p.is_file()}
        again = {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }
        assert first == again


def test_parquet_files_have_a_page_index_and_zstd(built: Path) -> None:
    for path in built.rglob("*.parquet"):
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert column.compression == "ZSTD"
        assert column.has_offset_index


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_card_is_legal_and_says_what_made_it(name: str, built: Path) -> None:
    card = DatasetCard.load(built / name / "README.md")
    assert card.data.license == "other"  # the fake's model has no known terms
    assert card.data.size_categories == ["n<1K"]
    assert [config["config_name"] for config in card.data["configs"]] == ["default", "with_embeddings"]
    assert card.data["configs"][0]["version"] == "1.0.0"
    text = card.text
    assert "There are no images here" in text
    assert "fake/Model-Instruct" in text
    assert "text-only" in str(card.data.tags)
    assert "demonstration" not in text.split("\n# ")[0]
    prompts = ["expand_caption_small"]
    if "instruction" in name:
        prompts += [f"{task}_small" for task in TASK_NAMES]
        assert "(chi-square p " in text
    assert all(load_prompt(prompt).name in text for prompt in prompts)


def test_a_demonstration_says_so_first(run_copy: Path, tmp_path: Path) -> None:
    data = manifest(run_copy)
    data["stages"]["captions"]["demonstration"] = True
    (run_copy / "manifest.json").write_text(json.dumps(data))
    assert build("unicorn-1.2m", run_copy, tmp_path / "out").returncode == 0
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert "A demonstration" in card.text.strip().split("\n")[0]


def test_a_missing_fact_fails_the_build_and_leaves_nothing(run_copy: Path, tmp_path: Path) -> None:
    data = manifest(run_copy)
    del data["stages"]["captions"]["demonstration"]
    (run_copy / "manifest.json").write_text(json.dumps(data))
    done = build("unicorn-1.2m", run_copy, tmp_path / "out")
    assert done.returncode == 1
    assert "demonstration" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "file", ["captions/00001.parquet", "image_embeddings/unicorn/00000.safetensors", "transfer/unicorn.safetensors"]
)
def test_a_tampered_file_is_refused_by_name(file: str, run_copy: Path, tmp_path: Path) -> None:
    content = bytearray((run_copy / file).read_bytes())
    content[-20] ^= 4
    (run_copy / file).write_bytes(content)
    done = build("unicorn-1.2m", run_copy, tmp_path / "out")
    assert done.returncode == 1
    assert file in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(run_copy: Path, tmp_path: Path) -> None:
    data = manifest(run_copy)
    del data["stages"]["image_embeddings/unicorn"]
    (run_copy / "manifest.json").write_text(json.dumps(data))
    done = build("unicorn-1.2m", run_copy, tmp_path / "out")
    assert done.returncode == 1
    assert "holds no embeddings yet" in done.stderr


def test_only_an_earlier_build_is_ever_replaced(built: Path, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused = build("unicorn-1.2m", finished_run, tmp_path / "mine")
    assert refused.returncode == 1
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert build("unicorn-1.2m", finished_run, finished_run).returncode == 1
    shutil.copytree(built / "unicorn-1.2m", tmp_path / "old")
    (tmp_path / "old" / "stale.txt").write_text("from an older build")
    assert build("unicorn-1.2m", finished_run, tmp_path / "old").returncode == 0
    assert not (tmp_path / "old" / "stale.txt").exists()

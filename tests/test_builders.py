"""Both builders: what a reader sees who imports nothing of ours, what is refused, and what the cards say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from safetensors.numpy import load_file

import tests.runs
from generation.builders import builder as builder_module
from generation.builders.build import build
from generation.builders.builder import UnicornBuilder
from generation.builders.published import PublishedDataset
from generation.errors import DatasetError, RunError
from generation.files import read_json, write_json
from generation.show import show_record
from generation.stages import CAPTIONS, INSTRUCTIONS, TASKS
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from tests.runs import make_recipe, make_run
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

ROOT = Path(__file__).parents[1]
BOTH: list[type[UnicornBuilder]] = [Unicorn12M, Unicorn471KInstruction]
Rows = list[dict[str, Any]]
EVIL = ["<script>alert(1)</script>", "a | b `c` {{ 7 * 7 }}", "[x](javascript:alert(1))", "$x$ **bold** # h", "1. *"]
SECTIONS = (
    "Use it|Rows|Examples?|Columns|How it was made|Quality|Limits|Intended use.*|Bias|Licences|Versions|"
    "Citation and contact|Changelog"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", judged=True).path


@pytest.fixture(scope="module")
def built(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for cls in BOTH:
        build(cls, run, folder / cls.NAME, version="1.2.0")
    return folder


@pytest.fixture
def copies(run: Path, built: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run and the folder of its two builds, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy")), Path(shutil.copytree(built, tmp_path / "built_copy"))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> Any:
    command, env = [sys.executable, *map(str, arguments)], {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200, check=False)


def stream(builder: UnicornBuilder) -> Rows:
    return list(builder.as_streaming_dataset(split="train"))


def rows(folder: Path) -> Rows:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_snippets_of_the_cards_work_in_a_process_that_knows_nothing_of_us(built: Path, tmp_path: Path) -> None:
    program = """
assert [str(vectors.info.version), len(list(stream))] == ["1.2.0", len(vectors)]
assert vectors[:8]["image_embedding"].dtype == torch.float16 and vectors[:8]["image_embedding"].shape == (8, 16)
for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
    for row in load_dataset(name, split="train"):
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert [turn["value"].count("<image>") for turn in row["conversations"]] == [1] + [0] * (len(speakers) - 1)
by_id = {row["id"]: row["image_embedding"] for row in load_dataset("unicorn-1.2m", "with_embeddings", split="train")}
joined = load_dataset("unicorn-471k-instruction", "with_embeddings", split="train")
assert all(row["image_embedding"] == by_id[row["id"]] for row in joined)
print(len(captions), len(conversations), len(by_id), len(joined))
"""
    cards = [(built / cls.NAME / "README.md").read_text() for cls in BOTH]
    snippets = [text for card in cards for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:3]]
    done = python("-c", "\n".join([*snippets, program]), cwd=built, HF_HOME=str(tmp_path))
    assert (done.returncode, done.stdout.split()) == (0, ["18", "27", "18", "27"]), done.stderr


def test_rows_are_those_of_the_run_and_vectors_those_of_the_shards(run: Path, built: Path) -> None:
    opened = Run(run)
    captions = {row["id"]: row for shard in range(3) for row in opened.table(CAPTIONS, shard).to_pylist()}
    stages = [(task, shard) for task in TASKS for shard in range(3)]
    talks = {(r["id"], t): r for t, s in stages for r in opened.table(INSTRUCTIONS[t], s).to_pylist()}
    for row in rows(built / "unicorn-1.2m" / "with_embeddings"):
        source = captions[row["id"]]
        assert all(row[name] == source[name] for name in ("caption", "seed", "license", "words", "prompt", "model"))
        turns = [("human", source["instruction"]), ("gpt", source["caption"])]
        assert row["conversations"] == [{"from": speaker, "value": text} for speaker, text in turns]
        path = built / "unicorn-1.2m" / "image_embeddings" / "unicorn" / f"{row['embedding_shard']:05d}.safetensors"
        shard = load_file(path)
        assert np.array_equal(np.float16(row["image_embedding"]), shard["vectors"][row["embedding_row"]])
        assert bytes(shard["ids"][row["embedding_row"]]).decode() == row["id"]
        assert row["judge"] == float(row["id"][-1] != "5")
    for row in rows(built / "unicorn-471k-instruction" / "data"):
        source = talks.pop((row["id"], TASKS[row["task"]]))
        assert (row["conversations"], row["caption"]) == (source["conversations"], captions[row["id"]]["caption"])
        assert (row["grounded"], row["judge"], row["question_types"]) == (0.75, 0.5, ["what", "how many"])
    assert not talks


def test_near_duplicates_are_searched_on_request_and_then_known_to_both_sets(tmp_path: Path) -> None:
    salt = " ".join(["", *map(str, range(300))])  # the same words in every caption: all are nearly equal
    run, first = make_run(tmp_path / "run", shards=1, salt=salt).path, "0000000000"
    assert {(row["judge"], row["duplicate_group"]) for row in stream(Unicorn12M(run_dir=str(run)))} == {(None, None)}
    for searched, said in [(False, "Near-duplicates were not searched"), (True, "Near-duplicates: 6 of 6 captions")]:
        manifest = build(Unicorn12M, run, tmp_path / "out", duplicates=searched)
        assert manifest["duplicates"] == (6 if searched else None)
        assert said in (tmp_path / "out" / "README.md").read_text()
    for cls in BOTH:  # not searched again
        assert {row["duplicate_group"] for row in stream(cls(run_dir=str(run)))} == {first}


@pytest.mark.parametrize("cls", BOTH)
def test_stored_prepared_and_from_the_run_are_the_same_rows(cls: type[UnicornBuilder], built: Path, run: Path) -> None:
    options = {"config_name": "with_embeddings", "data_dir": str(built / cls.NAME)}
    stored = stream(cls(**options))
    assert len(stored[0]["image_embedding"]) == 16
    assert stored == stream(cls(config_name="with_embeddings", run_dir=str(run)))
    builder = cls(config_name="with_embeddings", run_dir=str(run))
    builder.download_and_prepare(num_proc=2)
    prepared = builder.as_dataset(split="train")
    assert prepared.to_list() == stored
    assert prepared.features["image_embedding"] == datasets.List(datasets.Value("float16"), length=16)
    assert prepared.features["source"].names == ["alpha", "beta"]
    plain = stream(cls(data_dir=str(built / cls.NAME)))
    assert plain == [{name: value for name, value in row.items() if name != "image_embedding"} for row in stored]


def test_other_readers_see_every_value(built: Path) -> None:
    for folder in (built / cls.NAME / "with_embeddings" for cls in BOTH):
        wanted, polars = rows(folder), pl.read_parquet(folder / "*.parquet").to_dicts()
        for found in (duckdb.sql(f"FROM '{folder}/*.parquet'").to_arrow_table().to_pylist(), polars):
            assert found == wanted
        pandas = pd.read_parquet(folder)
        vectors = np.array([row["image_embedding"] for row in wanted], np.float16)
        assert np.array_equal(np.stack(pandas["image_embedding"]), vectors)
        assert [list(turns) for turns in pandas["conversations"]] == [row["conversations"] for row in wanted]


def test_files_suit_the_viewer_and_every_part_holds_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_module, "FILE_BYTES", 1)  # one file a shard
    make_run(tmp_path / "run", rows=20)
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        for path in (tmp_path / cls.NAME).rglob("*.parquet"):
            metadata = pq.read_metadata(path)
            columns = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
            assert all(column.has_offset_index for column in columns)
            vectors = [column.path_in_schema.startswith("image_embedding") for column in columns]
            assert [column.compression == "ZSTD" for column in columns] == [not vector for vector in vectors]
    paths = sorted((tmp_path / "unicorn-471k-instruction" / "data").iterdir())
    assert [path.name for path in paths] == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    for path in paths:
        tasks = pq.ParquetFile(path).read(["task"])["task"].to_pylist()
        assert set(tasks[:10]) == {0, 1, 2} and tasks != sorted(tasks)


def test_a_run_gives_the_same_bytes_linked_or_copied(run: Path, built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shard = "unicorn-1.2m/image_embeddings/unicorn/00000.safetensors"
    for linked in (True, False):  # the second over an earlier build
        for cls in BOTH:
            build(cls, run, tmp_path / cls.NAME, version="1.2.0")
        assert files(built) == files(tmp_path)
        assert (tmp_path / shard).samefile(run / shard.partition("/")[2]) == linked
        monkeypatch.setattr(os, "link", lambda *_: os.stat("/this/is/an/OSError"))


def test_a_changed_or_missing_file_is_named_and_refused(copies: tuple[Path, Path], tmp_path: Path) -> None:
    def tamper(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.unlink()  # it may be a link
        path.write_bytes(content)

    (run_copy, built_copy), before = copies, sorted(tmp_path.iterdir())
    stage = read_json(path := run_copy / "captions" / "stage.json")
    write_json(path, stage | {"identity": stage["identity"] | {"prompt_sha256": "0" * 64}})
    with pytest.raises(DatasetError, match="prompt expand_caption@.* was changed since the run"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    for file in ("captions/00001.parquet", "image_embeddings/unicorn/00000.safetensors"):  # vectors are read first
        tamper(run_copy / file)
        with pytest.raises(RunError, match=f"{file}: sha256"):
            build(Unicorn12M, run_copy, tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == before  # nothing is left
    folder = built_copy / "unicorn-1.2m"
    for config, part in (("with_embeddings", "with_embeddings"), ("default", "data")):
        tamper(folder / (file := f"{part}/train-00000-of-00001.parquet"))
        with pytest.raises(DatasetError, match=f"{file} was changed"):
            stream(Unicorn12M(config_name=config, data_dir=str(folder)))
        (folder / file).unlink()
        with pytest.raises(DatasetError, match=f"has no {file}"):
            stream(Unicorn12M(config_name=config, data_dir=str(folder)))


def test_rows_are_joined_only_with_the_vectors_they_were_built_with(built: Path, tmp_path: Path) -> None:
    name = "with_embeddings/train-00000-of-00001.parquet"
    talks, captions = (PublishedDataset(str(built / cls.NAME)) for cls in (Unicorn471KInstruction, Unicorn12M))
    joined = [row for part in talks.joined_tables("data" + name[15:], captions) for row in part.to_pylist()]
    assert joined == pq.read_table(built / talks.manifest["name"] / name).to_pylist()
    make_run(tmp_path / "run", salt="other")
    build(Unicorn12M, tmp_path / "run", tmp_path / "other")
    for source, word in ((PublishedDataset(str(tmp_path / "other")), "another"), (talks, "no")):
        with pytest.raises(DatasetError, match=rf"{word} image_embeddings/unicorn/00000\.safetensors"):
            list(talks.joined_tables("data" + name[15:], source))


def test_what_cannot_be_read_is_named_for_what_it_is(run: Path, built: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"data_dir": str(tmp_path)}, "has no manifest.json"),
        ({"data_dir": str(run)}, "It is a run: give it as run_dir"),
        ({"data_dir": "hf://datasets/user/unicorn-1.2m"}, "a pinned revision"),
        ({"data_dir": str(built / "unicorn-471k-instruction")}, "is a built unicorn-471k-instruction"),
        ({"run_dir": str(built / "unicorn-1.2m")}, "is a built data set, not a run"),
        ({}, "needs run_dir"),
    ]:
        with pytest.raises(DatasetError, match=message):
            Unicorn12M(**options)


def test_a_run_is_built_by_one_of_its_methods_and_only_if_complete(copies: tuple[Path, Path], tmp_path: Path) -> None:
    run_copy = copies[0]
    make_image_embeddings(Run(run_copy, make_recipe(run_copy, "mean_shift", judged=True)))
    assert build(Unicorn12M, run_copy, tmp_path / "new")["method"] == "mean_shift"  # the recipe's now
    manifest = build(Unicorn12M, run_copy, tmp_path / "named", method="unicorn")
    assert {name.split("/")[1] for name in manifest["vectors"]} == {"unicorn"}
    with pytest.raises(RunError, match="'image_embeddings/decap' is not complete"):
        build(Unicorn12M, run_copy, tmp_path / "out", method="decap")
    (run_copy / "transfer/unicorn.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="image_embeddings/unicorn' .*0 of 3"):
        build(Unicorn12M, run_copy, tmp_path / "out", method="unicorn")
    shutil.rmtree(run_copy / "image_embeddings")
    with pytest.raises(RunError, match=r"image_embeddings/mean_shift' is not .* generation transfer"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    (run_copy / "captions/00002.json").unlink()
    with pytest.raises(RunError, match=r"'captions' is not complete \(2 of 3 shards\). Run `"):
        build(Unicorn12M, run_copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_name_is_named_by_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, served in enumerate(("/data", "unknown")):
        monkeypatch.setattr("tests.runs.MODEL", served)
        path, output = make_run(tmp_path / f"run{place}", shards=1).path, tmp_path / f"out{place}"
        with pytest.raises(DatasetError, match=rf"'{served}'.*model_name: OWNER/NAME.*run --config RECIPE"):
            build(BOTH[place], path, output)
        make_run(path, shards=1, recipe={"server": {"model_name": "owner/Model-7B"}})
        build(BOTH[place], path, output)
        assert {row["model"] for row in rows(output / "data")} == {"owner/Model-7B"}
        card = (output / "README.md").read_text()
        assert "owner/Model-7B" in card and not re.search(rf"written by [^.]*{served}", card)


def test_only_an_earlier_build_is_replaced(copies: tuple[Path, Path], tmp_path: Path) -> None:
    run, built_copy = copies
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (built_copy / "unicorn-1.2m" / "notes.txt").write_text("also mine")
    for output, message in [
        (tmp_path / "mine", "no build wrote: thesis.txt"),
        (tmp_path / "mine" / "thesis.txt", "is a file"),
        (built_copy / "unicorn-1.2m", "no build wrote: notes.txt"),
        (run, "lies in the run"),
        (run / "captions" / "built", "lies in the run"),
        (run.parent, "or holds it"),
    ]:
        with pytest.raises(DatasetError, match=message):
            build(Unicorn12M, run, output)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_build_that_does_not_end_leaves_the_earlier_one(copies: tuple[Path, Path], monkeypatch: Any) -> None:
    run, built_copy = copies
    folder, rename = built_copy / "unicorn-1.2m", Path.rename
    before = files(folder)

    def stop(path: Path, target: Path) -> None:  # between the last two steps
        if target == folder:
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=f"cannot write {folder}: No space"):
        patch.setattr(pq.ParquetWriter, "write_table", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        build(Unicorn12M, run, folder)
    assert files(folder) == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop)
        build(Unicorn12M, run, folder, version="1.2.0")
    assert not folder.exists()
    build(Unicorn12M, run, folder, version="1.2.0")
    assert files(folder) == before
    assert sorted(path.name for path in built_copy.iterdir()) == ["unicorn-1.2m", "unicorn-471k-instruction"]


def test_a_stream_that_is_left_early_leaves_no_thread_that_could_abort_the_exit(built: Path, tmp_path: Path) -> None:
    program = f"""
import os, pyarrow.parquet
from unicorn_1_2m import Unicorn12M
before = len(os.listdir("/proc/self/task"))
rows = iter(Unicorn12M(data_dir={str(built / "unicorn-1.2m")!r}).as_streaming_dataset(split="train"))
print(next(rows)["id"], len(os.listdir("/proc/self/task")) - before)
"""
    done = python("-c", program, HF_HOME=str(tmp_path), OMP_NUM_THREADS="1")
    assert (done.returncode, done.stdout.split()) == (0, ["0000000000", "0"]), done.stderr


def test_show_prints_a_record_through_all_stages(run: Path) -> None:
    shown = show_record(Run(run))
    assert all(name in shown for name in ("seeds", "captions", "instructions/", "judgements/", "image_embeddings/"))
    assert "too_short: A <b>kettle</b>." in show_record(Run(run), "6")
    with pytest.raises(RunError, match="has no record '0000000099'"):
        show_record(Run(run), "99")


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetCard]:
    folder = tmp_path_factory.mktemp("cards")
    card = {"authors": ["Ada Example"], "homepage": "https://example.org", "bibtex": "@misc{ada, title={A}}"}
    make_run(folder / "run", judged=True, recipe={"card": card, "server": {"endpoints": ["http://secret:8000"]}})
    for cls in BOTH:
        build(cls, folder / "run", folder / cls.NAME, version="1.2.3", repo_id=f"user/{cls.NAME}")
        assert "secret" not in (folder / cls.NAME / "manifest.json").read_text()
    return {cls.NAME: DatasetCard.load(folder / cls.NAME / "README.md") for cls in BOTH}


@pytest.mark.parametrize("name", ["unicorn-1.2m", "unicorn-471k-instruction"])
def test_a_card_has_its_parts_and_answers_on_the_first_screen(name: str, cards: dict[str, DatasetCard]) -> None:
    card = cards[name]
    found = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
    assert all(re.fullmatch(*pair) for pair in zip(SECTIONS.split("|"), found, strict=True))
    screen = card.text[:1800]
    assert "figures/record.svg" in screen and "There are no images in it" in screen
    assert f'load_dataset("user/{name}", split="train", revision="v1.2.3")' in screen
    assert "small model wrote" not in screen
    for fact in ("Ada Example", "@misc{ada", "https://example.org", "fake/Model-Instruct", "fake/encoder"):
        assert fact in card.text
    assert ("27 conversations to teach" if "471k" in name else "18 dense captions") in screen
    wanted = {"expand_caption", "judge_captions"}
    if "471k" in name:
        wanted = {"multiple_choice", "question_answering", "complex_reasoning", "judge"}
        assert "| what | 27 | 50.0 % |" in card.text  # questions by type
        assert "27 questions were dropped from accepted answers" in card.text and "| letter | 27 |" in card.text
    assert {found.split("@")[0] for found in re.findall(r"^`(\w+@[\d.]+)`", card.text, re.MULTILINE)} == wanted


def test_metadata_is_legal_other_is_said_only_where_licences_differ_and_a_small_model_is_called_so(
    cards: dict[str, DatasetCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, card in cards.items():
        data, names = card.data, ("default", "with_embeddings")
        assert (data.license, data.size_categories) == ("other", ["n<1K"])
        assert data["license_link"] == f"https://huggingface.co/datasets/user/{name}#licences"
        assert [(one["config_name"], one["version"]) for one in data["configs"]] == [(name, "1.2.3") for name in names]
    monkeypatch.setitem(tests.runs.LICENSES, "alpha", "Apache-2.0")
    monkeypatch.setattr(tests.runs, "MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
    make_run(tmp_path / "run")
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        card = DatasetCard.load(tmp_path / cls.NAME / "README.md")
        assert (card.data.license, card.data.get("license_link")) == ("apache-2.0", None)
        assert "A small model wrote this text" in card.text.split("![")[1][:200]


def test_all_text_of_a_run_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\n".join(EVIL)
    monkeypatch.setattr(tests.runs, "_THINGS", (evil,))
    monkeypatch.setattr(tests.runs, "MODEL", EVIL[0])
    monkeypatch.setattr(tests.runs, "LICENSES", {"alpha": EVIL[1], "beta": EVIL[2]})
    make_run(tmp_path / "run", recipe={"card": {"authors": [EVIL[2]], "homepage": EVIL[2]}})
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        text = DatasetCard.load(tmp_path / cls.NAME / "README.md").text
        html = MarkdownIt("commonmark", {"html": True}).enable(["table"]).render(text)  # as permissive as can be
        figure = (tmp_path / cls.NAME / "figures" / "record.svg").read_text()
        tags = {node.tag.partition("}")[2] for node in ElementTree.fromstring(figure).iter()}
        assert tags == {"svg", "rect", "text"}
        assert "&lt;script&gt;alert(1)" in figure and "<script" not in html
        assert not re.search(r"href=.javascript", html)
        assert "<strong>bold" not in html and "<code>c</code>" not in html
        assert "a | b `c` {{ 7 * 7 }}" in html and "&lt;script&gt;alert(1)" in html


def test_the_changelog_is_carried_on_in_numbers(tmp_path: Path) -> None:
    run, output = make_run(tmp_path / "run").path, tmp_path / "unicorn-471k-instruction"
    for _ in range(2):
        assert build(Unicorn471KInstruction, run, output)["changelog"] == [["1.0.0", "first version"]]
    make_run(run, shards=4)
    (version, text), *others = build(Unicorn471KInstruction, run, output, version="1.1.0")["changelog"]
    assert (version, others) == ("1.1.0", [["1.0.0", "first version"]])
    assert "+3 rows of task multiple_choice" in text and text.endswith("; all vectors moved")
    with pytest.raises(DatasetError, match="version 1.0.9 is lower than 1.1.0"):
        build(Unicorn471KInstruction, run, output, version="1.0.9")

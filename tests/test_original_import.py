"""The original's files as a run: what is kept, dropped, counted, refused and gone on with, and what is built of it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard

from generation.builders.build import build
from generation.config import TASKS, Duplicates, Server
from generation.duplicates_report import report_duplicates
from generation.embeddings import embed
from generation.errors import OriginalError, RunError
from generation.instructions import make_instructions
from generation.original import shards as original_shards
from generation.original.importing import import_original
from generation.original.report import table
from generation.original.shards import MODEL
from generation.recipe import load_recipe
from generation.retry import retry
from generation.rundir import RunDir
from generation.seeds import make_seeds
from generation.show import show
from generation.transfer.stage import transfer
from tests.conftest import ROOT, command, generation, manifest, rows, write_recipe
from tests.fake_tgi import FakeTGI
from tests.synthetic_release import (
    caption_of,
    caption_row,
    choice_row,
    open_row,
    original_id,
    write_json,
    write_release,
)
from tests.test_original import CAPTION_DEFECTS, INSTRUCTION_DEFECTS
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

DEMO = ROOT / "generation" / "configs" / "demo.yaml"


def imported(folder: Path, paths: list[Path], name: str = "run", **options: Any) -> tuple[Path, dict[str, Any]]:
    return folder / name, import_original(RunDir(folder / name, create=True), paths, **{"shard_rows": 8, **options})


def tables(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.parquet"))}


def defective(folder: Path) -> list[Path]:
    """Files in which, after sound rows, each row has one defect."""
    damages = [damage for damages in CAPTION_DEFECTS.values() for damage in damages]
    captions = [caption_row(number) for number in range(40)]
    captions += [damage(caption_row(number)) for number, damage in enumerate(damages, 100)]
    instructions: list[Any] = [choice_row(number) for number in range(3)]
    instructions += [damage(choice_row(number)) for number, damage in enumerate(INSTRUCTION_DEFECTS.values(), 3)]
    instructions[6] = choice_row(999)  # of no caption
    return [write_json(folder / "p.json", captions), write_json(folder / "i.json", [*instructions, choice_row(0)])]


def test_every_row_is_taken_in_as_it_was_released(tmp_path: Path) -> None:
    run, report = imported(tmp_path, write_release(tmp_path, 20))
    assert report["captions"]["taken_in"] == 20
    assert report["instructions"]["taken_in"] == 18
    captions = rows(run, "captions")
    assert [row["id"] for row in captions] == [f"{n // 8:05d}{n % 8:05d}" for n in range(20)]
    assert [(row["original_id"], row["caption"]) for row in captions] == [
        (original_id(n), caption_of(n)) for n in range(20)
    ]
    assert {row["instruction"] for row in captions} == {"<image>\nDescribe the picture in detail."}
    assert {(row["model"], row["prompt"], row["prompt_tokens"], row["seed"]) for row in captions} == {
        (MODEL, None, None, None)
    }
    released = json.loads((tmp_path / "instructions.json").read_text())
    made = [row for task in TASKS for row in rows(run, f"instructions/{task}")]
    assert sorted((row["original_id"], str(row["conversations"])) for row in made) == sorted(
        (row["id"], str(row["conversations"])) for row in released
    )
    by_id = {row["id"]: row for row in captions}
    assert all(by_id[row["id"]]["original_id"] == row["original_id"] for row in made)
    assert not (run / "rejected").exists()
    assert not list(run.rglob("*.jsonl"))


def test_the_manifest_says_where_the_text_is_from(tmp_path: Path) -> None:
    paths = write_release(tmp_path, 10)
    run, _ = imported(tmp_path, paths, license="CC-BY-4.0")
    for stage in ("seeds", "captions", *(f"instructions/{task}" for task in TASKS)):
        files = manifest(run)["stages"][stage]["fingerprint"]["imported"]
        assert {name: file["kind"] for name, file in files.items()} == {
            "pretrain.json": "captions",
            "instructions.json": "instructions",
        }
        assert all(len(file["sha256"]) == 64 for file in files.values())
    assert manifest(run)["stages"]["captions"]["fingerprint"]["model"]["id"] == MODEL
    assert manifest(run)["stages"]["seeds"]["sources"] == {"unicorn_original": {"license": "CC-BY-4.0"}}


@pytest.mark.parametrize("defects", ["drop", "keep"])
def test_defective_rows_are_counted_and_dropped_or_kept(defects: str, tmp_path: Path) -> None:
    run, report = imported(tmp_path, defective(tmp_path), defects=defects)
    counts = {code: len(damages) for code, damages in CAPTION_DEFECTS.items()}
    assert report["captions"]["defects"] == counts
    assert report["captions"]["examples"]["not_an_object"][0] == {"file": "p.json", "row": 40, "id": None}
    assert report["instructions"]["defects"] == dict.fromkeys([*INSTRUCTION_DEFECTS, "id_duplicate"], 1)
    captions, rejected = rows(run, "captions"), rows(run, "rejected/captions")
    unusable = {"not_an_object", "conversations_malformed", "caption_not_text"}
    lost = sum(counts.values()) if defects == "drop" else sum(counts[code] for code in unusable)
    assert len(rejected) == report["captions"]["rejected"] == lost
    assert sorted(row["id"] for row in [*captions, *rejected]) == [
        row["id"] for row in sorted(rows(run, "seeds"), key=lambda row: row["id"])
    ]
    released = json.loads((tmp_path / "p.json").read_text())
    for row in rejected:
        place = int(row["id"][:5]) * 8 + int(row["id"][5:])
        assert json.loads(row["raw"]) == released[place]
        assert row["reason"] in counts
    if defects == "keep":
        assert unusable == {row["reason"] for row in rejected}
    no_task = rows(run, "rejected/import")
    wanted = ["not_an_object", "conversations_malformed", "id_missing", "caption_unknown"]
    assert sorted(row["reason"] for row in no_task) == sorted(wanted)
    kept = sum(len(rows(run, f"instructions/{task}")) for task in TASKS)
    assert kept == (3 if defects == "drop" else 3 + len(INSTRUCTION_DEFECTS) + 1 - len(no_task))
    assert "| id_duplicate | 1 |" in table(report)


def test_what_is_kept_is_built_to_the_letter(tmp_path: Path) -> None:
    odd = [
        CAPTION_DEFECTS[code][0](caption_row(number))
        for number, code in enumerate(("several_exchanges", "gpt_not_caption", "turns_out_of_order"), 50)
    ]
    path = write_json(tmp_path / "p.json", [*(caption_row(number) for number in range(9)), *odd])
    run, _ = imported(tmp_path, [path], defects="keep")
    builder = Unicorn12M(run_dir=str(run), hash="kept", cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    built = {row["original_id"]: row["conversations"] for row in builder.as_dataset(split="train")}
    assert built == {row["id"]: row["conversations"] for row in json.loads(path.read_text())}


def test_the_checks_report_and_drop_nothing(tmp_path: Path) -> None:
    short = caption_row(30)
    short["caption"] = short["conversations"][1]["value"] = "A boat lies on a lake."
    path = write_json(tmp_path / "p.json", [caption_row(0), short, caption_row(1), open_row(1)])
    instructions = write_json(tmp_path / "i.json", [open_row(0), open_row(1)])
    run, report = imported(tmp_path, [path, instructions])
    assert report["captions"]["checks"] == {"too_short": 1}
    assert report["instructions"]["stages"]["instructions/question_answering"] == {
        "rows": 2,
        "checks": {"too_few_items": 2},
    }
    assert len(rows(run, "captions")) == 3
    assert "of 3 rows the checks of generated text would refuse 1" in table(report)


def test_many_rows_are_spooled_in_small_pieces_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_release(tmp_path, 60)
    whole, _ = imported(tmp_path, paths)
    monkeypatch.setattr(original_shards, "WAITING_BYTES", 3000)
    pieces, _ = imported(tmp_path, paths, "pieces")
    assert tables(whole) == tables(pieces)


def test_an_import_that_is_killed_anywhere_ends_as_one_that_was_not(tmp_path: Path) -> None:
    paths = write_release(tmp_path, 600)
    whole, report = imported(tmp_path, paths, shard_rows=20)
    arguments = command("import-original", *paths, "--run-dir", tmp_path / "killed", "--shard-rows", 20)
    for target in ("seeds/00010.parquet", "captions/00003.parquet", "instructions/multiple_choice/00004.parquet"):
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "killed" / target).exists():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert "report" not in manifest(tmp_path / "killed")["stages"]["import"], "killed too late to tell"
    assert generation(*arguments[3:]).returncode == 0
    assert tables(tmp_path / "killed") == tables(whole)
    assert manifest(tmp_path / "killed")["stages"]["import"]["report"] == report
    assert not list((tmp_path / "killed").rglob("*.jsonl"))


def test_nothing_half_made_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_release(tmp_path, 20)
    monkeypatch.setattr("generation.original.importing._captions", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        imported(tmp_path, paths)
    with pytest.raises(RunError, match="'captions' has 0 of 3 shards"):
        embed(RunDir(tmp_path / "run"), load_recipe(DEMO))


def test_other_files_or_settings_are_refused_by_name(tmp_path: Path) -> None:
    paths = write_release(tmp_path, 12)
    run, report = imported(tmp_path, paths)
    before = tables(run)
    assert imported(tmp_path, paths) == (run, report)
    with pytest.raises(RunError, match=r"defects: 'drop' -> 'keep'"):
        imported(tmp_path, paths, defects="keep")
    other = write_json(tmp_path / "other.json", [caption_row(number) for number in range(3)])
    with pytest.raises(RunError, match=r"imported\.other\.json: None -> .*imported\.pretrain\.json: \{.*-> None"):
        imported(tmp_path, [other])
    write_json(paths[0], [caption_row(number) for number in range(13)])
    with pytest.raises(RunError, match=r"imported\.pretrain\.json\.sha256"):
        imported(tmp_path, paths)
    assert tables(run) == before
    generated = RunDir(tmp_path / "generated", create=True)
    generated.begin("seeds", {"shard_rows": 8})
    with pytest.raises(RunError, match="holds a run that was generated"):
        import_original(generated, paths)


def test_what_cannot_be_imported_changes_nothing(tmp_path: Path) -> None:
    pretrain, instructions = write_release(tmp_path, 12)
    (tmp_path / "again").mkdir()
    bad = tmp_path / "bad.json"
    bad.write_bytes(pretrain.read_bytes()[:-50])
    for paths, options, message in (
        ([instructions], {}, r"none of instructions\.json is the pre-training file"),
        ([pretrain, tmp_path / "gone.json"], {}, r"gone\.json: no such file"),
        ([pretrain, pretrain], {}, r"pretrain\.json given more than once"),
        ([pretrain, bad], {}, r"bad\.json, row 11: the file breaks off"),
        ([pretrain], {"shard_rows": 0}, r"--shard-rows 0 must lie in 1\.\.100000"),
    ):
        with pytest.raises((OriginalError, RunError), match=message):
            imported(tmp_path, paths, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_from_released_files_to_both_data_sets(tmp_path: Path) -> None:
    paths, run = write_release(tmp_path, 20), tmp_path / "run"
    done = generation("import-original", *paths, "--run-dir", run, "--shard-rows", 8, "--license", "Apache-2.0")
    assert done.returncode == 0, done.stderr
    assert "captions: 20 rows, 20 taken in, 0 rejected" in done.stdout
    embed(RunDir(run), load_recipe(DEMO))
    transfer(RunDir(run), load_recipe(DEMO))
    for cls, name, count in ((Unicorn12M, "u", 20), (Unicorn471KInstruction, "i", 18)):
        build(cls, run, tmp_path / name)
        data = datasets.load_dataset(str(tmp_path / name), "with_embeddings", split="train", cache_dir=str(tmp_path))
        assert len(data) == count
        assert all(len(row["image_embedding"]) == 384 for row in data)
        kind = "pretrain" if name == "u" else "instructions"
        released = json.loads((tmp_path / f"{kind}.json").read_text())
        assert sorted((row["original_id"], row["caption"], str(row["conversations"])) for row in data) == sorted(
            (row["id"], row["caption"], str(row["conversations"])) for row in released
        )
        card = DatasetCard.load(tmp_path / name / "README.md")
        assert card.data.source_datasets == ["Yu2020/Unicorn"]
        assert "**The captions are the original's.**" in card.text
        assert manifest(run)["stages"]["import"]["fingerprint"]["imported"]["pretrain.json"]["sha256"] in card.text
        for claim in ("independent re-implementation", "tokens written", "Every item passed", "options are shuffled"):
            assert claim not in card.text


def test_the_other_commands_know_an_imported_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(imported(tmp_path, write_release(tmp_path, 20))[0])
    show(run, "0000100002")
    assert f"id in the original        {original_id(10)}" in capsys.readouterr().out
    assert "duplicate_near" in report_duplicates(run, "captions", Duplicates(), None)["counts"]
    with pytest.raises(RunError, match="which holds no seeds; name captions"):
        report_duplicates(run, "seeds", Duplicates(), None)
    with pytest.raises(RunError, match="captions, instructions/multiple_choice, .* were imported, so no server"):
        retry(run, Server())
    with pytest.raises(RunError, match="stage 'seeds' was begun with other settings: .*imported"):
        make_seeds(run, load_recipe(DEMO))


def test_conversations_are_generated_about_imported_captions(tmp_path: Path, fake: FakeTGI) -> None:
    run = RunDir(imported(tmp_path, write_release(tmp_path, 20)[:1])[0])
    recipe = load_recipe(write_recipe(tmp_path), {"endpoints": [fake.url]})
    for stage in (make_instructions, embed, transfer):
        stage(run, recipe)
    build(Unicorn471KInstruction, run.path, tmp_path / "made")
    card = DatasetCard.load(tmp_path / "made" / "README.md").text
    for claim in ("**The captions are the original's.**", "tokens written", "multiple_choice_small", "are shuffled"):
        assert claim in card
    data = datasets.load_dataset(str(tmp_path / "made"), split="train", cache_dir=str(tmp_path / "cache"))
    captions = {row["original_id"]: row["caption"] for row in rows(run.path, "captions")}
    assert all(captions[row["original_id"]] == row["caption"] for row in data)

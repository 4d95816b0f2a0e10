"""``repair`` makes again what is broken and what was made from it, and nothing else; killed anywhere, it goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generation.errors import RunError
from generation.recipe import load_recipe
from generation.rundir import RunDir
from generation.verification.command import verify
from generation.verification.of_run import verify_run
from generation.verification.opening import take_out
from generation.verification.plan import plan_repair
from generation.verification.repair import repair_run
from tests.conftest import generation, manifest, recipe_data, rows, write_recipe
from tests.damage import edit, flip, state
from tests.fake_tgi import FakeTGI, Fault
from tests.test_pipeline import answered, start, wait_until
from tests.test_verify import COUNTS

SEEDS, CAPTIONS = "seeds/00001.parquet", "captions/00001.parquet"
TALK = "instructions/question_answering/00001.parquet"
TEXT, IMAGE = "text_embeddings/00001.safetensors", "image_embeddings/unicorn/00001.safetensors"
STATISTICS = "transfer/unicorn.safetensors"
TALKS = {
    f"instructions/{task}/00001.parquet" for task in ("multiple_choice", "question_answering", "complex_reasoning")
}


def repair(run: Path, server: FakeTGI | None = None, dry_run: bool = False) -> None:
    recipe = load_recipe(run.parent / "recipe.yaml", {"endpoints": [server.url]} if server else None)
    repair_run(RunDir(run), recipe, dry_run)


def changed(before: dict[str, Any], run: Path) -> set[str]:
    """Files of a run that are no longer the same file, but for the manifest and what was moved aside."""
    after = state(run)
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return {name for name in names if not name.startswith(("manifest.json", "damaged/", ".lock"))}


def break_it(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        flip(path)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", [SEEDS, TEXT, IMAGE, STATISTICS])
def test_what_depends_on_no_server_is_made_again_byte_for_byte(
    name: str, how: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = state(run_copy)
    break_it(run_copy / name, how)
    before = state(run_copy)
    repair(run_copy)
    assert (run_copy / name).read_bytes() and state(run_copy)[name][2] == whole[name][2]
    allowed = {name, STATISTICS} if name == IMAGE else {name}  # the statistics are fitted and sealed alike
    assert name in changed(before, run_copy) <= allowed
    assert state(run_copy)[STATISTICS][2] == whole[STATISTICS][2]
    assert f"{name}: made again, byte for byte as it was" in (said := capsys.readouterr().out) or (
        f"{name}: read again, byte for byte as it was" in said
    )
    assert (run_copy / "damaged" / name).exists() == (how != "gone")
    assert verify(run_copy).faults == []
    assert "repair" not in manifest(run_copy)


def test_a_lost_caption_shard_is_asked_again_with_all_that_was_made_from_it(run_copy: Path, fake: FakeTGI) -> None:
    talks = rows(run_copy, "instructions/question_answering")
    flip(run_copy / CAPTIONS)
    before = state(run_copy)
    repair(run_copy, fake)
    assert verify(run_copy).faults == []
    assert changed(before, run_copy) <= {CAPTIONS, *TALKS, TEXT, IMAGE, STATISTICS} | {
        name for name in before if name.startswith("image_embeddings/")
    }
    asked = 8 + sum(manifest(run_copy)["stages"][name]["samples"][0]["counts"]["1"] for name in map(stage_of, TALKS))
    assert asked <= answered(fake) <= asked + 8  # warm-ups, and items that are asked for again
    assert [row for row in rows(run_copy, "instructions/question_answering") if row["caption_shard"] != 1] == [
        row for row in talks if row["caption_shard"] != 1
    ]
    assert moved(run_copy) == {CAPTIONS, *TALKS, TEXT}


def stage_of(name: str) -> str:
    return str(Path(name).parent)


def test_other_texts_move_the_mean_and_so_all_image_embeddings(run_copy: Path) -> None:
    """A server that answers otherwise than before."""
    flip(run_copy / CAPTIONS)
    images = {name: facts[2] for name, facts in state(run_copy).items() if name.startswith("image_embeddings")}
    with FakeTGI(faults=[Fault("garbage", frozenset(range(1, 5)))]) as server:  # other attempts, other texts
        repair(run_copy, server)
    after = state(run_copy)
    assert all(after[name][2] != sha256 for name, sha256 in images.items())
    assert verify(run_copy).faults == []


def test_captions_that_are_rejected_this_time_are_not_asked_about(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run_copy / CAPTIONS)
    with FakeTGI(faults=[Fault("garbage", frozenset(range(1, 33)))]) as server:  # four attempts at eight rows
        repair(run_copy, server)
    assert "corrected" not in capsys.readouterr().out
    assert manifest(run_copy)["stages"]["captions"]["balance"]["rejected"] == 8
    for talk in TALKS:
        stage = manifest(run_copy)["stages"][stage_of(talk)]
        assert (stage["samples"][0]["counts"]["1"], stage["balance"]["pending"]) == (0, 0)
    assert verify(run_copy).faults == []


def test_lost_conversations_alone_are_asked_again(run_copy: Path, fake: FakeTGI) -> None:
    (run_copy / TALK).unlink()
    before = state(run_copy)
    repair(run_copy, fake)
    assert changed(before, run_copy) == {TALK}
    count = manifest(run_copy)["stages"][stage_of(TALK)]["samples"][0]["counts"]["1"]
    assert answered(fake) == count + 1  # and the warm-up
    assert verify(run_copy).faults == []


@pytest.fixture(scope="module")
def rejecting_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first caption shard has rejected rows."""
    folder = tmp_path_factory.mktemp("rejecting")
    options = ("--config", write_recipe(folder, captions_section={"attempts": 1}), "--run-dir", folder / "run")
    with FakeTGI(faults=[Fault("garbage", frozenset(range(1, 4)))]) as server:
        assert generation("run", *options, "--endpoint", server.url).returncode == 0
    return folder


@pytest.fixture
def rejecting(rejecting_once: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    shutil.copytree(rejecting_once, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    assert verify(run).faults == []
    files = manifest(run)["stages"]["captions"]["files"]
    yield run, next(name for name in files if name.startswith("rejected/"))


def test_lost_rejected_rows_are_asked_again_and_accepted_ones_keep_their_places(
    rejecting: tuple[Path, str], fake: FakeTGI
) -> None:
    run, name = rejecting
    kept = name.removeprefix("rejected/")
    shard = int(Path(name).stem)
    accepted = RunDir(run).table("captions", shard).to_pylist()
    lost = manifest(run)["stages"]["captions"]["files"][name]["rows"]
    talks = {path: facts for path, facts in state(run).items() if path.startswith("instructions/")}
    (run / name).unlink()
    repair(run, fake)
    assert answered(fake) == lost + 1
    assert RunDir(run).table("captions", shard).to_pylist()[: len(accepted)] == accepted
    assert {path: facts for path, facts in state(run).items() if path.startswith("instructions/")} == talks
    assert verify(run).faults == []
    assert manifest(run)["stages"]["captions"]["balance"]["pending"] == 0
    assert kept in manifest(run)["stages"]["captions"]["files"]


def test_rejected_rows_stay_where_the_accepted_ones_are_lost(rejecting: tuple[Path, str], fake: FakeTGI) -> None:
    run, name = rejecting
    before = [row for row in rows(run, "rejected/captions") if int(row["id"][:5]) == int(Path(name).stem)]
    flip(run / name.removeprefix("rejected/"))
    repair(run, fake)
    after = [row for row in rows(run, "rejected/captions") if int(row["id"][:5]) == int(Path(name).stem)]
    assert after == before
    assert verify(run).faults == []


@pytest.mark.parametrize("what", COUNTS)
def test_a_wrong_count_is_corrected_and_no_file_touched(what: str, run_copy: Path) -> None:
    whole, (keys, value) = manifest(run_copy), COUNTS[what]
    edit(run_copy, "stages", *keys, value=value)
    before = state(run_copy)
    repair(run_copy)
    assert manifest(run_copy) == whole
    assert changed(before, run_copy) == set()


@pytest.mark.parametrize("name", [SEEDS, CAPTIONS, TEXT])
def test_a_wrong_hash_of_a_file_that_others_vouch_for_is_corrected(name: str, run_copy: Path) -> None:
    whole = manifest(run_copy)
    edit(run_copy, "stages", stage_of(name), "files", name, "sha256", value="0" * 64)
    before = state(run_copy)
    repair(run_copy)
    assert manifest(run_copy) == whole
    assert changed(before, run_copy) == set()


def test_unknown_files_are_moved_away_and_never_deleted(run_copy: Path) -> None:
    foreign = {"captions/00009.parquet": "a", "notes.txt": "b", "seeds/.00001.parquet.tmp": "c"}
    for content in ("first", "second"):
        for name in foreign:
            (run_copy / name).write_text(content)
        repair(run_copy)
    for name in foreign:
        assert (run_copy / "damaged" / name).read_text() == "first"
        assert (run_copy / "damaged" / f"{name}.1").read_text() == "second"
    assert verify(run_copy).faults == []


def test_a_damaged_line_of_a_journal_costs_its_row_alone(tmp_path: Path) -> None:
    options = ("--config", write_recipe(tmp_path, shard_rows=18), "--run-dir", run := tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    with FakeTGI(faults=[Fault("hang", frozenset(range(11, 99)))]) as server:
        process = start("captions", *options, "--endpoint", server.url)
        journal = run / "captions" / "00000.jsonl"
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 10)
        process.kill()
        process.wait()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b'{"id": \n', *lines[5:]]))
    repair(run)
    assert journal.read_bytes().splitlines(keepends=True) == [*lines[:4], *lines[5:]]
    assert b'{"id": \n' in (run / "damaged" / "captions" / "00000.jsonl.copy").read_bytes()
    assert verify(run).faults == []


def test_an_unfinished_run_is_mended_and_not_gone_on_with(run_copy: Path, fake: FakeTGI) -> None:
    run = RunDir(run_copy)
    for stage in ("image_embeddings/unicorn", "text_embeddings"):
        run.unseal(stage, 2)
    flip(run_copy / CAPTIONS)
    flip(run_copy / TEXT)
    repair(run_copy, fake)
    found = verify(run_copy)
    assert found.faults == []
    assert [note.split(" is ")[0] for note in found.notes] == ["text_embeddings", "image_embeddings/unicorn"]


def test_seeds_of_another_recipe_are_refused_with_what_differs(run_copy: Path) -> None:
    (run_copy / SEEDS).unlink()
    before = state(run_copy)
    (run_copy.parent / "recipe.yaml").write_text(json.dumps(recipe_data(captions=17)))
    with pytest.raises(RunError, match=r"00001\.parquet cannot be made again: the recipe makes other seeds"):
        repair(run_copy)
    assert changed(before, run_copy) == set()


def test_what_will_be_done_is_said_beforehand_and_only_that_with_dry_run(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run_copy / CAPTIONS)
    flip(run_copy / IMAGE)
    before = state(run_copy)
    repair(run_copy, dry_run=True)
    said = capsys.readouterr().out
    assert "captions, shard 1: 8 rows are asked of a server again, since their file is broken" in said
    assert "instructions/question_answering, shard 1: 4 rows are asked of a server again, since their captions" in said
    assert f"{TEXT}: made again; from other texts than before" in said
    assert changed(before, run_copy) == set()
    with pytest.raises(RunError, match="this needs the run's recipe: --config RECIPE"):
        repair_run(RunDir(run_copy), None)
    assert changed(before, run_copy) == set()


def test_kill_9_while_rows_are_asked_again_loses_no_answer(run_copy: Path) -> None:
    flip(run_copy / CAPTIONS)
    options = ("repair", run_copy, "--config", run_copy.parent / "recipe.yaml", "--endpoint")
    with FakeTGI(faults=[Fault("hang", frozenset(range(5, 99)))]) as server:
        process = start(*options, server.url)
        journal = run_copy / "captions" / "00001.jsonl"
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 4)
        process.kill()
        process.wait()
    assert "a repair was begun and is not at its end; it goes on with: repair" in verify(run_copy).notes
    assert verify(run_copy).faults == []
    kept = {json.loads(line)["id"] for line in journal.read_bytes().splitlines()}
    with FakeTGI() as server:
        repair(run_copy, server)
        prompts = [request["body"]["messages"][0]["content"] for request in server.requests if request["body"]]
    asked = [prompt for prompt in prompts if prompt.startswith("Write a long, plain paragraph")]
    assert not [row["id"] for row in rows(run_copy, "seeds") if row["id"] in kept and row["seed"] in " ".join(asked)]
    assert len(asked) == 8 - len(kept) + 1  # and the warm-up
    found = verify(run_copy)
    assert (found.faults, found.notes) == ([], [])


@pytest.mark.parametrize("call", [*range(0, 40, 3)])
def test_a_plan_that_is_cut_short_anywhere_is_taken_up_to_the_same_end(
    call: int, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (CAPTIONS, TALK, STATISTICS, "image_embeddings/unicorn/00002.safetensors"):
        flip(run_copy / name)
    (run_copy / "notes.txt").write_text("x")
    shutil.copytree(run_copy, run_copy.parent / "other" / "run")
    wanted = taken_out(other := run_copy.parent / "other" / "run")
    calls, replace = iter(range(1000)), os.replace

    def cut_short(*paths: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr("os.replace", cut_short)
    try:
        taken_out(run_copy)
    except KeyboardInterrupt:
        monkeypatch.undo()
        taken_out(run_copy)
    assert stages(run_copy) == wanted
    assert moved(other) == moved(run_copy) - {"captions/00001.jsonl", *(f"{talk[:-8]}.jsonl" for talk in TALKS)}


def moved(run: Path) -> set[str]:
    return {str(path.relative_to(run / "damaged")) for path in (run / "damaged").rglob("*.*")}


def taken_out(path: Path) -> dict[str, Any]:
    run = RunDir(path)
    with run.lock():
        if plan := plan_repair(run, verify_run(run, held=True)):
            take_out(run, plan)
    return stages(path)


def stages(path: Path) -> dict[str, Any]:
    content = manifest(path)
    return content["stages"] | {"repair": content["repair"]["stages"]}

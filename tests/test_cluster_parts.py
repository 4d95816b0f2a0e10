"""Plans, parts and their merge: what each refuses, and that nothing is changed by what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generation.cluster.merge import merge
from generation.cluster.stages import make_plan, take_in, work
from generation.config import Recipe
from generation.errors import RunError
from generation.instructions import make_instructions
from generation.parts import Part, Plan, plan_folder, read_plan, refuse_under_way, under_way
from generation.recipe import load_recipe
from generation.report.stages import seconds_covered
from generation.rundir import RunDir
from generation.sealing import rejected_rows
from generation.seeds import make_seeds
from tests.cluster_runs import sealed, seeded_copy
from tests.conftest import TASK_NAMES, manifest, rows, write_recipe
from tests.fake_tgi import FakeTGI, Fault

TASKS = 2


@pytest.fixture
def seeded(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has its seeds."""
    return seeded_copy(finished_run, tmp_path)


def recipe_of(run: Path, *urls: str) -> Recipe:
    return load_recipe(run.parent / "recipe.yaml", {"endpoints": list(urls)} if urls else None)


def planned(run: Path, recipe: Recipe, command: str = "captions", tasks: int = TASKS) -> Path:
    folder = plan_folder(run, command)
    opened = RunDir(run)
    with opened.lock():
        make_plan(opened, recipe, command, folder, tasks)
    return folder


@pytest.fixture
def worked(seeded: Path, fake: FakeTGI) -> Path:
    """The folder of a plan for captions whose two tasks have ended; shards 0 and 2 are task 0's, 1 is task 1's."""
    recipe = recipe_of(seeded, fake.url)
    folder = planned(seeded, recipe)
    for rank in range(TASKS):
        work(seeded, recipe, "captions", folder, rank)
    return folder


def run_of(folder: Path) -> Path:
    return folder.parents[2]


def part(folder: Path, rank: int) -> Any:
    return json.loads((folder / "parts" / f"{rank:05d}.json").read_text())


def with_part(folder: Path, rank: int, change: Callable[[Any], object]) -> None:
    content = part(folder, rank)
    change(content)
    (folder / "parts" / f"{rank:05d}.json").write_text(json.dumps(content))


def captions_files(content: Any) -> dict[str, Any]:
    files: dict[str, Any] = content["stages"]["captions"]["files"]
    return files


def test_tasks_write_to_their_parts_alone_until_they_are_merged(worked: Path, finished_run: Path) -> None:
    run = run_of(worked)
    assert manifest(run)["stages"]["captions"]["files"] == {}
    assert sorted(captions_files(part(worked, 0))) == ["captions/00000.parquet", "captions/00002.parquet"]
    assert sorted(captions_files(part(worked, 1))) == ["captions/00001.parquet"]
    assert sealed(run, ("captions",)) == sealed(finished_run, ("captions",))
    opened = RunDir(run)
    take_in(opened, recipe_of(run), "captions", worked)
    merged, other = manifest(run)["stages"]["captions"], manifest(finished_run)["stages"]["captions"]
    for key in ("files", "fingerprint", "pinned", "balance", "servers", "demonstration"):
        assert merged[key] == other[key]
    before = (run / "manifest.json").read_bytes()
    merge(opened, read_plan(worked))  # a second time, as when what follows it was stopped
    assert (run / "manifest.json").read_bytes() == before


def test_rejected_rows_and_requests_asked_again_sum_up_over_parts(seeded: Path) -> None:
    faults = [Fault("garbage", frozenset(range(1, 38))), Fault("unavailable", frozenset({38, 46}))]
    with FakeTGI(faults=faults) as server:
        recipe = recipe_of(seeded, server.url)
        folder = planned(seeded, recipe)
        for rank in range(TASKS):
            work(seeded, recipe, "captions", folder, rank)
    run = RunDir(seeded)
    take_in(run, recipe, "captions", folder)
    record = run.stage("captions")
    shards = [run.record("captions", shard) for shard in run.sealed("captions")]
    for kind in ("retries", "rejected_by_reason"):
        sessions = [session[kind.removesuffix("_by_reason")] for session in record["sessions"]]
        assert sum(sum(counts.values()) for counts in sessions) == sum(sum(s[kind].values()) for s in shards)
    rejected = sum(len(rejected_rows(run, "captions", shard)) for shard in run.sealed("captions"))
    assert record["balance"] == {"items": 18, "accepted": 18 - rejected, "rejected": rejected, "pending": 0}
    assert len(rows(seeded, "captions")) + rejected == 18
    assert rejected and sum(sum(shard["retries"].values()) for shard in shards) == 2


def test_conversations_are_topped_up_in_the_finish_as_one_process_does(run_copy: Path, finished_run: Path) -> None:
    """At one of the captions that are asked about the server fails, whoever asks."""
    content = manifest(run_copy)
    for stage in [stage for stage in content["stages"] if stage.startswith("instructions/")]:
        del content["stages"][stage]
        shutil.rmtree(run_copy / stage)
    (run_copy / "manifest.json").write_text(json.dumps(content))
    alone = shutil.copytree(run_copy, run_copy.parent / "alone")
    asked = {row["id"] for task in TASK_NAMES for row in rows(finished_run, f"instructions/{task}")}
    poison = next(row["caption"] for row in rows(run_copy, "captions") if row["id"] in asked)[:40]
    with FakeTGI(poison=poison) as server:
        recipe = recipe_of(run_copy, server.url)
        make_instructions(RunDir(alone), recipe)
        folder = planned(run_copy, recipe, "instructions")
        for rank in range(TASKS):
            work(run_copy, recipe, "instructions", folder, rank)
        run = RunDir(run_copy)
        take_in(run, recipe, "instructions", folder)
        make_instructions(run, recipe)
    assert sealed(run_copy, ("instructions",)) == sealed(alone, ("instructions",))
    ours, other = manifest(run_copy)["stages"], manifest(alone)["stages"]
    assert sum(ours[f"instructions/{task}"]["balance"]["rejected"] for task in TASK_NAMES) > 0
    for stage in [stage for stage in ours if stage.startswith("instructions/")]:
        for key in ("balance", "samples", "statistics", "fingerprint"):
            assert ours[stage][key] == other[stage][key]


def other_model(content: Any) -> None:
    content["stages"]["captions"]["fingerprint"]["model"]["id"] = "b/Model"


def other_plan(content: Any) -> None:
    content["key"] = "of another plan"


def other_rank(content: Any) -> None:
    content["rank"] = 0


def shard_of_the_other_task(content: Any) -> None:
    captions_files(content)["captions/00002.parquet"] = captions_files(content)["captions/00001.parquet"]


def shard_of_no_task(content: Any) -> None:
    captions_files(content)["captions/00003.parquet"] = captions_files(content)["captions/00001.parquet"]


def no_shard(content: Any) -> None:
    captions_files(content).clear()


def no_stages(content: Any) -> None:
    del content["stages"]


def other_size(content: Any) -> None:
    captions_files(content)["captions/00001.parquet"]["bytes"] += 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_model, r"00001\.json: .* otherwise than in task 0: model\.id: 'fake/Model-Instruct' -> 'b/Model'"),
        (other_plan, r"00001\.json is a part of another plan or task"),
        (other_rank, r"00001\.json is a part of another plan or task"),
        (shard_of_the_other_task, r"00002\.parquet is held by two parts, of tasks 0 and 1"),
        (shard_of_no_task, r"holds captions/00003\.parquet, which the plan does not give to task 1"),
        (no_shard, r"00001\.parquet was not made by task 1"),
        (no_stages, r"00001\.json cannot be read: KeyError\('stages'\)"),
        (other_size, r"00001\.parquet is gone, or not of the \d+ bytes sealed"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_and_nothing_is_merged(
    change: Callable[[Any], None], said: str, worked: Path
) -> None:
    with_part(worked, 1, change)
    before = (run_of(worked) / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=said):
        merge(RunDir(run_of(worked)), read_plan(worked))
    assert (run_of(worked) / "manifest.json").read_bytes() == before


def test_a_part_that_is_missing_or_torn_is_refused_by_name(worked: Path) -> None:
    run, plan = RunDir(run_of(worked)), read_plan(worked)
    plan.part_path(1).write_text('{"format": 1')
    with pytest.raises(RunError, match=r"00001\.json cannot be read.*have the task's shards made anew, remove"):
        merge(run, plan)
    plan.part_path(1).unlink()
    with pytest.raises(RunError, match="of 2 tasks these have made no part: 1; give the same command again"):
        merge(run, plan)


def test_a_task_made_anew_after_its_remedy_makes_the_merge_good(
    worked: Path, fake: FakeTGI, finished_run: Path
) -> None:
    run, plan = run_of(worked), read_plan(worked)
    with_part(worked, 1, other_model)
    plan.part_path(1).unlink()  # what the message says
    work(run, recipe_of(run, fake.url), "captions", worked, 1)
    merge(RunDir(run), plan)
    assert manifest(run)["stages"]["captions"]["files"] == manifest(finished_run)["stages"]["captions"]["files"]


def test_a_shard_that_another_command_has_sealed_meanwhile_is_refused(worked: Path) -> None:
    run = RunDir(run_of(worked))
    name = "captions/00001.parquet"
    run.stage("captions")["files"][name] = captions_files(part(worked, 1))[name] | {"sha256": "0" * 64}
    with pytest.raises(RunError, match=r"00001\.parquet is in manifest\.json already, with another hash than task 1"):
        merge(run, read_plan(worked))


def test_a_task_with_a_server_of_another_model_ends_before_it_asks_anything(seeded: Path, fake: FakeTGI) -> None:
    recipe = recipe_of(seeded, fake.url)
    folder = planned(seeded, recipe)
    work(seeded, recipe, "captions", folder, 0)
    with FakeTGI(model_id="b/Model") as other:
        with pytest.raises(
            RunError, match=r"task 0 makes stage 'captions' otherwise .* 'fake/Model-Instruct' -> 'b/Mo"
        ):
            work(seeded, recipe_of(seeded, other.url), "captions", folder, 1)
        assert not [request for request in other.requests if request["route"] == "/v1/chat/completions"]
    work(seeded, recipe, "captions", folder, 1)
    merge(RunDir(seeded), read_plan(folder))


def test_a_task_is_one_process_at_a_time(worked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.parts.LOCK_WAIT_S", 0.0)
    plan = read_plan(worked)
    first, second = (Part(run_of(worked), plan, 1) for _ in range(2))
    with first.lock(), pytest.raises(RunError, match=r"00001\.json is in use by another process"), second.lock():
        pass
    with Part(run_of(worked), plan, 0).lock():
        pass


def test_more_tasks_than_shards_are_no_fault(seeded: Path, fake: FakeTGI, finished_run: Path) -> None:
    recipe = recipe_of(seeded, fake.url)
    folder = planned(seeded, recipe, tasks=5)
    for rank in range(5):
        work(seeded, recipe, "captions", folder, rank)
    merge(RunDir(seeded), read_plan(folder))
    assert manifest(seeded)["stages"]["captions"]["files"] == manifest(finished_run)["stages"]["captions"]["files"]


@pytest.mark.parametrize("command", ["captions", "instructions", "embed", "transfer"])
def test_tasks_of_a_finished_stage_change_nothing(command: str, run_copy: Path, fake: FakeTGI) -> None:
    recipe, before = recipe_of(run_copy, fake.url), manifest(run_copy)
    folder = planned(run_copy, recipe, command)
    for rank in range(TASKS):
        work(run_copy, recipe, command, folder, rank)
    take_in(RunDir(run_copy), recipe, command, folder)
    assert manifest(run_copy) == before
    assert not fake.requests


def test_an_extended_run_goes_on_in_tasks_and_keeps_what_it_was(run_copy: Path, fake: FakeTGI) -> None:
    write_recipe(run_copy.parent, captions=34)
    recipe, run = recipe_of(run_copy, fake.url), RunDir(run_copy)
    make_seeds(run, recipe, extend=True)
    before = manifest(run_copy)["stages"]["captions"]
    folder = planned(run_copy, recipe)
    assert read_plan(folder).shards == {"captions": [3, 4]}
    for rank in range(TASKS):
        work(run_copy, recipe, "captions", folder, rank)
    run.reload()
    take_in(run, recipe, "captions", folder)
    after = manifest(run_copy)["stages"]["captions"]
    assert after["sessions"][: len(before["sessions"])] == before["sessions"]
    assert [session["rows"] for session in after["sessions"]] == [18, 8, 8]
    assert after["files"].items() > before["files"].items()
    assert after["balance"] == {"items": 34, "accepted": 34, "rejected": 0, "pending": 0}


def test_a_plan_stays_and_the_next_one_comes_after_its_finish(worked: Path) -> None:
    run = run_of(worked)
    assert planned(run, recipe_of(run)) == worked
    with pytest.raises(RunError, match="under way in 2 tasks, not 3; give --tasks 2"):
        planned(run, recipe_of(run), tasks=3)
    with pytest.raises(RunError, match="'captions' is under way in tasks"):
        refuse_under_way(run, "captions")
    refuse_under_way(run, "embed")
    (worked / "finish" / "completions").mkdir(parents=True)
    (worked / "finish" / "completions" / "00000").touch()
    assert under_way(run, "captions") is None
    assert plan_folder(run, "captions").name == "00001"


@pytest.mark.parametrize("rank", [-1, TASKS])
def test_there_is_no_task_beyond_the_plan(rank: int, worked: Path) -> None:
    with pytest.raises(RunError, match=f"has tasks 0 to 1; there is no task {rank}"):
        Part(run_of(worked), read_plan(worked), rank)


def test_a_plan_that_is_not_there_is_told(seeded: Path) -> None:
    with pytest.raises(RunError, match=r"plan\.json cannot be read: FileNotFoundError.*give the command with --exec"):
        work(seeded, recipe_of(seeded), "captions", plan_folder(seeded, "captions"), 0)


def test_a_recipe_that_changes_under_way_is_refused_by_name(seeded: Path, fake: FakeTGI) -> None:
    folder = planned(seeded, recipe_of(seeded, fake.url))
    write_recipe(seeded.parent, captions_section={"min_words": 60})
    with pytest.raises(RunError, match=r"planned with other settings: min_words: 51 -> 60\. Restore them to go on"):
        work(seeded, recipe_of(seeded, fake.url), "captions", folder, 0)
    with pytest.raises(RunError, match=r"min_words: 51 -> 60"):
        take_in(RunDir(seeded), recipe_of(seeded, fake.url), "captions", folder)
    assert not fake.requests


def test_every_shard_is_one_tasks(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 3, {"captions": [1, 2, 5, 8, 9, 11, 12]}, {}, "")
    shared = [shard for rank in range(3) for shard in plan.shards_of("captions", rank)]
    assert sorted(shared) == plan.shards["captions"]


def test_sessions_side_by_side_last_as_long_as_one() -> None:
    minutes = [(0, 60.0), (0, 30.0), (0, 90.0), (5, 10.0)]
    sessions = [{"begun": f"2026-01-01T00:{m:02d}:00+00:00", "seconds": seconds} for m, seconds in minutes]
    assert seconds_covered(sessions) == 100.0

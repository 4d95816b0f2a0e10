"""Rejected rows driven again: what is recovered, what stays as it was, and a manifest that balances."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from generation.retry import stage_task
from generation.rundir import RunDir
from generation.sealing import open_again, seal_again
from tests.conftest import generation, manifest, rows, write_recipe
from tests.fake_tgi import FakeTGI, Fault
from tests.test_pipeline import answered, start, wait_until

SPOILED = frozenset({3, 7, 11, 17})  # with one attempt a row and the warm-up as request 0, four rows


def options(run: Path) -> tuple[object, ...]:
    return "--config", run.parent / "recipe.yaml", "--run-dir", run


@pytest.fixture
def spoiled_run(tmp_path: Path) -> Path:
    """18 seeds in three shards; four of them were rejected for an empty answer."""
    write_recipe(tmp_path, captions_section={"attempts": 1})
    run = tmp_path / "run"
    with FakeTGI(faults=[Fault("garbage", SPOILED)]) as server:
        for stage in ("seeds", "captions"):
            endpoint = ("--endpoint", server.url) if stage == "captions" else ()
            done = generation(stage, *options(run), *endpoint)
            assert done.returncode == 0, done.stderr
    assert balance(run) == {"items": 18, "accepted": 14, "rejected": 4, "pending": 0}
    return run


def balance(run: Path, stage: str = "captions") -> dict[str, int]:
    counts: dict[str, int] = manifest(run)["stages"][stage]["balance"]
    assert counts["items"] == counts["accepted"] + counts["rejected"] + counts["pending"]
    return counts


def shard_ids(run: Path, stage: str) -> list[list[str]]:
    return [pq.read_table(path)["id"].to_pylist() for path in sorted((run / stage).glob("*.parquet"))]


def requests(files: dict[str, dict[str, Any]]) -> int:
    return sum(file.get("requests", 0) for file in files.values())


def test_a_rejected_row_keeps_the_request_the_raw_answer_the_reason_and_the_attempts(spoiled_run: Path) -> None:
    seeds = {row["id"]: row["seed"] for row in rows(spoiled_run, "seeds")}
    for row in rows(spoiled_run, "rejected/captions"):
        body = json.loads(row["request"])
        assert seeds[row["id"]] in body["messages"][0]["content"]
        assert body["seed"] == row["sampling_seed"]
        assert (row["reason"], row["attempts"]) == ("too_short", 1)
        assert row["raw"] == ""


def test_recovered_rows_follow_those_that_were_there_and_the_manifest_balances(spoiled_run: Path) -> None:
    before, spent = shard_ids(spoiled_run, "captions"), manifest(spoiled_run)["stages"]["captions"]["files"]
    with FakeTGI() as server:
        done = generation("retry", spoiled_run, "--reason", "too_short", "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
        assert answered(server) == 4 + 1  # and the warm-up
        seeds_used = {json.dumps(request["body"].get("seed")) for request in server.requests if request["body"]}
    assert "4 of 4 recovered; now 18 items, 18 accepted, 0 rejected, 0 pending" in done.stdout
    assert balance(spoiled_run) == {"items": 18, "accepted": 18, "rejected": 0, "pending": 0}
    after = shard_ids(spoiled_run, "captions")
    assert [ids[: len(old)] for ids, old in zip(after, before, strict=True)] == before
    assert sorted(sum(after, [])) == [row["id"] for row in rows(spoiled_run, "seeds")]
    assert not list((spoiled_run / "rejected").rglob("*.parquet"))
    recovered = [row for row in rows(spoiled_run, "captions") if row["attempts"] == 2]
    assert len(recovered) == 4
    assert {str(row["sampling_seed"]) for row in recovered} <= seeds_used
    record = manifest(spoiled_run)["stages"]["captions"]
    assert (
        sum(f["requests"] for f in record["files"].values()) == sum(f.get("requests", 0) for f in spent.values()) + 4
    )
    assert record["retried"][0]["reasons"] == ["too_short"]
    assert record["unsealed"] == {}


def test_other_sampling_and_another_prompt_are_asked_with_and_cited(spoiled_run: Path) -> None:
    with FakeTGI() as server:
        changes = ("--prompt", "expand_caption", "--temperature", "0.9", "--max-tokens", "300")
        done = generation("retry", spoiled_run, *changes, "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
        body = server.requests[-1]["body"]
    assert (body["temperature"], body["max_tokens"]) == (0.9, 300)
    assert body["messages"][0]["role"] == "system"
    ended = rows(spoiled_run, "captions") + rows(spoiled_run, "rejected/captions")
    cited = {row["prompt"].split("@")[0] for row in ended if row["attempts"] == 2}
    assert cited == {"expand_caption"}
    account = manifest(spoiled_run)["stages"]["captions"]["retried"][0]
    assert account["prompt"]["name"].startswith("expand_caption@")
    assert account["sampling"]["temperature"] == 0.9


def test_later_stages_keep_what_they_refer_to_and_take_in_what_was_recovered(spoiled_run: Path) -> None:
    with FakeTGI() as server:
        endpoint = ("--endpoint", server.url)
        assert generation("instructions", *options(spoiled_run), *endpoint).returncode == 0
        for stage in ("embed", "transfer"):
            assert generation(stage, *options(spoiled_run)).returncode == 0
        conversations = rows(spoiled_run, "instructions/question_answering")
        assert generation("retry", spoiled_run, *endpoint).returncode == 0
        refused = generation("transfer", *options(spoiled_run))
        assert "'text_embeddings' has" in refused.stderr
        assert generation("run", *options(spoiled_run), *endpoint).returncode == 0
    assert rows(spoiled_run, "instructions/question_answering") == conversations
    captions = {
        (shard, place): id
        for shard, ids in enumerate(shard_ids(spoiled_run, "captions"))
        for place, id in enumerate(ids)
    }
    assert all(captions[row["caption_shard"], row["caption_row"]] == row["id"] for row in conversations)
    for stage in ("text_embeddings", "image_embeddings/unicorn"):
        for shard, ids in enumerate(shard_ids(spoiled_run, "captions")):
            tensors = load_file(spoiled_run / stage / f"{shard:05d}.safetensors")
            assert [bytes(row.tolist()).decode() for row in tensors["ids"]] == ids


def test_conversations_are_driven_again_alike(spoiled_run: Path) -> None:
    with FakeTGI(faults=[Fault("garbage", frozenset(range(1, 43)))]) as server:
        assert generation("instructions", *options(spoiled_run), "--endpoint", server.url).returncode == 0
    stage = "instructions/multiple_choice"
    assert balance(spoiled_run, stage)["rejected"] == 7  # six attempts each, all empty
    with FakeTGI() as server:
        done = generation("retry", spoiled_run, "--stage", stage, "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
    assert balance(spoiled_run, stage) == {"items": 14, "accepted": 14, "rejected": 0, "pending": 0}  # 7 of a top-up
    assert balance(spoiled_run)["rejected"] == 4


def test_rows_that_fail_again_are_rejected_again_with_all_their_attempts(spoiled_run: Path) -> None:
    with FakeTGI(faults=[Fault("garbage", frozenset(range(1, 99)))]) as server:
        done = generation("retry", spoiled_run, "--endpoint", server.url)
    assert "0 of 4 recovered" in done.stdout
    assert {row["attempts"] for row in rows(spoiled_run, "rejected/captions")} == {2}
    assert balance(spoiled_run) == {"items": 18, "accepted": 14, "rejected": 4, "pending": 0}


def test_kill_9_in_a_retry_loses_nothing_and_the_same_command_goes_on(spoiled_run: Path) -> None:
    before = {id for ids in shard_ids(spoiled_run, "captions") for id in ids}
    with FakeTGI(faults=[Fault("hang", frozenset(range(3, 99)))]) as server:
        process = start("retry", spoiled_run, "--endpoint", server.url)
        wait_until(lambda: answered(server) > 3)
        process.kill()
        process.wait()
    with FakeTGI() as server:
        done = generation("retry", spoiled_run, "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
        assert answered(server) <= 1 + 4
    ids = [id for ids in shard_ids(spoiled_run, "captions") for id in ids]
    assert before < set(ids)
    assert len(ids) == len(set(ids)) == 18


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reason", "loop"), "was rejected for loop; reasons there are: too_short"),
        (("--prompt", "no_such"), "prompt 'no_such' does not exist"),
        (("--temperature", "9"), "'temperature' = 9.0"),
        (("--stage", "instructions/multiple_choice"), "no row of instructions/multiple_choice was rejected"),
    ],
)
def test_a_retry_that_cannot_be_is_told_why_and_changes_nothing(
    spoiled_run: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = (spoiled_run / "manifest.json").read_bytes()
    refused = generation("retry", spoiled_run, *arguments, "--endpoint", "http://127.0.0.1:9")
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (spoiled_run / "manifest.json").read_bytes() == before


def test_a_stage_that_has_not_ended_is_not_driven_again(tmp_path: Path) -> None:
    write_recipe(tmp_path, captions_section={"attempts": 1})
    run = tmp_path / "run"
    assert generation("seeds", *options(run)).returncode == 0
    with FakeTGI(faults=[Fault("hang", frozenset(range(12, 99)))]) as server:
        process: subprocess.Popen[Any] = start("captions", *options(run), "--endpoint", server.url)
        wait_until(lambda: answered(server) > 12)
        process.kill()
        process.wait()
        refused = generation("retry", run, "--endpoint", server.url)
    assert "shards to go; run it to its end first" in refused.stderr


def test_conversations_that_come_later_lie_in_the_order_of_their_captions(run_copy: Path) -> None:
    run, stage = RunDir(run_copy), "instructions/multiple_choice"
    shard = max(run.sealed(stage), key=lambda shard: run.record(stage, shard)["rows"])
    before = run.shard_path(stage, shard).read_bytes()
    open_again(run, stage, shard)
    journal = run.journal_path(stage, shard)
    first, *others = map(json.loads, journal.read_text().splitlines())
    del first["place"]  # as if its answer had come once the others were sealed
    journal.write_text("".join(json.dumps(line) + "\n" for line in (*others, first)))
    seal_again(run, stage_task(run, stage), [shard])
    assert run.shard_path(stage, shard).read_bytes() == before

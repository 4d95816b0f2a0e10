"""The stages as a user runs them: real processes, killed for real, against a server over real HTTP."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TASK_NAMES, command, generation, manifest, recipe_data, rows, write_recipe
from tests.fake_tgi import FakeTGI, Fault

SEALED = ("captions", *(f"instructions/{task}" for task in TASK_NAMES))


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def sealed_bytes(run: Path) -> dict[str, bytes]:
    """All sealed shards but what holds the request-independent run time."""
    return {
        str(path.relative_to(run)): path.read_bytes() for stage in SEALED for path in (run / stage).glob("*.parquet")
    }


def answered(server: FakeTGI) -> int:
    return sum(request["route"] == "/v1/chat/completions" for request in server.requests)


def test_a_run_ends_every_seed_once_and_every_row_has_the_papers_format(finished_run: Path) -> None:
    seeds, captions = rows(finished_run, "seeds"), rows(finished_run, "captions")
    assert [caption["id"] for caption in captions] == [seed["id"] for seed in seeds]
    assert len(captions) == 18
    for caption in captions:
        assert 51 <= len(caption["caption"].split()) <= 483
        assert "\n" not in caption["caption"]
        assert caption["instruction"].count("<image>") == 1
    by_id = {caption["id"]: caption for caption in captions}
    for task in TASK_NAMES:
        conversations = rows(finished_run, f"instructions/{task}")
        assert len(conversations) == 9
        for row in conversations:
            assert row["id"] in by_id
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
            if task == "multiple_choice":
                question = turns[2]["value"].split("\n")
                assert [line[:3] for line in question[-4:]] == ["A: ", "B: ", "C: ", "D: "]
                assert all(turn["value"] in "ABCD" for turn in turns[1::2])


def test_vectors_lie_row_for_row_beside_their_captions(finished_run: Path) -> None:
    for shard, path in enumerate(sorted((finished_run / "captions").glob("*.parquet"))):
        ids = [row["id"] for row in rows(finished_run, "captions") if row["id"].startswith(f"{shard:05d}")]
        for stage in ("text_embeddings", "image_embeddings/unicorn"):
            tensors = load_file(finished_run / stage / f"{path.stem}.safetensors")
            assert [bytes(row.tolist()).decode() for row in tensors["ids"]] == ids
            assert tensors["embeddings"].dtype == torch.float16
            assert (tensors["embeddings"].float().norm(dim=1) - 1).abs().max() < 1e-3


def test_the_manifest_accounts_for_every_file_and_holds_no_secret(tmp_path: Path) -> None:
    with FakeTGI(api_key="sesame-opens") as server:
        options = (
            "--config",
            write_recipe(tmp_path, captions=6),
            "--run-dir",
            tmp_path / "run",
            "--endpoint",
            server.url,
        )
        done = generation("run", *options, TGI_API_KEY="sesame-opens")
    assert done.returncode == 0, done.stderr
    recorded = {name for stage in manifest(tmp_path / "run")["stages"].values() for name in stage["files"]}
    found = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert found - recorded == {"manifest.json", ".lock"}
    assert recorded <= found
    assert "sesame-opens" not in (tmp_path / "run" / "manifest.json").read_text() + done.stdout + done.stderr
    captions = manifest(tmp_path / "run")["stages"]["captions"]
    assert captions["fingerprint"]["model"]["id"] == "fake/Model-Instruct"
    assert captions["servers"][0]["max_concurrent_requests"] == 128
    assert captions["demonstration"] is False


def test_the_same_command_again_asks_nothing_and_changes_nothing(run_copy: Path, fake: FakeTGI) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*.parquet")}
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy, "--endpoint", fake.url)
    assert generation("run", *options).returncode == 0
    assert fake.requests == []
    assert {path: path.stat().st_mtime_ns for path in run_copy.rglob("*.parquet")} == before


@pytest.mark.parametrize("stage", ["captions", "instructions"])
@pytest.mark.parametrize("kill_after", [1, 12])
def test_kill_9_while_asking_loses_nothing_and_redoes_only_what_was_in_flight(
    stage: str, kill_after: int, tmp_path: Path, finished_run: Path
) -> None:
    run = tmp_path / "run"
    with FakeTGI(latency_s=0.03) as server:
        options = ("--config", write_recipe(tmp_path), "--run-dir", run, "--endpoint", server.url)
        for earlier in ("seeds", "captions")[: 1 if stage == "captions" else 2]:
            assert generation(earlier, *options[: 4 if earlier == "seeds" else 6]).returncode == 0
        warm_up = 1
        before = answered(server) + warm_up
        process = start(stage, *options)
        wait_until(lambda: answered(server) >= before + kill_after)
        process.kill()
        process.wait()
        at_kill = answered(server)
        for later in ("captions", "instructions"):
            assert generation(later, *options).returncode == 0
        asked = Counter(json.dumps(request["body"]) for request in server.requests if request["route"] != "/info")
    warm_ups = [count for body, count in asked.items() if json.loads(body)["max_tokens"] == 16]
    again = sum(count - 1 for body, count in asked.items() if json.loads(body)["max_tokens"] != 16)
    assert at_kill > before
    assert again <= server.max_in_flight
    assert sum(warm_ups) >= 4
    assert sealed_bytes(run) == sealed_bytes(finished_run)
    assert not list(run.rglob("*.jsonl"))


@pytest.mark.parametrize("stage", ["captions", "instructions/multiple_choice"])
def test_a_kill_between_a_shards_record_and_its_bookkeeping_is_made_good(
    stage: str, run_copy: Path, fake: FakeTGI
) -> None:
    before = manifest(run_copy)
    told = manifest(run_copy)
    told["stages"][stage]["balance"]["accepted"] = 0
    (run_copy / "manifest.json").write_text(json.dumps(told))
    journal = run_copy / stage / "00001.jsonl"
    journal.write_text("")
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy)
    done = generation(stage.split("/")[0], *options, "--endpoint", fake.url)
    assert done.returncode == 0, done.stderr
    assert not journal.exists()
    assert manifest(run_copy)["stages"][stage]["balance"] == before["stages"][stage]["balance"]
    assert manifest(run_copy)["stages"][stage]["files"] == before["stages"][stage]["files"]


@pytest.mark.parametrize("stage", ["embed", "transfer"])
def test_a_kill_between_two_shards_of_the_vector_stages_is_made_good(stage: str, run_copy: Path) -> None:
    """The shard after the kill has no record; a half-written temporary file lies about."""
    folder = {"embed": "text_embeddings", "transfer": "image_embeddings/unicorn"}[stage]
    wanted = {path.name: path.read_bytes() for path in (run_copy / folder).iterdir()}
    content = manifest(run_copy)
    del content["stages"][folder]["files"][f"{folder}/00001.safetensors"]
    (run_copy / "manifest.json").write_text(json.dumps(content))
    (run_copy / folder / "00001.safetensors").write_bytes(b"torn")
    (run_copy / folder / ".00002.safetensors.tmp").write_bytes(b"half")
    done = generation(stage, "--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (run_copy / folder).glob("[0-9]*")} == wanted


@pytest.mark.parametrize("stage", ["seeds", "embed", "transfer"])
def test_kill_9_in_the_stages_that_ask_nothing_is_made_good(stage: str, finished_run: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", finished_run.parent / "recipe.yaml"
    folder = {"seeds": "seeds", "embed": "text_embeddings", "transfer": "image_embeddings/unicorn"}[stage]
    if stage != "seeds":
        shutil.copytree(finished_run, run)
        content = manifest(run)
        for name in [name for name in content["stages"] if name.split("/")[0] in ("image_embeddings", folder)]:
            del content["stages"][name]
            shutil.rmtree(run / name)
        (run / "manifest.json").write_text(json.dumps(content))
    process = start(stage, "--config", recipe, "--run-dir", run)
    wait_until(lambda: (run / folder).exists() or process.poll() is not None)
    process.kill()
    process.wait()
    assert generation(stage, "--config", recipe, "--run-dir", run).returncode == 0
    for path in sorted((finished_run / folder).iterdir()):
        assert (run / folder / path.name).read_bytes() == path.read_bytes()


def with_caption_words(data: dict[str, Any]) -> None:
    data["captions"]["min_words"] = 60


def with_another_prompt(data: dict[str, Any]) -> None:
    data["captions"]["prompt"] = "expand_caption"


def with_another_seed(data: dict[str, Any]) -> None:
    data["random_seed"] = 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_caption_words, "min_words: 51 -> 60"),
        (with_another_prompt, "prompt.name: 'expand_caption_small@1.0.0' -> 'expand_caption@1.0.0'"),
        (with_another_seed, "random_seed: 0 -> 5"),
    ],
)
def test_a_resumed_run_with_other_settings_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], named: str, run_copy: Path, fake: FakeTGI
) -> None:
    data = recipe_data()
    change(data)
    (run_copy.parent / "recipe.yaml").write_text(json.dumps(data))
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy, "--endpoint", fake.url)
    refused = generation("captions", *options)
    assert refused.returncode == 1
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_resumed_with_another_model_is_refused_by_name(tmp_path: Path) -> None:
    options = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert generation("seeds", *options).returncode == 0
    # The warm-up is request 0; a 401-like end in mid-run leaves the stage unfinished.
    with FakeTGI(model_id="a/Model", latency_s=0.05) as first:
        process = start("captions", *options, "--endpoint", first.url)
        wait_until(lambda: answered(first) > 4)
        process.kill()
        process.wait()
    with FakeTGI(model_id="b/Model") as second:
        refused = generation("captions", *options, "--endpoint", second.url)
        assert refused.returncode == 1
        assert "model.id: 'a/Model' -> 'b/Model'" in refused.stderr
        assert answered(second) == 0


def test_a_row_that_keeps_failing_its_check_is_kept_with_reason_and_raw_answer(tmp_path: Path) -> None:
    garbage = [Fault("garbage", frozenset(range(1, 200)))]
    with FakeTGI(faults=garbage) as server:
        options = ("--config", write_recipe(tmp_path, captions=4), "--run-dir", tmp_path / "run")
        assert generation("seeds", *options).returncode == 0
        assert generation("captions", *options, "--endpoint", server.url).returncode == 0
        assert answered(server) == 1 + 4 * 4  # the warm-up, and four attempts a row
    assert rows(tmp_path / "run", "captions") == []
    rejected = rows(tmp_path / "run", "rejected/captions")
    assert Counter(row["reason"] for row in rejected) == {"too_short": 4}
    assert {row["attempts"] for row in rejected} == {4}


def test_another_process_in_the_same_run_is_refused(run_copy: Path) -> None:
    descriptor = os.open(run_copy / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        refused = generation("transfer", "--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy)
    finally:
        os.close(descriptor)
    assert refused.returncode == 1
    assert "in use by another process" in refused.stderr


def test_a_stage_before_its_input_says_what_to_run_first(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert "generation run" in generation("embed", "--config", recipe, "--run-dir", tmp_path / "none").stderr
    assert generation("seeds", "--config", recipe, "--run-dir", tmp_path / "run").returncode == 0
    refused = generation("embed", "--config", recipe, "--run-dir", tmp_path / "run")
    assert refused.returncode == 1
    assert "'captions' has 0 of 3 shards" in refused.stderr


def test_an_id_may_be_given_without_the_zeros_before_it(finished_run: Path) -> None:
    short, long = (generation("show", "--run-dir", finished_run, "--id", id).stdout for id in ("5", "0000000005"))
    assert short == long
    assert "record 0000000005" in short


def test_show_prints_one_record_through_every_stage(finished_run: Path) -> None:
    shown = generation("show", "--run-dir", finished_run)
    assert shown.returncode == 0, shown.stderr
    for label in ("seed", "caption", "human", "gpt", "text_embeddings", "image_embeddings/unicorn"):
        assert f"\n  {label}" in shown.stdout or f"  {label}" in shown.stdout
    for wrong in ("99999", "0000999999", "abc"):
        assert wrong in generation("show", "--run-dir", finished_run, "--id", wrong).stderr


def test_extending_a_run_adds_seeds_and_makes_the_vectors_anew(run_copy: Path, fake: FakeTGI) -> None:
    old = {path.name: path.read_bytes() for path in (run_copy / "captions").iterdir()}
    moved = (run_copy / "image_embeddings/unicorn/00000.safetensors").read_bytes()
    recipe = write_recipe(run_copy.parent, captions=30)
    options = ("--config", recipe, "--run-dir", run_copy, "--endpoint", fake.url)
    refused = generation("run", *options)
    assert refused.returncode == 1
    assert "limit" in refused.stderr
    done = generation("run", *options, "--extend")
    assert done.returncode == 0, done.stderr
    assert len(rows(run_copy, "captions")) == 30
    assert {name: (run_copy / "captions" / name).read_bytes() for name in old} == old
    assert (run_copy / "image_embeddings/unicorn/00000.safetensors").read_bytes() != moved
    assert [len(rows(run_copy, f"instructions/{task}")) for task in TASK_NAMES] == [15, 15, 15]


def test_a_task_that_no_grammar_fits_stops_the_run_before_its_first_request(tmp_path: Path, fake: FakeTGI) -> None:
    data = recipe_data()
    data["instructions"]["multiple_choice"]["max_items"] = 40
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))
    options = ("--config", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--endpoint", fake.url)
    refused = generation("run", *options)
    assert refused.returncode == 1
    assert "maxItems 40" in refused.stderr
    assert not (tmp_path / "run").exists()
    assert fake.requests == []

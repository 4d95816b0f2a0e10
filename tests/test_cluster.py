"""Stages in many tasks: Slurm's jobs as they are submitted, and what an executor cannot use."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from generation.stages import CAPTIONS
from generation.store import Run
from tests.conftest import ROOT, generation, write_recipe
from tests.fake_server import FakeServer
from tests.fake_slurm import FIRST_JOB, install, submitted

SBATCH = {"partition": "gpu", "time": "12:00:00", "qos": "long", "constraint": "h100"}
STAGES = ("captions", "instructions", "judge", "embed", "transfer")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All jobs of ``run`` in eight tasks, four at a time."""
    folder = tmp_path_factory.mktemp("chain")
    cluster = {"cpus": 2, "gpus": 1, "environment": "module load cuda", "sbatch": SBATCH}
    recipe = write_recipe(folder, cluster=cluster)
    place = ("--config", recipe, "--run-dir", folder / "run", "--endpoint", "http://127.0.0.1:1")
    path = install(folder / "slurm")
    done = generation("run", *place, "--executor", "slurm", "--tasks", 8, "--workers", 4, PATH=path)
    assert done.returncode == 0, done.stderr
    text = json.dumps(submitted(folder / "slurm")).replace(str(folder / "run"), "RUN")
    return [job for job in json.loads(text) if job["arguments"]]  # the others merge datatrove's statistics


def test_each_job_waits_for_the_one_before(chain: list[dict[str, Any]]) -> None:
    names = [job["options"]["job-name"].removeprefix("unicorn-") for job in chain]
    assert names == ["seeds-finish", *(f"{stage}-{part}" for stage in STAGES for part in ("work", "finish"))]
    assert chain[0]["job"] == FIRST_JOB and "dependency" not in chain[0]["options"]
    for before, job in zip(chain, chain[1:], strict=False):
        assert job["options"]["dependency"] == f"afterok:{before['job']}"


def test_a_script_holds_what_the_recipe_asks_for(chain: list[dict[str, Any]]) -> None:
    job = next(job for job in chain if job["options"]["job-name"] == "unicorn-captions-work")
    asked = {name: job["options"][name] for name in ("partition", "time", "qos", "constraint", "cpus-per-task")}
    assert asked == {**SBATCH, "cpus-per-task": "2"}
    assert job["options"]["array"] == "0-7%4" and job["options"]["kill-on-invalid-dep"] == "yes"
    lines = job["script"].splitlines()
    setup = next(line for line in lines if line.startswith("module load cuda"))
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in setup and f"PYTHONPATH={ROOT}" in setup


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_tasks_make_what_one_process_makes(executor: str, tmp_path: Path) -> None:
    with FakeServer("vllm", api_key="sesame") as server:
        place = ("--config", write_recipe(tmp_path), "--endpoint", server.url, "--run-dir")
        for run in ("one", "many"):
            assert generation("seeds", *place[:2], "--run-dir", tmp_path / run).returncode == 0
        many = ("captions", *place, tmp_path / "many", "--executor", executor, "--tasks", 2)
        refused = generation(*many, TGI_API_KEY="wrong")
        assert refused.returncode == 1 and "2 of 2 tasks failed. task 0: error: " in refused.stderr
        done = generation(*many, TGI_API_KEY="sesame")
        assert done.returncode == 0, done.stderr
        assert generation("captions", *place, tmp_path / "one", TGI_API_KEY="sesame").returncode == 0
    tables = [Run(tmp_path / run).table(CAPTIONS, shard) for shard in range(3) for run in ("one", "many")]
    assert all(one.equals(many) for one, many in zip(tables[::2], tables[1::2], strict=True))
    written = b"".join(path.read_bytes() for path in (tmp_path / "many").rglob("*") if path.is_file())
    assert b"sesame" not in written and b"wrong" not in written


@pytest.mark.parametrize(
    ("cluster", "run", "message"),
    [
        ({}, "run", r"cluster.sbatch.partition is missing"),
        ({"sbatch": {"partition": "cpu"}}, "a run", "need a path without spaces"),
        ({"gpu": 8}, "run", "unknown key 'cluster.gpu'; did you mean 'gpus'"),
    ],
)
def test_what_slurm_cannot_use_is_refused_before(cluster: Any, run: str, message: str, tmp_path: Path) -> None:
    path = install(tmp_path / "slurm")
    place = ("--config", write_recipe(tmp_path, cluster=cluster), "--run-dir", tmp_path / run)
    refused = generation("seeds", *place, "--executor", "slurm", "--tasks", 2, PATH=path)
    assert refused.returncode == 1 and message in refused.stderr
    assert not submitted(tmp_path / "slurm")


def test_machines_without_slurm_and_refusals_of_sbatch_are_named(tmp_path: Path) -> None:
    place = ("--config", write_recipe(tmp_path, cluster={"sbatch": {"partition": "x"}}), "--run-dir", tmp_path / "run")
    missing = generation("seeds", *place, "--executor", "slurm", "--tasks", 2, PATH="/nonexistent")
    assert missing.returncode == 1 and "sbatch not found" in missing.stderr
    path = install(tmp_path / "slurm")
    (tmp_path / "slurm" / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 3\n")
    refused = generation("seeds", *place, "--executor", "slurm", "--tasks", 2, PATH=f"{path}:{os.environ['PATH']}")
    assert refused.returncode == 1 and "ended with 3" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", 2], "--tasks 2 needs --executor"),
        (["--executor", "pbs"], "--executor pbs does not exist; there are: local, slurm, ray"),
    ],
)
def test_wrong_options_are_named(options: list[object], message: str, tmp_path: Path) -> None:
    refused = generation("seeds", "--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run", *options)
    assert refused.returncode == 1 and message in refused.stderr

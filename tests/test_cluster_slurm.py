"""Jobs as they are handed to Slurm: the scripts held against golden files, and run by a Slurm of one machine."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from generation.parts import read_part, read_plan
from tests.cluster_runs import asked_again, sealed, seeded_copy
from tests.conftest import ROOT, generation, write_recipe
from tests.fake_slurm import FIRST_JOB, install, submitted
from tests.fake_tgi import FakeTGI

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = {
    "partition": "cpu",
    "time": "12:00:00",
    "cpus": 2,
    "memory_per_cpu_gb": 8,
    "qos": "long",
    "environment": "module load python",
    "embed": {"partition": "gpu", "cpus": 16, "gpus": 8, "qos": "high", "sbatch": {"constraint": "h100"}},
}


def place(folder: Path, **cluster: Any) -> tuple[Any, ...]:
    return ("--config", write_recipe(folder, cluster=cluster), "--run-dir", folder / "run", "--executor", "slurm")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All jobs of `run` in eight tasks, four at a time; paths are named, since they are others on each machine."""
    folder = tmp_path_factory.mktemp("chain")
    path = install(folder / "slurm")
    done = generation("run", *place(folder, **CLUSTER), "--tasks", 8, "--workers", 4, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "captions: work: 8 tasks, job 1005" in done.stdout.splitlines()
    text = json.dumps(submitted(folder / "slurm"))
    for found, name in ((folder / "run", "RUN"), (Path(sys.executable).parent, "VENV/bin"), (ROOT, "ROOT")):
        text = text.replace(str(found), name)
    jobs: list[dict[str, Any]] = json.loads(text)
    return jobs


@pytest.mark.parametrize("name", ["captions-work", "embed-work", "transfer-finish"])
def test_the_scripts_are_those_of_the_golden_files(name: str, chain: list[dict[str, Any]]) -> None:
    script = next(job["script"] for job in chain if job["options"]["job-name"] == f"unicorn-{name}")
    assert script == (GOLDEN / f"slurm_{name}.sh").read_text()


def test_each_job_of_a_run_waits_for_the_one_before(chain: list[dict[str, Any]]) -> None:
    jobs = [job for job in chain if job["arguments"]]  # the others merge datatrove's statistics
    names = [job["options"]["job-name"].removeprefix("unicorn-") for job in jobs]
    stages = [f"{stage}-{job}" for stage in ("captions", "instructions", "embed", "transfer") for job in JOBS]
    assert names == ["seeds-finish", *stages]
    assert "dependency" not in jobs[0]["options"]
    for before, job in zip(jobs, jobs[1:], strict=False):
        assert job["options"]["dependency"] == f"afterok:{before['job']}"
    assert jobs[0]["job"] == FIRST_JOB


JOBS = ("plan", "work", "finish")


def test_jobs_run_in_their_order_make_what_one_process_makes(tmp_path: Path, finished_run: Path) -> None:
    path, run = install(tmp_path / "slurm"), seeded_copy(finished_run, tmp_path)
    with FakeTGI(api_key="k") as server:
        captions = ("captions", *place(tmp_path, partition="cpu"), "--tasks", 2, "--endpoint", server.url)
        failed = generation(*captions, PATH=path, FAKE_SLURM_RUN="1", TGI_API_KEY="wrong")
        assert failed.returncode == 0  # they are submitted
        assert [job["failed"] for job in submitted(tmp_path / "slurm") if "captions-plan" in job["script"]][0] is False
        assert not sealed(run, ("captions",))
        plan = read_plan(run / "tasks" / "captions" / "00000")
        assert read_part(plan, 0)["stages"]["captions"]["files"] == {}
        done = generation(*captions, PATH=path, FAKE_SLURM_RUN="1", TGI_API_KEY="k")
        assert "captions: plan: 1 task, completed before" in done.stdout
        assert asked_again(server) == 0
    assert sealed(run, ("captions",)) == sealed(finished_run, ("captions",))


def test_a_machine_without_slurm_is_told_so(tmp_path: Path) -> None:
    refused = generation("captions", *place(tmp_path, partition="cpu"), "--tasks", 2, PATH=str(tmp_path))
    assert refused.returncode == 1
    assert "sbatch is not found" in refused.stderr


def test_a_refusal_of_sbatch_is_passed_on(tmp_path: Path) -> None:
    path = install(tmp_path / "slurm")
    (tmp_path / "slurm" / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 3\n")
    refused = generation("captions", *place(tmp_path, partition="none"), "--tasks", 2, PATH=path)
    assert refused.returncode == 1
    assert "invalid partition" in refused.stderr
    assert re.search(r"sbatch .* ended with 3", refused.stderr)
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("cluster", "run", "said"),
    [
        ({}, "run", "cluster.partition is missing"),
        ({"partition": "cpu"}, "a run", "need a path without spaces"),
        ({"partition": "cpu", "time": "soon"}, "run", "'cluster.time' = 'soon'"),
        ({"partition": "cpu", "embed": {"gpu": 8}}, "run", "unknown key 'cluster.embed.gpu'; nearest known"),
    ],
)
def test_what_slurm_could_not_use_is_refused_before(cluster: Any, run: str, said: str, tmp_path: Path) -> None:
    path = install(tmp_path / "slurm")
    recipe = write_recipe(tmp_path, cluster=cluster)
    place = ("--config", recipe, "--run-dir", tmp_path / run, "--executor", "slurm", "--tasks", 2)
    refused = generation("embed", *place, PATH=path)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not submitted(tmp_path / "slurm")

"""Stages in many tasks: as processes, Slurm's jobs as they are submitted and run, Ray, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generation.stages import CAPTIONS, SEEDS
from generation.store import Run
from tests.conftest import ROOT, generation, write_recipe
from tests.fake_server import FakeServer
from tests.fake_slurm import FIRST_JOB, install, submitted

SBATCH = {"partition": "gpu", "time": "12:00:00", "qos": "long", "constraint": "h100"}
STAGES = ("captions", "instructions", "judge", "embed", "transfer")


def test_each_slurm_job_waits_for_the_one_before_and_asks_for_what_the_recipe_says(tmp_path: Path) -> None:
    cluster = {"cpus": 2, "gpus": 1, "environment": "module load cuda", "sbatch": SBATCH}
    place = ("--config", write_recipe(tmp_path, cluster=cluster), "--run-dir", tmp_path / "run")
    path = install(tmp_path / "slurm")
    done = generation("run", *place, "--executor", "slurm", "--tasks", 8, "--workers", 4, PATH=path)
    assert done.returncode == 0, done.stderr
    chain = submitted(tmp_path / "slurm")
    names = [job["options"]["job-name"].removeprefix("unicorn-") for job in chain]
    assert names == ["seeds-finish", *(f"{stage}-{part}" for stage in STAGES for part in ("work", "finish"))]
    assert [job["options"].get("dependency") for job in chain] == [
        None,
        *(f"afterok:{FIRST_JOB + before}" for before in range(10)),
    ]
    options, lines = chain[1]["options"], chain[1]["script"].splitlines()
    wanted = {**SBATCH, "cpus-per-task": "2", "array": "0-7%4", "kill-on-invalid-dep": "yes"}
    assert wanted.items() <= options.items()
    assert [job["options"].get("gpus") for job in chain] == [*[None] * 7, "1", "1", None, None]  # `embed` has GPUs
    command = f"srun --cpus-per-task=2 {sys.executable} -m generation captions --run-dir {tmp_path / 'run'}"
    command += " --rank $SLURM_ARRAY_TASK_ID --world-size 8"
    assert lines[-3:] == ["module load cuda", f"cd {ROOT}", command]
    assert chain[2]["options"]["array"] == "0-0%4" and "--rank" not in chain[2]["script"]


@pytest.mark.parametrize("executor", ["local", "slurm", pytest.param("ray", marks=pytest.mark.slow)])
def test_tasks_make_what_one_process_makes_also_after_ctrl_c(executor: str, tmp_path: Path) -> None:
    path = install(tmp_path / "fake slurm")
    with FakeServer("vllm", api_key="sesame") as server:
        place = ("--config", write_recipe(tmp_path), "--endpoint", server.url, "--run-dir")
        many = ("captions", *place, tmp_path / "a run", "--executor", executor, "--tasks", 2)
        for run in ("one", "a run"):
            assert generation("seeds", *place[:2], "--run-dir", tmp_path / run).returncode == 0
        refused = generation(*many, TGI_API_KEY="wrong", PATH=path, FAKE_SLURM_RUN="1")
        if executor != "slurm":
            assert refused.returncode == 1 and "2 of 2 tasks failed. task 0: error: " in refused.stderr
            server.latency_s, line = 1.0, [sys.executable, "-m", "generation", *map(str, many)]
            process = subprocess.Popen(line, env={**os.environ, "TGI_API_KEY": "sesame"}, start_new_session=True)
            while server.in_flight < 6:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(timeout=60) == 130
        done = generation(*many, TGI_API_KEY="sesame", PATH=path, FAKE_SLURM_RUN="1")
        assert done.returncode == 0, done.stderr
        sampled = [body["seed"] for body in server.bodies if "seed" in body]
        assert len(sampled) - len(set(sampled)) <= 6  # warm-ups
        assert generation("captions", *place, tmp_path / "one", TGI_API_KEY="sesame").returncode == 0
    tables = [Run(tmp_path / run).table(CAPTIONS, shard) for shard in range(3) for run in ("one", "a run")]
    assert all(one.equals(many) for one, many in zip(tables[::2], tables[1::2], strict=True))
    failed = [True, True, False, False] if executor == "slurm" else []
    assert [job["failed"] for job in submitted(tmp_path / "fake slurm")] == failed
    written = b"".join(path.read_bytes() for path in (tmp_path / "a run").rglob("*") if path.is_file())
    assert b"sesame" not in written and b"wrong" not in written


def test_seeds_are_added_and_what_cannot_be_submitted_is_named(tmp_path: Path) -> None:
    place = ("seeds", "--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    install(tmp_path)
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 3")
    for path, options, message in (
        ("bin", ("--tasks", 2), "--tasks 2 needs --executor: local, slurm or ray"),
        ("bin", ("--executor", "pbs"), "'pbs' is not one of 'local', 'slurm', 'ray'"),
        ("empty", ("--executor", "slurm"), "sbatch not found"),
        ("bin", ("--executor", "slurm"), "ended with 3: invalid partition. Jobs before"),
    ):
        refused = generation(*place, *options, PATH=str(tmp_path / path))
        assert refused.returncode in (1, 2) and message in refused.stderr and "Traceback" not in refused.stderr
    assert generation(*place, "--executor", "local").returncode == 0
    with (tmp_path / "seeds.txt").open("a") as file:
        file.write("A green lamp in a shop.\n")
    assert "--extend" in generation(*place, "--executor", "local").stderr
    assert generation(*place, "--executor", "local", "--extend").returncode == 0
    assert sum(record.rows for record in Run(tmp_path / "run").records(SEEDS).values()) == 19

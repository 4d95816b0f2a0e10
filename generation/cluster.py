"""A stage in many tasks: processes of this machine, Slurm jobs, or Ray tasks.

Tasks need no plan and no merge: each makes the due shards of its rank, and a shard has its own record (``store.py``).
A task is the command line ``python -m generation <stage> --rank R --world-size N`` under each executor. One more task,
without a rank, then does what needs the whole stage (captions that repeat each other, what a lost task left).
"""

import importlib.util
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .config import Cluster
from .errors import ClusterError
from .files import explained
from .logs import say
from .store import Run

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable, "-m", "generation"]
COMMANDS = ("seeds", "captions", "instructions", "judge", "embed", "transfer")
DEFAULT_TIME = "24:00:00"  # of a Slurm job
_running: set[subprocess.Popen[bytes]] = set()  # tasks of the local executor


def launch(executor: str, run: Run, commands: Sequence[str], tasks: int, workers: int, extend: bool) -> None:
    """Run stages in many tasks, one stage after the other; under Slurm, submit them all and return.

    ``tasks`` share the shards of each stage, ``workers`` run at once; the run remembers their recipe. A ClusterError
    says that Slurm or Ray is missing, or which tasks failed.
    """
    start, job = _ray_task(run.recipe.cluster) if executor == "ray" else _run_task, ""
    for command in commands:
        words = [*PYTHON, *command.split(), "--run-dir", str(run.path.resolve())]
        words += ["--extend"] if extend and command == "seeds" else []
        for part, count in [("work", tasks), ("finish", 1)] if command != "seeds" else [("finish", 1)]:
            name, ranked = f"{command.replace(' --', '-')}-{part}", f"--rank {{}} --world-size {count}"
            ranked = ranked if part == "work" else ""
            logs = run.path.resolve() / "cluster" / name
            with explained(logs):
                logs.mkdir(parents=True, exist_ok=True)
            if executor == "slurm":
                line = f"{shlex.join(words)} {ranked.format('$SLURM_ARRAY_TASK_ID')}"
                job = _submit(f"unicorn-{name}", line, logs, run.recipe.cluster, count, workers, job)
            else:
                lines = [[*words, *ranked.format(rank).split()] for rank in range(count)]
                _run_all(name, start, lines, logs, workers)
        say(f"{command}: {f'submitted, job {job}' if job else 'done'}. Logs of its tasks: {run.path / 'cluster'}")


def _run_all(
    name: str, start: Callable[[list[str], Path], int], lines: list[list[str]], logs: Path, workers: int
) -> None:
    """Have all tasks of a step run, ``workers`` at once; a ClusterError has the last words of those that failed."""
    files = [logs / f"{rank:05d}.log" for rank in range(len(lines))]
    with ThreadPoolExecutor(workers) as pool:
        try:
            failed = [file for file, status in zip(files, pool.map(start, lines, files), strict=True) if status]
        except BaseException:  # a signal
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                process.terminate()
            raise
    if failed:
        said = []
        for file in failed[:3]:
            text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
            last = text.strip().rpartition("\n")[2] or f"nothing was written to {file}"
            said.append(f"task {int(file.stem)}: {last}")
        raise ClusterError(
            f"{name}: {len(failed)} of {len(lines)} tasks failed. {'; '.join(said)}. What is made is kept: "
            "remove the cause and give the same command again"
        )


def _run_task(line: list[str], log: Path) -> int:
    """Run a command line to its end, its output appended to a log; return its exit status."""
    with log.open("ab") as file:
        process = subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file)
    _running.add(process)
    try:
        return process.wait()
    finally:
        _running.discard(process)


def _ray_task(cluster: Cluster) -> Callable[[list[str], Path], int]:
    """Return the function that runs a command line on the cluster of $RAY_ADDRESS, or on one that is started on this
    machine and ends with this process."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "--executor ray needs ray. Install it with `pip install -r requirements-cluster.txt -c constraints.txt`"
        )
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        local: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        where: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else local
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)

    @ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus)
    def task(line: list[str], root: str, log: str) -> int:  # nested, so that the worker does not import this module
        with open(log, "ab") as file:
            return subprocess.run(line, cwd=root, stdout=file, stderr=file, check=False).returncode

    def run_task(line: list[str], log: Path) -> int:
        try:
            return int(ray.get(task.remote(line, str(ROOT), str(log))))
        except ray.exceptions.RayError as error:  # its worker or machine was lost
            logging.getLogger(__name__).warning("%s: %s", log, error)
            return 1

    return run_task


def _submit(name: str, line: str, logs: Path, cluster: Cluster, tasks: int, workers: int, previous: str) -> str:
    """Submit a command line as a job array that waits for the job ``previous``; return the job's number."""
    options = {"job-name": name, "array": f"0-{tasks - 1}%{workers}", "output": f"{logs}/%5a.log", "requeue": ""}
    options |= {"open-mode": "append", "time": DEFAULT_TIME, "cpus-per-task": str(cluster.cpus)}
    options |= ({"gpus": str(cluster.gpus)} if cluster.gpus else {}) | cluster.sbatch
    if previous:
        options |= {"dependency": f"afterok:{previous}", "kill-on-invalid-dep": "yes"}  # else it would wait for ever
    script = logs / "job.sh"
    lines = ["#!/bin/bash", *(f'#SBATCH --{key}="{value}"'.removesuffix('=""') for key, value in options.items())]
    lines += [cluster.environment or "", f"cd {shlex.quote(str(ROOT))}"]
    lines += [f"srun --cpus-per-task={cluster.cpus} {line}"]  # srun does not inherit it since Slurm 22.05
    with explained(script):
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ClusterError("sbatch not found: give --executor slurm on a machine with Slurm") from error
    except subprocess.CalledProcessError as error:
        raise ClusterError(
            f"sbatch {script} ended with {error.returncode}: {error.stderr.strip()}. Jobs before it are submitted: "
            "remove the cause, scancel them, and give the same command again"
        ) from error
    return done.stdout.split()[-1]  # Submitted batch job 1001

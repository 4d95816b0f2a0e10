"""A stage in many tasks: processes of this machine, Slurm jobs, or Ray tasks.

Each task is the command line ``python -m generation <stage> --rank R --world-size N`` and makes the due shards of its
rank. One more, without a rank, does what needs the whole stage. Under local and ray a task ends with its parent.
"""

import importlib.util
import logging
import os
import runpy
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from .config import Cluster
from .errors import ClusterError
from .files import explained
from .logs import say
from .store import Run

ROOT = Path(__file__).parent.parent
COMMANDS = ("seeds", "captions", "instructions", "judge", "embed", "transfer")
Start = Callable[[list[str], Path], tuple[Callable[[], object], Callable[[], int]]]  # line, log: end it, wait for it


def launch(executor: str, run: Run, commands: Sequence[str], tasks: int, workers: int, extend: bool) -> None:
    """Run stages one after the other, each in so many tasks, ``workers`` at once; under Slurm, submit all and return.
    A ClusterError says that Slurm or Ray is missing, or which tasks failed."""
    job, module = "", "generation" if executor == "slurm" else "generation.cluster"
    for command in commands:
        cluster = run.recipe.cluster.model_copy(update={} if command == "embed" else {"gpus": 0})
        start = _ray_start(cluster) if executor == "ray" else _start
        words = [sys.executable, "-m", module, *command.split(), "--run-dir", str(run.path.resolve())]
        words += ["--extend"] if extend and command == "seeds" else []
        for part, count in [("work", tasks), ("finish", 1)] if command != "seeds" else [("finish", 1)]:
            logs = run.path.resolve() / "cluster" / f"{command.replace(' --', '-')}-{part}"
            ranked = f"--rank {{}} --world-size {count}" if part == "work" else ""
            with explained(logs):
                logs.mkdir(parents=True, exist_ok=True)
            if executor == "slurm":
                line = f"{shlex.join(words)} {ranked.format('$SLURM_ARRAY_TASK_ID')}"
                job = _submit(line, logs, cluster, count, workers, job)
            else:
                _run_all(start, [[*words, *ranked.format(rank).split()] for rank in range(count)], logs, workers)
        say(f"{command}: {f'submitted, job {job}' if job else 'done'}. Logs of its tasks: {run.path / 'cluster'}")


def _run_all(start: Start, lines: list[list[str]], logs: Path, workers: int) -> None:
    """Have all tasks of a step run, ``workers`` at once; a ClusterError has the last words of those that failed."""
    files = [logs / f"{rank:05d}.log" for rank in range(len(lines))]
    ends: dict[Path, Callable[[], object]] = {}  # of the tasks that run

    def run_task(line: list[str], file: Path) -> int:
        ends[file], wait = start(line, file)
        try:
            return wait()
        except Exception as error:  # under Ray: the worker or its machine was lost
            logging.getLogger(__name__).warning("%s: %s", file, error)
            return 1
        finally:
            del ends[file]

    with ThreadPoolExecutor(workers) as pool:
        try:
            failed = [file for file, status in zip(files, pool.map(run_task, lines, files), strict=True) if status]
        except BaseException:  # a signal
            pool.shutdown(wait=False, cancel_futures=True)
            for end in list(ends.values()):
                end()
            raise
    if failed:
        said = []
        for file in failed[:3]:
            text = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
            said.append(f"task {int(file.stem)}: {(text.splitlines() or [f'nothing was written to {file}'])[-1]}")
        remedy = "What is made is kept: remove the cause and give the same command again"
        raise ClusterError(f"{logs.name}: {len(failed)} of {len(lines)} tasks failed. {'; '.join(said)}. {remedy}")


def _start(line: list[str], log: Path) -> tuple[Callable[[], object], Callable[[], int]]:
    """Start a command line, its output appended to a log, out of reach of a terminal's Ctrl-C."""
    with log.open("ab") as out:
        child = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
    return child.terminate, child.wait


def _ray_start(cluster: Cluster) -> Start:
    """Return what starts a command line on the cluster of $RAY_ADDRESS, or on one that ends with this process."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError("--executor ray needs ray: pip install -r requirements-cluster.txt -c constraints.txt")
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        local: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else local), log_to_driver=False, logging_level=logging.ERROR)

    @ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus)
    def task(line: list[str], root: str, log: str) -> int:  # nested, so that the worker does not import this module
        with open(log, "ab") as file:
            process = subprocess.Popen(line, cwd=root, stdin=subprocess.PIPE, stdout=file, stderr=file)
        try:
            return process.wait()
        finally:  # also of ray.cancel
            process.terminate()
            process.wait()

    def start(line: list[str], log: Path) -> tuple[Callable[[], object], Callable[[], int]]:
        reference = task.remote(line, str(ROOT), str(log))
        return partial(ray.cancel, reference), lambda: int(ray.get(reference))

    return start


def _submit(line: str, logs: Path, cluster: Cluster, tasks: int, workers: int, previous: str) -> str:
    """Submit a command line as a job array that waits for the job ``previous``; return the job's number."""
    options = {"job-name": f"unicorn-{logs.name}", "array": f"0-{tasks - 1}%{workers}", "output": f"{logs}/%5a.log"}
    options |= {"requeue": "", "open-mode": "append", "time": "24:00:00", "cpus-per-task": str(cluster.cpus)}
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
        remedy = "Jobs before it are submitted: remove the cause, scancel them, and give the same command again"
        fault = f"sbatch {script} ended with {error.returncode}: {error.stderr.strip()}"
        raise ClusterError(f"{fault}. {remedy}") from error
    return done.stdout.split()[-1]  # Submitted batch job 1001


if __name__ == "__main__":  # a task of this machine or of Ray: it ends when its parent's end of the pipe is closed
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(130), daemon=True).start()
    runpy.run_module("generation", run_name="__main__")

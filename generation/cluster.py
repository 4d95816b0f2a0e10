"""A stage in many tasks under datatrove's executors: local processes, Slurm or Ray.

Tasks need no plan and no merge: each makes the due shards of its rank, and a shard has its own record (``store.py``).
A task is ``python -m generation <stage> --rank R --world-size N`` in a process of its own, so that an executor sees
its end, a ``kill -9`` included, and datatrove's pickles hold only command lines. One more task, without a rank, then
does what needs the whole stage (captions that repeat each other, what a lost task left).
"""

import importlib.util
import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .config import Cluster
from .errors import ClusterError
from .logs import say
from .store import Run

ROOT = Path(__file__).parent.parent
EXECUTORS = ("local", "slurm", "ray")
COMMANDS = ("seeds", "captions", "instructions", "judge", "embed", "transfer")
DEFAULT_TIME = "24:00:00"  # of a Slurm job
LOOK_S = 0.5  # between two looks at whether the command that started a task is still there


def launch(executor: str, run: Run, commands: Sequence[str], tasks: int, workers: int, extend: bool) -> None:
    """Run stages in many tasks, one stage after the other; under Slurm, submit them all and return.

    ``tasks`` share the shards of each stage, ``workers`` run at once; the run remembers their recipe. A ClusterError
    says that a library or Slurm is missing, or which tasks failed.
    """
    if executor not in EXECUTORS:
        raise ClusterError(f"--executor {executor} does not exist; there are: {', '.join(EXECUTORS)}")
    for library in ("datatrove", *(("ray",) if executor == "ray" else ())):
        if importlib.util.find_spec(library) is None:
            raise ClusterError(
                f"--executor {executor} needs {library}. Install it with "
                "`pip install -r requirements-cluster.txt -c constraints.txt`"
            )
    os.environ.setdefault("LOGURU_DIAGNOSE", "NO")  # loguru would write the values of variables, secrets too
    path = run.path.resolve()
    previous: Any = None
    for command in commands:
        words = [*command.split(), "--run-dir", str(path)]
        words += ["--extend"] if extend and command == "seeds" else []
        for part in ("finish",) if command == "seeds" else ("work", "finish"):
            name, count = f"{command.replace(' --', '-')}-{part}", tasks if part == "work" else 1
            logs = path / "cluster" / name
            shutil.rmtree(logs / "completions", ignore_errors=True)  # of an earlier launch
            step = partial(run_task, words=words, logs=logs, ranked=part == "work")
            common = {"pipeline": [step], "tasks": count, "logging_dir": str(logs), "skip_completed": False}
            previous = _executor(executor, name, run.recipe.cluster, min(workers, count), previous, common)
            if executor == "slurm":
                continue
            with suppress(ClusterError):  # of a task; which are not completed is asked below, for any executor
                previous.run()
            if failed := previous.get_incomplete_ranks(skip_completed=True):
                said = "; ".join(f"task {rank}: {last_line(logs / f'{rank:05d}.log')}" for rank in failed[:3])
                raise ClusterError(
                    f"{name}: {len(failed)} of {count} tasks failed. {said}. What is made is kept: remove the cause "
                    "and give the same command again"
                )
        if executor != "slurm":
            say(f"{command}: done. Logs of its tasks: {run.path / 'cluster'}")
    if executor == "slurm":
        try:
            previous.launch_job()  # and all that it depends on
        except FileNotFoundError as error:
            raise ClusterError(f"{error.filename} not found: give --executor slurm on a machine with Slurm") from error
        except subprocess.CalledProcessError as error:
            raise ClusterError(
                f"{shlex.join(map(str, error.cmd))} ended with {error.returncode}. Jobs before it are submitted: "
                "remove the cause, scancel them, and give the same command again"
            ) from error


def run_task(data: object, rank: int, world_size: int, words: list[str], logs: Path, ranked: bool) -> None:
    """Run ``python -m generation WORDS`` to its end as datatrove's only pipeline step, its output appended to a log; a
    ClusterError has the last line of a command that failed."""
    from multiprocess.process import parent_process  # datatrove's local executor uses this library

    words = [*words, "--rank", str(rank), "--world-size", str(world_size)] if ranked else words
    logs.mkdir(parents=True, exist_ok=True)
    parent, status, log = parent_process(), None, logs / f"{rank:05d}.log"
    if parent is not None:  # a worker of the local executor, which ends its workers with SIGTERM
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    with log.open("ab") as file:
        command = [sys.executable, "-m", "generation", *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            while status is None:
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(LOOK_S)
                if parent is not None and not parent.is_alive():  # the command was killed
                    process.terminate()
                    os._exit(1)
        except BaseException:  # Ctrl-C, or an executor that stops its workers
            process.terminate()
            process.wait()
            raise
    if status:
        raise ClusterError(f"`python -m generation {shlex.join(words)}` ended with {status}: {last_line(log)}")


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"nothing was written to {log}")


def _executor(kind: str, name: str, cluster: Cluster, workers: int, previous: Any, common: dict[str, Any]) -> Any:
    """Return datatrove's executor for one step. ``skip_completed`` is off: our own records say what is done."""
    from datatrove import executor

    if kind == "local":
        from datatrove.utils.stats import PipelineStats

        class QuietExecutor(executor.LocalPipelineExecutor):  # type: ignore[misc]
            def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
                with redirect_stderr(io.StringIO()):  # it repeats what the tasks' logs hold
                    try:
                        return executor.LocalPipelineExecutor._run_for_rank(self, rank, local_rank, node_rank)
                    except ClusterError:  # the rank is not marked as completed; the others go on
                        return PipelineStats()

        return QuietExecutor(workers=workers, **common)
    resources = {"cpus_per_task": cluster.cpus, "gpus_per_task": cluster.gpus}
    if kind == "ray":
        import ray  # joins the cluster of $RAY_ADDRESS, or starts one on this machine that ends with this process

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ray.is_initialized():
            local: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            where: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else local
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        return executor.RayPipelineExecutor(workers=workers, **resources, **common)
    options, logs = dict(cluster.sbatch), common["logging_dir"]
    if shlex.quote(logs) != logs:
        raise ClusterError(f"{logs}: Slurm's scripts need a path without spaces and quotes; move the run")
    if "partition" not in options:
        raise ClusterError("cluster.sbatch.partition is missing: name the Slurm partition in the recipe")
    lines = [cluster.environment] if cluster.environment else []
    lines += [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"]
    lines += [f"export PYTHONPATH={shlex.quote(str(ROOT))}"]
    return executor.SlurmPipelineExecutor(
        time=options.pop("time", DEFAULT_TIME),
        partition=options.pop("partition"),
        qos=options.pop("qos", ""),
        workers=workers if workers < common["tasks"] else -1,
        job_name=f"unicorn-{name}",
        env_command="; ".join(lines),
        sbatch_args={"kill-on-invalid-dep": "yes", **options},  # else jobs after a failed one wait for ever
        srun_args={"cpus-per-task": cluster.cpus},  # not inherited from sbatch since Slurm 22.05
        depends=previous,
        **resources,
        **common,
    )

"""datatrove's executors, made by a recipe's ``cluster`` section.

datatrove gives Slurm's jobs a pickle (``executor.pik``) that it writes and reads itself; of ours it holds the names of
files and options alone.
"""

import io
import logging
import os
import shlex
import sys
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor

from ..config import Cluster, job_settings
from ..errors import RecipeError
from .step import ROOT, Step

_LOOK_S = 0.5  # between two looks at whether the parent is there


class QuietLocalExecutor(LocalPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    """datatrove's, but for what it shows on stderr of that which is in its files all the same; and its process that
    counts the tasks ends with this one, also if this one is killed."""

    def run(self) -> Any:
        """See ``PipelineExecutor``."""
        os.register_at_fork(after_in_child=_end_with_parent)
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def local(step: Step, cluster: Cluster, tasks: int, workers: int) -> PipelineExecutor:
    """Processes of this machine."""
    return QuietLocalExecutor([step], tasks, min(workers, tasks), _logs(step))


def ray(step: Step, cluster: Cluster, tasks: int, workers: int) -> PipelineExecutor:
    """Actors of a Ray cluster."""
    job = job_settings(cluster, step.folder.parent.name)
    return RayPipelineExecutor(
        [step],
        tasks,
        min(workers, tasks),
        logging_dir=_logs(step),
        cpus_per_task=job["cpus"],
        mem_per_cpu_gb=job["memory_per_cpu_gb"],
        gpus_per_task=job["gpus"],
    )


def slurm(
    step: Step, cluster: Cluster, tasks: int, workers: int, after: SlurmPipelineExecutor | None
) -> SlurmPipelineExecutor:
    """An array of Slurm jobs, which starts once all jobs of ``after`` have ended well.

    Raises:
        RecipeError: the recipe names no partition.
    """
    command = step.folder.parent.name
    job = job_settings(cluster, command)
    if job["partition"] is None:
        raise RecipeError(
            f"cluster.partition is missing: name the Slurm partition for '{command}', as cluster.partition or "
            f"cluster.{command}.partition in the recipe"
        )
    return SlurmPipelineExecutor(
        [step],
        tasks,
        job["time"],
        job["partition"],
        cpus_per_task=job["cpus"],
        mem_per_cpu_gb=job["memory_per_cpu_gb"],
        gpus_per_task=job["gpus"],
        workers=workers if workers < tasks else -1,
        job_name=f"unicorn-{command}-{step.job}",
        qos=job["qos"],
        env_command=_environment(cluster),
        sbatch_args={"kill-on-invalid-dep": "yes", **job["sbatch"]},  # else jobs after a failed one wait for ever
        srun_args={"cpus-per-task": job["cpus"]},  # not taken over from sbatch since Slurm 22.05
        depends=after,
        logging_dir=_logs(step),
    )


def _logs(step: Step) -> str:
    return str(step.folder / step.job)


def _environment(cluster: Cluster) -> str:
    """Shell commands that make a job find datatrove's scripts and this project, as they are found here."""
    lines = [cluster.environment] if cluster.environment else []
    lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    return "; ".join([*lines, f"export PYTHONPATH={shlex.quote(str(ROOT))}"])


def start_ray() -> None:
    """Connects to the cluster of ``$RAY_ADDRESS``; without it starts one on this machine, on loopback, for as long as
    this process lives."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray as library

    where: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        where = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    library.init(**where, log_to_driver=False, logging_level=logging.ERROR)

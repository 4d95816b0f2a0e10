"""A command's jobs, handed to an executor: the three of each stage, and of all stages for ``run``."""

import importlib.util
import os
import shlex
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Cluster
from ..errors import ClusterError, RunError
from ..parts import plan_folder, refuse_other_tasks
from ..progress import progress

if TYPE_CHECKING:
    from .step import Step

_LOOK_S = 1.0  # between two looks at which tasks are completed
_SHOWN = 3  # failed tasks that a message quotes


@dataclass(frozen=True)
class Launch:
    """What is asked for on the command line.

    Attributes:
        executor: ``local``, ``slurm`` or ``ray``.
        tasks: that share the shards of each stage.
        workers: tasks at once, at most.
        run: the run's directory, absolute.
        arguments: of the command line for each job: recipe, run and servers, with absolute paths.
    """

    executor: str
    tasks: int
    workers: int
    run: Path
    arguments: tuple[str, ...]


def launch(asked: Launch, cluster: Cluster, stages: Sequence[str]) -> None:
    """Runs stages in many tasks, one stage after the other; under Slurm submits them all and returns.

    Raises:
        ClusterError: datatrove, Ray or Slurm is not there, or tasks failed; what they have made is kept.
        RecipeError: the recipe lacks what the executor needs.
    """
    for library in ("datatrove", *(("ray",) if asked.executor == "ray" else ())):
        if importlib.util.find_spec(library) is None:
            raise ClusterError(
                f"--executor {asked.executor} needs {library}, which is not installed; run: "
                "pip install -r requirements-cluster.txt -c constraints.txt"
            )
    os.environ.setdefault("LOGURU_DIAGNOSE", "NO")  # it would write values of variables, secrets too, into logs
    if asked.executor == "slurm":
        _submit(asked, cluster, stages)
    else:
        os.environ.setdefault("LOGURU_LEVEL", "CRITICAL")  # what datatrove says is in its files
        _run_all(asked, cluster, stages)


def _steps(asked: Launch, stage: str) -> "list[tuple[Step, int]]":
    """The jobs of a stage in their order, each with its number of tasks."""
    from .step import Step

    folder = plan_folder(asked.run, stage)
    refuse_other_tasks(folder, asked.tasks)
    arguments = (stage, *asked.arguments, "--folder", str(folder), "--tasks", str(asked.tasks))
    plan, finish = Step("plan", folder, arguments), Step("finish", folder, arguments)
    if stage == "seeds":
        return [(finish, 1)]
    if asked.executor == "local":  # the others give each task its own cores
        cores = len(os.sched_getaffinity(0))
        arguments += ("--threads", str(max(1, cores // min(asked.workers, asked.tasks))))
    return [(plan, 1), (Step("work", folder, arguments), asked.tasks), (finish, 1)]


def _run_all(asked: Launch, cluster: Cluster, stages: Sequence[str]) -> None:
    from . import executors

    make = executors.local if asked.executor == "local" else executors.ray
    if asked.executor == "ray":
        executors.start_ray()
    for stage in stages:
        steps = _steps(asked, stage)
        for step, tasks in steps:
            _run(make(step, cluster, tasks, asked.workers), step, tasks)
        print(f"{stage}: done; what its tasks said is in {steps[0][0].folder / 'logs'}")


def _run(executor: Any, step: "Step", tasks: int) -> None:
    """Runs one job to its end, under a bar of its tasks."""
    ended = threading.Event()
    with progress(step.name, tasks, tasks - len(executor.get_incomplete_ranks()), "task") as bar:
        left = len(executor.get_incomplete_ranks())

        def look() -> None:
            nonlocal left
            while not ended.wait(_LOOK_S):
                now = len(executor.get_incomplete_ranks())
                bar.update(left - now)
                left = now

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        try:
            with suppress(RunError):  # of a step; what is not completed is told below, whatever the executor
                executor.run()
        finally:
            ended.set()
            watch.join()
        failed = executor.get_incomplete_ranks()
        bar.update(left - len(failed))
        if failed:
            raise ClusterError(_failure(step, tasks, failed))


def _failure(step: "Step", tasks: int, failed: list[int]) -> str:
    from .step import last_line

    said = "; ".join(f"task {rank}: {last_line(step.log_path(rank))}" for rank in failed[:_SHOWN])
    return (
        f"{step.name}: {len(failed)} of {tasks} tasks are not completed. {said}"
        f"{'; ...' if len(failed) > _SHOWN else ''}. What is made is kept: mend the cause and give the same command "
        "again"
    )


def _submit(asked: Launch, cluster: Cluster, stages: Sequence[str]) -> None:
    """Hands all jobs to Slurm, each to start once the one before has ended well; prints their numbers."""
    from . import executors

    if shlex.quote(str(asked.run)) != str(asked.run):
        raise ClusterError(f"{asked.run}: Slurm's scripts need a path without spaces and quotes; move the run")
    jobs: list[tuple[Any, int]] = []
    for stage in stages:
        for step, tasks in _steps(asked, stage):
            jobs.append((executors.slurm(step, cluster, tasks, asked.workers, jobs[-1][0] if jobs else None), tasks))
    try:
        jobs[-1][0].launch_job()  # and all that it depends on
    except FileNotFoundError as error:
        raise ClusterError(f"{error.filename} is not found: --executor slurm is given where Slurm's are") from error
    except subprocess.CalledProcessError as error:
        raise ClusterError(
            f"{shlex.join(map(str, error.cmd))} ended with {error.returncode}; what it said is above. Jobs before it "
            "are submitted: mend the cause, scancel them, and give the same command again"
        ) from error
    for executor, tasks in jobs:
        at = "completed before" if executor.job_id == -1 else f"job {executor.job_id}"
        print(f"{executor.pipeline[0].name}: {tasks} {'task' if tasks == 1 else 'tasks'}, {at}")

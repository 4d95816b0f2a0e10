"""What the jobs of a command do with a run; any executor, or a person, may start them."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import Recipe, instruction_tasks, settings
from ..errors import RunError
from ..manifest import changes
from ..parts import Part, Plan, read_plan, refuse_other_tasks, write_plan
from ..rundir import RunDir
from .merge import merge


def stop_with_stdin() -> None:
    """Has the end of stdin, by which whoever started this process tells it to stop, act as Ctrl-C does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray's workers hand it on blocked
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and a shell's background jobs ignored

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin, which Python could not close at its end
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def make_plan(run: RunDir, recipe: Recipe, command: str, folder: Path, tasks: int) -> None:
    """Begins the stages of a command and fixes which task makes which shards; a plan that is there stays.

    Args:
        run: the run directory, locked.
        recipe: the recipe.
        command: ``captions``, ``instructions``, ``embed`` or ``transfer``.
        folder: the plan's.
        tasks: how many are to share the shards that are due.

    Raises:
        RunError: the plan is there with another number of tasks, or as the stage does.
    """
    refuse_other_tasks(folder, tasks)
    if not (folder / "plan.json").exists():
        write_plan(run, folder, tasks, _BEGIN[command](run, recipe), _settings(recipe, command))


def work(path: Path, recipe: Recipe, command: str, folder: Path, rank: int) -> None:
    """Makes the shards of one task.

    Args:
        path: the run's directory.
        recipe: the recipe that was planned with.
        command: see ``make_plan``.
        folder: the plan's.
        rank: the task's number, from 0.

    Raises:
        RunError: there is no plan, the recipe has changed since, another process is at this task, or as the stage
            does.
    """
    plan = read_plan(folder)
    _refuse_changed(plan, recipe, command)
    part = Part(path, plan, rank)
    with part.lock():
        _WORK[command](part, recipe)


def take_in(run: RunDir, recipe: Recipe, command: str, folder: Path) -> None:
    """Merges the parts of a plan into the manifest of a locked run.

    Raises:
        RunError: see ``merge``; or the recipe has changed since the plan was made.
    """
    plan = read_plan(folder)
    _refuse_changed(plan, recipe, command)
    merge(run, plan)
    if command in ("captions", "instructions"):
        from ..retry import stage_task
        from ..sealing import note_balance

        for stage in plan.shards:
            note_balance(run, stage_task(run, stage))


def _settings(recipe: Recipe, command: str) -> dict[str, Any]:
    plain: dict[str, Any] = settings(getattr(recipe, command)) | {"random_seed": recipe.random_seed}
    return plain


def _refuse_changed(plan: Plan, recipe: Recipe, command: str) -> None:
    if moved := changes(plan.settings, _settings(recipe, command)):
        raise RunError(f"{plan.folder} was planned with other settings: {'; '.join(moved)}. Restore them to go on")


def _begin_captions(run: RunDir, recipe: Recipe) -> dict[str, list[int]]:
    from ..captions import STAGE, begin_captions

    begin_captions(run, recipe)
    return {STAGE: run.due(STAGE, "seeds")}


def _begin_instructions(run: RunDir, recipe: Recipe) -> dict[str, list[int]]:
    from ..instructions import begin_task

    stages = [begin_task(run, recipe, name).stage for name in instruction_tasks(recipe)]
    return {stage: run.due(stage, "captions") for stage in stages}


def _begin_embed(run: RunDir, recipe: Recipe) -> dict[str, list[int]]:
    from ..embeddings import STAGE, begin_embed

    begin_embed(run, recipe)
    return {STAGE: run.due(STAGE, "captions")}


def _begin_transfer(run: RunDir, recipe: Recipe) -> dict[str, list[int]]:
    from ..transfer.stage import fit_transfer, stage_of

    return {stage_of(recipe): fit_transfer(run, recipe)}


def _work_captions(part: Part, recipe: Recipe) -> None:
    from ..captions import make_captions

    make_captions(part, recipe)


def _work_instructions(part: Part, recipe: Recipe) -> None:
    from ..instructions import ask_instructions

    ask_instructions(part, recipe)


def _work_embed(part: Part, recipe: Recipe) -> None:
    from ..embeddings import embed

    embed(part, recipe)


def _work_transfer(part: Part, recipe: Recipe) -> None:
    from ..transfer.stage import transfer_shards

    transfer_shards(part, recipe)


_BEGIN: dict[str, Callable[[RunDir, Recipe], dict[str, list[int]]]] = {
    "captions": _begin_captions,
    "instructions": _begin_instructions,
    "embed": _begin_embed,
    "transfer": _begin_transfer,
}
_WORK: dict[str, Callable[[Part, Recipe], None]] = {
    "captions": _work_captions,
    "instructions": _work_instructions,
    "embed": _work_embed,
    "transfer": _work_transfer,
}

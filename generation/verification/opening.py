"""Takes what is broken out of a run, so that its stages make it again: broken files aside, shards back among the
unfinished ones.

What is made from a file goes before the file itself. So a process that is killed in between leaves the cause in place,
and the next repair comes to the same plan.
"""

import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from ..files import guarded, seal
from ..instructions import task_sample
from ..journal import damaged_lines
from ..manifest import now
from ..rundir import RunDir
from ..sealing import open_what_is_left
from .faults import ASIDE, Fault
from .layout import kind_of, place_of
from .plan import Opening, Plan

REPAIR = "repair"  # key of the manifest while a repair is under way
_DOWNSTREAM = ("judgements", "instructions", "image_embeddings", "unpaired_images", "text_embeddings", "captions")


def take_out(run: RunDir, plan: Plan) -> None:
    """Does everything of a plan that needs no recipe; the run's stages then do the rest.

    Raises:
        RunError: a file cannot be written or moved.
    """
    for name in (*plan.aside, *plan.obsolete):
        set_aside(run.path, run.path / ASIDE, name)
    for fault in plan.records:
        correct(run.manifest, fault)
    for name in plan.journals:
        _drop_lines(run, name)
    _note(run, plan)
    steps: list[tuple[str, Any]] = [(stage, name) for name, stage in plan.remade.items()]
    steps += [(one.stage, one) for one in plan.opened.values()]
    for stage, what in sorted(steps, key=lambda step: _DOWNSTREAM.index(kind_of(step[0]))):
        if isinstance(what, Opening):
            _open(run, what)
        else:
            _unseal(run, stage, what)


def set_aside(directory: Path, folder: Path, name: str) -> None:
    """Moves a file of ``directory``, if it is there, into ``folder``, beside any that was moved there before.

    Raises:
        RunError: it cannot be moved.
    """
    source = directory / name
    if not os.path.lexists(source):
        return
    names = (folder / name if not number else folder / f"{name}.{number}" for number in count())
    target = next(path for path in names if not os.path.lexists(path))
    guarded(target, lambda: target.parent.mkdir(parents=True, exist_ok=True))
    guarded(target, lambda: os.replace(source, target))


def correct(manifest: dict[str, Any], fault: Fault) -> None:
    """Puts the right value where a fault of the kind ``record`` has found a wrong one."""
    *path, last = fault.at
    place: Any = manifest
    for key in path:
        place = place[key]
    place[last] = fault.value


def _drop_lines(run: RunDir, name: str) -> None:
    """Keeps a copy of a journal and takes its damaged lines out."""
    path, copy = run.path / name, run.path / f"{name}.copy"
    lost = {number for number, _ in damaged_lines(path)}
    guarded(copy, lambda: shutil.copyfile(path, copy))
    set_aside(run.path, run.path / ASIDE, f"{name}.copy")

    def write(target: Path) -> None:
        with path.open("rb") as old, target.open("wb") as new:
            new.writelines(line for number, line in enumerate(old, 1) if number not in lost)

    seal(path, write)


def _note(run: RunDir, plan: Plan) -> None:
    """Has the manifest know what is under way, beside what an earlier repair left undone."""
    before = run.manifest.get(REPAIR, {"begun": now(), "stages": [], "expected": {}})
    expected = {} if plan.texts_change else before["expected"] | plan.expected
    stages = [stage for stage in run.manifest["stages"] if stage in {*before["stages"], *plan.stages}]
    run.manifest[REPAIR] = {"begun": before["begun"], "stages": stages, "expected": expected}
    run.save()


def _open(run: RunDir, one: Opening) -> None:
    """A shard of text."""
    if one.stage == "captions" and not one.accepted:
        for stage in [name for name in run.manifest["stages"] if kind_of(name) == "instructions"]:
            kept = run.stage(stage)["fingerprint"]
            task_sample(run, stage.split("/")[1], kept["random_seed"], kept["pools"]).forget(one.shard)
    for path, stays in ((run.shard_path, one.accepted), (run.rejected_path, one.rejected)):
        if not stays:
            set_aside(run.path, run.path / ASIDE, str(path(one.stage, one.shard).relative_to(run.path)))
    open_what_is_left(run, one.stage, one.shard, one.accepted, one.rejected)


def _unseal(run: RunDir, stage: str, name: str) -> None:
    """A file of embeddings, or the statistics of a transfer."""
    set_aside(run.path, run.path / ASIDE, name)
    if not name.startswith("transfer/"):
        run.unseal(stage, place_of(name)[1])
    else:
        run.stage(stage)["files"].pop(name)
        run.save()

"""The mending of a run: what is broken is taken out, and the run's own stages make it again."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..captions import make_captions
from ..config import Recipe, Transfer
from ..embeddings import embed
from ..errors import RunError
from ..files import file_sha256, guarded
from ..instructions import make_instructions
from ..manifest import changes
from ..retry import section_of
from ..rundir import RunDir
from ..seeds import make_seeds
from ..sift import sift_captions
from ..transfer.stage import transfer
from .faults import ASIDE
from .layout import SCRATCH, kind_of
from .of_run import verify_run
from .opening import REPAIR, set_aside, take_out
from .plan import Plan, plan_repair

ROUNDS = 4  # a correction may show what it had hidden


def repair_run(run: RunDir, recipe: Recipe | None, dry_run: bool = False) -> None:
    """Makes again what is broken in a run, and nothing else; says beforehand what. Killed, the same call goes on.

    Args:
        run: the run directory.
        recipe: of the run, with the servers to ask; None where nothing has to be made again.
        dry_run: only say what would be done.

    Raises:
        RunError: the run is in use, something cannot be made again, or a stage refuses the recipe.
        SeedError, ServerError, EmbeddingError: of the stages.
    """
    with run.lock():
        for number in range(ROUNDS):
            plan = plan_repair(run, verify_run(run, held=True))
            begun = run.manifest.get(REPAIR)
            if not plan and not begun:
                print(f"{run.path}: {'whole' if number else 'whole; there is nothing to repair'}")
                return
            print("\n".join([*plan.words()] if plan else ["a repair that was begun goes on"]))
            if dry_run:
                return
            if recipe is None and (plan.seeds or plan.stages or (begun and begun["stages"])):
                raise RunError(f"{run.path}: this needs the run's recipe: --config RECIPE")
            take_out(run, plan)
            if recipe is not None:
                _make_again(run, recipe, plan)
            _tell_hashes(run)
            del run.manifest[REPAIR]
            run.save()
    raise RunError(f"{run.path}: faults are left after {ROUNDS} rounds; `verify` lists them")


def _make_again(run: RunDir, recipe: Recipe, plan: Plan) -> None:
    """Runs the stages that were finished before something was taken out of them."""
    stages = run.manifest[REPAIR]["stages"]
    if plan.seeds:
        remake_seeds(run, recipe, plan.seeds)
    if "captions" in stages:
        make_captions(run, recipe)
        sift_captions(run, recipe)
    if any(kind_of(stage) == "instructions" for stage in stages):
        make_instructions(run, recipe)
    if "text_embeddings" in stages:
        embed(run, recipe)
    for stage in stages:
        if kind_of(stage) == "image_embeddings":
            transfer(run, _transfer_recipe(run, recipe, stage))


def _transfer_recipe(run: RunDir, recipe: Recipe, stage: str) -> Recipe:
    """The recipe with the settings that a transfer of the run was made with.

    Raises:
        RunError: the method needs images or a basis, and the recipe is of another method.
    """
    kept: dict[str, Any] = dict(run.stage(stage)["fingerprint"])
    given = {key: getattr(recipe.transfer, key) for key in ("images", "image_basis") if kept.pop(key, None)}
    if given and recipe.transfer.method != kept["method"]:
        raise RunError(f"{run.path}: {stage} needs transfer.{' and '.join(given)} of its own recipe; give that one")
    section = replace(section_of(Transfer, kept), **given)
    return replace(recipe, transfer=section, random_seed=kept.get("random_seed", recipe.random_seed))


def _tell_hashes(run: RunDir) -> None:
    """Says whether what must have come out as it was has done so."""
    files = {name: facts for record in run.manifest["stages"].values() for name, facts in record["files"].items()}
    for name, wanted in run.manifest[REPAIR]["expected"].items():
        if name not in files:  # of a stage that was unfinished anyway
            print(f"{name}: its stage is unfinished, and makes it when it goes on")
        elif files[name]["sha256"] == wanted:
            print(f"{name}: made again, byte for byte as it was")
        else:
            print(
                f"{name}: made again, with other bytes than before (another machine, or version of a library?); what "
                "is made from it was made again, too"
            )


def remake_seeds(run: RunDir, recipe: Recipe, shards: list[int]) -> None:
    """Reads seed shards again from the recipe's sources.

    Raises:
        RunError: the recipe or its sources are not those that made them: other bytes come out, or none.
        SeedError: a source cannot be read.
    """
    kept = run.stage("seeds").get("kept", 0)  # shards that were there before the run was extended
    for part in ([shard for shard in shards if shard < kept], [shard for shard in shards if shard >= kept]):
        if part:
            try:
                _replace_seeds(run, _read_seeds(run, recipe, kept if part[0] >= kept else 0), part)
            finally:
                shutil.rmtree(run.path / SCRATCH, ignore_errors=True)


def _read_seeds(run: RunDir, recipe: Recipe, kept: int) -> RunDir:
    """All seeds of a recipe in a run of their own, after ``kept`` shards of this one."""
    shutil.rmtree(run.path / SCRATCH, ignore_errors=True)
    scratch = RunDir(run.path / SCRATCH, create=True)
    if kept:
        scratch.begin("seeds", {})
        files = {name: facts for name, facts in run.stage("seeds")["files"].items() if int(Path(name).stem) < kept}
        for name in files:
            target = scratch.path / name
            target.parent.mkdir(exist_ok=True)
            guarded(target, lambda: shutil.copyfile(run.path / name, target))  # noqa: B023
        scratch.note("seeds", files=files, complete=True)
    make_seeds(scratch, recipe, extend=bool(kept))
    return scratch


def _replace_seeds(run: RunDir, scratch: RunDir, shards: list[int]) -> None:
    for shard in shards:
        path = run.shard_path("seeds", shard)
        name, record = str(path.relative_to(run.path)), run.record("seeds", shard)
        made = scratch.record("seeds", shard) if shard in scratch.sealed("seeds") else None
        if made and path.is_file() and made["sha256"] == file_sha256(path):
            record.update(made)  # the file is what it should be, and the record was wrong
            run.save()
        elif made and made["sha256"] == record["sha256"]:
            set_aside(run.path, run.path / ASIDE, name)
            guarded(path, lambda: os.replace(scratch.shard_path("seeds", shard), path))  # noqa: B023
            print(f"{name}: read again, byte for byte as it was")
        else:
            moved = changes(run.stage("seeds")["fingerprint"], scratch.stage("seeds")["fingerprint"])
            raise RunError(
                f"{path} cannot be made again: the recipe makes other seeds than those it held "
                f"({'; '.join(moved) or 'its settings are the same, so a source or the code has changed'}). Give the "
                "recipe and sources that it was made with, or restore the file from a copy"
            )

"""Drives rejected rows again: their shards are opened, and what was rejected for the given reasons is asked anew.

Captions that were accepted before keep their places in the shard, and those that are recovered follow them, since
later stages refer to captions by shard and row.
"""

from collections.abc import Collection
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .ask import BulkTask
from .bulk import carry_out
from .captions import caption_task
from .config import TASKS, Captions, InstructionTask, Server, settings
from .errors import RunError
from .instructions import conversation_task, stage_of
from .progress import counted
from .rundir import RunDir
from .sealing import note_balance, open_again
from .tgi.protocol import Question
from .validation import validate

STAGES = ("captions", *map(stage_of, TASKS))


def retry(
    run: RunDir,
    server: Server,
    stages: Collection[str] = STAGES,
    reasons: Collection[str] = (),
    prompt: str | None = None,
    sampling: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Asks rejected rows again, with sampling seeds that have not been used for them.

    Args:
        run: the run directory.
        server: whom to ask; the model must be the one that the stage is bound to.
        stages: where to look for rejected rows.
        reasons: the reason codes of the rows to ask again; none means all.
        prompt: another prompt's name; the rows then cite it.
        sampling: values that replace the prompt's, such as ``temperature``; noted in the manifest.

    Returns:
        One account for each stage that had such rows: ``stage``, ``asked``, ``recovered``, ``balance`` and what was
        asked with; they are also noted in the manifest, as ``retried``.

    Raises:
        RunError: a stage has not been run to its end, was imported, or has no rejected rows of these reasons.
        RecipeError: there is no such prompt, or a sampling value is out of its range.
        ServerError: the servers cannot be used; what was answered so far is kept.
    """
    begun = [stage for stage in stages if stage in run.manifest["stages"]]
    if begun and all(map(run.imported, begun)):
        raise RunError(f"{run.path}: {', '.join(begun)} were imported, so no server can be asked for their rows again")
    begun = [stage for stage in begun if not run.imported(stage)]
    tasks = [_with_sampling(stage_task(run, stage, prompt), sampling) for stage in begun]
    accounts = [account for task in tasks if (account := _retry_stage(run, server, task, reasons))]
    if not accounts:
        found = {reason for stage in begun for reason in rejected_by_reason(run, stage)}
        wanted = f" for {', '.join(reasons)}" if reasons else ""
        raise RunError(
            f"{run.path}: no row of {', '.join(begun or stages)} was rejected{wanted}; "
            f"reasons there are: {', '.join(sorted(found)) or 'none'}"
        )
    return accounts


def rejected_by_reason(run: RunDir, stage: str) -> dict[str, int]:
    """How many rows of a stage are rejected, by reason."""
    counts: dict[str, int] = {}
    for shard in run.sealed(stage):
        for reason, count in run.record(stage, shard)["rejected_by_reason"].items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def stage_task(run: RunDir, stage: str, prompt: str | None = None) -> BulkTask[Any]:
    """What a stage that was begun asks, by the settings that the manifest keeps of it; ``prompt`` replaces theirs.

    Raises:
        RunError: the stage has not been begun.
        RecipeError: there is no such prompt.
    """
    kept = run.stage(stage)["fingerprint"]
    kept = kept | {"prompt": prompt or kept["prompt"]["name"].split("@")[0]}
    if stage == "captions":
        return caption_task(run, section_of(Captions, kept), kept["random_seed"])
    task = section_of(InstructionTask, kept)
    return conversation_task(run, Path(stage).name, task, kept["attempts"], kept["random_seed"], kept["pools"])


def section_of(kind: type[Any], kept: dict[str, Any]) -> Any:
    """A recipe's section of the given kind, as a stage's fingerprint keeps it.

    Raises:
        RecipeError: the manifest holds something else there.
    """
    names = [field.name for field in fields(kind) if field.name in kept]
    return validate(kind, {name: kept[name] for name in names}, "the manifest")


def _with_sampling(task: BulkTask[Any], values: dict[str, float] | None) -> BulkTask[Any]:
    prompt = task.question.prompt
    changed = {**settings(prompt.sampling), **(values or {})}
    sampling = validate(type(prompt.sampling), changed, "the sampling given")
    return replace(task, question=Question(replace(prompt, sampling=sampling), task.question.schema))


def _retry_stage(run: RunDir, server: Server, task: BulkTask[Any], reasons: Collection[str]) -> dict[str, Any] | None:

    def wanted(reason: str) -> bool:
        return not reasons or reason in reasons

    pending = set(run.due(task.stage, task.source)) - run.unsealed(task.stage).keys()
    if pending:
        raise RunError(f"{run.path}: stage '{task.stage}' has {len(pending)} shards to go; run it to its end first")
    again = [s for s in run.sealed(task.stage) if any(map(wanted, run.record(task.stage, s)["rejected_by_reason"]))]
    for shard in counted(again, f"{task.stage}, opening", "shard"):
        open_again(run, task.stage, shard, lambda row: wanted(row["reason"]))
        if task.stage == "captions" and shard in run.sealed("text_embeddings"):
            run.unseal("text_embeddings", shard)
    before = note_balance(run, task)
    if not run.unsealed(task.stage):
        return None
    carry_out(run, server, task)
    balance = note_balance(run, task)
    account = {
        "stage": task.stage,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "reasons": sorted(reasons),
        "prompt": {"name": task.question.prompt.name, "sha256": task.question.prompt.sha256},
        "sampling": settings(task.question.prompt.sampling),
        "asked": before["pending"],
        "recovered": balance["accepted"] - before["accepted"],
        "balance": balance,
    }
    run.note(task.stage, retried=[*run.stage(task.stage).get("retried", ()), account])
    return account

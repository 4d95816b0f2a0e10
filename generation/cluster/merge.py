"""The parts of a plan become one record in the manifest, if all are there and agree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..manifest import changes
from ..parts import Plan, read_part, rows_of
from ..rundir import RunDir


def merge(run: RunDir, plan: Plan) -> None:
    """Takes all parts of a plan into the run's manifest, all of a stage at once; nothing if that was done before.

    The stage's record keeps, as ``tasks``, what each task did: ``rank``, ``shards``, ``rows``, the ``hosts`` that it
    ran on and its ``seconds`` (a task of ``instructions`` makes all three stages, and its seconds stand in each).

    Raises:
        RunError: a part is missing, of another plan, or disagrees with the others (another served model, another
            encoder); or a shard is missing, or held twice. The manifest is then as it was.
    """
    if missing := [rank for rank in range(plan.tasks) if not plan.part_path(rank).exists()]:
        raise RunError(
            f"{plan.folder}: of {plan.tasks} tasks these have made no part: {', '.join(map(str, missing))}; give the "
            "same command again"
        )
    parts = [read_part(plan, rank) for rank in range(plan.tasks)]
    planned = [stage for stage, shards in plan.shards.items() if shards]
    due = [stage for stage in planned if plan.folder.name not in run.stage(stage).get("tasks", {})]
    merged = {stage: _merged(run, plan, stage, parts) for stage in due}
    for stage, record in merged.items():
        run.note(stage, **record)


def _merged(run: RunDir, plan: Plan, stage: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What merging changes in the stage's record."""
    records: list[dict[str, Any]] = [part["stages"][stage] for part in parts]
    known = run.stage(stage)
    changed: dict[str, Any] = _agreed(plan, stage, known, records)
    files = _files(run, plan, stage, records)
    changed["files"] = known["files"] | files
    sessions = [*known.get("sessions", ()), *(s for record in records for s in record.get("sessions", ()))]
    if sessions:
        changed["sessions"] = sorted(sessions, key=lambda session: str(session["begun"]))
    asked = [record for record in records if "servers" in record]
    if asked:
        servers = [facts for record in asked for facts in record["servers"]]
        changed["servers"] = [facts for place, facts in enumerate(servers) if facts not in servers[:place]]
        changed["demonstration"] = any(record["demonstration"] for record in asked)
    if opened := known.get("unsealed"):
        changed["unsealed"] = {s: facts for s, facts in opened.items() if int(s) not in plan.shards[stage]}
    accounts = [_account(plan, stage, rank, part) for rank, part in enumerate(parts)]
    changed["tasks"] = known.get("tasks", {}) | {plan.folder.name: accounts}
    return changed


def _agreed(plan: Plan, stage: str, known: Mapping[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """The stage's fingerprint with what became known only once its tasks ran, in which all must agree."""
    fingerprint, pinned, before = dict(known["fingerprint"]), set(known.get("pinned", ())), "the run before"
    for rank, record in enumerate(records):
        if not record["files"]:
            continue  # a task without shards has seen no server
        own = fingerprint | record["fingerprint"]
        if moved := changes({key: fingerprint.get(key, value) for key, value in own.items()}, own):
            raise RunError(
                f"{plan.part_path(rank)}: stage '{stage}' was made otherwise than in {before}: "
                f"{'; '.join(moved)}. Nothing was merged; {plan.remedy(rank)}"
            )
        fingerprint, before = own, f"task {rank}"
        pinned |= set(record.get("pinned", ()))
    return {"fingerprint": fingerprint, **({"pinned": sorted(pinned)} if pinned else {})}


def _files(run: RunDir, plan: Plan, stage: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """All files of the parts, in the order of shards; each planned shard is there, once, and as it was sealed."""
    files: dict[str, Any] = {}
    holder: dict[str, int] = {}
    for rank, record in enumerate(records):
        for name, facts in record["files"].items():
            if name in holder:
                raise RunError(f"{run.path / name} is held by two parts, of tasks {holder[name]} and {rank}")
            if int(Path(name).stem) not in plan.shards_of(stage, rank):
                raise RunError(f"{plan.part_path(rank)} holds {name}, which the plan does not give to task {rank}")
            if run.stage(stage)["files"].get(name, facts) != facts:
                raise RunError(f"{run.path / name} is in manifest.json already, with another hash than task {rank}'s")
            if not (path := run.path / name).is_file() or path.stat().st_size != facts["bytes"]:
                raise RunError(f"{path} is gone, or not of the {facts['bytes']} bytes sealed; {plan.remedy(rank)}")
            holder[name], files[name] = rank, facts
    for rank in range(plan.tasks):
        for shard in plan.shards_of(stage, rank):
            if str(run.shard_path(stage, shard).relative_to(run.path)) not in files:
                raise RunError(f"{run.shard_path(stage, shard)} was not made by task {rank}; {plan.remedy(rank)}")
    return dict(sorted(files.items()))


def _account(plan: Plan, stage: str, rank: int, part: dict[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of a task."""
    return {
        "rank": rank,
        "shards": plan.shards_of(stage, rank),
        "rows": rows_of(stage, part["stages"][stage]),
        "seconds": round(sum(spent["seconds"] for spent in part["worked"]), 1),
        "hosts": sorted({spent["host"] for spent in part["worked"]}),
    }

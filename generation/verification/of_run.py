"""All of a run: every file, every shard through all stages, statistics, totals, and what is there beside them."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..journal import damaged_lines
from ..manifest import read_manifest
from ..progress import progress
from ..rundir import RunDir
from .counts import total_faults
from .faults import MANIFEST, Fault, Findings, command, file_fault
from .layout import (
    check_records,
    command_of,
    due,
    files_by_shard,
    is_finished,
    kind_of,
    statistics_file,
    unknown_files,
    unsealed,
)
from .shards import ShardCheck
from .vectors import statistics_faults

SHARDS = 2  # looked at at once; more would only hold more rows in memory


def verify_run(run: RunDir, held: bool = False) -> Findings:
    """Checks everything that a run holds, and goes on after a fault. Writes nothing.

    Args:
        run: the run directory.
        held: this process holds the run's lock. Without it another may be writing: what that changes meanwhile is not
            judged.

    Raises:
        RunError: the manifest cannot be read, or its records are damaged.
    """
    check_records(run.manifest, run.path)
    in_use = not held and run.in_use()
    by_shard = files_by_shard(run)
    statistics = [stage for stage in run.manifest["stages"] if kind_of(stage) == "image_embeddings"]
    statistics = [stage for stage in statistics if statistics_file(stage) in run.stage(stage)["files"]]
    records = [facts for stage in run.manifest["stages"].values() for facts in stage["files"].values()]
    found = Findings(run.path, "run", command("repair", run.path, "--config", "RECIPE"))
    found.files, found.bytes = len(records), sum(facts["bytes"] for facts in records)
    totals: Counter[tuple[str | None, str]] = Counter()
    with ThreadPoolExecutor(SHARDS) as pool, progress("verify", found.bytes, 0, "B") as bar:
        transfers = {stage: list(transfer_faults(run, stage)) for stage in statistics}
        bar.update(sum(run.stage(stage)["files"][statistics_file(stage)]["bytes"] for stage in statistics))
        fitted = [stage for stage in statistics if not transfers[stage] or statistics_are_whole(run, stage)]
        checks = [ShardCheck(run, shard, files, fitted) for shard, files in by_shard.items()]
        for check in pool.map(ShardCheck.complete, checks):
            found.faults += check.faults
            totals.update(check.totals)
            bar.update(sum(run.stage(stage)["files"][name]["bytes"] for name, stage in check.files.items()))
    found.faults += [fault for faults in transfers.values() for fault in faults]
    found.faults += total_faults(run, totals)
    found.faults += _journals(run)
    found.faults += [Fault(name, "is not in the manifest", kind="unknown") for name in unknown_files(run)]
    found.notes += _notes(run)
    if in_use or (not held and run.in_use()):
        found.faults = _settled(run, found.faults)
        found.notes.append("another process uses this run; what it was writing was not judged")
    return found


def statistics_are_whole(run: RunDir, stage: str) -> bool:
    """Whether a transfer's statistics file has the recorded bytes."""
    fault = _statistics_fault(run, stage)
    return fault is None or fault.kind == "record"


def _statistics_fault(run: RunDir, stage: str) -> Fault | None:
    name = statistics_file(stage)
    return file_fault(run.path, name, run.stage(stage)["files"][name], ("stages", stage, "files", name))


def transfer_faults(run: RunDir, stage: str) -> Iterator[Fault]:
    """A transfer's statistics file: its bytes and what it says of itself."""
    name, record = statistics_file(stage), run.stage(stage)["files"][statistics_file(stage)]
    fault = _statistics_fault(run, stage)
    if fault:
        yield fault
    if fault is None or fault.kind == "record":
        wanted = {"method": stage.split("/")[1], "inputs": run.stage(stage)["fingerprint"]["inputs"]}
        wanted |= {"encoder": run.stage("text_embeddings")["fingerprint"], "rows": record.get("rows")}
        yield from statistics_faults(name, run.path / name, wanted)


def _journals(run: RunDir) -> Iterator[Fault]:
    """Journals of shards that are not sealed yet; those of an import count for nothing."""
    for stage in run.manifest["stages"]:
        for shard in unsealed(run, stage) if run.imported(stage) is None else ():
            path = run.journal_path(stage, shard)
            if path.is_file():
                name = str(path.relative_to(run.path))
                yield from (Fault(name, f"is damaged: {why}", line, "journal") for line, why in damaged_lines(path))


def _notes(run: RunDir) -> Iterator[str]:
    """What is unfinished, or made from what there is no more."""
    for stage, record in run.manifest["stages"].items():
        if not is_finished(run, stage):
            more = f"{len(run.sealed(stage))} shards made, {len(due(run, stage))} due" if due(run, stage) else "begun"
            yield f"{stage} is unfinished ({more}); it goes on with: {command_of(stage)}"
        elif kind_of(stage) == "image_embeddings" and record["fingerprint"]["inputs"] != run.hashes("text_embeddings"):
            yield f"{stage} was made from other text embeddings than there are now; it is made again with: transfer"
        elif kind_of(stage) == "judgements" and record.get("inputs") != run.hashes(
            f"instructions/{stage.split('/')[1]}"
        ):
            yield f"{stage} judges some conversations that are no more; they are judged with: {command_of(stage)}"
    if "repair" in run.manifest:
        yield "a repair was begun and is not at its end; it goes on with: repair"


def _settled(run: RunDir, faults: list[Fault]) -> list[Fault]:
    """The faults that have nothing to do with what another process has changed since the manifest was read."""
    later = read_manifest(run.path / MANIFEST)["stages"]

    def stands(fault: Fault) -> bool:
        if fault.kind in ("unknown", "journal"):
            return False
        if fault.kind == "record":
            return bool(later.get(fault.at[1]) == run.stage(str(fault.at[1])))
        owners = [stage for stage, record in run.manifest["stages"].items() if fault.file in record["files"]]
        return all(later[owner]["files"].get(fault.file) == run.stage(owner)["files"][fault.file] for owner in owners)

    return [fault for fault in faults if stands(fault)]

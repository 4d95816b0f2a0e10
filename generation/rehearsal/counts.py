"""Whether the counts of a rehearsal add up, told from the files and from the server's account."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..config import TASKS
from ..rundir import RunDir
from .answers import CAPTIONS, KINDS
from .ground import Ground
from .reading import SETS


def faults(ground: Ground, loaded: dict[str, int], wanted: bool = True) -> list[str]:
    """What does not add up, in words; empty if all does.

    Args:
        ground: with a finished run and both sets.
        loaded: rows that ``load_dataset`` gave, by data set and config.
        wanted: whether there must be as many captions as were asked for.
    """
    run = RunDir(ground.run)
    return [
        *_of_captions(ground, run, wanted),
        *_of_stages(run),
        *_of_sets(run, loaded),
        *_of_server(ground, run),
    ]


def unequal_ids(run: RunDir) -> list[str]:
    """Seeds that are not exactly once in ``captions`` or among the rejected, in words."""
    found = []
    for shard in run.sealed("seeds"):
        seeds = _ids(run, shard, "seeds")
        ended = _ids(run, shard, CAPTIONS)
        if run.record(CAPTIONS, shard)["rejected_by_reason"]:
            path = run.rejected_path(CAPTIONS, shard)
            ended = np.concatenate([ended, pq.read_table(path, columns=["id"])["id"].to_numpy()])
        if not np.array_equal(np.sort(seeds), np.sort(ended)):
            found.append(f"shard {shard}: {len(seeds)} seeds, {len(ended)} ids in captions and rejected; they differ")
    return found


def _ids(run: RunDir, shard: int, stage: str) -> Any:
    return pq.read_table(run.shard_path(stage, shard), columns=["id"])["id"].to_numpy()


def _rows(run: RunDir, stage: str) -> int:
    return sum(run.record(stage, shard)["rows"] for shard in run.sealed(stage))


def _of_captions(ground: Ground, run: RunDir, wanted: bool) -> Iterator[str]:
    seeds, balance = _rows(run, "seeds"), run.stage(CAPTIONS)["balance"]
    read = sum(source["read"] for source in run.stage("seeds")["sources"].values())
    if read != ground.lines:
        yield f"{ground.lines} lines were written and {read} read"
    if seeds != balance["accepted"] + balance["rejected"]:
        yield f"{seeds} seeds became {balance['accepted']} captions and {balance['rejected']} rejected rows"
    if wanted and balance["accepted"] < ground.rows:
        yield f"{balance['accepted']} captions, fewer than the {ground.rows} that were wanted"
    yield from unequal_ids(run)


def _of_stages(run: RunDir) -> Iterator[str]:
    captions = _rows(run, CAPTIONS)
    vectors = [stage for stage in run.manifest["stages"] if stage.split("/")[0].endswith("_embeddings")]
    for stage in vectors:
        if (rows := _rows(run, stage)) != captions:
            yield f"{captions} captions have {rows} vectors in {stage}"
    for task in TASKS:
        stage = f"instructions/{task}"
        want = sum(sum(batch["wanted"].values()) for batch in run.stage(stage)["samples"])
        if (rows := _rows(run, stage)) != want:
            yield f"{want} conversations were wanted of {task}, and {rows} made"


def _of_sets(run: RunDir, loaded: dict[str, int]) -> Iterator[str]:
    made = (_rows(run, CAPTIONS), sum(_rows(run, f"instructions/{task}") for task in TASKS))
    for name, rows in loaded.items():
        wanted = made[SETS.index(name.split()[0])]
        if rows != wanted:
            yield f"{name}: {rows} rows were loaded of {wanted} that were made"


def _of_server(ground: Ground, run: RunDir) -> Iterator[str]:
    """Every attempt that a row tells of was answered."""
    counts = ground.account.counts()
    for kind in KINDS:
        stage, attempts = kind if kind == CAPTIONS else f"instructions/{kind}", 0
        for shard in run.sealed(stage):
            rejected = [run.rejected_path(stage, shard)] if run.record(stage, shard)["rejected_by_reason"] else []
            for path in (run.shard_path(stage, shard), *rejected):
                attempts += int(pq.read_table(path, columns=["attempts"])["attempts"].to_numpy().sum())
        if attempts > counts[kind]:
            yield f"{kind}: the rows tell of {attempts} answers, and the server gave {counts[kind]}"

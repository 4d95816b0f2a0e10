"""What the manifest says of whole stages, held against what their shards add up to."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..rundir import RunDir
from ..sealing import balance_of
from .faults import Fault, record_fault
from .layout import is_finished, kind_of, source_of

Totals = Mapping[tuple[str | None, str], int]


def total_faults(run: RunDir, totals: Totals) -> list[Fault]:
    """All stages' totals, but for those of a stage that is unfinished, which change with its next shard, and of one
    whose shards' own records are wrong."""
    faults = []
    for stage in run.manifest["stages"]:
        if any(totals.get((name, "broken")) for name in (stage, source_of(stage))) or not is_finished(run, stage):
            continue
        for at, recorded, found in _totals(run, stage, totals):
            if recorded != found:
                faults.append(record_fault(("stages", stage, *at), recorded, found, "the shards make"))
    return faults


def _totals(run: RunDir, stage: str, totals: Totals) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(where in the stage's record, what is recorded, what it should be)."""
    record, kind = run.stage(stage), kind_of(stage)
    own = Counter({name: count for (owner, name), count in totals.items() if owner == stage})
    if "balance" in record:
        yield ("balance",), record["balance"], balance_of(run, stage, _items(run, stage, own))
    if kind == "seeds" and not record.get("kept"):  # a later reading counts what it added
        for name, source in record.get("sources", {}).items():
            if "seeds" in source:
                yield ("sources", name, "seeds"), source["seeds"], own[name]
    elif kind == "instructions" and "statistics" in record:
        yield ("statistics", "items"), record["statistics"]["items"], own["items"]
    elif kind == "judgements" and "verdicts" in record:
        yield ("verdicts",), record["verdicts"], {"yes": own["yes"], "no": own["no"]}


def _items(run: RunDir, stage: str, own: Mapping[str, int]) -> int | None:
    """How many items a stage has; None for one whose items are those that have ended."""
    if run.imported(stage) is not None or kind_of(stage) == "judgements":
        return None
    if stage == "captions":
        return sum(int(run.record("seeds", shard)["rows"]) for shard in run.sealed("seeds"))
    return sum(int(count) for batch in run.stage(stage)["samples"] for count in batch["counts"].values())

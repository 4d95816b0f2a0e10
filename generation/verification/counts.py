"""What the manifest says of whole stages, held against what their shards add up to."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..rundir import RunDir
from ..sealing import balance_of
from .faults import MANIFEST, Fault
from .layout import is_finished, kind_of

Totals = Mapping[tuple[str, str], int]


def total_faults(run: RunDir, totals: Totals) -> list[Fault]:
    """All stages' totals. Those of a stage that is unfinished change with its next shard, and are not judged."""
    faults = []
    for stage in run.manifest["stages"]:
        if totals.get((stage, "broken")) or not is_finished(run, stage):
            continue
        for key, recorded, found in _totals(run, stage, totals):
            if recorded != found:
                what = f"{stage}: {key} is {recorded!r}, but the shards make {found!r}"
                faults.append(Fault(MANIFEST, what, None, "record", stage))
    return faults


def _totals(run: RunDir, stage: str, totals: Totals) -> Iterator[tuple[str, Any, Any]]:
    """(what, what is recorded, what it should be)."""
    record, kind = run.stage(stage), kind_of(stage)
    own = Counter({name: count for (owner, name), count in totals.items() if owner == stage})
    if "balance" in record:
        yield "balance", record["balance"], balance_of(run, stage, _items(run, stage, own))
    if kind == "seeds" and not record.get("kept"):  # a later reading counts what it added
        for name, source in record.get("sources", {}).items():
            if "seeds" in source:
                yield f"sources.{name}.seeds", source["seeds"], own[name]
    elif kind == "instructions" and "statistics" in record:
        yield "statistics.items", record["statistics"]["items"], own["items"]
    elif kind == "judgements" and "verdicts" in record:
        yield "verdicts", record["verdicts"], {"yes": own["yes"], "no": own["no"]}


def _items(run: RunDir, stage: str, own: Mapping[str, int]) -> int | None:
    """How many items a stage has; None for one whose items are those that have ended."""
    if run.imported(stage) is not None or kind_of(stage) == "judgements":
        return None
    if stage == "captions":
        return sum(run.record("seeds", shard)["rows"] for shard in run.sealed("seeds"))
    return sum(count for batch in run.stage(stage)["samples"] for count in batch["counts"].values())

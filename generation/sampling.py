"""Which captions a task asks about: drawn at random, in proportion to their seed sources, and topped up when rejects
leave the task short.

Every caption has a draw for every task, and of each source those with the lowest draws are taken. So a selection is
one number a source: the threshold below which draws are in. The manifest keeps it, and the captions chosen stay the
same whatever comes later: shards that are added get a selection of their own, captions that are recovered lie beyond
the rows that could be drawn, and topping up raises thresholds. Nothing is held in memory but draws, 8 bytes a caption.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .progress import counted
from .records import draw
from .rundir import RunDir
from .sealing import rejected_rows


@dataclass(frozen=True)
class Batch:
    """The selection from some caption shards, made at one time.

    Attributes:
        of: by shard, how many of its first rows could be drawn.
        counts: by shard, how many of them are in.
        wanted: by source, how many conversations there are to be.
        thresholds: by source, the draw from which on captions are out.
    """

    of: dict[str, int]
    counts: dict[str, int]
    wanted: dict[str, int]
    thresholds: dict[str, int]


Candidate = tuple[int, int, str, str]  # shard, row, id, source


class TaskSample:
    """The captions that one task asks about.

    Args:
        run: a run whose captions are complete.
        stage: the task's, begun or not.
        key: of its draws.
        eligible: whether the caption of an id may be asked about; with tasks that share none, each has its own.
    """

    def __init__(self, run: RunDir, stage: str, key: str, eligible: Callable[[str], bool] = lambda id: True) -> None:
        self.run, self.stage, self.key, self.eligible = run, stage, key, eligible
        record = run.manifest["stages"].get(stage, {})
        self.batches = [Batch(**batch) for batch in record.get("samples", ())]

    def count(self, shard: int) -> int:
        """How many captions of a shard are asked about."""
        return sum(batch.counts.get(str(shard), 0) for batch in self.batches)

    def rows(self, shard: int) -> list[int]:
        """Which rows of a caption shard are asked about, ascending."""
        batch = self._batch_of(shard)
        if batch is None:
            return []
        candidates = _candidates(self.run, {str(shard): batch.of[str(shard)]})
        return [candidate[1] for candidate in candidates if self._is_in(candidate, batch)]

    def choose(self, fraction: float) -> None:
        """Selects from the caption shards that have no selection yet, so that ``fraction`` of all captions are in.

        Of shards whose captions were made anew (``forget``) those are in whose draws are below the thresholds. The
        selection is added to the stage's record, if the stage has been begun.
        """
        self._count_forgotten()
        known = {shard for batch in self.batches for shard in batch.of}
        of = {
            str(shard): int(self.run.record("captions", shard)["rows"])
            for shard in self.run.sealed("captions")
            if str(shard) not in known
        }
        if not of:
            return
        draws = self._draws(of)
        all_rows = sum(of.values()) + sum(sum(batch.of.values()) for batch in self.batches)
        given = sum(sum(batch.wanted.values()) for batch in self.batches)
        target = max(0, math.floor(fraction * all_rows + 0.5) - given)
        wanted = proportional({source: len(values) for source, values in draws.items()}, target)
        thresholds = {source: _threshold(draws[source], count) for source, count in wanted.items()}
        self.batches.append(self._counted(Batch(of, {}, wanted, thresholds)))
        self._note()

    def forget(self, shard: int) -> None:
        """Has the next ``choose`` count a shard's captions again: they are others than those that were drawn from."""
        for batch in self.batches:
            batch.counts.pop(str(shard), None)
        self._note()

    def top_up(self, open_shard: Callable[[int], None]) -> int:
        """Takes in as many further captions as rejects have left the task short, from the same sources if they have
        some left; returns how many.

        Args:
            open_shard: opens a sealed shard of the stage; called before the wider selection counts.
        """
        added = 0
        for number, batch in enumerate(self.batches):
            short = self._short(batch)
            if not short:
                continue
            draws = self._draws(batch.of)
            chosen = {
                source: int((values < batch.thresholds.get(source, 0)).sum()) for source, values in draws.items()
            }
            left = {source: len(values) - chosen[source] for source, values in draws.items()}
            more = {source: min(count, left.get(source, 0)) for source, count in short.items()}
            rest = proportional({s: left[s] - more.get(s, 0) for s in left}, sum(short.values()) - sum(more.values()))
            thresholds = {
                source: _threshold(values, chosen[source] + more.get(source, 0) + rest.get(source, 0))
                for source, values in draws.items()
            }
            wider = self._counted(Batch(batch.of, {}, batch.wanted, thresholds))
            for shard, count in wider.counts.items():
                if count > batch.counts[shard]:
                    open_shard(int(shard))
            self.batches[number] = wider
            added += sum(wider.counts.values()) - sum(batch.counts.values())
        self._note()
        return added

    def _count_forgotten(self) -> None:
        for number, batch in enumerate(self.batches):
            lost = sorted(batch.of.keys() - batch.counts)
            if lost:
                of = {shard: int(self.run.record("captions", int(shard))["rows"]) for shard in lost}
                counts = self._counted(replace(batch, of=of)).counts
                self.batches[number] = replace(batch, of=batch.of | of, counts=batch.counts | counts)
                self._note()

    def _short(self, batch: Batch) -> Counter[str]:
        """By source, how many conversations are missing of those wanted: rejected, less those topped up before."""
        rejected: Counter[str] = Counter()
        for shard in map(int, batch.of):
            lost = {row["id"] for row in rejected_rows(self.run, self.stage, shard)}
            if lost:
                of = {str(shard): batch.of[str(shard)]}
                rejected.update(source for _, _, id, source in _candidates(self.run, of) if id in lost)
        spare = sum(batch.counts.values()) - sum(batch.wanted.values())
        for source in sorted(rejected):
            covered = min(spare, rejected[source])
            rejected[source] -= covered
            spare -= covered
        return +rejected

    def _batch_of(self, shard: int) -> Batch | None:
        return next((batch for batch in self.batches if str(shard) in batch.of), None)

    def _is_in(self, candidate: Candidate, batch: Batch) -> bool:
        _, _, id, source = candidate
        return draw(self.key, id) < batch.thresholds.get(source, 0) and self.eligible(id)

    def _draws(self, of: Mapping[str, int]) -> dict[str, Any]:
        """By source, the draws of all captions that this task may have, uint64 [n]."""
        draws: defaultdict[str, array[int]] = defaultdict(partial(array, "Q"))
        for candidate in _candidates(self.run, of):
            if self.eligible(candidate[2]):
                draws[candidate[3]].append(draw(self.key, candidate[2]))
        return {source: np.frombuffer(values, np.uint64) for source, values in sorted(draws.items())}

    def _counted(self, batch: Batch) -> Batch:
        counts = dict.fromkeys(batch.of, 0)
        for candidate in _candidates(self.run, batch.of):
            counts[str(candidate[0])] += self._is_in(candidate, batch)
        return Batch(batch.of, counts, batch.wanted, batch.thresholds)

    def _note(self) -> None:
        if self.stage in self.run.manifest["stages"]:
            self.run.note(self.stage, samples=[asdict(batch) for batch in self.batches])


def pool(key: str, id: str, shares: Mapping[str, float]) -> str:
    """Which task's the caption of an id is, where tasks share none: drawn in proportion to ``shares``."""
    place = draw(key, "pool", id) / 2**63 * sum(shares.values())
    for task, share in shares.items():
        place -= share
        if place < 0:
            return task
    return task


def proportional(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """``total`` shared out in proportion to ``sizes`` and never above them: by largest remainders, and at least one
    for each that is not empty, as long as there is one for each."""
    everything = sum(sizes.values())
    total = min(total, everything)
    exact = {name: total * size / everything if everything else 0.0 for name, size in sizes.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    empty = [name for name in sorted(sizes) if sizes[name] and not shares[name]]
    if total >= sum(1 for size in sizes.values() if size):
        for name in empty:
            shares[max(shares, key=lambda other: (shares[other], other))] -= 1
            shares[name] = 1
    return shares


def _threshold(draws: Any, count: int) -> int:
    """The number below which exactly ``count`` of the draws lie."""
    if count <= 0:
        return 0
    return int(np.partition(draws, count - 1)[count - 1]) + 1


def _candidates(run: RunDir, of: Mapping[str, int]) -> Iterator[Candidate]:
    for shard in map(int, counted(of, "sample of captions", "shard")):
        table = run.table("captions", shard).select(["id", "source"]).slice(0, of[str(shard)])
        ids, sources = table["id"].to_pylist(), table["source"].to_pylist()
        for row, (id, source) in enumerate(zip(ids, sources, strict=True)):
            yield shard, row, id, source

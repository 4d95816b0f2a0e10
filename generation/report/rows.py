"""The rows that can be browsed: a seeded sample, its conversations, and its neighbours in the whole run."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..config import TASKS
from ..diagnostics.cosines import unit
from ..diagnostics.vectors import sampled_rows
from ..rundir import RunDir
from ..tensors import open_shard
from .stages import TEXTS
from .texts import BATCH_ROWS, batches

NEIGHBOURS = 3  # of a row
NEIGHBOUR_CHARACTERS = 160  # of a neighbour's caption
PAGE_BYTES = 3_000_000  # of all rows together, as JSON

Place = tuple[int, int]  # shard and row
Near = dict[Place, list[tuple[float, Place]]]  # cosine and place of each neighbour, the nearest first


def places(run: RunDir, stage: str, count: int, seed: int = 0) -> list[Place]:
    """Where ``count`` rows of a stage lie (all, if there are no more), drawn with ``seed``, in run order."""
    shards = [(shard, run.record(stage, shard)["rows"]) for shard in run.sealed(stage)]
    chosen = sampled_rows(sum(rows for _, rows in shards), count, seed).tolist()
    found, first = [], 0
    for shard, rows in shards:
        found += [(shard, row - first) for row in chosen if first <= row < first + rows]
        first += rows
    return found


def by_shard(rows: Sequence[Place]) -> dict[int, set[int]]:
    """The same rows by shard."""
    found: dict[int, set[int]] = {}
    for shard, row in rows:
        found.setdefault(shard, set()).add(row)
    return found


def neighbours(run: RunDir, rows: Sequence[Place], on_rows: Callable[[int], object]) -> Near:
    """The captions of the whole run whose text embeddings have the largest cosines to those of ``rows``.

    Args:
        run: its stage ``embed`` has ended.
        rows: at least one.
        on_rows: told how many rows were read.

    Raises:
        RunError: a shard was changed.
        EmbeddingError: a shard is no whole file of embeddings.
    """
    shards = run.sealed(TEXTS)
    vectors = {shard: open_shard(run.verified(TEXTS, run.shard_path(TEXTS, shard))).embeddings for shard in shards}
    queries = unit(torch.stack([vectors[shard][row] for shard, row in rows]).float())
    best = torch.full((len(rows), NEIGHBOURS), -2.0)
    where = torch.full((len(rows), NEIGHBOURS), -1, dtype=torch.int64)  # shard and row in one number
    own = torch.tensor([_number(place) for place in rows])
    for shard in shards:
        for first in range(0, len(vectors[shard]), BATCH_ROWS):
            chunk = unit(vectors[shard][first : first + BATCH_ROWS].float())
            numbers = _number((shard, first)) + torch.arange(len(chunk))
            cosines = (queries @ chunk.T).masked_fill(own.unsqueeze(1) == numbers, -2.0)
            near = cosines.topk(min(NEIGHBOURS, len(chunk)), dim=1)
            together = torch.cat([best, near.values], 1).sort(dim=1, descending=True, stable=True)
            where = torch.cat([where, numbers[near.indices]], 1).gather(1, together.indices)[:, :NEIGHBOURS]
            best = together.values[:, :NEIGHBOURS]
            on_rows(len(chunk))
    return {
        place: [(cosine, divmod(number, 10**5)) for cosine, number in zip(*found, strict=True) if number >= 0]
        for place, *found in zip(rows, best.tolist(), where.tolist(), strict=True)
    }


def browsed(
    run: RunDir, rows: Sequence[Place], texts: Mapping[Place, Mapping[str, Any]], near: Near
) -> list[dict[str, Any]]:
    """The rows as the page holds them, as many as fit in ``PAGE_BYTES``.

    Args:
        run: the run.
        rows: of captions.
        texts: the columns of these rows and of their neighbours.
        near: the neighbours; empty where there are no embeddings.

    Raises:
        RunError: a shard was changed.
    """
    turns, found, left = _conversations(run, rows), [], PAGE_BYTES
    for place in rows:
        row = dict(texts[place])
        row["conversations"] = turns.get(row["id"], [])
        row["neighbours"] = [
            {
                "id": texts[other]["id"],
                "cosine": round(cosine, 3),
                "caption": _short(texts[other]["caption"]),
            }
            for cosine, other in near.get(place, ())
        ]
        left -= len(json.dumps(row).replace("<", "\\u003c"))
        if left < 0:
            break
        found.append(row)
    return found


def seeds_alone(run: RunDir, rows: Sequence[Place]) -> list[dict[str, Any]]:
    """Rows of seeds that have no captions yet, as the page holds them."""
    found = []
    for shard, wanted in by_shard(rows).items():
        for first, batch in batches(run, "seeds", shard, ["id", "seed", "source"]):
            here = [row - first for row in sorted(wanted) if first <= row < first + len(batch)]
            found += batch.take(pa.array(here, pa.int64())).to_pylist()
    return [row | {"conversations": [], "neighbours": []} for row in found]


def _conversations(run: RunDir, rows: Sequence[Place]) -> dict[str, list[dict[str, Any]]]:
    """The conversations about captions, by their ids."""
    found: dict[str, list[dict[str, Any]]] = {}
    for task in TASKS:
        stage = f"instructions/{task}"
        wanted = by_shard(rows)
        for shard in sorted(wanted.keys() & set(run.sealed(stage))):
            inside = pa.array(sorted(wanted[shard]), pa.int32())
            for _, batch in batches(run, stage, shard, ["id", "caption_row", "conversations"]):
                for row in batch.filter(pc.is_in(batch["caption_row"], value_set=inside)).to_pylist():
                    found.setdefault(row["id"], []).append({"task": task, "turns": row["conversations"]})
    return found


def _short(text: str) -> str:
    return text if len(text) <= NEIGHBOUR_CHARACTERS else text[: NEIGHBOUR_CHARACTERS - 1].rstrip() + "…"


def _number(place: Place) -> int:
    return place[0] * 10**5 + place[1]

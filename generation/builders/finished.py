"""A finished run as the builders read it: completeness checked first, rows joined with captions and vectors by id."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dedup import duplicate_groups
from ..errors import DatasetError
from ..files import read_json, write_json
from ..instructions import selection_inputs
from ..judge import CONFIRMED, judged_share
from ..rows import text_hash
from ..stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS
from ..stages import image_embeddings as image_stage
from ..store import Run
from ..transfer.stage import statistics_file, statistics_input
from ..vectors import VectorShard


class FinishedRun:
    """A run whose stages are complete.

    Args:
        path: the run directory.
        method: of the transfer; None: the recipe's.
        instructions: whether the data set needs the instruction stages.

    Raises:
        DatasetError: it is a built data set.
        RunError: it is not a run directory, or a stage is not complete.
    """

    def __init__(self, path: Path, method: str | None, instructions: bool) -> None:
        if (path / "manifest.json").is_file() and not (path / "run.json").is_file():
            raise DatasetError(
                f"{path} is a built data set, not a run. Give the run that it was built from; classes read a built "
                "data set with data_dir="
            )
        run = self.run = Run(path)
        self.method = method or run.recipe.transfer.method
        self.vectors_stage, self.statistics = image_stage(self.method), statistics_file(run, self.method)
        self.tasks = [INSTRUCTIONS[task] for task in TASKS] if instructions else []
        self.imported = "imported" in run.facts(CAPTIONS).get("identity", {})  # from the original's release
        self.records = {stage: run.require(stage) for stage in (SEEDS, CAPTIONS, TEXT_EMBEDDINGS)}
        self.records[self.vectors_stage] = run.require(self.vectors_stage, statistics_input(run, self.method))
        for stage, task in zip(self.tasks, TASKS, strict=False):
            imported = "imported" in run.facts(stage).get("identity", {})
            self.records[stage] = run.require(stage, {} if imported else selection_inputs(run, task))
        for stage in (CAPTION_JUDGEMENTS, *(JUDGEMENTS.values() if instructions else ())):
            needed = run.recipe.judge is not None and stage is not CAPTION_JUDGEMENTS
            if needed or run.shards(stage):
                self.records[stage] = run.require(stage) if needed else run.records(stage)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all data files that rows and vectors come from, by path in the run."""
        files = {
            f"{stage.name}/{name}": str(facts["sha256"])
            for stage, records in self.records.items()
            for record in records.values()
            for name, facts in record.files.items()
            if not name.endswith(".rejected.parquet")
        }
        return dict(sorted(files.items()))

    @cached_property
    def sources(self) -> dict[str, str]:
        """The licence of each source of seeds, in alphabetical order of the sources."""
        columns = ["source", "license"]
        tables = [self.run.table(SEEDS, shard, columns) for shard in self.records[SEEDS]]
        pairs = pa.concat_tables(tables).group_by(columns).aggregate([]).sort_by("license")
        found: dict[str, str] = {}
        for source, text in zip(*pairs.to_pydict().values(), strict=True):
            found[source] = f"{found[source]}; {text}" if source in found else text or "unknown"
        return dict(sorted(found.items()))

    @cached_property
    def dimension(self) -> int:
        """d of the vectors."""
        return self.vectors(next(iter(self.records[self.vectors_stage]))).dimension

    def rows(self, shard: int) -> int:
        """Return how many rows of the data set a caption shard gives."""
        return sum(self.records[stage][shard].rows for stage in self.tasks or (CAPTIONS,))

    @cached_property
    def duplicates(self) -> dict[str, str]:
        """The group of each caption that has a near-duplicate; searched once and kept in ``.duplicates.json``."""
        path = self.run.path / ".duplicates.json"
        captions = {name: digest for name, digest in self.hashes.items() if name.startswith("captions/")}
        if path.is_file() and (known := read_json(path)).get("captions") == captions:
            return dict(known["groups"])
        groups = duplicate_groups(self.run)
        write_json(path, {"captions": captions, "groups": groups})
        return groups

    def vectors(self, shard: int) -> VectorShard:
        """Return a shard of image embeddings."""
        return VectorShard(self.run.verified(self.vectors_stage, shard))

    def captions(self, shard: int) -> pa.Table:
        """Return the captions of a shard with the place of their vectors, ``duplicate_group`` and ``judge``."""
        table, ids = self.run.table(CAPTIONS, shard), self.vectors(shard).ids
        own = table["id"].to_pylist()
        rows = np.arange(len(ids)) if ids == own else _places(table["id"], pa.array(ids), shard)
        judge: list[float | None] = [None] * len(own)
        if shard in self.records.get(CAPTION_JUDGEMENTS, {}):
            found = self.run.table(CAPTION_JUDGEMENTS, shard, ["input_hash", "verdict"]).to_pydict()
            share = {hash: float(verdict == CONFIRMED) for hash, verdict in zip(*found.values(), strict=True)}
            pairs = zip(table["seed"].to_pylist(), table["caption"].to_pylist(), strict=True)
            judge = [share.get(text_hash(*pair)) for pair in pairs]
        return (
            table.append_column("embedding_shard", pa.array(np.full(len(table), shard, np.int32)))
            .append_column("embedding_row", pa.array(rows, pa.int32()))
            .append_column("duplicate_group", pa.array(map(self.duplicates.get, own), pa.string()))
            .append_column("judge", pa.array(judge, pa.float32()))
        )

    def conversations(self, shard: int) -> pa.Table:
        """Return the conversations of a shard, task after task, each with columns of the caption it is about."""
        captions, parts = self.captions(shard), []
        for stage, task in zip(self.tasks, TASKS, strict=True):
            table = self.run.table(stage, shard)
            own = captions.take(pa.array(_places(table["id"], captions["id"].combine_chunks(), shard)))
            shares = judged_share(self.run, task, shard) if JUDGEMENTS[task] in self.records else {}
            for name in ("caption", "source", "words", "embedding_shard", "embedding_row", "duplicate_group"):
                table = table.append_column(name, own[name])
            judge = pa.array(map(shares.get, table["id"].to_pylist()), pa.float32())
            parts.append(table.append_column("judge", judge))
        return pa.concat_tables(parts)


def _places(ids: pa.ChunkedArray, known: pa.Array, shard: int) -> np.ndarray[Any, Any]:
    """Return where each id stands among ``known``.

    Raises:
        DatasetError: an id is not there.
    """
    found = pc.index_in(ids, value_set=known)
    if found.null_count:
        missing = ids.filter(pc.is_null(found))[0]
        raise DatasetError(f"shard {shard}: row {missing} has no caption or no vector of its id; run `verify`")
    places: np.ndarray[Any, Any] = found.to_numpy()
    return places


def vector_column(shard: VectorShard, table: pa.Table) -> pa.FixedSizeListArray:
    """Return the vectors of a table's rows as ``fixed_size_list<halffloat>[d]``, found by ``embedding_row`` and proven
    by id and text hash; rows in the order of the shard are a view of the mapped file.

    Raises:
        DatasetError: a row is not in the shard, or its vector was made from another text.
    """
    rows = table["embedding_row"].to_numpy()
    found = zip(rows.tolist(), table["id"].to_pylist(), table["caption"].to_pylist(), strict=True)
    for row, id, caption in found:
        if row >= len(shard) or shard.ids[row] != id or shard.input_hashes[row] != text_hash(caption):
            raise DatasetError(f"{shard.path}, row {row}: not the vector of row {id}; take both from one build")
    vectors, first = shard.vectors.numpy(), int(rows[0]) if len(rows) else 0
    straight = np.array_equal(rows, np.arange(first, first + len(rows)))
    chosen = vectors[first : first + len(rows)] if straight else vectors[rows]  # [n, d]
    return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1), pa.float16()), shard.dimension)

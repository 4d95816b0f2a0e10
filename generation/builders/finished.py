"""A finished run as the builders read it: completeness checked first, rows joined with captions and vectors by id."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dedup import duplicate_groups
from ..errors import DatasetError
from ..files import read_json, write_json
from ..records import Record
from ..rows import text_hash
from ..stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS, Stage
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
        DatasetError: it is a built data set, or a stage is not complete.
        RunError: it is not a run directory.
    """

    def __init__(self, path: Path, method: str | None, instructions: bool) -> None:
        if (path / "manifest.json").is_file() and not (path / "run.json").is_file():
            raise DatasetError(
                f"{path} is a built data set, not a run. Give the run that it was built from; the builder classes read a "
                "built data set with data_dir="
            )
        self.run = Run(path)
        self.method = method or self.run.recipe.transfer.method
        self.vectors_stage = image_stage(self.method)
        self.statistics = statistics_file(self.run, self.method)
        self.tasks = [INSTRUCTIONS[task] for task in TASKS] if instructions else []
        judged = [CAPTION_JUDGEMENTS, *(JUDGEMENTS.values() if instructions else ())]
        stages = [SEEDS, CAPTIONS, *self.tasks, TEXT_EMBEDDINGS, self.vectors_stage]
        stages += [stage for stage in judged if self.run.shards(stage)]
        self.records = {stage.name: self._complete(stage) for stage in stages}

    def _complete(self, stage: Stage) -> dict[int, Record]:
        """Return the records of a stage, each made from what its upstream shard holds now."""
        records = self.run.records(stage)
        wanted = self.run.shards(stage.source) if stage.source else list(records)
        if stage is self.vectors_stage:
            extra = statistics_input(self.run, self.method)
            done = [shard for shard in wanted if not self.run.is_due(stage, shard, extra)]
        else:
            done = [shard for shard in wanted if shard in records and not self.run.is_stale(stage, shard)]
        if not wanted or len(done) < len(wanted):
            raise DatasetError(
                f"{self.run.path} is not finished: stage '{stage.name}' has {len(done)} of {len(wanted)} shards. Run "
                f"`python -m generation {stage.command} --run-dir {self.run.path}` first"
            )
        return {shard: records[shard] for shard in wanted}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all data files that rows and vectors come from, by path in the run."""
        files = {
            f"{stage}/{name}": str(facts["sha256"])
            for stage, records in self.records.items()
            for record in records.values()
            for name, facts in record.files.items()
        }
        return dict(sorted(files.items()))

    @property
    def digest(self) -> str:
        """sha256 over ``hashes``."""
        return hashlib.sha256(repr(self.hashes).encode()).hexdigest()

    @cached_property
    def sources(self) -> dict[str, str]:
        """The licence of each source of seeds, in alphabetical order of the sources."""
        columns = ["source", "license"]
        tables = [self.run.table(SEEDS, shard, columns) for shard in self.records[SEEDS.name]]
        pairs = pa.concat_tables(tables).group_by(columns).aggregate([]).sort_by("license")
        found: dict[str, str] = {}
        for source, text in zip(*pairs.to_pydict().values(), strict=True):
            found[source] = f"{found[source]}; {text}" if source in found else text or "unknown"
        return dict(sorted(found.items()))

    @cached_property
    def dimension(self) -> int:
        """d of the vectors."""
        return self.vectors(next(iter(self.records[self.vectors_stage.name]))).dimension

    @cached_property
    def imported(self) -> bool:
        """Whether the captions come from the original's release, so that rows have an ``original_id``."""
        column = self.run.table(CAPTIONS, next(iter(self.records[CAPTIONS.name])), ["original_id"])["original_id"]
        return bool(column.null_count < len(column))

    def rows(self, shard: int) -> int:
        """Return how many rows of the data set a caption shard gives."""
        return sum(self.records[stage.name][shard].rows for stage in self.tasks or (CAPTIONS,))

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
        """Return the captions of a shard with ``embedding_shard``, ``embedding_row``, ``duplicate_group``, ``judge``."""
        table, ids = self.run.table(CAPTIONS, shard), self.vectors(shard).ids
        own = table["id"].to_pylist()
        rows = np.arange(len(ids)) if ids == own else _places(table["id"], pa.array(ids), shard)
        new = {
            "embedding_shard": pa.array(np.full(len(table), shard, np.int32)),
            "embedding_row": pa.array(rows, pa.int32()),
            "duplicate_group": pa.array(map(self.duplicates.get, own), pa.string()),
            "judge": self._judged(CAPTION_JUDGEMENTS, shard, table["id"]),
        }
        return _with(table, new)

    def conversations(self, shard: int) -> pa.Table:
        """Return the conversations of a shard, task after task, each with columns of the caption it is about."""
        captions, parts = self.captions(shard), []
        joined = ("caption", "source", "words", "embedding_shard", "embedding_row", "duplicate_group")
        for stage in self.tasks:
            table = self.run.table(stage, shard)
            own = captions.take(pa.array(_places(table["id"], captions["id"].combine_chunks(), shard)))
            new = {name: own[name] for name in joined} | {"judge": self._judged(JUDGEMENTS[stage.name.split("/")[1]], shard, table["id"])}
            parts.append(_with(table, new))
        return pa.concat_tables(parts)

    def _judged(self, stage: Stage, shard: int, ids: pa.ChunkedArray) -> pa.Array:
        """Return the share of each row's judged items that were confirmed, float32; null where none was judged."""
        if stage.name not in self.records:
            return pa.nulls(len(ids), pa.float32())
        verdicts = self.run.table(stage, shard, ["id", "verdict"])
        confirmed = pc.equal(verdicts["verdict"], "confirmed").cast(pa.float32())
        items = pa.table({"id": pc.utf8_slice_codeunits(verdicts["id"], 0, 10), "share": confirmed})
        shares = items.group_by("id").aggregate([("share", "mean")])
        return shares["share_mean"].take(pc.index_in(ids, value_set=shares["id"].combine_chunks())).cast(pa.float32())


def _with(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


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

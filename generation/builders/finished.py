"""A finished run as the builders read it: completeness checked first, rows joined with captions and vectors by id."""

import re
from functools import cached_property
from pathlib import Path

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

_NO_NAME = "^(/.*|unknown)$"  # what a server that serves a local directory, or a gateway, calls its model


class FinishedRun:
    """A run whose stages are complete, with ``instructions`` the instruction stages too. ``method`` is of the transfer
    (None: the recipe's); ``search`` has near-duplicates searched even if the recipe does not drop them.

    Raises:
        DatasetError: it is a built data set, or has no row, or the model that wrote it has no name.
        RunError: it is not a run directory, or a stage is not complete.
    """

    def __init__(self, path: Path, method: str | None, instructions: bool, search: bool = False) -> None:
        if (path / "manifest.json").is_file() and not (path / "run.json").is_file():
            raise DatasetError(
                f"{path} is a built data set, not a run: give the run, or data_dir= to read what is built"
            )
        run = self.run = Run(path)
        self.method = method or run.recipe.transfer.method
        self.search = search or run.recipe.captions.drop_duplicates is not None
        self.vectors_stage, self.statistics = image_stage(self.method), statistics_file(run, self.method)
        self.tasks = [INSTRUCTIONS[task] for task in TASKS] if instructions else []
        identities = {stage: run.facts(stage).get("identity", {}) for stage in (CAPTIONS, *self.tasks)}
        self.imported = "imported" in identities[CAPTIONS]  # from the original's release
        inputs = {self.vectors_stage: statistics_input(run, self.method)}
        for stage, task in zip(self.tasks, TASKS, strict=False):
            inputs[stage] = {} if "imported" in identities[stage] else selection_inputs(run, task)
        judged = list(JUDGEMENTS.values()) if instructions else []
        stages = [SEEDS, CAPTIONS, TEXT_EMBEDDINGS, *inputs, *(judged if run.recipe.judge else [])]
        self.records = {stage: run.require(stage, inputs.get(stage)) for stage in stages}
        for stage in (CAPTION_JUDGEMENTS, *judged):
            if run.shards(stage):
                self.records.setdefault(stage, run.records(stage))
        self.shards = [shard for shard in self.records[CAPTIONS] if self.rows(shard)]
        if not self.shards:
            raise DatasetError(f"{path}: no row was accepted; the report shows the rejected rows by reason")
        self.dimension = self.vectors(self.shards[0]).dimension  # d
        self.model_name = run.recipe.server.model_name
        models = [str(identity.get("model", "")) for identity in identities.values()]
        if not self.model_name and (nameless := [model for model in models if re.fullmatch(_NO_NAME, model)]):
            raise DatasetError(
                f"{path}: the server calls the model that wrote the text {nameless[0]!r}. Name it in the recipe as "
                "`server: {model_name: OWNER/NAME}`, and give `python -m generation run --config RECIPE --run-dir "
                f"{path}`: nothing is made again"
            )

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all data files that rows and vectors come from, by path in the run."""
        named = [(stage.name, record.files) for stage, made in self.records.items() for record in made.values()]
        files = {f"{stage}/{name}": facts["sha256"] for stage, files in named for name, facts in files.items()}
        return {name: files[name] for name in sorted(files) if not name.endswith(".rejected.parquet")}

    @cached_property
    def sources(self) -> dict[str, str]:
        """The licence of each source of seeds, in alphabetical order of the sources."""
        columns, found = ["source", "license"], dict[str, list[str]]()
        tables = [self.run.table(SEEDS, shard, columns) for shard in self.records[SEEDS]]
        pairs = pa.concat_tables(tables).group_by(columns).aggregate([]).to_pydict()
        for source, text in sorted(zip(*pairs.values(), strict=True), key=str):
            found.setdefault(source, []).append(text or "unknown")
        return {source: "; ".join(texts) for source, texts in found.items()}

    def rows(self, shard: int) -> int:
        """Return how many rows of the data set a caption shard gives."""
        return sum(self.records[stage][shard].rows for stage in self.tasks or (CAPTIONS,))

    @cached_property
    def duplicates(self) -> dict[str, str] | None:
        """The group of each caption that has a near-duplicate, or None if it was not searched for: that takes minutes
        for a million captions. The groups are kept in the run's ``.duplicates.json``, for the other data set too."""
        path = self.run.path / ".duplicates.json"
        captions = {name: digest for name, digest in self.hashes.items() if name.startswith("captions/")}
        known = read_json(path) if path.is_file() else {}
        if known.get("captions") != captions and self.search:
            write_json(path, known := {"captions": captions, "groups": duplicate_groups(self.run)})
        return dict(known["groups"]) if known.get("captions") == captions else None

    def vectors(self, shard: int) -> VectorShard:
        """Return a shard of image embeddings."""
        return VectorShard(self.run.verified(self.vectors_stage, shard))

    def captions(self, shard: int) -> pa.Table:
        """Return the captions of a shard with the place of their vectors, ``duplicate_group`` and ``judge``."""
        table, verdicts = self._named(self.run.table(CAPTIONS, shard)), dict[int, str]()
        if shard in self.records.get(CAPTION_JUDGEMENTS, {}):
            found = self.run.table(CAPTION_JUDGEMENTS, shard, ["input_hash", "verdict"])
            verdicts = dict(zip(*found.to_pydict().values(), strict=True))
        ids, seeds, captions = (table[name].to_pylist() for name in ("id", "seed", "caption"))
        hashes = map(text_hash, seeds, captions) if verdicts else ids
        columns = {
            "embedding_shard": pa.repeat(pa.scalar(shard, pa.int32()), len(table)),
            "embedding_row": _places(table["id"], pa.array(self.vectors(shard).ids), shard).cast(pa.int32()),
            "duplicate_group": pa.array(map((self.duplicates or {}).get, ids), pa.string()),
            "judge": pc.equal(pa.array(map(verdicts.get, hashes), pa.string()), CONFIRMED).cast(pa.float32()),
        }
        return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns)

    def conversations(self, shard: int) -> pa.Table:
        """Return the conversations of a shard, task after task, each with columns of the caption it is about."""
        captions, parts = self.captions(shard), []
        for stage, task in zip(self.tasks, TASKS, strict=True):
            table = self._named(self.run.table(stage, shard))
            own = captions.take(_places(table["id"], captions["id"].combine_chunks(), shard))
            shares = judged_share(self.run, task, shard) if JUDGEMENTS[task] in self.records else {}
            for name in ("caption", "source", "words", "embedding_shard", "embedding_row", "duplicate_group"):
                table = table.append_column(name, own[name])
            judge = pa.array(map(shares.get, table["id"].to_pylist()), pa.float32())
            parts.append(table.append_column("judge", judge))
        return pa.concat_tables(parts)

    def _named(self, table: pa.Table) -> pa.Table:
        """Return rows with ``server.model_name`` for a model that its server did not name."""
        if not self.model_name:
            return table
        models = pc.replace_substring_regex(table["model"], _NO_NAME, self.model_name)
        return table.set_column(table.column_names.index("model"), "model", models)


def _places(ids: pa.ChunkedArray, known: pa.Array, shard: int) -> pa.ChunkedArray:
    """Return where each id stands among ``known``; a DatasetError names one that does not."""
    if (found := pc.index_in(ids, value_set=known)).null_count:
        missing = ids.filter(pc.is_null(found))[0]
        raise DatasetError(f"shard {shard}: row {missing} has no caption or no vector of its id; run `verify`")
    return found


def vector_column(shard: VectorShard, table: pa.Table) -> pa.FixedSizeListArray:
    """Return the vectors of a table's rows as ``fixed_size_list<halffloat>[d]``, found by ``embedding_row``; rows in
    order are a view of the mapped file. A DatasetError names a row whose vector is missing or of another text."""
    rows, total, ids, hashes = table["embedding_row"].to_numpy(), len(shard), shard.ids, shard.input_hashes
    for row, id, caption in zip(rows.tolist(), table["id"].to_pylist(), table["caption"].to_pylist(), strict=True):
        if row >= total or ids[row] != id or hashes[row] != text_hash(caption):
            raise DatasetError(f"{shard.path}, row {row}: not the vector of row {id}; take both from one build")
    vectors, first = shard.vectors.numpy(), int(rows[0]) if len(rows) else 0
    straight = np.array_equal(rows, np.arange(first, first + len(rows)))
    chosen = vectors[first : first + len(rows)] if straight else vectors[rows]  # [n, d]
    return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1), pa.float16()), shard.dimension)

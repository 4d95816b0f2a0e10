"""The builder that both data sets are, ``datasets`` over a run, a built directory or a revision of the Hub; and a
finished run as it reads one: completeness checked first, rows joined with captions and vectors by id."""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import datasets
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
from ..transfer import Statistics
from ..transfer.stage import statistics_file, statistics_input
from ..vectors import VectorShard
from .published import PublishedDataset, vector_column

WITH_EMBEDDINGS = "with_embeddings"
FOLDERS = {"default": "data", WITH_EMBEDDINGS: WITH_EMBEDDINGS}  # of the Parquet files in a built directory
FIRST_VERSION = "1.0.0"
_NO_NAME = "^(/.*|unknown)$"  # what a server that serves a local directory, or a gateway, calls its model


class FinishedRun:
    """A run whose stages are complete, with ``instructions`` the instruction stages too. ``method`` is of the transfer
    (None: the recipe's); ``search`` has near-duplicates searched even if the recipe does not drop them. A DatasetError
    or RunError says that it is not a run, has no row or a model without a name, or that a stage is not complete."""

    def __init__(self, path: Path, method: str | None, instructions: bool, search: bool = False) -> None:
        if (path / "manifest.json").is_file() and not (path / "run.json").is_file():
            raise DatasetError(f"{path} is a built data set, not a run: give the run; data_dir= reads a built one")
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
        self.model_name = run.recipe.server.model_name
        models = [str(identity.get("model", "")) for identity in identities.values()]
        if not self.model_name and (nameless := [model for model in models if re.fullmatch(_NO_NAME, model)]):
            raise DatasetError(
                f"{path}: the server calls the model that wrote the text {nameless[0]!r}. Name it in the recipe, "
                "`server: {model_name: OWNER/NAME}`, and give `run --config RECIPE`: nothing is made again"
            )

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all data files that rows and vectors come from, by path in the run."""
        named = [(stage.name, record.files) for stage, made in self.records.items() for record in made.values()]
        files = {f"{stage}/{name}": facts["sha256"] for stage, files in named for name, facts in files.items()}
        return {name: files[name] for name in sorted(files) if not name.endswith(".rejected.parquet")}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a build's manifest says of the run: among others the licence of each source of seeds, in alphabetical
        order, the number of captions with a near-duplicate (None: not searched), and a digest of the rows' origin."""
        columns, sources = ["source", "license"], dict[str, str]()
        tables = [self.run.table(SEEDS, shard, columns) for shard in self.records[SEEDS]]
        pairs = pa.concat_tables(tables).group_by(columns).aggregate([]).to_pydict()
        for source, text in sorted(zip(*pairs.values(), strict=True), key=str):
            sources[source] = f"{sources[source]}; {text}" if source in sources else text or "unknown"
        return {
            "method": self.method,
            "transfer": Statistics.load(self.statistics).facts,
            "dimension": VectorShard(self.run.verified(self.vectors_stage, self.shards[0])).dimension,
            "sources": sources,
            "original_id": self.imported,
            "duplicates": None if self.duplicates is None else len(self.duplicates),
            "digest": repr((self.hashes, self.model_name, self.duplicates)),
        }

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

    def captions(self, shard: int) -> pa.Table:
        """Return the captions of a shard with the place of their vectors, ``duplicate_group`` and ``judge``."""
        table, verdicts = self.run.table(CAPTIONS, shard), dict[int, str]()
        embedded = pa.array(VectorShard(self.run.verified(self.vectors_stage, shard)).ids)
        if shard in self.records.get(CAPTION_JUDGEMENTS, {}):
            found = self.run.table(CAPTION_JUDGEMENTS, shard, ["input_hash", "verdict"])
            verdicts = dict(zip(*found.to_pydict().values(), strict=True))
        ids, texts = table["id"].to_pylist(), [table[name] for name in ("seed", "caption")]
        hashes = map(text_hash, *(text.to_pylist() for text in texts)) if verdicts else ids
        columns = {
            "embedding_shard": pa.repeat(pa.scalar(shard, pa.int32()), len(table)),
            "embedding_row": _places(table["id"], embedded, shard).cast(pa.int32()),
            "duplicate_group": pa.array(map((self.duplicates or {}).get, ids), pa.string()),
            "judge": pc.equal(pa.array(map(verdicts.get, hashes), pa.string()), CONFIRMED).cast(pa.float32()),
        }
        return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns)

    def conversations(self, shard: int) -> pa.Table:
        """Return the conversations of a shard, task after task, each with columns of the caption it is about."""
        captions, parts = self.captions(shard), []
        for stage, task in zip(self.tasks, TASKS, strict=True):
            table = self.run.table(stage, shard)
            own = captions.take(_places(table["id"], captions["id"].combine_chunks(), shard))
            shares = judged_share(self.run, task, shard) if JUDGEMENTS[task] in self.records else {}
            names = ("caption", "source", "words", "embedding_shard", "embedding_row", "duplicate_group")
            columns = dict(zip(table.column_names, table.columns, strict=True)) | {name: own[name] for name in names}
            judge = pa.array(map(shares.get, table["id"].to_pylist()), pa.float32())
            parts.append(pa.table(columns | {"judge": judge}))
        return pa.concat_tables(parts)


def _places(ids: pa.ChunkedArray, known: pa.Array, shard: int) -> pa.ChunkedArray:
    """Return where each id stands among ``known``; a DatasetError names one that does not."""
    if (found := pc.index_in(ids, value_set=known)).null_count:
        missing = ids.filter(pc.is_null(found))[0]
        raise DatasetError(f"shard {shard}: row {missing} has no caption or no vector of its id; run `verify`")
    return found


@dataclass
class UnicornConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """``default`` (text only, which keeps the Hub's viewer fast) or ``with_embeddings``. Rows come from ``run_dir`` or
    the base class's ``data_dir``, a built directory or ``hf://datasets/USER/NAME@REVISION``."""

    run_dir: str | None = None
    method: str | None = None  # of the transfer, with run_dir; None: the recipe's
    duplicates: bool = False  # with run_dir: search near-duplicates, which takes minutes for a million captions


class UnicornBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """A data set in the row format of LLaVA, Bunny and the original Unicorn."""

    BUILDER_CONFIG_CLASS = UnicornConfig
    BUILDER_CONFIGS = [
        UnicornConfig(name="default", version=FIRST_VERSION, description="text only"),
        UnicornConfig(name=WITH_EMBEDDINGS, version=FIRST_VERSION, description="text and synthetic embeddings"),
    ]
    DEFAULT_CONFIG_NAME = "default"
    NAME: str  # of the data set's directory and repository
    INSTRUCTIONS: bool  # whether rows are conversations about captions
    COLUMNS: ClassVar[dict[str, Any]]  # features of all columns but the vectors, in order; sources are the run's
    card: Callable[..., str]  # renders the card: ``dataset_card.render_card`` with its template and title

    @abstractmethod
    def rows(self, run: FinishedRun, shard: int) -> pa.Table:
        """Return the rows of one caption shard with these columns, names in place of class labels."""

    @cached_property
    def run(self) -> FinishedRun:
        """The run that the rows come from; errors as of ``FinishedRun``."""
        if not self.config.run_dir:
            raise DatasetError(f"{type(self).__name__} needs run_dir=, a finished run, or data_dir=, a built data set")
        return FinishedRun(Path(self.config.run_dir), self.config.method, self.INSTRUCTIONS, self.config.duplicates)

    @cached_property
    def built(self) -> PublishedDataset:
        """The built data set that the rows come from."""
        return PublishedDataset(self.config.data_dir)

    def _info(self) -> datasets.DatasetInfo:
        """Return the features, and make the contents a part of the cache's key (``hash``), whatever was given."""
        facts = self.built.manifest if self.config.data_dir else self.run.facts
        if self.config.data_dir:
            if facts["name"] != self.NAME:
                raise DatasetError(f"{self.config.data_dir} is a built {facts['name']}, not {self.NAME}")
            self.config.version = datasets.Version(facts["version"])
        self.hash: str | None = hashlib.sha256(f"{facts['digest']} {self.hash}".encode()).hexdigest()[:32]
        features = self.COLUMNS | {"source": datasets.ClassLabel(names=list(facts["sources"]))}
        if facts["original_id"]:
            features["original_id"] = datasets.Value("string")
        if self.config.name == WITH_EMBEDDINGS:
            features["image_embedding"] = datasets.Sequence(datasets.Value("float16"), length=facts["dimension"])
        return datasets.DatasetInfo(description=type(self).__doc__ or "", features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        files, folder = self.built.manifest["files"] if self.config.data_dir else (), FOLDERS[self.config.name]
        parts = [name for name in files if name.startswith(f"{folder}/")] or self.run.shards
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"parts": parts})]

    def _generate_tables(self, parts: list[Any]) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of shards of the run, or of built files, in the builder's schema."""
        for number, part in enumerate(parts):
            tables = self.built.tables(part) if self.config.data_dir else [self.table(part)]
            yield from ((f"{number}-{place}", table) for place, table in enumerate(tables))

    def table(self, shard: int) -> pa.Table:
        """Return the rows of one shard of the run, in the builder's schema."""
        table, schema = self.rows(self.run, shard), self.info.features.arrow_schema
        columns = dict(zip(table.column_names, table.columns, strict=True))
        if name := self.run.model_name:
            columns["model"] = pc.replace_substring_regex(table["model"], _NO_NAME, name)
        for name, feature in self.info.features.items():
            if isinstance(feature, datasets.ClassLabel):
                columns[name] = pc.index_in(table[name], value_set=pa.array(feature.names))
        if self.config.name == WITH_EMBEDDINGS:
            shard_path = self.run.run.verified(self.run.vectors_stage, shard)
            columns["image_embedding"] = vector_column(VectorShard(shard_path), table)
        return pa.table(columns).select(schema.names).cast(schema)

"""The builder that both data sets are, ``datasets`` over a run, a built directory or a revision of the Hub: rows of a
run are joined with their captions and vectors by id, and written as Parquet."""

import hashlib
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DatasetError
from ..judge import CONFIRMED, judged_share
from ..limits import FILE_BYTES, WRITERS
from ..logs import Progress
from ..stages import CAPTION_JUDGEMENTS, CAPTIONS, JUDGEMENTS, TASKS, text_hash
from ..vectors import VectorShard, vector_column
from .finished import NO_NAME, FinishedRun
from .published import PublishedDataset

WITH_EMBEDDINGS = "with_embeddings"
FOLDERS = {"default": "data", WITH_EMBEDDINGS: WITH_EMBEDDINGS}  # of the Parquet files in a built directory
FIRST_VERSION = "1.0.0"
Counts = Counter[tuple[str, Any]]  # by column and value
TEXT_BYTES = 1_000  # about, of a row
ROW_GROUP = {"default": 20_000, WITH_EMBEDDINGS: 4_000}  # rows; 4,000 vectors of d = 1280 take 10 MB
TURNS = ["conversations.list.element.from", "conversations.list.element.value"]
OPTIONS: dict[str, Any] = {  # for vectors, a dictionary or statistics cost more time than all the rest
    "use_dictionary": [TURNS[0], "task", "source", "license", "prompt", "model", "embedding_shard"],
    "write_statistics": ["id", "task", "source", "words", "judge", "grounded", "embedding_shard", "embedding_row"],
    "write_page_index": True,
}
COUNTED = ("source", "task", "question_types", "words", "model", "judge", "grounded", "letters")


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
            columns["model"] = pc.replace_substring_regex(table["model"], NO_NAME, name)
        for name, feature in self.info.features.items():
            if isinstance(feature, datasets.ClassLabel):
                columns[name] = pc.index_in(table[name], value_set=pa.array(feature.names))
        if self.config.name == WITH_EMBEDDINGS:
            shard_path = self.run.run.verified(self.run.vectors_stage, shard)
            columns["image_embedding"] = vector_column(VectorShard(shard_path), table)
        return pa.table(columns).select(schema.names).cast(schema)


Builders = dict[str, UnicornBuilder]  # by config


def captions_of(run: FinishedRun, shard: int) -> pa.Table:
    """Return the captions of a shard with the place of their vectors, ``duplicate_group`` and ``judge``."""
    table, verdicts = run.run.table(CAPTIONS, shard), dict[int, str]()
    embedded = pa.array(VectorShard(run.run.verified(run.vectors_stage, shard)).ids)
    if shard in run.records.get(CAPTION_JUDGEMENTS, {}):
        found = run.run.table(CAPTION_JUDGEMENTS, shard, ["input_hash", "verdict"])
        verdicts = dict(zip(*found.to_pydict().values(), strict=True))
    ids, texts = table["id"].to_pylist(), [table[name] for name in ("seed", "caption")]
    hashes = map(text_hash, *(text.to_pylist() for text in texts)) if verdicts else ids
    columns = {
        "embedding_shard": pa.repeat(pa.scalar(shard, pa.int32()), len(table)),
        "embedding_row": _places(table["id"], embedded, shard).cast(pa.int32()),
        "duplicate_group": pa.array(map((run.duplicates or {}).get, ids), pa.string()),
        "judge": pc.equal(pa.array(map(verdicts.get, hashes), pa.string()), CONFIRMED).cast(pa.float32()),
    }
    return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns)


def conversations_of(run: FinishedRun, shard: int) -> pa.Table:
    """Return the conversations of a shard, task after task, each with columns of the caption it is about."""
    captions, parts = captions_of(run, shard), []
    for stage, task in zip(run.tasks, TASKS, strict=True):
        table = run.run.table(stage, shard)
        own = captions.take(_places(table["id"], captions["id"].combine_chunks(), shard))
        shares = judged_share(run.run, task, shard) if JUDGEMENTS[task] in run.records else {}
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


def write_tables(builders: Builders, output: Path) -> dict[str, dict[str, int]]:
    """Write the Parquet files of all configs as the Hub's viewer likes them; return the bytes of each config as Arrow,
    and the rows of ``default`` by value, for each column in ``COUNTED``. Chunks of text are found by content, so that
    a new version uploads little; vectors all move with the mean, and compress by a twelfth only."""
    run, features, jobs = builders["default"].run, builders["default"].info.features, []

    def write(config: str, shards: list[int], path: Path) -> Counts:
        counts, schema, text = Counts(), builders[config].info.features.arrow_schema, config == "default"
        codecs = dict.fromkeys([*schema.names, *TURNS, "question_types.list.element"], "zstd")
        options = OPTIONS | {"compression": codecs | {"image_embedding.list.element": "NONE"}}
        with pq.ParquetWriter(path, schema, use_content_defined_chunking=text, **options) as writer:
            for table in map(builders[config].table, shards):
                writer.write_table(table, ROW_GROUP[config])
                counts += Counts({("bytes", config): table.nbytes}) + (_counts(table) if text else Counts())
                bar.update(len(table))
        return counts

    for config, folder in FOLDERS.items():
        (output / folder).mkdir()
        files, row_bytes = defaultdict[int, list[int]](list), TEXT_BYTES
        row_bytes += 2 * run.facts["dimension"] if config == WITH_EMBEDDINGS else 0
        for start, shard in zip(accumulate(map(run.rows, run.shards), initial=0), run.shards, strict=False):
            files[start * row_bytes // FILE_BYTES].append(shard)
        for number, shards in enumerate(files.values()):
            jobs.append((config, shards, output / folder / f"train-{number:05d}-of-{len(files):05d}.parquet"))
    total = len(FOLDERS) * sum(map(run.rows, run.shards))
    with Progress("build", total) as bar, ThreadPoolExecutor(WRITERS) as pool:
        counts = sum(pool.map(write, *zip(*jobs, strict=True)), Counts())
    found: dict[str, dict[str, int]] = {name: {} for name in ("bytes", *COUNTED)}
    for name, value in sorted(counts):
        labels = getattr(features.get(name), "names", None)  # of class labels
        found[name][labels[value] if labels else str(value)] = counts[name, value]
    return found


def _counts(table: pa.Table) -> Counts:
    """Return how often each value occurs; scores are rounded, nulls left out. ``letters`` are the right answers of
    multiple choice."""
    columns = {name: table[name].combine_chunks().drop_null() for name in COUNTED if name in table.column_names}
    if "task" in columns:
        texts = table["conversations"].combine_chunks().flatten().field("value")
        columns["letters"] = texts.filter(pc.match_substring_regex(texts, "^[A-D]$"))
    found = Counts()
    for name, column in columns.items():
        if pa.types.is_floating(column.type):
            column = pc.round(column.cast(pa.float64()), 2)
        values = pc.value_counts(column.flatten() if pa.types.is_list(column.type) else column)
        found.update({(name, entry["values"]): entry["counts"] for entry in values.to_pylist()})
    return found

"""The builder that both data sets are: ``datasets`` over a run, a built directory or a revision of the Hub."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DatasetError
from .finished import FinishedRun, vector_column
from .published import PublishedDataset

WITH_EMBEDDINGS = "with_embeddings"
FOLDERS = {"default": "data", WITH_EMBEDDINGS: WITH_EMBEDDINGS}  # of the Parquet files in a built directory
FIRST_VERSION = "1.0.0"


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
    card: Callable[..., str]  # renders the card: ``dataset_card.render_card`` with its template and title

    @abstractmethod
    def columns(self, sources: list[str]) -> dict[str, Any]:
        """Return the features of all columns but the vectors, in order; ``sources`` are the names of the seeds'."""

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
        if self.config.data_dir:
            manifest = self.built.manifest
            if manifest["name"] != self.NAME:
                raise DatasetError(f"{self.config.data_dir} is a built {manifest['name']}, not {self.NAME}")
            self.config.version = datasets.Version(manifest["version"])
            sources, dimension, original = (manifest[name] for name in ("sources", "dimension", "original_id"))
            digest = manifest["digest"]
        else:
            run = self.run
            sources, dimension, original = run.sources, run.dimension, run.imported
            digest = repr((run.hashes, run.model_name, run.duplicates))
        self.hash: str | None = hashlib.sha256(f"{digest} {self.hash}".encode()).hexdigest()[:32]
        features = self.columns(list(sources))
        if original:
            features["original_id"] = datasets.Value("string")
        if self.config.name == WITH_EMBEDDINGS:
            features["image_embedding"] = datasets.Sequence(datasets.Value("float16"), length=dimension)
        return datasets.DatasetInfo(description=type(self).__doc__ or "", features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        parts: list[Any] = [] if self.config.data_dir else self.run.shards
        if self.config.data_dir:
            files, folder = self.built.manifest["files"], FOLDERS[self.config.name]
            parts = [name for name in files if name.startswith(f"{folder}/")]
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"parts": parts})]

    def _generate_tables(self, parts: list[Any]) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of shards of the run, or of built files, in the builder's schema."""
        for number, part in enumerate(parts):
            tables = self.built.tables(part) if self.config.data_dir else [self.table(part)]
            yield from ((f"{number}-{place}", self._cast(table)) for place, table in enumerate(tables))

    def table(self, shard: int) -> pa.Table:
        """Return the rows of one shard of the run, in the builder's schema."""
        table = self.rows(self.run, shard)
        for name, feature in self.info.features.items():
            if isinstance(feature, datasets.ClassLabel):
                labels = pc.index_in(table[name], value_set=pa.array(feature.names))
                table = table.set_column(table.column_names.index(name), name, labels)
        if self.config.name == WITH_EMBEDDINGS:
            table = table.append_column("image_embedding", vector_column(self.run.vectors(shard), table))
        return self._cast(table)

    def _cast(self, table: pa.Table) -> pa.Table:
        schema = self.info.features.arrow_schema
        return table.select(schema.names).cast(schema)

"""The builder that both data sets are: ``datasets`` over a run, a built directory or a revision of the Hub."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DatasetError
from ..stages import CAPTIONS
from .finished import FinishedRun, vector_column
from .published import PublishedDataset

WITH_EMBEDDINGS = "with_embeddings"
FOLDERS = {"default": "data", WITH_EMBEDDINGS: WITH_EMBEDDINGS}  # of the Parquet files in a built directory
FIRST_VERSION = "1.0.0"


@dataclass
class UnicornConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """``default`` (text only, which keeps the Hub's viewer fast) or ``with_embeddings``.

    Attributes:
        run_dir: a finished run to take the rows from; or else
        method: with ``run_dir``: the transfer method, if the run has several.
        data_dir: (of the base class) a built directory, or ``hf://datasets/USER/NAME@REVISION``.
        embeddings: with ``data_dir``: where to take the vectors from, a built Unicorn-1.2M or a revision of it; None
            reads the vectors that are stored with the text.
    """

    run_dir: str | None = None
    method: str | None = None
    embeddings: str | None = None


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

    @abstractmethod
    def columns(self, sources: list[str]) -> dict[str, Any]:
        """Return the features of all columns but the vectors, in order; ``sources`` are the names of the seeds'."""

    @abstractmethod
    def rows(self, run: FinishedRun, shard: int) -> pa.Table:
        """Return the rows of one caption shard with these columns, names in place of class labels."""

    @cached_property
    def run(self) -> FinishedRun:
        """The run that the rows come from.

        Raises:
            DatasetError: none was named, or it is not finished.
        """
        if not self.config.run_dir:
            raise DatasetError(f"{type(self).__name__} needs run_dir=, a finished run, or data_dir=, a built data set")
        return FinishedRun(Path(self.config.run_dir), self.config.method, self.INSTRUCTIONS)

    @cached_property
    def _published(self) -> PublishedDataset:
        return PublishedDataset(self.config.data_dir)

    def _info(self) -> datasets.DatasetInfo:
        """Return the features, and make the contents a part of the cache's key (``hash``), whatever was given."""
        if self.config.data_dir:
            manifest = self._published.manifest
            if manifest["name"] != self.NAME:
                raise DatasetError(f"{self.config.data_dir} is a built {manifest['name']}, not {self.NAME}")
            self.config.version = datasets.Version(manifest["version"])
            digest, sources, dimension = manifest["digest"], manifest["sources"], manifest["dimension"]
            original = manifest["original_id"]
            if self.config.embeddings:
                digest += PublishedDataset(self.config.embeddings).manifest["digest"]
        else:
            run = self.run
            digest, sources, dimension, original = repr(run.hashes), run.sources, run.dimension, run.imported
        self.hash: str | None = hashlib.sha256(f"{digest} {self.hash}".encode()).hexdigest()[:32]
        features = self.columns(list(sources))
        if original:
            features["original_id"] = datasets.Value("string")
        if self.config.name == WITH_EMBEDDINGS:
            features["image_embedding"] = datasets.Sequence(datasets.Value("float16"), length=dimension)
        return datasets.DatasetInfo(description=type(self).__doc__ or "", features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self.config.data_dir:
            joined = self.config.name == "default" or self.config.embeddings
            folder = FOLDERS["default" if joined else WITH_EMBEDDINGS]
            parts: list[Any] = [name for name in self._published.manifest["files"] if name.startswith(f"{folder}/")]
        else:
            parts = self.shards()
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"parts": parts})]

    def shards(self) -> list[int]:
        """Return the caption shards of the run that give rows.

        Raises:
            DatasetError: none does.
        """
        if shards := [shard for shard in self.run.records[CAPTIONS] if self.run.rows(shard)]:
            return shards
        raise DatasetError(f"{self.run.run.path}: no row was accepted; the report shows the rejected rows by reason")

    def extra_files(self, run: FinishedRun) -> list[Path]:
        """Return the files of the run that travel with the data set."""
        return []

    @classmethod
    @abstractmethod
    def card(cls, **facts: Any) -> str:
        """Return the card; ``facts`` are the arguments of ``dataset_card.render_card``."""

    def _generate_tables(self, parts: list[Any]) -> Iterator[tuple[str, pa.Table]]:
        for number, part in enumerate(parts):
            for place, table in enumerate(self._tables(part)):
                yield f"{number}-{place}", table

    def _tables(self, part: Any) -> Iterator[pa.Table]:
        """Yield the rows of a shard of the run, or of a built file, in the builder's schema."""
        if not self.config.data_dir:
            yield self.table(part)
        elif self.config.name == WITH_EMBEDDINGS and self.config.embeddings:
            vectors = PublishedDataset(self.config.embeddings)
            yield from map(self._cast, self._published.joined_tables(part, vectors))
        else:
            yield from map(self._cast, self._published.tables(part))

    def table(self, shard: int) -> pa.Table:
        """Return the rows of one shard of the run, in the builder's schema."""
        table = self.rows(self.run, shard)
        for place, (name, feature) in enumerate(self.info.features.items()):
            if isinstance(feature, datasets.ClassLabel):
                labels = pc.index_in(table[name], value_set=pa.array(feature.names)).cast(pa.int64())
                table = table.set_column(table.column_names.index(name), name, labels)
            elif name == "image_embedding":
                table = table.add_column(place, name, vector_column(self.run.vectors(shard), table))
        return self._cast(table)

    def _cast(self, table: pa.Table) -> pa.Table:
        schema = self.info.features.arrow_schema
        return table.select(schema.names).cast(schema)

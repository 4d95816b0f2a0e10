"""The builder that both data sets are: ``datasets`` over a run, a built directory or a revision of the Hub."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.builder import Key

from ..errors import RunError
from ..rundir import RunDir
from ..tensors import open_shard
from .columns import vector_column
from .places import Place, open_run, transfer_method

WITH_EMBEDDINGS = "with_embeddings"
FOLDERS = {"default": "data", WITH_EMBEDDINGS: WITH_EMBEDDINGS}  # of a built directory's Parquet files
FIRST_VERSION = "1.0.0"


@dataclass
class UnicornConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """``default`` (text alone, so that the Hub's viewer stays fast) or ``with_embeddings``.

    Attributes:
        run_dir: a run directory that the rows come from; or else
        method: with ``run_dir``: whose embeddings to take, where the run was transferred by several methods.
        data_dir: (of the base class) a built directory, or ``hf://datasets/USER/NAME@REVISION``.
        embeddings: with ``data_dir``: where the vectors are to be taken from, the built directory or revision of
            Unicorn-1.2M; None reads those that are stored beside the text.
    """

    run_dir: str | None = None
    method: str | None = None
    embeddings: str | None = None


class UnicornBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """A data set in the row format of LLaVA, Bunny and the original.

    A subclass gives ``NAME``, ``TITLE``, ``DESCRIPTION``, and the methods that are abstract here.
    """

    BUILDER_CONFIG_CLASS = UnicornConfig
    BUILDER_CONFIGS = [
        UnicornConfig(name="default", version=FIRST_VERSION, description="text alone"),
        UnicornConfig(name=WITH_EMBEDDINGS, version=FIRST_VERSION, description="text and synthetic embeddings"),
    ]
    DEFAULT_CONFIG_NAME = "default"
    NAME: str
    TITLE: str
    DESCRIPTION: str

    @abstractmethod
    def own_features(self) -> dict[str, Any]:
        """The columns that the other data set does not have."""

    @abstractmethod
    def parts(self, run: RunDir) -> list[tuple[str, int]]:
        """What makes up the data set, in order: (stage, shard)."""

    @abstractmethod
    def text_table(self, run: RunDir, stage: str, shard: int) -> pa.Table:
        """The rows of one part of a run, with all columns of ``default``."""

    @staticmethod
    def companions(run: RunDir) -> list[Path]:
        """Files of the run that travel with the data set."""
        return []

    @classmethod
    @abstractmethod
    def documents(cls, run: RunDir, built: Any) -> dict[str, str]:
        """What tells of the data set: by file name, the card and its Croissant description."""

    def open_run(self) -> RunDir:
        """The run directory.

        Raises:
            RunError: none was named, or it is no run directory.
        """
        if not self.config.run_dir:
            raise RunError(
                f"{type(self).__name__} needs run_dir=..., a finished run, or data_dir=..., a built directory or "
                "hf://datasets/USER/NAME@REVISION"
            )
        return open_run(Path(self.config.run_dir), self.config.method)

    def _info(self) -> datasets.DatasetInfo:
        manifest = Place(self.config.data_dir).manifest if self.config.data_dir else self.open_run().manifest
        text = datasets.Value("string")
        features = {
            "id": text,
            "caption": text,
            "conversations": [{"from": text, "value": text}],
            **self.own_features(),
            **({"original_id": text} if manifest["stages"]["captions"]["fingerprint"].get("imported") else {}),
            "source": source_label(manifest),
            "prompt": text,
            "model": text,
            "embedding_shard": datasets.Value("int32"),
            "embedding_row": datasets.Value("int32"),
        }
        if self.config.name == WITH_EMBEDDINGS:
            transfer_method(manifest, self.config.run_dir or self.config.data_dir)  # or there are no vectors yet
            dimension = manifest["stages"]["text_embeddings"]["fingerprint"]["dimension"]
            features["image_embedding"] = datasets.List(datasets.Value("float16"), length=dimension)
        return datasets.DatasetInfo(description=self.DESCRIPTION, features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        parts = self._built_files() if self.config.data_dir else self.run_parts()
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"parts": parts})]

    def run_parts(self) -> list[str]:
        """The parts of the run, each as ``stage:shard``."""
        return [f"{stage}:{shard}" for stage, shard in self.parts(self.open_run())]

    def _built_files(self) -> list[str]:
        stored = self.config.name == WITH_EMBEDDINGS and not self.config.embeddings
        return Place(self.config.data_dir).parquet_files(FOLDERS[WITH_EMBEDDINGS if stored else "default"])

    def _generate_tables(self, parts: Sequence[str]) -> Iterator[tuple[Key, pa.Table]]:
        tables = self._built_tables(parts) if self.config.data_dir else self._run_tables(parts)
        for number, found in enumerate(tables):
            for place, table in enumerate(found):
                yield Key(number, place), table

    def _run_tables(self, parts: Sequence[str]) -> Iterator[list[pa.Table]]:
        """The rows of each part of the run in the builder's schema."""
        run = self.open_run()
        for part in parts:
            yield [self.finished(run, part, self.text(run, part))]

    def text(self, run: RunDir, part: str) -> pa.Table:
        """The text of one part, which all configs share."""
        stage, shard = part.rsplit(":", 1)
        table = self.text_table(run, stage, int(shard))
        if run.imported("captions"):
            ids = run.table("captions", int(shard))["original_id"].take(table["embedding_row"])
            table = table.append_column("original_id", ids)
        return table

    def finished(self, run: RunDir, part: str, text: pa.Table) -> pa.Table:
        """The text with all that this config adds to it, in the builder's schema."""
        if self.config.name == WITH_EMBEDDINGS:
            stage = f"image_embeddings/{transfer_method(run.manifest, run.path)}"
            vectors = open_shard(run.verified(stage, run.shard_path(stage, int(part.rsplit(":", 1)[1]))))
            text = text.append_column("image_embedding", vector_column(vectors, text))
        return self._cast(text)

    def _built_tables(self, names: Sequence[str]) -> Iterator[Iterator[pa.Table]]:
        """The rows of each built file, a few thousand at a time."""
        text = Place(self.config.data_dir)
        joined = self.config.name == WITH_EMBEDDINGS and self.config.embeddings
        vectors = Place(self.config.embeddings) if joined else None
        for name in names:
            yield map(self._cast, text.tables(name) if vectors is None else text.joined_tables(name, vectors))

    def _cast(self, table: pa.Table) -> pa.Table:
        schema = self.info.features.arrow_schema
        return table.select(schema.names).cast(schema)


def source_label(manifest: dict[str, Any]) -> datasets.ClassLabel:
    """The seed sources of a run, in alphabetical order."""
    return datasets.ClassLabel(names=sorted(manifest["stages"]["seeds"]["sources"]))

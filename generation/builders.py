"""What the two builder scripts share: a builder over a run directory, and the writing of a data set that
``load_dataset("<directory>")`` reads. It depends on the on-disk contract alone.
"""

import argparse
import os
import shutil
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from safetensors import safe_open

from .embeddings import caption_hashes
from .errors import RunError, UnicornError
from .rundir import RunDir

EMBEDDED_ROW_GROUP = 8_000  # rows; 20 MB of vectors at d = 1280
TEXT_ROW_GROUP = 20_000
WITH_EMBEDDINGS = "with_embeddings"


@dataclass
class RunConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """``default`` (text alone, so that the Hub's viewer stays fast) or ``with_embeddings``.

    Attributes:
        run_dir: the run directory that the rows come from.
    """

    run_dir: str | None = None


class RunBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """A data set over a run directory, in the row format of LLaVA, Bunny and the original.

    A subclass gives ``TITLE``, ``DESCRIPTION``, and the methods that are abstract here.
    """

    BUILDER_CONFIG_CLASS = RunConfig
    BUILDER_CONFIGS = [
        RunConfig(name="default", version=datasets.Version("1.0.0"), description="text alone"),
        RunConfig(
            name=WITH_EMBEDDINGS, version=datasets.Version("1.0.0"), description="text and synthetic embeddings"
        ),
    ]
    DEFAULT_CONFIG_NAME = "default"
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
        """The rows of one part, with all columns of ``default``."""

    @staticmethod
    def companions(run: RunDir) -> list[Path]:
        """Files of the run that travel with the data set."""
        return []

    @classmethod
    @abstractmethod
    def card(cls, run: RunDir, built: "list[BuiltConfig]") -> str:
        """The data set's README."""

    def open_run(self) -> RunDir:
        """The run directory.

        Raises:
            RunError: none was named, or it is no run directory.
        """
        if not self.config.run_dir:
            raise RunError(f"{type(self).__name__} needs run_dir=..., the directory of a finished run")
        return RunDir(Path(self.config.run_dir))

    def _info(self) -> datasets.DatasetInfo:
        run = self.open_run()
        text = datasets.Value("string")
        features = {
            "id": text,
            "caption": text,
            "conversations": [{"from": text, "value": text}],
            **self.own_features(),
            **({"original_id": text} if run.imported("captions") else {}),
            "source": source_label(run),
            "prompt": text,
            "model": text,
            "embedding_shard": datasets.Value("int32"),
            "embedding_row": datasets.Value("int32"),
        }
        if self.config.name == WITH_EMBEDDINGS:
            dimension = run.stage("text_embeddings")["fingerprint"]["dimension"]
            features["image_embedding"] = datasets.List(datasets.Value("float16"), length=dimension)
        return datasets.DatasetInfo(description=self.DESCRIPTION, features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        parts = [f"{stage}:{shard}" for stage, shard in self.parts(self.open_run())]
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"parts": parts})]

    def _generate_tables(self, parts: Sequence[str]) -> Iterator[tuple[Key, pa.Table]]:
        for number, part in enumerate(parts):
            stage, shard = part.rsplit(":", 1)
            yield Key(number, 0), self.table(stage, int(shard))

    def table(self, stage: str, shard: int) -> pa.Table:
        """The rows of one part in the builder's schema.

        Raises:
            RunError: a shard is missing or changed, or an embedding belongs to another text.
        """
        run = self.open_run()
        table = self.text_table(run, stage, shard)
        if run.imported("captions"):
            ids = run.table("captions", shard)["original_id"].take(table["embedding_row"])
            table = table.append_column("original_id", ids)
        if self.config.name == WITH_EMBEDDINGS:
            table = table.append_column("image_embedding", _embeddings(run, shard, table))
        schema = self.info.features.arrow_schema
        return table.select(schema.names).cast(schema)


def transfer_method(run: RunDir) -> str:
    """The one transfer method of a run.

    Raises:
        RunError: the transfer has not been run, or with several methods.
    """
    methods = [stage.split("/")[1] for stage in run.manifest["stages"] if stage.startswith("image_embeddings/")]
    if len(methods) != 1:
        raise RunError(
            f"{run.path} holds embeddings of {methods or 'no transfer method'}; a data set needs exactly one"
        )
    return str(methods[0])


def source_label(run: RunDir) -> datasets.ClassLabel:
    """The seed sources of a run, in alphabetical order."""
    return datasets.ClassLabel(names=sorted(run.stage("seeds")["sources"]))


def class_label(column: pa.ChunkedArray, label: datasets.ClassLabel) -> pa.ChunkedArray:
    """Names as the integers of ``label``."""
    return pa.compute.index_in(column, value_set=pa.array(label.names)).cast(pa.int64())


def pair_conversations(human: pa.ChunkedArray, gpt: pa.ChunkedArray) -> pa.Array:
    """One human and one gpt turn a row, as ``list<struct<from, value>>``, without a Python row."""
    rows = len(human)
    order = np.arange(2 * rows).reshape(2, rows).T.reshape(-1)  # 0, n, 1, n + 1, ...
    values = pa.concat_arrays([*human.chunks, *gpt.chunks]).take(pa.array(order))
    speakers = pa.array(["human", "gpt"]).take(pa.array(np.tile([0, 1], rows)))
    turns = pa.StructArray.from_arrays([speakers, values], ["from", "value"])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32)), turns)


def conversations_of(table: pa.Table) -> pa.Array:
    """The conversations of a caption shard: instruction and caption, or what an imported row has in their stead."""
    pairs = pair_conversations(table["instruction"], table["caption"])
    if "conversations" not in table.column_names or table["conversations"].null_count == len(table):
        return pairs
    kept = table["conversations"].combine_chunks()
    instead = kept.is_valid().to_numpy(zero_copy_only=False)
    return pa.concat_arrays([pairs, kept]).take(pa.array(np.arange(len(table)) + len(table) * instead))


def _embeddings(run: RunDir, shard: int, table: pa.Table) -> pa.Array:
    """The rows' embeddings, joined by row number and proven by the text's hash."""
    stage = f"image_embeddings/{transfer_method(run)}"
    path = run.verified(stage, run.shard_path(stage, shard))
    with safe_open(path, "np") as file:
        vectors, hashes = file.get_tensor("embeddings"), file.get_tensor("text_sha256")
    rows = table["embedding_row"].to_numpy()
    own = caption_hashes(table["caption"].to_pylist()).numpy()
    if len(rows) and (rows.max() >= len(vectors) or (differ := (hashes[rows] != own).any(1)).any()):
        row = int(rows.max()) if rows.max() >= len(vectors) else int(rows[differ.argmax()])
        raise RunError(f"{path}, row {row}: the embedding was made from another text than the caption's")
    flat = np.ascontiguousarray(vectors[rows]).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), vectors.shape[1])


# -- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuiltConfig:
    """What was written for one config."""

    name: str
    info: datasets.DatasetInfo
    files: list[str]  # relative to the data set's directory
    example: dict[str, Any]  # the first row, names in place of labels, without its embedding


def main(builder_class: type[RunBuilder]) -> int:
    """The command line of a builder script: ``--run-dir RUN --output DIRECTORY``."""
    parser = argparse.ArgumentParser(description=builder_class.DESCRIPTION)
    parser.add_argument("--run-dir", type=Path, required=True, help="a finished run")
    parser.add_argument(
        "--output", type=Path, required=True, help="the data set's directory; an older build is replaced"
    )
    options = parser.parse_args()
    try:
        build(builder_class, options.run_dir, options.output)
    except UnicornError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: built from {options.run_dir}")
    return 0


def build(builder_class: type[RunBuilder], run_dir: Path, output: Path) -> None:
    """Writes a data set: a Parquet file a part and config, the companions (files of the run that travel along), the
    manifest and the card. It appears whole, or not at all.

    Raises:
        RunError: the run is not finished or not whole, or ``output`` holds something that is no earlier build.
    """
    if output.exists() and any(output.iterdir()) and not (output / "manifest.json").is_file():
        raise RunError(f"{output} exists and is no earlier build (it has no manifest.json); choose another --output")
    if (output / "captions").exists():
        raise RunError(f"{output} is a run directory; choose another --output")
    run = RunDir(run_dir)
    new, old = output.with_name(f".{output.name}.new"), output.with_name(f".{output.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        built = [_write_config(builder_class, config.name, run_dir, new) for config in builder_class.BUILDER_CONFIGS]
        for path in [run.path / "manifest.json", *builder_class.companions(run)]:
            target = new / path.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (new / "README.md").write_text(builder_class.card(run, built), encoding="utf-8")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if output.exists():
        os.rename(output, old)
    os.rename(new, output)
    shutil.rmtree(old, ignore_errors=True)


def _write_config(builder_class: type[RunBuilder], name: str, run_dir: Path, output: Path) -> BuiltConfig:
    builder = builder_class(config_name=name, run_dir=str(run_dir), hash="run", cache_dir=str(output / ".cache"))
    parts = builder.parts(builder.open_run())
    folder = "data" if name == "default" else name
    files, rows, size = [], 0, 0
    example: dict[str, Any] = {}
    for number, (stage, shard) in enumerate(parts):
        table = builder.table(stage, shard)
        path = output / folder / f"train-{number:05d}-of-{len(parts):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(
            table,
            path,
            compression="zstd",
            row_group_size=EMBEDDED_ROW_GROUP if name == WITH_EMBEDDINGS else TEXT_ROW_GROUP,
            write_page_index=True,
            use_content_defined_chunking=True,
        )
        files.append(str(path.relative_to(output)))
        rows, size = rows + len(table), size + table.nbytes
        example = example or _example(table, builder.info.features)
    info = builder.info.copy()
    info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", size, rows)})
    info.dataset_size, info.download_size = size, sum((output / file).stat().st_size for file in files)
    shutil.rmtree(output / ".cache", ignore_errors=True)
    return BuiltConfig(name, info, files, example)


def _example(table: pa.Table, features: datasets.Features) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    row.pop("image_embedding", None)
    labels = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return row | {name: label.int2str(row[name]) for name, label in labels.items()}

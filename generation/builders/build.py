"""A directory that ``load_dataset("<directory>")`` reads, made out of a run."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RunError
from ..files import file_facts, guarded
from ..progress import counted, progress
from ..rundir import RunDir
from .builder import FIRST_VERSION, FOLDERS, WITH_EMBEDDINGS, UnicornBuilder
from .places import open_run

EMBEDDED_ROW_GROUP = 4_000  # rows; 10 MB of vectors at d = 1280: with 20 MB two writers take a third longer (memory)
TEXT_ROW_GROUP = 20_000
# Columns with few values, and columns that a reader filters by. For vectors either costs more time than all the rest.
REPEATING = ("conversations.list.element.from", "task", "source", "prompt", "model", "embedding_shard")
SEARCHED = ("id", "task", "source", "embedding_shard", "embedding_row")
SAMPLE = 10_000  # captions that the card looks at more closely
WRITERS = 2  # files written at once; more would only hold more rows in memory


@dataclass(frozen=True)
class BuiltConfig:
    """What was written for one config."""

    name: str
    info: datasets.DatasetInfo
    files: dict[str, dict[str, Any]]  # name in the data set's directory -> rows, bytes, sha256


@dataclass(frozen=True)
class Built:
    """What was written, and what the card tells of it."""

    configs: list[BuiltConfig]
    directory: Path
    examples: list[dict[str, Any]]  # a row of each task, names in place of labels, without its embedding
    sources: dict[str, int]  # rows by the source of their seed
    lengths: list[int]  # captions by their white-space separated words, from 0 on
    sample: list[str]  # captions spread evenly over the rows


def build(
    builder_class: type[UnicornBuilder],
    run_dir: Path,
    output: Path,
    version: str = FIRST_VERSION,
    method: str | None = None,
) -> None:
    """Writes a data set: a Parquet file a part and config, the companions (files of the run that travel along), the
    manifest and the card. It appears whole, or not at all; the same run makes the same bytes.

    Args:
        builder_class: which data set.
        run_dir: a finished run.
        output: the directory; an older build is replaced.
        version: the data set's, semantic; not the code's.
        method: of the transfer, where the run has embeddings by several.

    Raises:
        RunError: the run is not finished or not whole, or ``output`` holds something that is no earlier build, or
            cannot be written.
    """
    if output.exists() and any(output.iterdir()) and not (output / "manifest.json").is_file():
        raise RunError(f"{output} exists and is no earlier build (it has no manifest.json); choose another --output")
    if (output / "captions").exists():
        raise RunError(f"{output} is a run directory; choose another --output")
    run = open_run(run_dir, method)
    new, old = output.with_name(f".{output.name}.new"), output.with_name(f".{output.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        guarded(output, lambda: _write_all(builder_class, run, new, version, method))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if output.exists():
        os.rename(output, old)
    os.rename(new, output)
    shutil.rmtree(old, ignore_errors=True)


def _write_all(
    builder_class: type[UnicornBuilder], run: RunDir, output: Path, version: str, method: str | None
) -> None:
    """Writes all files of a data set into a new directory."""
    output.mkdir(parents=True)
    built = _write_parts(builder_class, run, output, version, method)
    for path in counted(builder_class.companions(run), "build, companions", "file"):
        link(path, output / path.relative_to(run.path))
    for name, text in builder_class.documents(run, built).items():
        (output / name).write_text(text, encoding="utf-8")
    files = {name: facts for config in built.configs for name, facts in config.files.items()}
    files = _others(run, output, files) | files
    manifest = run.manifest | {"built": {"name": builder_class.NAME, "version": version, "files": files}}
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def link(path: Path, target: Path) -> None:
    """The same file under another name, which takes no room; a copy, where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _others(run: RunDir, output: Path, files: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of what lies beside the Parquet files: companions, whose own are known; card and pictures."""
    known = {name: facts for stage in run.manifest["stages"].values() for name, facts in stage["files"].items()}
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    others = [name for name in names if name not in files]
    return {name: known.get(name) or file_facts(output / name) for name in others}


def _write_parts(
    builder_class: type[UnicornBuilder], run: RunDir, output: Path, version: str, method: str | None
) -> Built:
    for folder in FOLDERS.values():
        (output / folder).mkdir()

    def write(table: pa.Table, name: str, config: str) -> dict[str, Any]:
        return write_part(table, output / name, config)

    return write_parts(builder_class, run, output, version, method, write)


def write_parts(
    builder_class: type[UnicornBuilder],
    run: RunDir,
    output: Path,
    version: str,
    method: str | None,
    write: Callable[[pa.Table, str, str], dict[str, Any]],
    wanted: Callable[[int], bool] = lambda number: True,
) -> Built:
    """Goes through the parts of a run, each in both configs.

    Args:
        builder_class: which data set.
        run: a finished run.
        output: the data set's directory.
        version: the data set's.
        method: of the transfer, where the run has embeddings by several.
        write: given a part's rows, the file's name in ``output`` and its config; returns rows, bytes and sha256.
        wanted: whether a part is to be gone through, by its number. The card needs all.

    Raises:
        RunError: the run is not finished or not whole, or has no row.
    """
    with tempfile.TemporaryDirectory() as cache:
        builders = [
            builder_class(
                config_name=name, run_dir=str(run.path), method=method, version=version, hash="run", cache_dir=cache
            )
            for name in FOLDERS
        ]
        parts = builders[0].run_parts()
    counts = [run.record(stage, int(shard))["rows"] for stage, shard in (part.rsplit(":", 1) for part in parts)]
    step = -(-sum(counts) // SAMPLE) or 1

    def make(number: int) -> _Part:
        text = builders[0].text(run, parts[number])
        files, sizes = {}, []
        for builder in builders:
            table = builder.finished(run, parts[number], text)
            name = f"{FOLDERS[builder.config.name]}/train-{number:05d}-of-{len(parts):05d}.parquet"
            files[name] = write(table, name, builder.config.name)
            sizes.append(table.nbytes)
        new_task = not number or parts[number - 1].rsplit(":", 1)[0] != parts[number].rsplit(":", 1)[0]
        examples = [_example(text, builders[0].info.features)] if new_task else []
        return _Part(files, sizes, *_summary(text, step), examples)

    made: list[_Part] = []
    numbers = list(filter(wanted, range(len(parts))))
    with (
        ThreadPoolExecutor(WRITERS) as pool,
        progress("build", sum(counts[number] for number in numbers), 0, "row") as bar,
    ):
        for part in pool.map(make, numbers):
            made.append(part)
            bar.update(sum(part.sources.values()))
    return _built(output, builders, made)


@dataclass(frozen=True)
class _Part:
    files: dict[str, dict[str, Any]]
    sizes: list[int]  # bytes in memory, config by config
    sources: Counter[int]
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    sample: list[str]
    examples: list[dict[str, Any]]


def _built(output: Path, builders: list[UnicornBuilder], parts: list[_Part]) -> Built:
    if not parts:
        raise RunError("no row was accepted, so there is no data set to build; see the run's folder `rejected`")
    configs = []
    for place, builder in enumerate(builders):
        folder = FOLDERS[builder.config.name]
        files = {name: facts for part in parts for name, facts in part.files.items() if name.startswith(f"{folder}/")}
        configs.append(
            BuiltConfig(builder.config.name, _info(builder, files, sum(part.sizes[place] for part in parts)), files)
        )
    label = builders[0].info.features["source"]
    counts = sum((part.sources for part in parts), Counter[int]())
    lengths = np.zeros(max(len(part.lengths) for part in parts), np.int64)
    for part in parts:
        lengths[: len(part.lengths)] += part.lengths
    return Built(
        configs,
        output,
        [example for part in parts for example in part.examples],
        {name: counts[number] for number, name in enumerate(label.names)},
        lengths.tolist(),
        [caption for part in parts for caption in part.sample],
    )


def _summary(text: pa.Table, step: int) -> tuple[Counter[int], np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """Sources, lengths and some captions of a part."""
    sources = Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(text["source"]).to_pylist()})
    words = pc.list_value_length(pc.ascii_split_whitespace(text["caption"]))
    sample = text["caption"].take(pa.array(range(0, len(text), step))).to_pylist()
    return sources, np.bincount(words.to_numpy()), sample


def write_part(table: pa.Table, path: Path, config: str) -> dict[str, Any]:
    """Writes one file as the Hub's viewer likes it best. Chunks of text are found by their content, so that a version
    that changes some rows uploads little. Vectors all change with the mean, and finding their chunks would take longer
    than everything else; nor are they compressed, which would make them smaller by a twelfth alone."""
    vectors = config == WITH_EMBEDDINGS
    leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
    pq.write_table(
        table,
        path,
        compression={name: "NONE" if name.startswith("image_embedding") else "zstd" for name in leaves},
        row_group_size=EMBEDDED_ROW_GROUP if vectors else TEXT_ROW_GROUP,
        write_page_index=True,
        use_content_defined_chunking=not vectors,
        use_dictionary=[name for name in REPEATING if name.split(".")[0] in table.column_names],
        write_statistics=[name for name in SEARCHED if name in table.column_names],
    )
    return {"rows": len(table)} | file_facts(path)


def _leaves(name: str, kind: pa.DataType) -> Iterator[str]:
    """A column's parts, as Parquet names them."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    else:
        yield name


def _info(builder: UnicornBuilder, files: dict[str, dict[str, Any]], size: int) -> datasets.DatasetInfo:
    info = builder.info.copy()
    rows = sum(facts["rows"] for facts in files.values())
    info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", size, rows)})
    info.dataset_size, info.download_size = size, sum(facts["bytes"] for facts in files.values())
    return info


def _example(text: pa.Table, features: datasets.Features) -> dict[str, Any]:
    """The first row, as people read it."""
    row: dict[str, Any] = text.slice(0, 1).to_pylist()[0]
    labels = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return {name: row[name] for name in features} | {name: label.int2str(row[name]) for name, label in labels.items()}

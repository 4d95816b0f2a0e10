"""Write a directory that ``load_dataset("<directory>")`` reads, out of a finished run. It appears whole or not at all.

data/               Parquet files of the text
with_embeddings/    Parquet files of text and vectors
image_embeddings/   Unicorn-1.2M: the run's vectors for trainers, hard links where the file system has them
transfer/           Unicorn-1.2M: the statistics to treat real images with
figures/, README.md the card
manifest.json       written last: all records of the run, sha256 of every file, the digest of the contents
"""

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import __version__
from ..errors import DatasetError
from ..files import explained, read_table, sha256, write_json
from ..logs import Progress
from ..stages import CAPTIONS
from .builder import FIRST_VERSION, FOLDERS, WITH_EMBEDDINGS, UnicornBuilder
from .finished import FinishedRun
from .published import PublishedDataset
from .versions import changelog

Builders = dict[str, UnicornBuilder]  # by config
FILE_BYTES = 200_000_000  # a file ends with the shard that reaches it: files of 100 to 300 MB at full size
TEXT_ROW_GROUP, VECTOR_ROW_GROUP = 20_000, 4_000  # rows; 4,000 vectors of d = 1280 take 10 MB
# Columns with few values, and columns that readers filter by. For vectors either costs more time than all the rest.
REPEATING = ("conversations.list.element.from", "task", "source", "license", "prompt", "model", "embedding_shard")
SEARCHED = ("id", "task", "source", "words", "judge", "grounded", "embedding_shard", "embedding_row")
COUNTED = ("source", "task", "question_types", "words", "model", "judge", "grounded", "duplicate_group", "letters")
LEAVES = (  # the parts of columns of lists, as Parquet names them
    "conversations.list.element.from",
    "conversations.list.element.value",
    "question_types.list.element",
)
WRITERS = 2  # files written at once; more only hold more rows in memory


def build(
    builder_class: type[UnicornBuilder],
    run_dir: Path,
    output: Path,
    version: str = FIRST_VERSION,
    method: str | None = None,
    repo_id: str | None = None,
    previous: PublishedDataset | None = None,
) -> dict[str, Any]:
    """Build a data set and return its manifest. The same run gives the same bytes.

    Args:
        builder_class: which data set.
        run_dir: a finished run.
        output: the directory; an earlier build in it is replaced.
        version: of the data set, semantic.
        method: of the transfer; None: the recipe's.
        repo_id: ``USER/NAME`` that the card's snippets load; None: the directory's name.
        previous: the version before, whose changelog is carried on; None: the build in ``output``, if there is one.

    Raises:
        DatasetError: the run is not finished, or ``output`` holds something else than an earlier build.
        RunError: a file cannot be read or written.
    """
    _check_output(output, run_dir)
    new, old = output.with_name(f".{output.name}.new"), output.with_name(f".{output.name}.old")
    if old.exists() and not output.exists():  # killed between the two renames below
        old.rename(output)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    if previous is None and (output / "manifest.json").exists():
        previous = PublishedDataset(str(output))
    try:
        with explained(output), tempfile.TemporaryDirectory() as cache:
            new.mkdir(parents=True)
            options = {"run_dir": str(run_dir), "method": method, "version": version, "cache_dir": cache}
            builders = {name: builder_class(config_name=name, **options) for name in FOLDERS}
            builders[WITH_EMBEDDINGS].run = builders["default"].run  # so that each file is hashed once
            manifest = _write_all(builders, new, version, repo_id, previous)
            if output.exists():
                output.rename(old)
            new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _check_output(output: Path, run_dir: Path) -> None:
    path, run = output.resolve(), run_dir.resolve()
    if path == run or run in path.parents or path in run.parents:
        raise DatasetError(f"--output {output} lies in the run {run_dir}, or holds it; choose a directory elsewhere")
    if path.exists() and not path.is_dir():
        raise DatasetError(f"--output {output} is a file; choose a directory")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    found = {name for name in found if not name.startswith(".")}  # .gitattributes, .cache of a download
    if found and "manifest.json" not in found:
        raise DatasetError(f"--output {output} holds other files than an earlier build; choose another directory")
    known = set(PublishedDataset(str(path)).manifest["files"]) if found else set()
    if foreign := ", ".join(sorted(found - known - {"manifest.json"})[:5]):
        raise DatasetError(f"--output {output} holds files that no build wrote: {foreign}. Move them elsewhere first")


def _write_all(
    builders: Builders, output: Path, version: str, repo_id: str | None, previous: PublishedDataset | None
) -> dict[str, Any]:
    """Write all files of a data set into a new directory and return its manifest."""
    first, run = builders["default"], builders["default"].run
    _write_tables(builders, output)
    for path in first.extra_files(run):
        target = output / path.relative_to(run.run.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)  # takes no space
        except OSError:  # another file system
            shutil.copyfile(path, target)
    files = _files(run, output, {})
    manifest: dict[str, Any] = {
        "name": first.NAME,
        "version": version,
        "digest": hashlib.sha256(repr([(name, one["sha256"]) for name, one in files.items()]).encode()).hexdigest(),
        "code": __version__,
        "created": run.run.created,
        "method": run.method,
        "dimension": run.dimension,
        "sources": run.sources,
        "original_id": run.imported,
        "counts": _counts(first, output),
        "recipe": _public(run.run.recipe.model_dump(mode="json")),
        "stages": {
            stage.name: run.run.facts(stage)
            | {"shards": {f"{number:05d}": asdict(one) for number, one in records.items()}}
            for stage, records in run.records.items()
        },
        "vectors": {name: sha for name, sha in run.hashes.items() if name.startswith("image_embeddings/")},
        "text": {name: sha for name, sha in run.hashes.items() if name.startswith(("captions/", "instructions/"))},
    }
    manifest["changelog"] = changelog(manifest, previous, output)
    infos = {name: _info(builder, output) for name, builder in builders.items()}
    text = first.card(manifest=manifest, infos=infos, directory=output, statistics=run.statistics, repo_id=repo_id)
    (output / "README.md").write_text(text, encoding="utf-8")
    manifest["files"] = _files(run, output, files)
    write_json(output / "manifest.json", manifest)
    return manifest


def _write_tables(builders: Builders, output: Path) -> None:
    """Write the Parquet files of all configs, ``WRITERS`` at a time."""
    run, shards = builders["default"].run, builders["default"].shards()
    jobs = []
    for config, folder in FOLDERS.items():
        (output / folder).mkdir()
        groups = list(_groups(run, shards, config))
        for number, group in enumerate(groups):
            jobs.append((config, group, f"{folder}/train-{number:05d}-of-{len(groups):05d}.parquet"))

    def write(config: str, group: list[int], name: str) -> None:
        with _open_writer(output / name, builders[config].info.features.arrow_schema) as writer:
            for table in map(builders[config].table, group):
                writer.write_table(table, VECTOR_ROW_GROUP if config == WITH_EMBEDDINGS else TEXT_ROW_GROUP)
                bar.update(len(table))

    total = len(FOLDERS) * sum(run.rows(shard) for shard in shards)
    pool = ThreadPoolExecutor(WRITERS)
    with Progress("build", total) as bar:
        try:
            for done in [pool.submit(write, *job) for job in jobs]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _groups(run: FinishedRun, shards: list[int], config: str) -> Iterator[list[int]]:
    """Yield the shards of each file, by the bytes that the run's own files take."""
    group, size = list[int](), 0.0
    for shard in shards:
        captions, rows = run.records[CAPTIONS][shard], run.rows(shard)
        records = [run.records[stage][shard] for stage in run.tasks]
        text = [record.files[f"{shard:05d}.parquet"]["bytes"] for record in (captions, *records)]
        size += text[0] * rows / captions.rows + sum(text[1:])
        size += 2 * run.dimension * rows if config == WITH_EMBEDDINGS else 0
        group.append(shard)
        if size >= FILE_BYTES:
            yield group
            group, size = [], 0.0
    if group:
        yield group


def _open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a file as the Hub's viewer likes it. Chunks of text are found by their content, so that a version that
    changes some rows uploads little; vectors all move with the mean, and compress by a twelfth only."""
    return pq.ParquetWriter(
        path,
        schema,
        compression=dict.fromkeys((*schema.names, *LEAVES), "zstd") | {"image_embedding.list.element": "NONE"},
        write_page_index=True,
        use_content_defined_chunking="image_embedding" not in schema.names,
        use_dictionary=list(REPEATING),
        write_statistics=list(SEARCHED),
    )


def _counts(builder: UnicornBuilder, output: Path) -> dict[str, dict[str, int]]:
    """Return the rows of ``default`` by value, for each column in ``COUNTED``; scores are rounded, nulls left out.
    ``letters`` are the right answers of multiple choice."""
    features, found = builder.info.features, {name: Counter[Any]() for name in COUNTED}
    for path in sorted((output / FOLDERS["default"]).glob("*.parquet")):
        for name in (name for name in COUNTED if name in features or "task" in features):
            column = read_table(path, [{"letters": "conversations"}.get(name, name)])[0].combine_chunks()
            if name == "letters":
                texts = column.flatten().field("value")
                column = texts.filter(pc.match_substring_regex(texts, "^[A-D]$"))
            elif name == "duplicate_group":
                column = column.is_valid().filter(column.is_valid())
            elif pa.types.is_list(column.type):
                column = pc.list_flatten(column)
            elif pa.types.is_floating(column.type):
                column = pc.round(column.cast(pa.float64()), 2)
            names = getattr(features.get(name), "names", None)  # of class labels
            for entry in pc.value_counts(column.drop_null()).to_pylist():
                found[name][names[entry["values"]] if names else entry["values"]] += entry["counts"]
    return {name: {str(value): counter[value] for value in sorted(counter)} for name, counter in found.items()}


def _info(builder: UnicornBuilder, output: Path) -> datasets.DatasetInfo:
    """Return what ``datasets`` says about a config, with its sizes."""
    paths = list((output / FOLDERS[builder.config.name]).glob("*.parquet"))
    parts = [pq.read_metadata(path) for path in paths]
    info, rows = builder.info.copy(), sum(part.num_rows for part in parts)
    size = sum(part.row_group(group).total_byte_size for part in parts for group in range(part.num_row_groups))
    info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", size, rows)})
    info.dataset_size, info.download_size = size, sum(path.stat().st_size for path in paths)
    return info


def _files(run: FinishedRun, output: Path, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of all files, as far as they are not ``known`` or in the run's records."""

    def facts(name: str) -> dict[str, Any]:
        path = output / name
        return known.get(name) or {"bytes": path.stat().st_size, "sha256": run.hashes.get(name) or sha256(path)}

    names = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    with ThreadPoolExecutor(WRITERS) as pool:
        return dict(zip(names, pool.map(facts, names), strict=True))


def _public(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without what concerns only its author's machines."""
    for section in ("server", "judge"):
        (recipe[section] or {}).pop("endpoints", None)
    return {key: value for key, value in recipe.items() if key not in ("directory", "cluster")}

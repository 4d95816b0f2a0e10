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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import accumulate, groupby
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
from .published import PublishedDataset

Builders = dict[str, UnicornBuilder]  # by config
FILE_BYTES = 200_000_000  # a file holds the shards that begin within so many bytes: 100 to 300 MB at full size
ROW_GROUP = {"default": 20_000, WITH_EMBEDDINGS: 4_000}  # rows; 4,000 vectors of d = 1280 take 10 MB
# Columns with few values, and columns that readers filter by. For vectors either costs more time than all the rest.
REPEATING = ("conversations.list.element.from", "task", "source", "license", "prompt", "model", "embedding_shard")
SEARCHED = ("id", "task", "source", "words", "judge", "grounded", "embedding_shard", "embedding_row")
COUNTED = ("source", "task", "question_types", "words", "model", "judge", "grounded", "duplicate_group", "letters")
LEAVES = ("conversations.list.element.from", "conversations.list.element.value", "question_types.list.element")
PRIVATE: Any = {"directory": True, "cluster": True, "server": {"endpoints"}, "judge": {"endpoints"}}  # of the recipe
WRITERS = 2  # files written at once; more only hold more rows in memory


def build(
    builder_class: type[UnicornBuilder],
    run_dir: Path,
    output: Path,
    version: str = FIRST_VERSION,
    method: str | None = None,
    repo_id: str | None = None,
    previous: PublishedDataset | None = None,
    duplicates: bool = False,
) -> dict[str, Any]:
    """Build a data set from a finished run and return its manifest. The same run gives the same bytes.

    An earlier build in ``output`` is replaced. ``method`` is of the transfer (None: the recipe's). The card's snippets
    load ``repo_id`` (``USER/NAME``; None: the directory's name), and its changelog carries on that of ``previous``
    (None: the build in ``output``). ``duplicates`` has near-duplicates searched even if the recipe does not drop them.

    Raises:
        DatasetError: as of ``FinishedRun``, or ``output`` holds something else than an earlier build.
        RunError: the run is not finished, or a file cannot be read or written.
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
            options = {"run_dir": str(run_dir), "method": method, "duplicates": duplicates, "version": version}
            builders = {name: builder_class(config_name=name, cache_dir=cache, **options) for name in FOLDERS}
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
    hashes = _hashes(output, run.hashes)
    manifest: dict[str, Any] = {
        "name": first.NAME,
        "version": version,
        "digest": hashlib.sha256(repr([*hashes.items()]).encode()).hexdigest(),
        "code": __version__,
        "created": run.run.created,
        "method": run.method,
        "dimension": run.dimension,
        "sources": run.sources,
        "original_id": run.imported,
        "duplicates_searched": run.duplicates is not None,
        "counts": _counts(first, output),
        "recipe": run.run.recipe.model_dump(mode="json", exclude=PRIVATE),
        "stages": {
            stage.name: run.run.facts(stage) | {"shards": {f"{shard:05d}": asdict(one) for shard, one in made.items()}}
            for stage, made in run.records.items()
        },
        "vectors": {name: sha for name, sha in run.hashes.items() if name.startswith("image_embeddings/")},
        "text": {name: sha for name, sha in run.hashes.items() if name.startswith(("captions/", "instructions/"))},
    }
    manifest["changelog"] = previous.changelog(manifest, output) if previous else [[version, "first version"]]
    infos = {name: _info(builder, output) for name, builder in builders.items()}
    text = first.card(manifest=manifest, infos=infos, directory=output, statistics=run.statistics, repo_id=repo_id)
    (output / "README.md").write_text(text, encoding="utf-8")
    hashes = _hashes(output, hashes)
    manifest["files"] = {
        name: {"bytes": (output / name).stat().st_size, "sha256": sha} for name, sha in hashes.items()
    }
    write_json(output / "manifest.json", manifest)
    return manifest


def _write_tables(builders: Builders, output: Path) -> None:
    """Write the Parquet files of all configs as the Hub's viewer likes them. Chunks of text are found by content, so
    that a new version uploads little; vectors all move with the mean, and compress by a twelfth only."""
    run, shards, jobs = builders["default"].run, builders["default"].shards(), []

    def size(shard: int, config: str) -> float:  # by the bytes that the run's own files take
        records = [run.records[stage][shard] for stage in (CAPTIONS, *run.tasks)]
        text = [record.files[f"{shard:05d}.parquet"]["bytes"] for record in records]
        vectors = 2 * run.dimension * run.rows(shard) if config == WITH_EMBEDDINGS else 0
        return float(text[0] * run.rows(shard) / records[0].rows + sum(text[1:]) + vectors)

    def write(config: str, group: list[int], path: Path) -> None:
        schema = builders[config].info.features.arrow_schema
        codecs = dict.fromkeys((*schema.names, *LEAVES), "zstd") | {"image_embedding.list.element": "NONE"}
        with pq.ParquetWriter(
            path,
            schema,
            compression=codecs,
            write_page_index=True,
            use_content_defined_chunking=config != WITH_EMBEDDINGS,
            use_dictionary=list(REPEATING),
            write_statistics=list(SEARCHED),
        ) as writer:
            for table in map(builders[config].table, group):
                writer.write_table(table, ROW_GROUP[config])
                bar.update(len(table))

    for config, folder in FOLDERS.items():
        (output / folder).mkdir()
        starts = dict(zip(shards, accumulate((size(one, config) for one in shards), initial=0.0), strict=False))
        groups = [list(group) for _, group in groupby(shards, lambda shard: starts[shard] // FILE_BYTES)]  # noqa: B023
        for number, group in enumerate(groups):
            jobs.append((config, group, output / folder / f"train-{number:05d}-of-{len(groups):05d}.parquet"))
    total = len(FOLDERS) * sum(map(run.rows, shards))
    with Progress("build", total) as bar, ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, *zip(*jobs, strict=True)))


def _counts(builder: UnicornBuilder, output: Path) -> dict[str, dict[str, int]]:
    """Return the rows of ``default`` by value, for each column in ``COUNTED``; scores are rounded, nulls left out.
    ``letters`` are the right answers of multiple choice, ``dropped`` the items that the checks took out, by reason."""
    features, found = builder.info.features, {name: Counter[Any]() for name in (*COUNTED, "dropped")}
    for path in sorted((output / FOLDERS["default"]).glob("*.parquet")):
        for name in (name for name in COUNTED if name in features or "task" in features):
            column = read_table(path, [{"letters": "conversations"}.get(name, name)])[0].combine_chunks().drop_null()
            if name == "letters":
                texts = column.flatten().field("value")
                column = texts.filter(pc.match_substring_regex(texts, "^[A-D]$"))
            elif pa.types.is_list(column.type):
                column = pc.list_flatten(column)
            elif pa.types.is_floating(column.type):
                column = pc.round(column.cast(pa.float64()), 2)
            names = getattr(features.get(name), "names", None)  # of class labels
            for entry in pc.value_counts(column).to_pylist():
                found[name][names[entry["values"]] if names else entry["values"]] += entry["counts"]
    found["duplicate_group"] = Counter({"rows": found["duplicate_group"].total()})
    for stage in builder.run.tasks:
        for shard in builder.run.records[stage]:
            lists = builder.run.run.table(stage, shard, ["dropped"])["dropped"]
            found["dropped"].update(pc.list_flatten(lists).to_pylist())
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


def _hashes(output: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Return the sha256 of all files by name; those that are ``known`` are not read."""
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    with ThreadPoolExecutor(WRITERS) as pool:
        return dict(zip(names, pool.map(lambda name: known.get(name) or sha256(output / name), names), strict=True))

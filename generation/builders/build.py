"""A directory that ``load_dataset("<directory>")`` reads, made out of a run."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RunError
from ..files import file_sha256
from ..progress import counted, progress
from ..rundir import RunDir
from .builder import FIRST_VERSION, FOLDERS, WITH_EMBEDDINGS, UnicornBuilder

EMBEDDED_ROW_GROUP = 8_000  # rows; 20 MB of vectors at d = 1280
TEXT_ROW_GROUP = 20_000
# Columns with few values, and columns that a reader filters by. For vectors either costs more time than all the rest.
REPEATING = ("conversations.list.element.from", "task", "source", "prompt", "model", "embedding_shard")
SEARCHED = ("id", "task", "source", "embedding_shard", "embedding_row")
WRITERS = 2  # files written at once; more would only hold more rows in memory


@dataclass(frozen=True)
class BuiltConfig:
    """What was written for one config."""

    name: str
    info: datasets.DatasetInfo
    files: dict[str, dict[str, Any]]  # name in the data set's directory -> rows, bytes, sha256
    example: dict[str, Any]  # the first row, names in place of labels, without its embedding


def build(builder_class: type[UnicornBuilder], run_dir: Path, output: Path, version: str = FIRST_VERSION) -> None:
    """Writes a data set: a Parquet file a part and config, the companions (files of the run that travel along), the
    manifest and the card. It appears whole, or not at all; the same run makes the same bytes.

    Args:
        builder_class: which data set.
        run_dir: a finished run.
        output: the directory; an older build is replaced.
        version: the data set's, semantic; not the code's.

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
        built = [_write_config(builder_class, name, run_dir, new, version) for name in FOLDERS]
        for path in counted(builder_class.companions(run), "build, companions", "file"):
            target = new / path.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        files = {name: facts for config in built for name, facts in config.files.items()}
        manifest = run.manifest | {"built": {"name": builder_class.NAME, "version": version, "files": files}}
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (new / "README.md").write_text(builder_class.card(run, built), encoding="utf-8")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if output.exists():
        os.rename(output, old)
    os.rename(new, output)
    shutil.rmtree(old, ignore_errors=True)


def _write_config(
    builder_class: type[UnicornBuilder], name: str, run_dir: Path, output: Path, version: str
) -> BuiltConfig:
    cache = output / ".cache"
    builder = builder_class(config_name=name, run_dir=str(run_dir), version=version, hash="run", cache_dir=str(cache))
    parts = builder.run_parts()
    names = [f"{FOLDERS[name]}/train-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    (output / FOLDERS[name]).mkdir()

    def write(number: int) -> tuple[dict[str, Any], int, dict[str, Any]]:
        table = builder.table(parts[number])
        facts = _write(table, output / names[number], name)
        return facts, table.nbytes, _example(table, builder.info.features) if not number else {}

    written = []
    with ThreadPoolExecutor(WRITERS) as pool, progress(f"build {name}", len(parts), 0, "shard") as bar:
        for made in pool.map(write, range(len(parts))):
            written.append(made)
            bar.update(1)
    files = {name: facts for name, (facts, _, _) in zip(names, written, strict=True)}
    shutil.rmtree(cache, ignore_errors=True)
    return BuiltConfig(name, _info(builder, files, sum(size for _, size, _ in written)), files, written[0][2])


def _write(table: pa.Table, path: Path, config: str) -> dict[str, Any]:
    """Writes one file as the Hub's viewer likes it best."""
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=EMBEDDED_ROW_GROUP if config == WITH_EMBEDDINGS else TEXT_ROW_GROUP,
        write_page_index=True,
        use_content_defined_chunking=True,
        use_dictionary=[name for name in REPEATING if name.split(".")[0] in table.column_names],
        write_statistics=[name for name in SEARCHED if name in table.column_names],
    )
    return {"rows": len(table), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _info(builder: UnicornBuilder, files: dict[str, dict[str, Any]], size: int) -> datasets.DatasetInfo:
    info = builder.info.copy()
    rows = sum(facts["rows"] for facts in files.values())
    info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", size, rows)})
    info.dataset_size, info.download_size = size, sum(facts["bytes"] for facts in files.values())
    return info


def _example(table: pa.Table, features: datasets.Features) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    row.pop("image_embedding", None)
    labels = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return row | {name: label.int2str(row[name]) for name, label in labels.items()}

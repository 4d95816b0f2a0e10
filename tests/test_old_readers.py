"""The built directories under readers that know nothing of ``datasets``, and under a ``datasets`` of 2025.

The vectors are stored as ``fixed_size_list<halffloat>[d]``. DuckDB has no float16 and makes FLOAT[] of them (float32,
of any length); polars Array(Float16, d); pandas a column of objects, each a float16 array. ``datasets`` 3.6 makes a
list of float16 of any length. None of them loses a bit. ``source`` and ``task`` are integers but to ``datasets``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.conftest import rows

SETS = "unicorn-1.2m", "unicorn-471k-instruction"
FOLDERS = ("data", "with_embeddings")
OLD = (  # the versions that a project of May 2025 has pinned
    "datasets==3.6.0",
    "pyarrow==20.0.0",
    "numpy==1.26.4",
    "pandas==2.2.3",
    "huggingface_hub==0.31.4",
    "fsspec==2025.3.0",
)
Columns = dict[str, list[Any]]


def by_duckdb(folder: Path) -> Columns:
    relation = duckdb.sql(f"SELECT * FROM '{folder}/*.parquet'")
    types = dict(zip(relation.columns, map(str, relation.types), strict=True))
    assert types.get("image_embedding", "FLOAT[]") == "FLOAT[]"
    return dict(zip(relation.columns, map(list, zip(*relation.fetchall(), strict=True)), strict=True))


def by_pandas(folder: Path) -> Columns:
    frame = pd.read_parquet(folder)
    if "image_embedding" in frame:
        assert {vector.dtype for vector in frame["image_embedding"]} == {np.dtype(np.float16)}
    return {name: frame[name].tolist() for name in frame}


def by_polars(folder: Path) -> Columns:
    frame = pl.read_parquet(folder / "*.parquet")
    assert frame.schema.get("image_embedding", pl.Array(pl.Float16, 384)) == pl.Array(pl.Float16, 384)
    return frame.to_dict(as_series=False)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("read", [by_duckdb, by_pandas, by_polars])
def test_rows_and_vectors_are_read_as_they_were_stored(
    read: Callable[[Path], Columns], folder: str, name: str, built: Path
) -> None:
    wanted = rows(built / name, folder)
    found = read(built / name / folder)
    assert set(found) == set(wanted[0])
    for column in set(found) - {"image_embedding", "conversations"}:
        assert found[column] == [row[column] for row in wanted]
    assert [list(turns) for turns in found["conversations"]] == [row["conversations"] for row in wanted]
    assert ("image_embedding" in found) == (folder == "with_embeddings")
    if folder == "with_embeddings":
        vectors = np.array([row["image_embedding"] for row in wanted], np.float16)  # [n, d]
        assert np.array_equal(np.array([list(vector) for vector in found["image_embedding"]]), vectors)


def test_duckdb_joins_both_sets_by_the_place_of_their_vectors(built: Path) -> None:
    one, other = (f"'{built / name}/with_embeddings/*.parquet'" for name in SETS)
    [(equal,)] = duckdb.sql(
        f"SELECT count(*) FROM {one} c JOIN {other} i USING (embedding_shard, embedding_row) "
        "WHERE c.id = i.id AND c.caption = i.caption AND c.image_embedding = i.image_embedding"
    ).fetchall()
    assert equal == len(rows(built / "unicorn-471k-instruction", "data"))


READ_WITH_DATASETS = """
import json, sys
import numpy as np
from datasets import __version__, load_dataset
found = {"version": __version__}
for name in sys.argv[1:]:
    for config in ("default", "with_embeddings"):
        for streaming in (False, True):
            loaded = load_dataset(name, config, split="train", streaming=streaming)
            read = [dict(row) for row in loaded]
            for row in read:
                if config == "with_embeddings":
                    row["image_embedding"] = [float(value) for value in row["image_embedding"]]
            names = {key: loaded.features[key].names for key in ("source", "task") if key in loaded.features}
            found[f"{name} {config} {streaming}"] = {"rows": read, "names": names}
vectors = load_dataset(sys.argv[1], "with_embeddings", split="train").with_format("numpy", dtype=np.float16)
column = np.stack([row["image_embedding"] for row in vectors])
found["column"] = [str(column.dtype), list(column.shape)]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)  # pip downloads 100 MB
def test_datasets_3_6_loads_and_streams_all_configs(built: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *OLD], check=True)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", READ_WITH_DATASETS, *SETS],
        cwd=built,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("version") == "3.6.0"
    assert found.pop("column") == ["float16", [18, 384]]
    assert len(found) == 2 * 2 * 2
    for key, value in found.items():
        name, config, _ = key.split()
        assert value["rows"] == rows(built / name, "data" if config == "default" else config)
        assert value["names"]["source"] == ["bundled"]

"""The files of a built data set, checked when they are opened; texts decoded once into an Arrow file in a cache."""

import hashlib
import os
from functools import partial
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ..builders.published import PublishedDataset
from ..errors import DatasetError
from ..files import explained, write_atomically
from ..logs import counted

CHUNK_ROWS = 4_096  # rows that are decoded, moved or hashed at a time
_TEXTS = {"id": pa.int64(), "caption": pa.large_string(), "conversations": pa.large_string()}
SCHEMA = pa.schema(_TEXTS | {"embedding_shard": pa.int32(), "embedding_row": pa.int32()})


def open_built(directory: str | Path) -> PublishedDataset:
    """Open a built directory; a DatasetError says if it is something else, such as a run or a name of the Hub."""
    path = Path(directory)
    if not path.is_dir():
        raise DatasetError(
            f"{directory} is not a directory. A data set of the Hub must be downloaded first: huggingface_hub."
            f'snapshot_download("{directory}", repo_type="dataset", revision="v1.0.0") returns its directory'
        )
    if (path / "run.json").exists():
        raise DatasetError(f"{path} is a run; build a data set from it: python unicorn_1_2m.py --run-dir {path}")
    return PublishedDataset(str(path))


def sized(built: PublishedDataset, name: str) -> Path:
    """Return the path of a file whose size is that of the manifest; ``verify`` compares the bytes."""
    path, known = built.file(name, verify=False), built.manifest["files"][name]["bytes"]
    if (found := path.stat().st_size) != known:
        raise DatasetError(f"{path} has {found} bytes, and the manifest {known}; download or build it again")
    return path


def vector_files(rows: PublishedDataset, source: PublishedDataset) -> dict[int, Path]:
    """Return the shards of vectors by number: the ones that the rows were built with."""
    wanted, files = rows.manifest["vectors"], source.manifest["files"]
    if not wanted.keys() & files.keys():
        raise DatasetError(f"{source.url} holds no vectors of these rows; give embeddings=, the built Unicorn-1.2M")
    for name, known in wanted.items():
        if (found := files.get(name, {}).get("sha256")) != known:
            raise DatasetError(f"{source.url}/{name}: sha256 {found}, and the rows were built with {known}")
    return {int(Path(name).stem): sized(source, name) for name in wanted}


def decoded(built: PublishedDataset, cache: str | Path | None) -> Path:
    """Return the Arrow file of a data set's rows, of ``SCHEMA``; one process makes it, others wait."""
    paths = [sized(built, name) for name in sorted(built.manifest["files"]) if name.startswith("data/")]
    state = [built.manifest["digest"], [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]]
    home = Path(cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unicorn-data")
    target = home / f"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.arrow"
    if target.exists():  # perhaps in a cache that cannot be written
        return target
    with explained(target):
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                write_atomically(target, partial(_decode, paths))
    return target


def _decode(paths: list[Path], target: Path) -> None:
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for path in counted(paths, "decode texts", "file"):
            try:
                with pq.ParquetFile(path) as parquet:
                    for batch in parquet.iter_batches(CHUNK_ROWS, columns=SCHEMA.names, use_threads=False):
                        turns = pa.array(orjson.dumps(turns).decode() for turns in batch["conversations"].to_pylist())
                        table = batch.set_column(batch.schema.get_field_index("conversations"), "conversations", turns)
                        writer.write(table.select(SCHEMA.names).cast(SCHEMA))
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DatasetError(f"cannot read the rows of {path}: {error}; download or build it again") from error

"""A built data set in other formats. Nothing is generated or computed again; rows are streamed.

    llava       JSON list of ``{"id", "caption", "conversations"}``, as LLaVA and Bunny read it. There is no ``image``:
                their loaders take such rows as text only until they are taught to look up the vector.
    messages    .jsonl or .parquet of ``{"id", "messages", "embedding_shard", "embedding_row"}``: conversations as TRL
                and transformers take them, ``{"type": "image"}`` for ``<image>``. A collator must look up the vector.
    webdataset  directory of tars of 10,000 rows: ``<key>.json`` and ``<key>.npy``, the vector, float16 [d]. The key is
                the id, and ``<id>-<task>`` in Unicorn-471K-Instruction.

The original's pickles are not written: reading a pickle can run any code.
"""

import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .builders.published import PublishedDataset
from .errors import DatasetError
from .files import explained, write_atomically
from .logs import Progress
from .rows import Row
from .stages import TASKS

FORMATS = ("llava", "messages", "webdataset")
TAR_ROWS = 10_000  # 60 MB at d = 1280
BATCH_ROWS = 8_000  # of a Parquet file
_ROLES = {"human": "user", "gpt": "assistant"}
_IMAGE = re.compile(r"\n?(<image>)\n?")
_TEXT = pa.string()
_CONTENT = pa.list_(pa.struct({"type": _TEXT, "text": _TEXT}))
_PLACE = {"embedding_shard": pa.int32(), "embedding_row": pa.int32()}
_MESSAGES = pa.schema({"id": _TEXT, "messages": pa.list_(pa.struct({"role": _TEXT, "content": _CONTENT}))} | _PLACE)


def export_dataset(dataset: str | Path, form: str, output: Path, embeddings: str | Path | None = None) -> int:
    """Write a built data set in one of the ``FORMATS`` and return the number of rows.

    ``dataset`` is a built directory, or ``hf://datasets/USER/NAME@REVISION``. ``output``, a file or for ``webdataset``
    a directory, must not exist, and appears whole or not at all. ``webdataset`` takes the vectors from ``embeddings``,
    a built Unicorn-1.2M; None: those stored with the rows. Raise DatasetError if the output exists or does not fit the
    format, or if a file of the data set is missing or changed.
    """
    if form not in FORMATS:
        raise DatasetError(f"format {form!r} is not one of {', '.join(FORMATS)}")
    if os.path.lexists(output):
        raise DatasetError(f"{output} exists; remove it, or choose another --output")
    if embeddings and form != "webdataset":
        raise DatasetError(f"format {form} holds no vectors; remove --embeddings {embeddings}")
    if form == "messages" and output.suffix not in (".jsonl", ".parquet"):
        raise DatasetError(f"--output {output}: format messages needs a name that ends in .jsonl or .parquet")
    with Progress(f"export {form}", None) as bar:
        vectors = PublishedDataset(str(embeddings)) if embeddings else None
        rows = _rows(PublishedDataset(str(dataset)), form, vectors, bar)
        if form == "webdataset":
            _write_tars(rows, output)
        else:
            writers = {"llava": _write_llava, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
            write_atomically(output, partial(writers[output.suffix if form == "messages" else form], rows))
        return bar.done


def message_content(value: str) -> list[dict[str, str]]:
    """Return a turn as fragments: an image for each ``<image>`` and its line breaks, text for the rest."""
    pieces = [piece for piece in _IMAGE.split(value) if piece]
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]


def _rows(built: PublishedDataset, form: str, vectors: PublishedDataset | None, bar: Progress) -> Iterator[Row]:
    """Yield the rows, for ``webdataset`` with ``image_embedding``, a numpy array float16 [d]."""
    folder = "with_embeddings" if form == "webdataset" and not vectors else "data"
    names = sorted(name for name in built.manifest["files"] if name.startswith(f"{folder}/"))
    if not names:
        raise DatasetError(f"{built.url} holds no {folder}/*.parquet; build it again")
    tables = (built.joined_tables(name, vectors) if vectors else built.tables(name) for name in names)
    for table in chain.from_iterable(tables):
        rows = table.drop_columns([name for name in table.column_names if name == "image_embedding"]).to_pylist()
        if form == "webdataset":
            matrix = table["image_embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            rows = [row | {"image_embedding": vector} for row, vector in zip(rows, matrix, strict=True)]
        yield from rows
        bar.update(len(rows))


def _conversation(row: Row) -> Row:
    return {name: row[name] for name in ("id", "caption", "conversations")}


def _message_row(row: Row) -> Row:
    turns = row["conversations"]
    messages = [{"role": _ROLES[turn["from"]], "content": message_content(turn["value"])} for turn in turns]
    return {"id": row["id"], "messages": messages} | {name: row[name] for name in _PLACE}


def _write_llava(rows: Iterator[Row], path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            file.write((b",\n" if number else b"\n") + orjson.dumps(_conversation(row)))
        file.write(b"\n]\n")


def _write_jsonl(rows: Iterator[Row], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps(_message_row(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    with pq.ParquetWriter(path, _MESSAGES, compression="zstd") as writer:
        while part := list(map(_message_row, islice(rows, BATCH_ROWS))):
            writer.write_table(pa.Table.from_pylist(part, _MESSAGES))


def _write_tars(rows: Iterator[Row], output: Path) -> None:
    """Write the tars into a directory that takes its name when all are complete."""
    new = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)  # of an export that was killed
    try:
        with explained(output):
            new.mkdir(parents=True)
            for number, first in enumerate(rows):
                part = chain([first], islice(rows, TAR_ROWS - 1))
                write_atomically(new / f"{number:05d}.tar", partial(_write_tar, part))
            os.rename(new, output)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_tar(rows: Iterator[Row], path: Path) -> None:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise DatasetError("format webdataset needs the package webdataset: pip install webdataset") from error
    with path.open("wb") as file, TarWriter(file, mtime=0) as tar:  # mtime: the same rows give the same bytes
        for row in rows:
            task = {"task": TASKS[row["task"]]} if "task" in row else {}
            key = "-".join([row["id"], *task.values()])
            tar.write({"__key__": key, "json": orjson.dumps(_conversation(row) | task), "npy": row["image_embedding"]})

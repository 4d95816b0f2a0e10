"""A built data set in other formats (docs/formats.md). Nothing is generated or computed again; rows are streamed."""

import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import orjson

from .builders.published import PublishedDataset
from .errors import DatasetError
from .files import explained, write_atomically
from .limits import TAR_ROWS
from .logs import Progress
from .stages import TASKS, Row

FORMATS = ("llava", "messages", "webdataset")
_ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = {"type": "image"}
_IMAGE = re.compile(r"\n?(<image>)\n?")


def export_dataset(dataset: str | Path, form: str, output: Path, embeddings: str | Path | None = None) -> int:
    """Write a built data set in one of the ``FORMATS`` and return the number of rows.

    ``dataset`` is a built directory, or ``hf://datasets/USER/NAME@REVISION``. ``output``, a file or for ``webdataset``
    a directory, must not exist, and appears whole or not at all. ``webdataset`` takes the vectors from ``embeddings``,
    a built Unicorn-1.2M; None: those stored with the rows. A DatasetError says what does not fit.
    """
    if form not in FORMATS:
        raise DatasetError(f"format {form!r} is not one of {', '.join(FORMATS)}")
    if os.path.lexists(output):
        raise DatasetError(f"{output} exists; remove it, or choose another --output")
    if embeddings and form != "webdataset":
        raise DatasetError(f"format {form} holds no vectors; remove --embeddings {embeddings}")
    if form == "messages" and output.suffix != ".jsonl":
        raise DatasetError(f"--output {output}: format messages needs a name that ends in .jsonl")
    vectors = PublishedDataset(str(embeddings)) if embeddings else None
    with Progress(f"export {form}", None) as bar:
        rows = _rows(PublishedDataset(str(dataset)), form, vectors, bar)
        if form == "webdataset":
            _write_tars(rows, output)
        else:
            write_atomically(output, partial(_write_json, rows, form == "llava"))
        return bar.done


def _rows(built: PublishedDataset, form: str, vectors: PublishedDataset | None, bar: Progress) -> Iterator[Row]:
    """Yield the rows as the format has them, for ``webdataset`` with ``npy``, a numpy array float16 [d]."""
    folder = "with_embeddings" if form == "webdataset" and not vectors else "data"
    names = sorted(name for name in built.manifest["files"] if name.startswith(f"{folder}/"))
    if not names:
        raise DatasetError(f"{built.url} holds no {folder}/*.parquet; build it again")
    tables = (built.joined_tables(name, vectors) if vectors else built.tables(name) for name in names)
    for table in chain.from_iterable(tables):
        rows = table.drop_columns([name for name in table.column_names if name == "image_embedding"]).to_pylist()
        matrix = [None] * len(rows)
        if form == "webdataset":
            matrix = table["image_embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        for row, vector in zip(rows, matrix, strict=True):
            content = {name: row[name] for name in ("id", "caption", "conversations")}
            if form == "llava":
                yield content
            elif form == "messages":
                messages = []
                for turn in row["conversations"]:  # fragments: an image for <image> and its line breaks, or text
                    pieces = [piece for piece in _IMAGE.split(turn["value"]) if piece]
                    parts = [IMAGE if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]
                    messages.append({"role": _ROLES[turn["from"]], "content": parts})
                place = {name: row[name] for name in ("embedding_shard", "embedding_row")}
                yield {"id": row["id"], "messages": messages, **place}
            else:
                task = {"task": TASKS[row["task"]]} if "task" in row else {}
                key = "-".join([row["id"], *task.values()])
                yield {"__key__": key, "json": orjson.dumps(content | task), "npy": vector}
        bar.update(len(rows))


def _write_json(rows: Iterator[Row], as_list: bool, path: Path) -> None:
    """Write rows a line each, or as one JSON list."""
    start, between, end = (b"[\n", b",\n", b"\n]\n") if as_list else (b"", b"\n", b"\n")
    with path.open("wb") as file:
        for number, row in enumerate(rows):
            file.write((between if number else start) + orjson.dumps(row))
        file.write(end)


def _write_tars(rows: Iterator[Row], output: Path) -> None:
    """Write tars of 10,000 rows into a directory that takes its name when all are complete."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise DatasetError("format webdataset needs the package webdataset: pip install webdataset") from error

    def write_tar(part: Iterator[Row], path: Path) -> None:
        with path.open("wb") as file, TarWriter(file, mtime=0) as tar:  # mtime: the same rows give the same bytes
            for row in part:
                tar.write(row)

    new = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)  # of an export that was killed
    try:
        with explained(output):
            new.mkdir(parents=True)
            for number, first in enumerate(rows):
                part = chain([first], islice(rows, TAR_ROWS - 1))
                write_atomically(new / f"{number:05d}.tar", partial(write_tar, part))
            os.rename(new, output)
    finally:
        shutil.rmtree(new, ignore_errors=True)

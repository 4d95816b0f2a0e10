"""A built data set in the formats of others. Text and vectors are the same; nothing is asked or computed again.

    llava       one JSON list of ``{"id", "caption", "conversations"}``, as LLaVA and Bunny read it. There is no key
                ``image``, since there is no image: their loaders take such a row for text alone unless they are
                taught to look its vector up.
    messages    JSONL or Parquet, by the output's name, of ``{"id", "messages", "embedding_shard", "embedding_row"}``:
                what TRL and transformers call conversational, with content fragments, where ``{"type": "image"}``
                holds the place of ``<image>``. Stock ``SFTTrainer`` takes images or none, and no embeddings: it needs
                a collator that looks a row's vector up at its shard and row.
    webdataset  a directory of tars, 10,000 rows each: ``<key>.json`` and ``<key>.npy``, the vector, float16 [d]. The
                key is the id; in Unicorn-471K-Instruction, where an id has up to a row a task, ``<id>-<task>``.
    original    a directory in the layout of the original (github.com/Yu-xm/Unicorn, ``data_utils.py``):
                ``conversations.json``, and ``caption_embeddings_<n>.pkl``, n from 1, each a pickled list of
                ``{"id", "caption", "embed"}``, ``embed`` a float32 array [d]. An id with several rows has several
                equal entries.

Rows are streamed; what is held are a few thousand of them and one mapped shard, and for ``original`` the 200,000 rows
of one pickle, which is written in one piece (2 GB at d = 1280).
"""

import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .builders.builder import FOLDERS, WITH_EMBEDDINGS
from .builders.places import BATCH_ROWS, Place
from .config import TASKS
from .errors import ExportError
from .files import guarded, seal
from .progress import progress

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # a row's columns; in formats with vectors also ``image_embedding``, float16 [d]

VECTOR = "image_embedding"
TAR_ROWS = 10_000  # in a tar: 60 MB at d = 1280
PICKLE_ROWS = 200_000  # in a pickle, as in the original
VECTOR_FORMATS = ("webdataset", "original")
MESSAGES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (
            "messages",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))),
                    ]
                )
            ),
        ),
        ("embedding_shard", pa.int32()),
        ("embedding_row", pa.int32()),
    ]
)
_ROLES = {"human": "user", "gpt": "assistant"}
_IMAGE = re.compile(r"\n?(<image>)\n?")


def export(dataset: str, form: str, output: Path, embeddings: str | None = None) -> int:
    """Writes a built data set in another format; it appears whole, or not at all.

    Args:
        dataset: a built directory, or ``hf://datasets/USER/NAME@REVISION``.
        form: ``llava``, ``messages``, ``webdataset`` or ``original``; see above.
        output: a file (the first two) or a directory (the others), which must not exist yet.
        embeddings: for formats with vectors: the built directory or revision of Unicorn-1.2M whose shards are read;
            None reads the vectors of the data set's config ``with_embeddings``.

    Returns:
        How many rows were written.

    Raises:
        ExportError: ``output`` exists, its name or ``embeddings`` does not go with the format, or the library
            webdataset is not installed.
        RunError: the data set or its vectors are missing, changed or of another run; or ``output`` cannot be written.
    """
    _check(form, output, embeddings)
    place = Place(dataset)
    config = WITH_EMBEDDINGS if form in VECTOR_FORMATS and not embeddings else "default"
    files = place.parquet_files(FOLDERS[config])
    total = sum(place.manifest["built"]["files"][name]["rows"] for name in files)
    if form == "original":
        logger.warning(
            "warning: %s will hold pickles, which can run any code when they are read: take them from nobody whom you "
            "do not trust. The tools of this project never read one.",
            output,
        )
    with progress(f"export {form}", total, 0, "row") as bar:
        _WRITERS[form](_rows(place, files, embeddings, bar), output)
    return int(total)


def _check(form: str, output: Path, embeddings: str | None) -> None:
    if os.path.lexists(output):
        raise ExportError(f"{output} exists; remove it, or choose another --output")
    if embeddings and form not in VECTOR_FORMATS:
        raise ExportError(f"the format {form} holds no vectors: leave --embeddings {embeddings} out")
    if form == "messages" and output.suffix not in (".jsonl", ".parquet"):
        raise ExportError(f"--output {output}: the format messages is written to a name in .jsonl or .parquet")
    if form == "webdataset":
        _tar_writer()


def _rows(place: Place, files: list[str], embeddings: str | None, bar: Any) -> Iterator[Row]:
    """The rows in order, each with its vector where one is stored or ``embeddings`` says where it lies."""
    vectors = Place(embeddings) if embeddings else None
    for name in files:
        for table in place.tables(name) if vectors is None else place.joined_tables(name, vectors):
            yield from _plain(table, bar)


def _plain(table: pa.Table, bar: Any) -> Iterator[Row]:
    if VECTOR in table.column_names:
        vectors = table[VECTOR].combine_chunks().flatten().to_numpy().reshape(len(table), -1)  # float16 [rows, d]
        for row, vector in zip(table.drop_columns(VECTOR).to_pylist(), vectors, strict=True):
            yield row | {VECTOR: vector}
    else:
        yield from table.to_pylist()
    bar.update(len(table))


# -- llava -------------------------------------------------------------------------------------------------------


def _llava(rows: Iterator[Row], output: Path) -> None:
    seal(output, partial(_write_json, rows))


def _conversation(row: Row) -> Row:
    return {name: row[name] for name in ("id", "caption", "conversations")}


def _write_json(rows: Iterable[Row], target: Path) -> None:
    """A JSON list, a row a line."""
    with target.open("wb") as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            file.write((b",\n" if number else b"\n") + orjson.dumps(_conversation(row)))
        file.write(b"\n]\n")


# -- messages ----------------------------------------------------------------------------------------------------


def _messages(rows: Iterator[Row], output: Path) -> None:
    write = _write_lines if output.suffix == ".jsonl" else _write_parquet
    seal(output, partial(write, map(_message_row, rows)))


def _message_row(row: Row) -> Row:
    messages = [{"role": _ROLES[turn["from"]], "content": fragments(turn["value"])} for turn in row["conversations"]]
    return {"id": row["id"], "messages": messages} | {name: row[name] for name in ("embedding_shard", "embedding_row")}


def fragments(value: str) -> list[dict[str, str]]:
    """A turn's text as content fragments: an image for each ``<image>`` and its line breaks, text for what is left."""
    pieces = [piece for piece in _IMAGE.split(value) if piece]
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]


def _write_lines(rows: Iterable[Row], target: Path) -> None:
    with target.open("wb") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _write_parquet(rows: Iterator[Row], target: Path) -> None:
    with pq.ParquetWriter(target, MESSAGES_SCHEMA, compression="zstd") as writer:
        while part := list(islice(rows, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(part, MESSAGES_SCHEMA))


# -- webdataset --------------------------------------------------------------------------------------------------


def _webdataset(rows: Iterator[Row], output: Path) -> None:
    with _folder(output) as folder:
        for number, first in enumerate(rows):
            shard = chain([first], islice(rows, TAR_ROWS - 1))
            seal(folder / f"{number:05d}.tar", partial(_write_tar, shard))


def _write_tar(rows: Iterable[Row], target: Path) -> None:
    with target.open("wb") as file, _tar_writer()(file, mtime=0) as tar:  # a fixed time: the same bytes again
        for row in rows:
            task = {"task": list(TASKS)[row["task"]]} if "task" in row else {}
            key = "-".join([row["id"], *task.values()])
            tar.write({"__key__": key, "json": orjson.dumps(_conversation(row) | task), "npy": row[VECTOR]})


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ExportError(
            "the format webdataset needs the library of that name: "
            "pip install -r requirements-export.txt -c constraints.txt"
        ) from error
    return TarWriter


# -- original ----------------------------------------------------------------------------------------------------


def _original(rows: Iterator[Row], output: Path) -> None:
    with _folder(output) as folder:
        seal(folder / "conversations.json", partial(_write_json, _pickled(rows, folder)))


def _pickled(rows: Iterator[Row], folder: Path) -> Iterator[Row]:
    """Passes the rows on; once the last is taken, their vectors lie in pickles."""
    for number in count(1):
        entries: list[Row] = []
        for row in islice(rows, PICKLE_ROWS):
            entries.append({"id": row["id"], "caption": row["caption"], "embed": row[VECTOR].astype(np.float32)})
            yield row
        if not entries:
            return
        seal(folder / f"caption_embeddings_{number}.pkl", partial(_write_pickle, entries))


def _write_pickle(entries: list[Row], target: Path) -> None:
    with target.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        pickler.fast = True  # keeps no memo, which would hold a second copy of every vector
        pickler.dump(entries)


@contextmanager
def _folder(output: Path) -> Iterator[Path]:
    """A directory that takes its name once all its files are written."""
    new = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        guarded(output, lambda: new.mkdir(parents=True))
        yield new
        guarded(output, lambda: os.rename(new, output))
    finally:
        shutil.rmtree(new, ignore_errors=True)


_WRITERS = {"llava": _llava, "messages": _messages, "webdataset": _webdataset, "original": _original}

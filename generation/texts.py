"""Tables of texts that a user gives: files (.txt one a line, .jsonl, .json, .csv, .tsv, .parquet), or whatever
`datasets` streams."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import SeedError

_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}
_BATCH_ROWS = 1000


def open_file(path: Path, what: str) -> Any:
    """A file as a stream of `datasets`, by the loader of its suffix.

    Args:
        path: the file.
        what: what it is, for messages: ``seed source 'own'``.

    Raises:
        SeedError: the format is unknown, or the file cannot be opened.
    """
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a local file is nobody's download
    if path.suffix not in _LOADERS:
        raise SeedError(f"{what}: {path} must end with one of {', '.join(_LOADERS)}")
    loader, options = _LOADERS[path.suffix]
    try:
        files = glob.escape(str(path))
        return datasets.load_dataset(loader, data_files=files, split="train", streaming=True, **options)
    except Exception as error:  # whatever the loader of the format raises
        raise SeedError(f"{what}: {path} cannot be read: {error}") from error


def batches(
    rows: Any, columns: list[str], batch_rows: int, what: str, place: object
) -> Iterator[tuple[int, list[list[Any]]]]:
    """The number of the first row, and the values of some columns, of every ``batch_rows`` rows of a stream.

    Args:
        rows: a stream of `datasets`.
        columns: their names.
        batch_rows: rows at a time.
        what: what is read, for messages.
        place: where it lies, for messages.

    Raises:
        SeedError: the stream breaks, or has no such column.
    """
    first = 0
    try:
        for table in rows.with_format("arrow").iter(batch_rows):
            for column in columns:
                if column not in table.column_names:
                    raise SeedError(
                        f"{what}: {place} has no column '{column}'; its columns: {', '.join(table.column_names)}"
                    )
            yield first, [table[column].to_pylist() for column in columns]
            first += len(table)
    except SeedError:
        raise
    except Exception as error:  # whatever the loader of the format, or the Hub's client, raises
        raise SeedError(f"{what}: {place} cannot be read: {error}") from error


def read_texts(path: Path, column: str, what: str, noun: str) -> Iterator[str]:
    """The texts of one file in its order; runs of white space become one blank.

    Args:
        path: the file; its suffix says its format.
        column: where the texts stand; ignored for .txt.
        what: what the file is, for messages.
        noun: what each text is, for messages: ``question``.

    Raises:
        SeedError: the format is unknown, the file cannot be read, or a row holds no text in that column.
    """
    column = "text" if path.suffix == ".txt" else column
    for first, (values,) in batches(open_file(path, what), [column], _BATCH_ROWS, what, path):
        for number, text in enumerate(values, first):
            if not isinstance(text, str) or not text.strip():
                raise SeedError(f"{what}: {path}, row {number}: column '{column}' holds {text!r}, no {noun}")
            yield " ".join(text.split())

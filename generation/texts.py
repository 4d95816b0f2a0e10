"""Files of texts that a user gives: .txt one a line, or a column of .jsonl, .json, .csv, .tsv or .parquet."""

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


def read_texts(path: Path, column: str, what: str, noun: str) -> Iterator[str]:
    """The texts of one file in its order, read by `datasets`' own loaders; runs of white space become one blank.

    Args:
        path: the file; its suffix says its format.
        column: where the texts stand; ignored for .txt.
        what: what the file is, for messages: ``seed source 'own'``.
        noun: what each text is, for messages: ``caption``.

    Raises:
        SeedError: the format is unknown, the file cannot be read, or a row holds no text in that column.
    """
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a local file is nobody's download
    try:
        loader, options = _LOADERS[path.suffix]
    except KeyError:
        raise SeedError(f"{what}: {path} must end with one of {', '.join(_LOADERS)}") from None
    if loader == "text":
        column = "text"
    try:
        files = glob.escape(str(path))
        rows = datasets.load_dataset(loader, data_files=files, split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                raise SeedError(
                    f"{what}: {path}, row {number}: column '{column}' holds {text!r}, no {noun}; "
                    f"the file's columns: {', '.join(row)}"
                )
            yield " ".join(text.split())
    except SeedError:
        raise
    except Exception as error:  # whatever the loader of the format raises
        raise SeedError(f"{what}: {path} cannot be read: {error}") from error

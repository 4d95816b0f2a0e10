"""Damage for the tests of ``verify`` and ``repair``: bits that flip, and files that are wrong but well recorded."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save_file

from tests.conftest import manifest

Change = Callable[[Any], Any]


def flip(path: Path, place: int | None = None, bit: int = 0) -> None:
    """Flips a bit of one byte, by default of that in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place % len(content)] ^= 1 << bit
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    """Has two files change places."""
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def state(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Inode, time of change and hash of every file below a directory."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in directory.rglob("*")
        if path.is_file()
    }


def edit(directory: Path, *keys: str | int, value: Any) -> None:
    """Puts another value into the manifest."""
    content = manifest(directory)
    place: Any = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (directory / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def record_again(directory: Path, name: str) -> None:
    """Has the manifest record a file as it is now, so that only its content can be found wrong."""
    content = manifest(directory)
    facts = (directory / name).read_bytes()
    files = [stage["files"] for stage in content["stages"].values()] + [content.get("built", {"files": {}})["files"]]
    for known in files:
        if name in known:
            known[name] |= {"bytes": len(facts), "sha256": hashlib.sha256(facts).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def rewrite_rows(directory: Path, name: str, change: Change) -> None:
    """Changes the rows of a Parquet file, given as a list, and records it."""
    table = pq.read_table(directory / name)
    rows = table.to_pylist()
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, table.schema), directory / name)
    record_again(directory, name)


def rewrite_tensors(directory: Path, name: str, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Changes tensors and metadata of a safetensors file, and records it."""
    with safe_open(directory / name, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
        facts = json.loads(file.metadata()["unicorn"])
    change(tensors, facts)
    save_file(tensors, directory / name, {"unicorn": json.dumps(facts, sort_keys=True)})
    record_again(directory, name)

"""What changed since the version before, in numbers: the changelog of the card."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import DatasetError
from ..vectors import VectorShard
from .published import PublishedDataset

COMPARED_SHARDS = 4  # of vectors, evenly spread; those of the Hub must be downloaded


def changelog(manifest: dict[str, Any], previous: PublishedDataset | None, directory: Path) -> list[list[str]]:
    """Return the versions of a data set with what is new in each, newest first.

    Args:
        manifest: of the new build.
        previous: the build before; its changelog is carried on.
        directory: of the new build.

    Raises:
        DatasetError: the version before is higher.
    """
    version = manifest["version"]
    if previous is None or previous.manifest["name"] != manifest["name"]:
        return [[version, "first version"]]
    old = previous.manifest
    if [int(part) for part in version.split(".")] < [int(part) for part in old["version"].split(".")]:
        raise DatasetError(f"version {version} is lower than {old['version']}, which {previous.url} holds; raise it")
    entries: list[list[str]] = old["changelog"]
    text = "; ".join(_changes(old, manifest, previous, directory)) or "the same contents"
    if old["version"] != version:
        return [[version, text], *entries]
    if old["digest"] == manifest["digest"] or len(entries) == 1:
        return entries
    return [[version, f"{entries[0][1]}; then {text}"], *entries[1:]]


def _changes(old: dict[str, Any], new: dict[str, Any], previous: PublishedDataset, directory: Path) -> Iterator[str]:
    for column, words in (("source", "from source"), ("task", "of task")):
        before, now = old["counts"][column], new["counts"][column]
        for name in sorted(before.keys() | now.keys()):
            if moved := now.get(name, 0) - before.get(name, 0):
                yield f"{moved:+,} rows {words} {name}"
    for what in ("text", "vectors"):
        before, now = old[what], new[what]
        common = sorted(before.keys() & now.keys())
        if moved := [name for name in common if before[name] != now[name]]:
            some = f"{what} changed in {len(moved)} of {len(common)} shards"
            chosen = moved[:: -(-len(moved) // COMPARED_SHARDS)] if what == "vectors" else []
            cosines = [_smallest_cosine(previous, name, directory / name) for name in chosen if name in old["files"]]
            every = "all vectors moved" if len(moved) == len(common) and what == "vectors" else some
            yield every + (f", smallest cosine {min(cosines):.3f}" if cosines else "")


def _smallest_cosine(previous: PublishedDataset, name: str, path: Path) -> float:
    """Return the smallest cosine between the old and the new vector of a row; 1 if no row is in both."""
    old, new = VectorShard(previous.file(name)), VectorShard(path)
    places = {id: row for row, id in enumerate(old.ids)}
    rows = [row for row, id in enumerate(new.ids) if id in places]
    if not rows or old.dimension != new.dimension:
        return 1.0
    before = old.vectors[[places[new.ids[row]] for row in rows]].float()  # [n, d]
    return float(torch.nn.functional.cosine_similarity(before, new.vectors[rows].float(), dim=1).min())

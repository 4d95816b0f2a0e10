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
    if _order(version) < _order(old["version"]):
        raise DatasetError(f"version {version} is lower than {old['version']}, which {previous.url} holds; raise it")
    entries: list[list[str]] = old["changelog"]
    if old["digest"] == manifest["digest"] and old["version"] == version:
        return entries
    text = "; ".join(_changes(old, manifest, previous, directory)) or "the same contents"
    if old["version"] != version:
        return [[version, text], *entries]
    return [[version, entries[0][1] if len(entries) == 1 else f"{entries[0][1]}; then {text}"], *entries[1:]]


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _changes(old: dict[str, Any], new: dict[str, Any], previous: PublishedDataset, directory: Path) -> Iterator[str]:
    for what in ("source", "task"):
        before, now = old["counts"].get(what, {}), new["counts"].get(what, {})
        for name in sorted(before.keys() | now.keys()):
            if moved := now.get(name, 0) - before.get(name, 0):
                yield f"{moved:+,} rows {'from source' if what == 'source' else 'of task'} {name}"
    for stage in new["stages"]:
        if stage == "captions" or stage.startswith("instructions/"):
            before, now = (_hashes(one["stages"].get(stage, {"shards": {}})["shards"]) for one in (old, new))
            if changed := sum(before[name] != now[name] for name in before.keys() & now.keys()):
                yield f"{stage}: text changed in {changed} of {len(before)} shards"
    if old["method"] != new["method"]:
        yield f"vectors by {new['method']} in place of {old['method']}"
        return
    before, now = old["vectors"], new["vectors"]
    common = sorted(before.keys() & now.keys())
    if moved := [name for name in common if before[name] != now[name]]:
        many = (
            "all vectors moved"
            if len(moved) == len(common)
            else f"vectors moved in {len(moved)} of {len(common)} shards"
        )
        chosen = moved[:: -(-len(moved) // COMPARED_SHARDS)]
        cosines = [_smallest_cosine(previous, name, directory / name) for name in chosen if name in old["files"]]
        yield many + (f", smallest cosine {min(cosines):.3f}" if cosines else "")


def _hashes(shards: dict[str, Any]) -> dict[str, str]:
    return {name: record["files"][f"{name}.parquet"]["sha256"] for name, record in shards.items()}


def _smallest_cosine(previous: PublishedDataset, name: str, path: Path) -> float:
    """Return the smallest cosine between the old and the new vector of a row; 1 if no row is in both."""
    old, new = VectorShard(previous.file(name)), VectorShard(path)
    places = {id: row for row, id in enumerate(old.ids)}
    rows = [row for row, id in enumerate(new.ids) if id in places]
    if not rows or old.dimension != new.dimension:
        return 1.0
    before = old.vectors[[places[new.ids[row]] for row in rows]].float()  # [n, d]
    return float(torch.nn.functional.cosine_similarity(before, new.vectors[rows].float(), dim=1).min())

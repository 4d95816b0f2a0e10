"""The record of a finished shard, and how settings that differ are described."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard.

    Attributes:
        rows: in its data file.
        files: size in bytes and sha256 of each of its files, by name.
        inputs: what it was made from: sha256 of upstream files by their path in the run, and further values.
        counts: figures of the stage, such as ``rejected`` by reason and tokens.
    """

    rows: int
    files: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    counts: dict[str, Any] = field(default_factory=dict)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two mappings, in words: ``captions.min_words: 51 -> 60``."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found

"""The manifest as a file, and what differs between two fingerprints in it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import RunError

FORMAT = 1


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest.

    Raises:
        RunError: it cannot be read, or is of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT:
            manifest["stages"].items()
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as a manifest: {error!r}") from error
    raise RunError(f"{path} has format {manifest['format']}; this version of the code reads format {FORMAT}")


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two fingerprints, in words: ``captions.min_words: 51 -> 60``."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

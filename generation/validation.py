"""Data from a file or a command line, checked against a dataclass; every fault is named at once."""

import difflib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from .errors import RecipeError


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that must hold a mapping.

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{what} {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path} must be a mapping, but holds {type(data).__name__}")
    return data


def validate(kind: type[Any], data: dict[str, Any], what: str) -> Any:
    """Builds ``kind`` from ``data``, turning pydantic's report into one ``RecipeError`` that names every fault."""
    try:
        # As JSON, strictly: lists become tuples, but true is no 1 and '5' no 5.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        faults = "; ".join(_fault(kind, fault) for fault in error.errors())
        raise RecipeError(f"{what}: {faults}") from None


def _fault(kind: type[Any], fault: Any) -> str:
    """One fault in words; an unknown key is told its nearest known one."""
    *parents, key = fault["loc"]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "unexpected_keyword_argument":
        known = _keys(kind, parents)
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        return f"unknown key '{where}'; nearest known: '{'.'.join(map(str, [*parents, *nearest]))}'"
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    return f"'{where}' = {fault['input']!r}: {fault['msg']}"


def _keys(kind: Any, path: list[Any]) -> list[str]:
    """The field names of the dataclass that ``path`` leads to from ``kind``, through unions and tuples."""
    if not is_dataclass(kind):
        return next((keys for part in get_args(kind) if (keys := _keys(part, path))), [])
    if not path:
        return [f.name for f in fields(kind) if f.name != "directory"]
    if isinstance(path[0], str) and path[0] in (hints := get_type_hints(kind)):
        return _keys(hints[path[0]], [step for step in path[1:] if not isinstance(step, int)])
    return []

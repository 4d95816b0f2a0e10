"""Read recipes and other YAML files; name every fault in one error."""

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .config import Recipe, Section
from .errors import RecipeError

S = TypeVar("S", bound=Section)
CONFIGS = Path(__file__).parent / "configs"


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses a key which occurs twice in one mapping: YAML's own keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, its keys checked first."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                raise yaml.YAMLError(
                    f"key '{name}' occurs twice, in lines {lines[name]} and {line}; remove one of them"
                )
            lines[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping with unique keys.

    Raises:
        RecipeError: the file cannot be read, is not YAML, repeats a key, or holds something else.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read {what} {path}: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path} must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def load_recipe(path: Path, server: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; keys of ``server`` (from the command line) win over those of its section.

    Raises:
        RecipeError: the file cannot be read, or keys or values are wrong; all are named.
    """
    if not path.is_file():
        known = ", ".join(sorted(str(file) for file in CONFIGS.glob("*.yaml")))
        raise RecipeError(f"recipe {path} does not exist. Recipes that come with the project: {known}")
    data = read_yaml(path, "recipe")
    if "directory" in data:
        raise RecipeError(f"recipe {path}: remove the key 'directory'; it is the recipe's own directory")
    return parse_recipe(data | {"directory": str(path.resolve().parent)}, f"recipe {path}", server)


def parse_recipe(data: dict[str, Any], what: str, server: dict[str, Any] | None = None) -> Recipe:
    """Check a recipe that is already read; ``what`` names it in messages.

    Raises:
        RecipeError: keys or values are wrong; all are named.
    """
    try:
        str(data.get("directory")).encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{what}: the directory {data['directory']!r} is not UTF-8; rename it") from error
    if server:
        section = data.get("server") or {}
        if not isinstance(section, dict):
            raise RecipeError(f"{what}: 'server' must be a mapping, not {type(section).__name__}")
        data = data | {"server": section | server}
    if isinstance(transfer := data.get("transfer"), dict):
        data = data | {"transfer": {"method": "unicorn"} | transfer}
    return validate(Recipe, data, what)


def validate(kind: type[S], data: dict[str, Any], what: str) -> S:
    """Build a section from plain data; one RecipeError names every wrong key and value."""
    try:
        return kind.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        faults = dict.fromkeys(_describe(kind, fault) for fault in error.errors())
        raise RecipeError(f"{what}: {'; '.join(faults)}") from None


def _describe(kind: type[BaseModel], fault: Any) -> str:
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(fault["loc"][-1]), _all_keys(kind), n=1, cutoff=0.5)
        return f"unknown key '{where}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where} = {json.dumps(fault['input'], default=str)[:200]}: {message}" if where else message


def _all_keys(kind: Any) -> set[str]:
    """Return the names of all keys of a section and of those inside it."""
    keys: set[str] = set()
    for name, field in getattr(kind, "model_fields", {}).items():
        keys.add(name)
        keys |= _all_keys(field.annotation)
    for part in getattr(kind, "__args__", ()):
        keys |= _all_keys(part)
    return keys

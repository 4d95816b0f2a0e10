"""Read recipes and other YAML files; name every fault in one error."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from .config import Recipe, Section
from .errors import RecipeError
from .files import open_text

S = TypeVar("S", bound=Section)
CONFIGS = Path(__file__).parent / "configs"
_MAX_CHARACTERS = 5_000_000  # of a recipe whose aliases are written out: a few can stand for gigabytes


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values (PyYAML's: ``off`` is false, 012 is 10, 1:30 is 90, 1e3 is text) and unique keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, its keys checked first."""
        lines: dict[str, int] = {}
        for name, line in ((str(key.value), key.start_mark.line + 1) for key, _ in node.value):
            if name in lines and name != "<<":
                raise yaml.YAMLError(f"key '{name}' occurs twice, in lines {lines[name]} and {line}; remove one")
            lines[name] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern in (
    ("null", "~|null|Null|NULL|"),
    ("bool", "true|True|TRUE|false|False|FALSE"),
    ("int", "[-+]?(?:0|[1-9][0-9_]*)"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"),
    ("merge", "<<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping with unique keys, or refuse it by a RecipeError."""
    try:
        with open_text(path) as file:
            data = yaml.load(file.read(), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read {what} {path}: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path} must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def load_recipe(path: Path, server: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; keys of ``server`` (from the command line) win over those of its section."""
    if not os.path.exists(path):
        known = ", ".join(sorted(str(file) for file in CONFIGS.glob("*.yaml")))
        raise RecipeError(f"recipe {path} does not exist. Recipes that come with the project: {known}")
    data = read_yaml(path, "recipe")
    if "directory" in data:
        raise RecipeError(f"recipe {path}: remove the key 'directory'; it is the recipe's own directory")
    return parse_recipe(data | {"directory": str(path.resolve().parent)}, f"recipe {path}", server)


def parse_recipe(data: dict[str, Any], what: str, server: dict[str, Any] | None = None) -> Recipe:
    """Check a recipe that is already read, ``what`` in messages; a RecipeError names all wrong keys and values."""
    if re.search("[\ud800-\udfff]", str(data.get("directory"))):
        raise RecipeError(f"{what}: the directory {data['directory']!r} is not UTF-8; rename it")
    if server and isinstance(section := data.get("server") or {}, dict):
        data = data | {"server": section | server}
    if isinstance(transfer := data.get("transfer"), dict):
        data = data | {"transfer": {"method": "unicorn"} | transfer}
    return validate(Recipe, data, what)


def validate(kind: type[S], data: dict[str, Any], what: str) -> S:
    """Build a section from plain data; one RecipeError names every wrong key and value."""
    try:
        text = ""
        for part in json.JSONEncoder().iterencode(data):
            text += part
            if len(text) > _MAX_CHARACTERS:
                raise ValueError(f"more than {_MAX_CHARACTERS:,} characters, its aliases written out")
        return kind.model_validate_json(text)
    except ValidationError as error:
        faults: dict[str, None] = {}
        for fault in error.errors():
            where, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                near = difflib.get_close_matches(str(fault["loc"][-1]), _all_keys(kind), n=1, cutoff=0.5)
                message = f"unknown key '{where}'" + (f"; did you mean '{near[0]}'?" if near else "")
            elif fault["type"] == "missing":
                message = f"missing key '{where}'"
            elif where:
                message = f"{where} = {json.dumps(fault['input'], default=str)[:200]}: {message}"
            faults[message] = None
        raise RecipeError(f"{what}: {'; '.join(faults)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{what} holds what a recipe cannot: {error}; write plain text and numbers") from error


def _all_keys(kind: Any) -> set[str]:
    """Return the names of all keys of a section and of those inside it."""
    fields = getattr(kind, "model_fields", {})
    inner = [*(field.annotation for field in fields.values()), *getattr(kind, "__args__", ())]
    return set(fields).union(*map(_all_keys, inner))

"""What TGI's grammar compiler takes: JSON schemas are checked before a run, since a bad one costs it all.

TGI 3.3 turns a schema into a regular expression (outlines-core) and that into an automaton over the vocabulary. It
ignores many keywords without a word, needs minutes for bounded strings, and a recursive ``$ref`` overflows the stack
of the router, which takes the whole server down. So only what it compiles soon, and right, may pass here.
"""

from typing import Any

MAX_ITEMS = 10  # of one array; compiling ten items of a question and an answer took 9.5 s on Qwen's vocabulary
_NOTES = {"title", "description"}  # no effect on the grammar
_KEYWORDS = {
    "object": {"type", "properties", "required", "additionalProperties"},
    "array": {"type", "items", "minItems", "maxItems"},
    "string": {"type"},
    "integer": {"type"},
    "number": {"type"},
    "boolean": {"type"},
    "null": {"type"},
}
_HINTS = {
    "$ref": "write the schema out; a recursive one crashes TGI's router",
    "minLength": "check lengths in generation/checks; bounded strings take minutes to compile",
    "maxLength": "check lengths in generation/checks; bounded strings take minutes to compile",
    "pattern": "it is pasted into the grammar as it is; use enum",
    "minimum": "TGI ignores it; check the number in generation/checks",
    "maximum": "TGI ignores it; check the number in generation/checks",
    "allOf": "TGI strings its parts together, which is no JSON",
}


def schema_faults(schema: Any, path: str = "$") -> list[str]:
    """Why TGI would refuse a schema, misread it, or take too long over it; empty if it is fine.

    Args:
        schema: a JSON schema whose top level is an object with properties.
        path: of the schema within a larger one, as JSONPath.

    Returns:
        One line a fault: the path, the keyword, and what to do.
    """
    if path == "$" and not (isinstance(schema, dict) and schema.get("type") == "object"):
        return ["$: the top level must be of type object, with properties"]
    if not isinstance(schema, dict) or not schema.keys() - _NOTES:
        return [f"{path}: an empty sub-schema breaks the grammar; give it a type"]
    if "enum" in schema or "const" in schema:
        return _choice_faults(schema, path)
    if "anyOf" in schema:
        return _any_of_faults(schema, path)
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        unknown = sorted(schema.keys() - _NOTES - {"type"})
        if kind is None and unknown:
            return [_unknown(path, key) for key in unknown]
        return [f"{path}: type must be one of {', '.join(_KEYWORDS)}, not {kind!r}; for several types use anyOf"]
    faults = [_unknown(path, key) for key in sorted(schema.keys() - _NOTES - _KEYWORDS[kind])]
    if kind == "object":
        return faults + _object_faults(schema, path)
    return faults + _array_faults(schema, path) if kind == "array" else faults


def _object_faults(schema: dict[str, Any], path: str) -> list[str]:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not properties:
        return [f"{path}: an object needs properties; a free-form one takes TGI long and ends anyhow"]
    if not isinstance(required, list):
        return [f"{path}: required must be a list of all its properties, not {required!r}"]
    faults = []
    if optional := [key for key in properties if key not in required]:
        faults.append(
            f"{path}: required lacks {', '.join(optional)}; optional keys make the grammar grow quadratically"
        )
    if unknown := [str(key) for key in required if key not in properties]:
        faults.append(f"{path}: required names {', '.join(unknown)}, which properties lacks; TGI ignores them")
    if schema.get("additionalProperties", False) is not False:
        faults.append(f"{path}: additionalProperties must be false; TGI never writes other keys")
    return faults + [fault for key, part in properties.items() for fault in schema_faults(part, f"{path}.{key}")]


def _array_faults(schema: dict[str, Any], path: str) -> list[str]:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    faults = []
    if not all(isinstance(bound, int) and bound >= 0 for bound in (least, most or 0)):
        faults.append(f"{path}: minItems {least!r} and maxItems {most!r} must be whole numbers from 0")
    elif most is not None and not least <= most <= MAX_ITEMS:
        faults.append(f"{path}: maxItems {most} must lie between minItems {least} and {MAX_ITEMS}: more take too long")
    elif most is None and least > MAX_ITEMS:
        faults.append(f"{path}: minItems {least} is over {MAX_ITEMS}: that many compile too long")
    if "items" not in schema:
        return [*faults, f"{path}: an array needs items"]
    return faults + schema_faults(schema["items"], f"{path}[*]")


def _choice_faults(schema: dict[str, Any], path: str) -> list[str]:
    """Of an enum or const: scalars only, and TGI reads nothing else beside it but the type."""
    key = "enum" if "enum" in schema else "const"
    faults = [_unknown(path, other) for other in sorted(schema.keys() - _NOTES - {"type", key})]
    values = schema[key] if key == "enum" else [schema[key]]
    if not isinstance(values, list) or not values:
        return [*faults, f"{path}: enum must list at least one value"]
    wrong = [value for value in values if not (value is None or isinstance(value, str | int | float | bool))]
    return faults + [f"{path}: {key} holds {value!r}; only scalars compile" for value in wrong]


def _any_of_faults(schema: dict[str, Any], path: str) -> list[str]:
    faults = [_unknown(path, key) for key in sorted(schema.keys() - _NOTES - {"anyOf"})]
    parts = schema["anyOf"]
    if not isinstance(parts, list) or not parts:
        return [*faults, f"{path}: anyOf must list at least one schema"]
    return faults + [f for i, part in enumerate(parts) for f in schema_faults(part, f"{path}.anyOf[{i}]")]


def _unknown(path: str, key: str) -> str:
    return f"{path}: {key}: {_HINTS.get(key, 'TGI refuses or ignores this keyword; leave it out')}"

"""Reads the one JSON object of an answer; whatever the text is, the end is a value or a reason code, and soon."""

import json
import math
from collections.abc import Sequence
from typing import Any

READER_CODES = ("not_json", "not_object", "duplicate_key", "not_finite", "too_deep", "too_large")
MAX_CHARACTERS = 200_000  # an answer of 1,024 tokens holds under 10,000


class _Refused(Exception):
    """A fault that the JSON decoder itself lets pass; its text is the reason code."""


def read_json(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The JSON object in ``text``, or the reason code for which there is none.

    Prose or a Markdown fence around the object is passed over where the object itself is whole and the only one.

    Codes: ``not_json`` (none, broken off, or several), ``not_object`` (JSON of another kind), ``duplicate_key``,
    ``not_finite`` (NaN, Infinity, 1e999), ``too_deep``, ``too_large``.
    """
    if len(text) > MAX_CHARACTERS:
        return None, "too_large"
    start = text.find("{")
    try:
        if start < 0 or text.lstrip().startswith("["):
            _DECODER.decode(text)
            return None, "not_object"
        value, end = _DECODER.raw_decode(text, start)
    except _Refused as refused:
        return None, str(refused)
    except ValueError:
        return None, "not_json"
    except RecursionError:
        return None, "too_deep"
    return (None, "not_json") if "{" in text[end:] else (value, None)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Refused("duplicate_key")
    return value


def _constant(name: str) -> float:
    raise _Refused("not_finite")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused("not_finite")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)

"""The template filled: sections out of figures, and rows as JSON that cannot end the script element they stand in."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        facts: what the template names; all but ``Markup`` is escaped.
        rows: as ``browsed`` gives them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        **facts,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rows=embedded_json(rows),
        browsable=len(rows),
    )


def embedded_json(value: Any) -> Markup:
    """JSON for a ``script`` element: no text in it can end that element or open another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)

"""The report: tables of ``figure | here | paper's value | note``, as Markdown for people and as JSON for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import seal
from .figures import figures
from .metrics import Figures
from .pictures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

_DIGITS = 4  # significant ones in Markdown; JSON has them all


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: what was measured; always says which images, where there are any.
        kind: of its figures, see ``figures``.
        found: the figures, by key.
        missing: what data those that were not found need.
    """

    title: str
    kind: str
    found: Figures
    missing: str = "more rows"


@dataclass(frozen=True)
class Report:
    """All tables.

    Attributes:
        title: what was looked at.
        remarks: sentences that stand before the tables.
        sections: the tables, in order.
        comparison: rows of one further table with a column a key, as of many methods; empty for none.
        pictures: each picture and its caption, by file name.
        facts: settings and hashes, for JSON alone.
    """

    title: str
    remarks: Sequence[str]
    sections: Sequence[Section]
    comparison: Sequence[dict[str, Any]] = ()
    pictures: Mapping[str, tuple["Picture", str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def write(report: Report, folder: Path) -> list[Path]:
    """Writes ``diagnostics.md``, ``diagnostics.json`` and the pictures; returns their paths.

    Raises:
        RunError: the folder cannot be written.
    """
    for name, (picture, _) in report.pictures.items():
        save(picture, folder / name)
    texts = {"diagnostics.md": to_markdown(report), "diagnostics.json": json.dumps(to_json(report), indent=1) + "\n"}
    for name, text in texts.items():
        seal(folder / name, partial(_write_text, text))
    return [folder / name for name in (*texts, *report.pictures)]


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; a figure that could not be had is null and says what it ``needs``."""
    return {
        "title": report.title,
        **report.facts,
        "remarks": list(report.remarks),
        "sections": [
            {"title": section.title, "kind": section.kind, "figures": _rows(section)} for section in report.sections
        ],
        "comparison": [
            {key: _plain(value) if isinstance(value, float) else value for key, value in row.items()}
            for row in report.comparison
        ],
        "pictures": {name: caption for name, (_, caption) in report.pictures.items()},
    }


def to_markdown(report: Report) -> str:
    """The report for a person to read."""
    lines = [f"# {report.title}", ""]
    for remark in report.remarks:
        lines += [remark, ""]
    if report.comparison:
        lines += [*comparison_table(report.comparison), ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", "| figure | here | paper's value | note |", "|---|---|---|---|"]
        for row in _rows(section):
            note = f"needs {row['needs']}" if "needs" in row else row["note"]
            cells = (row["name"], _number(row["here"]), row["paper"], note)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    for name, (_, caption) in report.pictures.items():
        lines += [f"![{caption}]({name})", "", caption, ""]
    return "\n".join(lines)


def comparison_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows with the same keys as a Markdown table, the keys as its head."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (value if isinstance(value, str) else _number(value, decimals=3) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rows(section: Section) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for key, figure in figures(section.kind).items():
        found = section.found.get(key)
        row = {"key": key, "name": figure.name, "here": None if found is None else _plain(found)}
        row |= {"paper": figure.paper, "note": figure.note}
        rows.append(row if found is not None else row | {"needs": section.missing})
    return rows


def _write_text(text: str, target: Path) -> None:
    target.write_text(text, encoding="utf-8")


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no infinity


def _number(value: float | str | None, decimals: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.{_DIGITS}g}"

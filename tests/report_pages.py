"""The report's page taken apart, and runs damaged on purpose for it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generation.files import file_sha256
from tests.conftest import manifest

HOSTILE = "</script><img src=x onerror=\"alert(1)\"><!--<script> & 'quoted' \u2028 \U0001f40b $x^2$ {{ 7*7 }}"
VOID = {"meta", "input", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: elements with attributes, the text of sections and tables, the rows. Tags must balance."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[tuple[str, str], list[list[str]]] = {}
        self.notes: list[str] = []
        self._open: list[str] = []
        self._section, self._caption, self._data = "", "", ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.rows: list[dict[str, Any]] = json.loads(self._data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag if attributes.get("id") != "data" else "data")
        if tag == "section":
            self._section = str(attributes["id"])
            self.sections[self._section] = ""
        elif tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault((self._section, self._caption), []).append([])
        elif tag in ("th", "td"):
            self.tables[self._section, self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        last = self._open.pop()
        assert tag in (last, "script"), f"</{tag}> ends <{last}>"

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "data":
            self._data += data
        elif inside == "caption":
            self._caption += data
        elif inside in ("th", "td"):
            self.tables[self._section, self._caption][-1][-1] += data
        if self._section and inside not in ("script", "data"):
            self.sections[self._section] += data

    def table(self, section: str, caption: str = "Here and in the paper") -> dict[str, list[str]]:
        """Its rows by their first cell."""
        return {row[0]: row[1:] for row in self.tables[section, caption][1:]}


def rewrite(run: Path, stage: str, column: str, value: Any) -> None:
    """Puts a value into each row of a stage, and mends the manifest."""
    content = manifest(run)
    for path in sorted((run / stage).glob("*.parquet")):
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(column), pa.array([value] * len(table), table[column].type))
        pq.write_table(table, path)
        content["stages"][stage]["files"][str(path.relative_to(run))]["sha256"] = file_sha256(path)
    (run / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def cut(run: Path, *names: str) -> None:
    """Takes stages out of a run, as if they had never begun."""
    content = manifest(run)
    for name in [name for name in content["stages"] if name.split("/")[0] in names]:
        del content["stages"][name]
        shutil.rmtree(run / name)
    (run / "manifest.json").write_text(json.dumps(content), encoding="utf-8")

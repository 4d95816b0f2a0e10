"""croissant.json of both built data sets, read by the reference implementation."""

import json
import logging
import shutil
from pathlib import Path

import mlcroissant
import pyarrow.parquet as pq
import pytest

from dataset_card.croissant import CONTEXT


def plain(value: object) -> object:
    """A value of mlcroissant as Python's: bytes are text, and keys end in the name of their field."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key.rsplit("/", 1)[-1]: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


@pytest.mark.parametrize("name", ["unicorn-1.2m", "unicorn-471k-instruction"])
@pytest.mark.parametrize(("config", "folder"), [("default", "data"), ("with_embeddings", "with_embeddings")])
def test_mlcroissant_reads_the_rows(
    name: str, config: str, folder: str, built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = mlcroissant.Dataset(jsonld=str(built / name / "croissant.json"))
        rows = [plain(dict(row)) for row in dataset.records(config)]
    wanted = [row for path in sorted((built / name / folder).iterdir()) for row in pq.read_table(path).to_pylist()]
    assert rows == wanted
    assert not caplog.messages  # of what the specification wants or recommends


def test_the_context_is_the_specifications() -> None:
    from mlcroissant._src.core.rdf import make_context

    assert make_context() == CONTEXT


def test_it_tells_licences_version_and_classes(built: Path) -> None:
    told = json.loads((built / "unicorn-471k-instruction" / "croissant.json").read_text())
    manifest = json.loads((built / "unicorn-471k-instruction" / "manifest.json").read_text())
    sources = manifest["stages"]["seeds"]["sources"]
    assert told["version"] == manifest["built"]["version"]
    assert told["license"] == sorted({source["license"] for source in sources.values()})
    fields = {field["name"]: field for field in told["recordSet"][0]["field"]}
    names = [entry.split(": ")[1] for entry in fields["source"]["description"].split(", ")]
    assert names == sorted(sources)


def test_the_directory_can_be_moved(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "unicorn-1.2m", tmp_path / "elsewhere")
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "elsewhere" / "croissant.json"))
    assert next(iter(dataset.records("default")))["default/id"] == b"0000000000"

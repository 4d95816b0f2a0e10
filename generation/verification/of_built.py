"""All of a built data set: every file, both configs row for row, the vectors against their shards, and the card."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard

from ..builders.builder import FOLDERS
from ..builders.places import Place, transfer_method
from ..errors import UnicornError
from ..progress import progress
from ..rundir import RunDir
from ..tensors import EmbeddingShard, open_shard
from ..transfer import METHODS
from ..transfer.sums import CHUNK_ROWS
from . import texts, vectors
from .faults import MANIFEST, Fault, Findings, command, file_fault, first_wrong, record_fault
from .layout import check_file_record, check_records, names_in, place_of
from .of_run import statistics_are_whole, transfer_faults
from .shards import ShardCheck

CARD = "README.md"
PARTS = 2  # looked at at once
VECTOR = "image_embedding"


def verify_built(path: Path, embeddings: Path | None = None) -> Findings:
    """Checks everything that a built data set holds, and goes on after a fault. Writes nothing.

    Args:
        path: its directory.
        embeddings: the built Unicorn-1.2M, for a data set whose vectors lie there.

    Raises:
        RunError: the manifest cannot be read, or its records are damaged.
    """
    check = _BuiltCheck(RunDir(path), embeddings)  # a built data set keeps the layout of its run
    found = Findings(path, "built", command("repair", path, "--run-dir", "RUN"))
    found.files, found.bytes = len(check.files), sum(facts["bytes"] for facts in check.files.values())
    with ThreadPoolExecutor(PARTS) as pool, progress("verify", found.bytes, 0, "B") as bar:
        for look, units in ((check.other, check.others()), (check.part, check.parts())):
            for names, faults in zip(units, pool.map(look, units), strict=True):
                found.faults += faults
                bar.update(sum(check.files[name]["bytes"] for name in names))
    found.faults += check.whole()
    if check.shards is None:
        found.notes.append(
            "the vectors were not held against their shards, which lie in Unicorn-1.2M: --embeddings names it"
        )
    return found


class _BuiltCheck:
    def __init__(self, run: RunDir, embeddings: Path | None) -> None:
        self.run, self.path = run, run.path
        check_records(run.manifest, run.path)
        self.files: dict[str, dict[str, Any]] = run.manifest["built"]["files"]
        for name, facts in self.files.items():
            check_file_record(name, facts, run.path)
        self.stage = f"image_embeddings/{transfer_method(run.manifest, run.path)}"
        self.own_shards = any(name.startswith("image_embeddings/") for name in self.files)
        self.shards = None if not (self.own_shards or embeddings) else Place(str(embeddings or run.path))
        self.fitted = [self.stage] if self.own_shards and statistics_are_whole(run, self.stage) else []
        self.broken: set[str] = set()
        self.ids: dict[str, list[np.ndarray]] = {}  # of the parts of config default, by task

    def parts(self) -> list[list[str]]:
        """The Parquet files, those of all configs of a part together, in the order of ``FOLDERS``."""
        by_part: dict[str, list[str]] = {}
        for folder in FOLDERS.values():
            for name in sorted(self.files):
                if name.startswith(f"{folder}/"):
                    by_part.setdefault(Path(name).name, []).append(name)
        return [by_part[part] for part in sorted(by_part)]

    def others(self) -> list[list[str]]:
        """All other files, each by itself."""
        parquet = {name for part in self.parts() for name in part}
        return [[name] for name in sorted(self.files) if name not in parquet]

    def other(self, names: list[str]) -> list[Fault]:
        """A companion, the card or a picture."""
        (name,) = names
        if name.startswith("image_embeddings/"):
            faults = ShardCheck(self.run, place_of(name)[1], {name: self.stage}, self.fitted).complete().faults
        elif name.startswith("transfer/"):
            faults = list(transfer_faults(self.run, self.stage))
        else:
            faults = self._bytes(name)
        self.broken.update(fault.file for fault in faults if fault.kind == "file")
        return faults

    def _bytes(self, name: str) -> list[Fault]:
        fault = file_fault(self.path, name, self.files[name], ("built", "files", name))
        if fault and fault.kind == "file":
            self.broken.add(name)
        return [fault] if fault else []

    def part(self, names: list[str]) -> list[Fault]:
        """One part in all configs."""
        faults = [fault for name in names for fault in self._bytes(name)]
        tables: dict[str, pa.Table] = {}
        for name in names:
            if name not in self.broken:
                try:
                    tables[name] = texts.read_table(self.path / name)
                except (OSError, pa.ArrowException) as error:
                    faults.append(Fault(name, f"cannot be read as Parquet: {error}"))
        for name, table in tables.items():
            faults += self._rows(name, table)
        if len(tables) == len(FOLDERS):
            faults += _same_rows(tables)
        for name, table in tables.items():
            if VECTOR in table.column_names:
                faults += self._vectors(name, table)
        tables.clear()
        pa.default_memory_pool().release_unused()  # it would keep what the largest part took
        return faults

    def _rows(self, name: str, table: pa.Table) -> list[Fault]:
        faults = texts.id_faults(name, table["id"], None)
        if len(table) != self.files[name].get("rows"):
            at = ("built", "files", name, "rows")
            faults.append(record_fault(at, self.files[name].get("rows"), len(table)))
        if name.startswith(f"{FOLDERS['default']}/"):
            task = str(table["task"][0]) if "task" in table.column_names and len(table) else ""
            self.ids.setdefault(task, []).append(texts.numbers_of(table["id"]))
        return faults

    def _vectors(self, name: str, table: pa.Table) -> list[Fault]:
        """The vectors of a part, against the rows of the shard that it names; else their norms."""
        flat = table[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=True)
        rows = flat.reshape(len(table), -1)
        if self.shards is None:
            unit = METHODS[self.stage.split("/")[1]].text[-1] == "l2norm"
            return vectors.norm_faults(name, rows, unit)
        numbers = table["embedding_shard"].unique().to_pylist()
        if len(numbers) != 1:
            return [Fault(name, f"names {len(numbers)} shards of embeddings; wanted one")]
        own = f"{self.stage}/{numbers[0]:05d}.safetensors"
        if self.own_shards and own in self.broken:
            return []
        try:
            shard = (
                open_shard(self.path / own) if self.own_shards else self.shards.vectors(numbers[0], self.run.manifest)
            )
        except UnicornError as error:
            return [Fault(name, str(error))]
        return _shard_rows(name, table, rows, shard)

    def whole(self) -> Iterator[Fault]:
        """What concerns the data set as such."""
        for ids in self.ids.values():
            yield from texts.twice_faults(FOLDERS["default"], np.concatenate(ids))
        if CARD in self.files and CARD not in self.broken:
            yield from self._card()
        known = {MANIFEST, *self.files}
        yield from (
            Fault(name, "is not in the manifest", kind="unknown") for name in names_in(self.path) if name not in known
        )

    def _card(self) -> Iterator[Fault]:
        """The card's numbers and features against the files."""
        try:
            infos = DatasetInfosDict.from_dataset_card_data(DatasetCard.load(self.path / CARD).data)
        except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield Fault(CARD, f"its header cannot be read: {error!r}")
            return
        for config, folder in FOLDERS.items():
            names = [name for name in self.files if name.startswith(f"{folder}/")]
            wanted = {
                "num_examples": sum(self.files[name]["rows"] for name in names),
                "download_size": sum(self.files[name]["bytes"] for name in names),
            }
            info: Any = infos.get(config)
            split = info.splits.get("train") if info is not None and info.splits else None
            if split is None:
                yield Fault(CARD, f"dataset_info has no split train of the config {config}")
                continue
            found = {"num_examples": split.num_examples, "download_size": info.download_size}
            for key, value in wanted.items():
                if found[key] != value:
                    yield Fault(CARD, f"{config}: {key} is {found[key]}; the files make {value}")
            yield from self._columns(config, [name for name in names if name not in self.broken], info.features)

    def _columns(self, config: str, names: list[str], features: datasets.Features) -> Iterator[Fault]:
        for name in names:
            found, wanted = pq.read_schema(self.path / name), features.arrow_schema
            yield from texts.schema_faults(name, found.remove_metadata(), wanted.remove_metadata())


def _same_rows(tables: dict[str, pa.Table]) -> list[Fault]:
    """The columns that both configs have are the same, row for row."""
    (first, text), (name, both) = tables.items()
    if [*text.column_names, VECTOR] != both.column_names:
        return [Fault(name, f"has the columns {both.column_names}; {first} has {text.column_names}")]
    if len(text) != len(both):
        return [Fault(name, f"has {len(both)} rows; {first} has {len(text)}")]
    differ = [column for column in text.column_names if not text[column].equals(both[column])]
    return [Fault(name, f"its column {column} is not that of {first}") for column in differ]


def _shard_rows(name: str, table: pa.Table, rows: np.ndarray, shard: EmbeddingShard) -> list[Fault]:
    """Each row's vector, id and text against the row of the shard that it names."""
    places = np.asarray(table["embedding_row"])
    if (outside := (places < 0) | (places >= len(shard.ids))).any():
        what = f"there are {len(shard.ids)} rows in {shard.path}"
        return first_wrong(name, outside, lambda row: f"embedding_row is {places[row]}; {what}")
    if rows.shape[1] != shard.embeddings.shape[1]:
        return [Fault(name, f"has {rows.shape[1]} dimensions; {shard.path} has {shard.embeddings.shape[1]}")]
    wrong: dict[str, list[np.ndarray]] = {"vector": [], "id": [], "text": []}
    for first in range(0, len(table), CHUNK_ROWS):
        part, chosen = table.slice(first, CHUNK_ROWS), places[first : first + CHUNK_ROWS]
        own = vectors.Rows.of_table(str(shard.path), part["id"], part["caption"])
        stored = shard.embeddings.numpy()[chosen].view(np.uint16)
        wrong["vector"].append((rows[first : first + CHUNK_ROWS].view(np.uint16) != stored).any(1))
        wrong["id"].append((own.ids != shard.ids.numpy()[chosen]).any(1))
        wrong["text"].append((own.text_sha256 != shard.text_sha256.numpy()[chosen]).any(1))
    words = f"is not that of its embedding_row in {shard.path}"
    return [
        fault
        for what, parts in wrong.items()
        for fault in first_wrong(name, np.concatenate(parts), f"its {what} {words}")
    ]

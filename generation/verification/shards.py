"""One shard through all stages: its files' bytes, then each stage's rows, then who refers to whom. What refers to a
broken file is not judged by it."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ..rundir import RunDir
from ..tensors import EmbeddingShard
from ..transfer.sums import CHUNK_ROWS
from . import texts, vectors
from .faults import Fault, file_fault, record_fault
from .layout import TEXTS, kind_of, place_of, schema_of, source_of, statistics_file

HASHED_ROWS = CHUNK_ROWS  # of captions, whose texts are hashed at once


class ShardCheck:
    """All stages of one shard number.

    Args:
        run: the run directory.
        shard: the number.
        files: the recorded files of that number, each with its stage.
        fitted: the transfers whose statistics are whole.

    Attributes:
        faults: what was found, once ``complete`` has run.
        totals: by stage and name, what the stage's totals are made of: its rows by source, items, verdicts.
    """

    def __init__(self, run: RunDir, shard: int, files: dict[str, str], fitted: Collection[str]) -> None:
        self.run, self.shard, self.files, self.fitted = run, shard, files, fitted
        self.faults: list[Fault] = []
        self.totals: Counter[tuple[str | None, str]] = Counter()
        self._tables: dict[str, pa.Table] = {}  # by file, those that are whole
        self._opened: dict[str, EmbeddingShard] = {}

    def complete(self) -> "ShardCheck":
        """Looks at everything; returns itself."""
        for name, stage in self.files.items():
            self.faults += self._read(name, stage)
        for stage in dict.fromkeys(self.files.values()):
            self.faults += self._stage(stage)
        for fault in self.faults:
            if fault.kind == "record":
                self.totals[str(fault.at[1]), "broken"] += 1
        self._tables.clear()
        self._opened.clear()
        pa.default_memory_pool().release_unused()  # it would keep what the largest shard took
        return self

    def _read(self, name: str, stage: str) -> Iterator[Fault]:
        """The file as such; what is whole is kept for the rest."""
        fault = file_fault(self.run.path, name, self.run.stage(stage)["files"][name], _at(stage, name))
        if fault:
            yield fault
            if fault.kind == "file":
                return
        if name.endswith(".safetensors"):
            if stage == "unpaired_images":
                return
            found = vectors.open_checked(self.run.path, name)
            if isinstance(found, Fault):
                yield found
            else:
                self._opened[stage] = found
            return
        try:
            table = texts.read_table(self.run.path / name)
        except (OSError, pa.ArrowException) as error:
            yield Fault(name, f"cannot be read as Parquet: {error}")
            return
        yield from (faults := texts.schema_faults(name, table.schema, schema_of(self.run, stage, place_of(name)[2])))
        if not faults:
            self._tables[name] = table

    def _stage(self, stage: str) -> Iterator[Fault]:
        kind = kind_of(stage)
        if kind in TEXTS:
            yield from self._texts(stage, kind)
        elif kind in ("text_embeddings", "image_embeddings"):
            yield from self._vectors(stage)

    def _name(self, stage: str) -> str:
        return str(self.run.shard_path(stage, self.shard).relative_to(self.run.path))

    def _table(self, stage: str | None) -> pa.Table | None:
        return self._tables.get(self._name(stage)) if stage else None

    def _texts(self, stage: str, kind: str) -> Iterator[Fault]:
        name, other = self._name(stage), f"rejected/{self._name(stage)}"
        table, rejected = self._table(stage), self._tables.get(other)
        if table is None or (other in self.files and rejected is None):
            self.totals[stage, "broken"] += 1
            return
        files = self.run.stage(stage)["files"]
        yield from texts.count_faults(_at(stage, name), files[name], table, rejected)
        if rejected is not None and files[other].get("rows") != len(rejected):
            yield record_fault((*_at(stage, other), "rows"), files[other].get("rows"), len(rejected))
        if kind != "judgements":
            yield from texts.id_faults(name, table["id"], self.shard)
            imported = self.run.imported(stage) is not None
            if rejected is not None and not (imported and kind == "instructions"):  # several of one caption
                yield from texts.id_faults(other, rejected["id"], self.shard)
        yield from self._joins(stage, kind, name, table, rejected)

    def _joins(self, stage: str, kind: str, name: str, table: pa.Table, rejected: pa.Table | None) -> Iterator[Fault]:
        """What one stage's rows say of another's."""
        source = self._table(source_of(stage))
        if kind == "seeds":
            yield from texts.seed_faults(name, self.shard, table)
            for entry in table["source"].value_counts().to_pylist():
                self.totals[stage, str(entry["values"])] += entry["counts"]
        elif kind == "captions" and source is not None:
            if not (imported := self.run.imported(stage) is not None):
                yield from texts.order_faults(name, table, self.run.record(stage, self.shard).get("kept", 0))
            yield from texts.caption_faults(name, source, table, rejected, imported)
        elif kind == "instructions":
            self.totals[stage, "items"] += int(texts.item_counts(table).sum())
            yield from self._sample(stage, len(table) + len(rejected if rejected is not None else ()))
            if source is not None:
                task = stage.split("/")[1]
                yield from texts.conversation_faults(name, self.shard, task, table, rejected, source)
        elif kind == "judgements":
            for entry in table["follows"].value_counts().to_pylist():
                self.totals[stage, str(entry["values"])] += entry["counts"]
            made_from = self.run.stage(stage).get("inputs", {}).get(str(self.shard))
            current = self.run.stage(source_of(stage) or "")["files"].get(self._name(source_of(stage) or ""), {})
            if source is not None and made_from == current.get("sha256"):
                yield from texts.verdict_faults(name, table, rejected, source)

    def _sample(self, stage: str, ended: int) -> Iterator[Fault]:
        """How many captions were drawn for a task, against those that have ended."""
        shard = str(self.shard)
        for number, batch in enumerate(self.run.stage(stage).get("samples", ())):  # an imported stage has none
            drawn = batch["counts"].get(shard, ended)
            if shard in batch["of"] and drawn != ended:
                yield record_fault(("stages", stage, "samples", number, "counts", shard), drawn, ended)

    def _vectors(self, stage: str) -> Iterator[Fault]:
        shard, name = self._opened.get(stage), self._name(stage)
        if shard is None:
            return
        record, fingerprint = self.run.record(stage, self.shard), self.run.stage(stage)["fingerprint"]
        if record.get("rows") != len(shard.ids):
            yield record_fault((*_at(stage, name), "rows"), record.get("rows"), len(shard.ids))
        facts: dict[str, Any] = {"shard": self.shard, "encoder": self.run.stage("text_embeddings")["fingerprint"]}
        unit = True
        if stage == "text_embeddings":
            if self._table("captions") is not None:
                facts["captions_sha256"] = self.run.record("captions", self.shard)["sha256"]
        else:
            facts |= {"method": stage.split("/")[1], "source_sha256": fingerprint["inputs"].get(str(self.shard))}
            if stage in self.fitted:
                facts["statistics_sha256"] = self.run.stage(stage)["files"][statistics_file(stage)]["sha256"]
            unit = shard.facts.get("text_ops", ["l2norm"])[-1] == "l2norm"
        dimension = self.run.stage("text_embeddings")["fingerprint"]["dimension"]
        yield from vectors.shard_faults(name, shard, facts, dimension, unit, self._owners(stage, fingerprint))

    def _owners(self, stage: str, fingerprint: dict[str, Any]) -> vectors.Rows | None:
        """Whose the rows of an embedding shard must be: the captions', or the text embeddings' where these are what
        it was made from."""
        if stage != "text_embeddings":
            source = self.run.stage("text_embeddings")["files"].get(self._name("text_embeddings"), {}).get("sha256")
            if source != fingerprint["inputs"].get(str(self.shard)) or "text_embeddings" not in self._opened:
                return None
            return vectors.Rows.of_shard(self._name("text_embeddings"), self._opened["text_embeddings"])
        captions = self._table("captions")
        if captions is None or (texts.numbers_of(captions["id"]) < 0).any():
            return None
        rows = [captions.slice(first, HASHED_ROWS) for first in range(0, len(captions), HASHED_ROWS)]
        parts = [vectors.Rows.of_table(self._name("captions"), part["id"], part["caption"]) for part in rows]
        if not parts:
            return None
        return vectors.Rows(
            parts[0].file,
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.text_sha256 for part in parts]),
        )


def _at(stage: str, name: str) -> tuple[str | int, ...]:
    """Where in the manifest the record of a file stands."""
    return "stages", stage, "files", name

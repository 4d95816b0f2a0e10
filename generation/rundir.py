"""The on-disk contract of a run: the one place that knows where things lie and what makes a file whole.

    RUN/
      manifest.json                            settings, provenance, counts, sha256 of every sealed file
      seeds/00000.parquet ...
      captions/00000.parquet ...               while in progress: captions/00000.jsonl
      instructions/<task>/00000.parquet ...
      text_embeddings/00000.safetensors ...    row for row the captions of the same shard
      image_embeddings/<method>/00000.safetensors ...
      unpaired_images/00000.safetensors        embeddings of a folder of pictures, where a transfer was given one
      transfer/<method>.safetensors            the statistics, to treat real images alike
      rejected/<stage>/00000.parquet ...       what failed a check, with reason and raw answer

A file counts once the manifest holds its record. It is written under a temporary name, synced, renamed, hashed, and
only then recorded: a run killed at any moment makes again what is not recorded, and nothing else.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from . import __version__
from .errors import RunError
from .files import check_unchanged, guarded, mending, seal, seal_table
from .manifest import FORMAT, changes, now, read_manifest
from .progress import counted

if TYPE_CHECKING:
    import torch

# All other stages' shards are Parquet.
_SUFFIX = dict.fromkeys(("text_embeddings", "image_embeddings", "unpaired_images"), ".safetensors")


class RunDir:
    """A run directory and its manifest.

    Args:
        path: the directory.
        create: make it if it does not exist.

    Raises:
        RunError: it does not exist (and ``create`` is off), or its manifest is unreadable or of another format.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        self._verified: set[str] = set()
        manifest = path / "manifest.json"
        if manifest.exists():
            self.manifest = read_manifest(manifest)
        elif create:
            guarded(path, lambda: path.mkdir(parents=True, exist_ok=True))
            self.manifest = {"format": FORMAT, "code_version": __version__, "created": now(), "stages": {}}
        else:
            raise RunError(f"{path} is no run directory (it has no manifest.json); make one with: generation run")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from writing to this run.

        Raises:
            RunError: another process holds the lock, or the directory cannot be written.
        """
        descriptor = guarded(self.path, lambda: os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise RunError(f"{self.path} is in use by another process; wait for it, or stop it") from None
        try:
            if (manifest := self.path / "manifest.json").exists():
                self.manifest = read_manifest(manifest)  # another process may have written since it was read
            yield
        finally:
            os.close(descriptor)

    def in_use(self) -> bool:
        """Whether another process holds the lock; nothing is written to find out."""
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    # -- stages ------------------------------------------------------------------------------------------------

    def begin(
        self, stage: str, fingerprint: Mapping[str, Any], changed: Literal["refuse", "keep", "discard"] = "refuse"
    ) -> dict[str, Any]:
        """Opens or resumes a stage and returns its record in the manifest.

        Args:
            stage: its folder, such as ``captions`` or ``instructions/multiple_choice``.
            fingerprint: JSON values; whatever moves the stage's output.
            changed: what to do when the stage was begun with another fingerprint: refuse it, or take the new one and
                keep the sealed files, or take the new one and discard them.

        Raises:
            RunError: the stage was begun with another fingerprint; all changes are named.
        """
        wanted = json.loads(json.dumps(fingerprint))
        record = self.manifest["stages"].setdefault(stage, {"fingerprint": wanted, "begun": now(), "files": {}})
        pinned = {key: value for key, value in record["fingerprint"].items() if key in record.get("pinned", ())}
        wanted = pinned | wanted
        if moved := changes(record["fingerprint"], wanted):
            if changed == "refuse":
                self._refuse(stage, moved)
            if changed == "discard":
                record["files"] = {}
            record["fingerprint"] = wanted
        self.save()
        return dict(record)

    def stage(self, stage: str) -> dict[str, Any]:
        """The manifest's record of a stage.

        Raises:
            RunError: the stage has not been begun.
        """
        try:
            record: dict[str, Any] = self.manifest["stages"][stage]
        except KeyError:
            raise RunError(f"{self.path}: stage '{stage}' has not been run; run it first") from None
        return record

    def imported(self, stage: str) -> dict[str, Any] | None:
        """By file name, the original's files that a stage was imported from; None for a stage that was made here."""
        files: dict[str, Any] | None = self.manifest["stages"].get(stage, {}).get("fingerprint", {}).get("imported")
        return files

    def pin(self, stage: str, **facts: Any) -> None:
        """Adds to a stage's fingerprint what becomes known only once it runs, such as the served model.

        Raises:
            RunError: the stage was pinned to something else before.
        """
        fingerprint = self.stage(stage)["fingerprint"]
        self._refuse(stage, changes({key: fingerprint.get(key, value) for key, value in facts.items()}, facts))
        pinned = sorted({*self.stage(stage).get("pinned", ()), *facts})
        self.note(stage, fingerprint=fingerprint | facts, pinned=pinned)

    def note(self, stage: str, **facts: Any) -> None:
        """Adds facts (counts, provenance) to a stage's record."""
        self.stage(stage).update(facts)
        self.save()

    def finished(self, stage: str, source: str) -> list[int]:
        """The shards of ``stage``, if each sealed shard of ``source`` has its counterpart there.

        Raises:
            RunError: some shards of ``stage`` are still to be made.
        """
        done, due = self.sealed(stage), self.sealed(source)
        if not due or done != due:
            raise RunError(
                f"{self.path}: stage '{stage}' has {len(done)} of {len(due)} shards; run it to its end first"
            )
        return done

    # -- files -------------------------------------------------------------------------------------------------

    def shard_path(self, stage: str, shard: int) -> Path:
        """Where a shard of a stage lies, sealed or not."""
        return self.path / stage / f"{shard:05d}{_SUFFIX.get(stage.split('/')[0], '.parquet')}"

    def rejected_path(self, stage: str, shard: int) -> Path:
        """Where the rejected rows of a shard lie, if there are any."""
        return self.path / "rejected" / stage / f"{shard:05d}.parquet"

    def journal_path(self, stage: str, shard: int) -> Path:
        """Where the journal of an unfinished shard lies."""
        return self.path / stage / f"{shard:05d}.jsonl"

    def sealed(self, stage: str) -> list[int]:
        """The numbers of the sealed shards of a stage, ascending; empty for a stage not begun."""
        files = self.manifest["stages"].get(stage, {"files": {}})["files"]
        return sorted(int(Path(name).stem) for name in files if Path(name).parent == Path(stage))

    def due(self, stage: str, source: str) -> list[int]:
        """The shards of ``source`` that are sealed and have no sealed counterpart in ``stage``, ascending."""
        return sorted(set(self.sealed(source)) - set(self.sealed(stage)))

    def record(self, stage: str, shard: int) -> dict[str, Any]:
        """The manifest's record of a sealed shard: rows, bytes, sha256 and the stage's counts."""
        name = str(self.shard_path(stage, shard).relative_to(self.path))
        record: dict[str, Any] = self.stage(stage)["files"][name]
        return record

    def unseal(self, stage: str, shard: int, **staying: Any) -> None:
        """Takes a shard back among the unfinished ones; its files are written over once it is made again.

        Args:
            stage: the shard's.
            shard: its number.
            staying: counts of what is not to be made again; kept until it is sealed, with what it has cost so far.
        """
        record = self.stage(stage)
        spent = record["files"].pop(str(self.shard_path(stage, shard).relative_to(self.path)))
        record["files"].pop(str(self.rejected_path(stage, shard).relative_to(self.path)), None)
        if staying:
            staying |= {key: spent[key] for key in ("requests", "retries")}
            record.setdefault("unsealed", {})[str(shard)] = staying
        self.save()

    def unsealed(self, stage: str) -> dict[int, dict[str, Any]]:
        """What is known of the shards of a stage that were unsealed and are not sealed again yet."""
        return {int(shard): counts for shard, counts in self.stage(stage).get("unsealed", {}).items()}

    def hashes(self, stage: str) -> dict[str, str]:
        """The sha256 of every sealed shard of a stage, by its number: what is made from them depends on these."""
        return {str(shard): self.record(stage, shard)["sha256"] for shard in self.sealed(stage)}

    def seal_tables(
        self, stage: str, shard: int, table: pa.Table | None, rejected: pa.Table | None, **counts: Any
    ) -> None:
        """Writes a shard's rows, if the stage has any, and its rejected rows, if there are any; then records both."""
        path, other = self.shard_path(stage, shard), self.rejected_path(stage, shard)
        sealed = {path: seal_table(path, table) | counts} if table is not None else {}
        if rejected is not None and len(rejected):
            sealed[other] = seal_table(other, rejected)
        self.stage(stage).get("unsealed", {}).pop(str(shard), None)
        self._record(stage, sealed)
        if other not in sealed:
            other.unlink(missing_ok=True)  # of an earlier sealing

    def seal_tensors(
        self, stage: str, path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, Any], **counts: Any
    ) -> None:
        """Writes a safetensors file and records it. The metadata goes into one JSON value, under the key ``unicorn``:
        safetensors writes several keys in an order that changes from file to file, so equal runs would differ."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        header = {"unicorn": json.dumps(metadata, sort_keys=True)}

        def write(target: Path) -> None:
            try:
                save_file(dict(tensors), target, header)
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(str(error)) from error

        self._record(stage, {path: seal(path, write) | counts})

    def sealed_elsewhere(self, stage: str, path: Path, facts: Mapping[str, Any]) -> None:
        """Records a file that another thread or process has sealed (``files.seal``)."""
        self._record(stage, {path: dict(facts)})

    def table(self, stage: str, shard: int) -> pa.Table:
        """The rows of a sealed shard, whose hash is checked once a process."""
        path = self.verified(stage, self.shard_path(stage, shard))
        with pq.ParquetFile(path) as file:  # not read_table, which takes 50 MB of its own
            return file.read(use_threads=False)

    def verified(self, stage: str, path: Path) -> Path:
        """``path``, once its bytes are known to be those that were sealed.

        Raises:
            RunError: the file is not recorded, is gone, or has changed.
        """
        name = str(path.relative_to(self.path))
        known = self.stage(stage)["files"].get(name)
        if known is None:
            raise RunError(f"{path} is not recorded in the manifest; run stage '{stage}' to its end first")
        if name not in self._verified:
            check_unchanged(path, known["sha256"], "sealed", mending(self.path))
            self._verified.add(name)
        return path

    def all_verified(self, stage: str, paths: Sequence[Path]) -> list[Path]:
        """``verified`` for many files, some at a time."""
        with ThreadPoolExecutor() as pool:
            checked = pool.map(lambda path: self.verified(stage, path), paths)
            return list(counted(checked, f"{stage}, sha256", "file", len(paths)))

    def save(self) -> None:
        """Writes the manifest atomically."""
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n"
        seal(self.path / "manifest.json", lambda target: target.write_text(text, encoding="utf-8"))

    def _refuse(self, stage: str, moved: list[str]) -> None:
        if moved:
            raise RunError(
                f"{self.path}: stage '{stage}' was begun with other settings: {'; '.join(moved)}. "
                "Restore them, or choose another --run-dir"
            )

    def _record(self, stage: str, sealed: Mapping[Path, dict[str, Any]]) -> None:
        files = self.stage(stage)["files"]
        for path, record in sealed.items():
            name = str(path.relative_to(self.path))
            files[name] = record
            self._verified.add(name)
        self.save()

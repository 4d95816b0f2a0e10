"""The mending of a built data set: the files that are broken are written again from its run, the others stay."""

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..builders.build import write_part, write_parts
from ..builders.builder import FOLDERS, UnicornBuilder
from ..builders.places import open_run, transfer_method
from ..errors import RunError
from ..files import file_sha256, guarded, seal
from ..rundir import RunDir
from .faults import MANIFEST, Findings
from .of_built import CARD, verify_built
from .opening import correct, set_aside

ROUNDS = 3  # a file that is written again may show a wrong record
_COMPANIONS = ("image_embeddings/", "transfer/")


def rebuild(path: Path, run_dir: Path, builders: Collection[type[UnicornBuilder]], dry_run: bool = False) -> None:
    """Writes the broken files of a built data set again; says beforehand which. Each must get its recorded sha256.

    What was broken, and what the manifest does not know, is moved beside the data set, into ``<name>.damaged``, so
    that it is not published. Killed, the same call goes on.

    Args:
        path: the data set's directory.
        run_dir: the run that it was built from.
        builders: of the data sets that there are.
        dry_run: only say what would be done.

    Raises:
        RunError: the run is not the one, or not whole, or a file comes out otherwise: it is left as it was.
    """
    for number in range(ROUNDS):
        found = verify_built(path)
        if not found.faults:
            print(f"{path}: {'whole' if number else 'whole; there is nothing to repair'}")
            return
        built = RunDir(path)  # a built data set keeps the layout of its run
        broken = _broken(built, found)
        aside = path.with_name(f"{path.name}.damaged")
        print("\n".join(_words(found, broken, run_dir, aside)))
        if dry_run:
            return
        for fault in found.faults:
            if fault.kind == "unknown":
                set_aside(path, aside, fault.file)
            elif fault.kind == "record":
                correct(built.manifest, fault)
                built.save()
        if broken:
            _write_again(built, run_dir, builders, broken, aside)
    raise RunError(f"{path}: faults are left after {ROUNDS} rounds; build the data set again")


def _words(found: Findings, broken: list[str], run_dir: Path, aside: Path) -> Iterator[str]:
    """What will be done, line by line."""
    for fault in found.faults:
        if fault.kind == "unknown":
            yield f"{fault.file}: moved to {aside}/, since the manifest does not know it"
        elif fault.kind == "record":
            yield f"{fault.what}: corrected"
    for name in broken:
        yield f"{name}: written again from {run_dir}; it must come out as it was"


def _broken(built: RunDir, found: Findings) -> list[str]:
    """The files to be written again.

    Raises:
        RunError: a fault lies in the data set as such.
    """
    files = built.manifest["built"]["files"]
    names = list(dict.fromkeys(fault.file for fault in found.faults if fault.kind == "file"))
    if strange := [str(fault) for fault in found.faults if fault.kind == "file" and fault.file not in files]:
        raise RunError(f"{built.path}: {strange[0]}; no file alone can be blamed for it: build the data set again")
    return names


def _write_again(
    built: RunDir, run_dir: Path, builders: Collection[type[UnicornBuilder]], broken: list[str], aside: Path
) -> None:
    """Makes the files in a place of their own, and moves those in that came out as recorded."""
    files, path = built.manifest["built"]["files"], built.path
    scratch = path.with_name(f".{path.name}.repair")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _make(built, run_dir, builders, broken, scratch)
        otherwise = []
        for name in broken:
            made = scratch / name
            sha256 = file_sha256(made) if made.is_file() else "none"
            if sha256 != files[name]["sha256"]:
                otherwise.append(f"{name} (sha256 {sha256}, recorded {files[name]['sha256']})")
                continue
            set_aside(path, aside, name)
            seal(path / name, lambda target: os.replace(made, target))  # noqa: B023
            print(f"{name}: written again, byte for byte as it was")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if otherwise:
        raise RunError(
            f"{path}: {'; '.join(otherwise)} came out otherwise from {run_dir} and were left as they were: the run, "
            "or a library, is another than when the data set was built. Build it again"
        )


def _make(
    built: RunDir, run_dir: Path, builders: Collection[type[UnicornBuilder]], broken: list[str], scratch: Path
) -> None:
    """Writes the broken files, and the whole card if a part of it is broken, into ``scratch``."""
    about = built.manifest["built"]
    method = transfer_method(built.manifest, built.path)
    run = open_run(run_dir, method)
    builder_class = next((known for known in builders if about["name"] == known.NAME), None)
    if builder_class is None:
        raise RunError(f"{built.path / MANIFEST}: built.name is {about['name']!r}; there is no builder of that name")
    for name in broken:
        guarded(scratch / name, lambda: (scratch / name).parent.mkdir(parents=True, exist_ok=True))  # noqa: B023
    for name in [name for name in broken if name.startswith(_COMPANIONS)]:
        source = run.verified(f"image_embeddings/{method}", run.path / name)
        guarded(scratch / name, lambda: shutil.copyfile(source, scratch / name))  # noqa: B023
    parts = {_part(name) for name in broken if name.startswith(tuple(f"{folder}/" for folder in FOLDERS.values()))}
    card = [name for name in broken if name == CARD or not name.startswith((*_COMPANIONS, *FOLDERS.values()))]

    def write(table: pa.Table, name: str, config: str) -> dict[str, Any]:
        if name in broken:
            return write_part(table, scratch / name, config)
        return dict(about["files"].get(name) or {"rows": len(table), "bytes": 0, "sha256": ""})

    if parts or card:
        again = write_parts(
            builder_class, run, scratch, about["version"], method, write, lambda number: bool(card) or number in parts
        )
        if card:
            (scratch / CARD).write_text(builder_class.card(run, again), encoding="utf-8")


def _part(name: str) -> int:
    """The number of the part in ``data/train-00001-of-00003.parquet``."""
    return int(Path(name).name.split("-")[1])

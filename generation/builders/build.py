"""Write a directory that ``load_dataset("<directory>")`` reads, out of a finished run. It appears whole or not at all.
``manifest.json`` is written last: the records of the run, the sha256 of every file, the digest of the contents."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets

from .. import __version__
from ..errors import DatasetError
from ..files import explained, sha256, write_json
from ..limits import WRITERS
from .builder import FIRST_VERSION, FOLDERS, WITH_EMBEDDINGS, Builders, UnicornBuilder, write_tables
from .published import PublishedDataset

PRIVATE: Any = {"directory": True, "cluster": True, "server": {"endpoints"}, "judge": {"endpoints"}}  # of the recipe


def build(
    builder_class: type[UnicornBuilder], run_dir: Path, output: Path, version: str = FIRST_VERSION,
    method: str | None = None, repo_id: str | None = None, previous: PublishedDataset | None = None,
    duplicates: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Build a data set from a finished run and return its manifest. The same run gives the same bytes.

    An earlier build in ``output`` is replaced. ``method`` is of the transfer (None: the recipe's). The card's snippets
    load ``repo_id`` (``USER/NAME``; None: the directory's name), and its changelog carries on that of ``previous``
    (None: the build in ``output``). ``duplicates`` has near-duplicates searched even if the recipe does not drop them.
    Errors as of ``FinishedRun``; also DatasetError if ``output`` holds something else, RunError for a file system's.
    """
    output = Path(os.path.abspath(output))
    _check_output(output, run_dir)
    new, old = output.with_name(f".{output.name}.new"), output.with_name(f".{output.name}.old")
    if old.exists() and not output.exists():  # killed between the two renames below
        old.rename(output)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    if previous is None and (output / "manifest.json").exists():
        previous = PublishedDataset(str(output))
    try:
        with explained(output), tempfile.TemporaryDirectory() as cache:
            new.mkdir(parents=True)
            options = {"run_dir": str(run_dir), "method": method, "duplicates": duplicates, "version": version}
            builders = {name: builder_class(config_name=name, cache_dir=cache, **options) for name in FOLDERS}
            builders[WITH_EMBEDDINGS].run = builders["default"].run  # so that each file is hashed once
            manifest = _write_all(builders, new, version, repo_id, previous)
            if output.exists():
                output.rename(old)
            new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _check_output(output: Path, run_dir: Path) -> None:
    path, run = output.resolve(), run_dir.resolve()
    if path == run or run in path.parents or path in run.parents:
        raise DatasetError(f"--output {output} lies in the run {run_dir}, or holds it; choose a directory elsewhere")
    if path.exists() and not path.is_dir():
        raise DatasetError(f"--output {output} is a file; choose a directory")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    known = set(PublishedDataset(str(path)).manifest["files"]) if "manifest.json" in found else set()
    own = {"manifest.json", ".gitattributes"} | {name for name in found if name.startswith(".cache/")}  # of a download
    if foreign := sorted(found - known - own):
        raise DatasetError(f"--output {output} holds files that no build wrote: {', '.join(foreign[:5])}. Move them")


def _write_all(
    builders: Builders, output: Path, version: str, repo_id: str | None, previous: PublishedDataset | None
) -> dict[str, Any]:
    """Write all files of a data set into a new directory and return its manifest."""
    first, run = builders["default"], builders["default"].run
    counts = write_tables(builders, output)
    vectors = (run.run.verified(run.vectors_stage, shard) for shard in run.records[run.vectors_stage])
    for path in () if first.INSTRUCTIONS else (run.statistics, *vectors):
        target = output / path.relative_to(run.run.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)  # takes no space
        except OSError:  # another file system
            shutil.copyfile(path, target)
    files = _files(output, run.hashes)
    manifest: dict[str, Any] = {
        **run.facts,
        "name": first.NAME,
        "version": version,
        "digest": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "code": __version__,
        "created": run.run.created,
        "counts": counts,
        "recipe": run.run.recipe.model_dump(mode="json", exclude=PRIVATE),
        "stages": {
            stage.name: run.run.facts(stage) | {"shards": {f"{shard:05d}": asdict(one) for shard, one in made.items()}}
            for stage, made in run.records.items()
        },
        "vectors": {name: sha for name, sha in run.hashes.items() if name.startswith("image_embeddings/")},
        "text": {name: sha for name, sha in run.hashes.items() if name.startswith(("captions/", "instructions/"))},
    }
    manifest["changelog"] = previous.changelog(manifest, output) if previous else [[version, "first version"]]
    infos = {name: builder.info.copy() for name, builder in builders.items()}
    for name, info in infos.items():
        info.dataset_size = counts["bytes"][name]
        info.download_size = sum(path.stat().st_size for path in (output / FOLDERS[name]).iterdir())
        rows = sum(map(run.rows, run.shards))
        info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", info.dataset_size, rows)})
    (output / "README.md").write_text(first.card(manifest, infos, output, repo_id), encoding="utf-8")
    manifest["files"] = _files(output, {name: facts["sha256"] for name, facts in files.items()})
    write_json(output / "manifest.json", manifest)
    return manifest


def _files(output: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of all files by name; those whose sha256 is ``known`` are not read."""
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    with ThreadPoolExecutor(WRITERS) as pool:
        hashes = pool.map(lambda name: known.get(name) or sha256(output / name), names)
        pairs = zip(names, hashes, strict=True)
        return {name: {"bytes": (output / name).stat().st_size, "sha256": sha} for name, sha in pairs}

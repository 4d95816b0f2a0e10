"""``python -m generation verify`` and ``repair``: what is found, for people and for machines."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Recipe
from ..errors import RunError
from ..rundir import RunDir
from .faults import Findings
from .of_run import verify_run

if TYPE_CHECKING:
    from ..builders.builder import UnicornBuilder


def verify(path: Path, embeddings: Path | None = None) -> Findings:
    """Checks everything that a directory holds.

    Args:
        path: a run directory or a built data set.
        embeddings: the built Unicorn-1.2M that a data set without shards of its own takes its vectors from.

    Raises:
        RunError: it is neither, its manifest cannot be read, or ``embeddings`` was given for a run.
    """
    run = RunDir(path)
    if "built" not in run.manifest:
        if embeddings:
            raise RunError(f"{path} is a run, which has its own vectors: --embeddings is for built data sets")
        return verify_run(run)
    from .of_built import verify_built

    return verify_built(path, embeddings)


def told(found: Findings, as_json: bool) -> str:
    """The findings as text, or as one JSON object."""
    if as_json:
        return json.dumps(found.as_json(), ensure_ascii=False)
    lines = [f"note: {note}" for note in found.notes] + list(map(str, found.faults))
    read = f"{found.files} files, {found.bytes / 1e6:,.1f} MB"
    if found.faults:
        lines.append(f"{found.path}: {len(found.faults)} faults in {read}. What mends them: {found.remedy}")
    else:
        lines.append(f"{found.path}: whole, {read}")
    return "\n".join(lines)


def repair(
    path: Path,
    recipe: Recipe | None,
    run_dir: Path | None,
    builders: Callable[[], Collection["type[UnicornBuilder]"]],
    dry_run: bool = False,
) -> None:
    """Makes again what is broken, and says what.

    Args:
        path: a run directory or a built data set.
        recipe: of a run.
        run_dir: that a built data set was built from.
        builders: gives those of the data sets that there are.
        dry_run: only say what would be done.

    Raises:
        RunError: see ``repair_run`` and ``rebuild``; or the options are those of the other kind.
    """
    run = RunDir(path)
    if "built" in run.manifest:
        from .rebuild import rebuild

        if run_dir is None or recipe is not None:
            raise RunError(
                f"{path} is a built data set, which is repaired from its run: --run-dir RUN, and no --config"
            )
        rebuild(path, run_dir, builders(), dry_run)
    else:
        from .repair import repair_run

        if run_dir is not None:
            raise RunError(f"{path} is a run; --run-dir is for built data sets")
        repair_run(run, recipe, dry_run)

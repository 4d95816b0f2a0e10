"""The command ``rehearse``: every step, the table, and whether the counts add up."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RehearsalError
from ..files import guarded
from . import counts, table
from .chaos import chaos
from .faults import Struck
from .ground import Ground
from .steps import Done, steps, take

LEAST_ROWS = 100
TABLE, FIGURES = "rehearsal.md", "rehearsal.json"


def rehearse(
    rows: int, folder: Path | None = None, seed: int = 0, keep: bool = False, tokens_per_s: float = 5000.0
) -> list[Done]:
    """Rehearses once, prints the table, and writes it into the folder.

    Args:
        rows: captions that are wanted.
        folder: an empty or new one; None takes a temporary one, of which nothing stays.
        seed: of all that is made up.
        keep: leave the run and the data sets in the folder, and not the table alone.
        tokens_per_s: answer tokens of all servers, for the projection.

    Raises:
        RehearsalError: a number is out of range, the folder is not empty, a command failed, or counts do not add up.
    """
    check(rows, folder, keep)
    if not tokens_per_s > 0:
        raise RehearsalError(f"--tokens-per-s {tokens_per_s:g}: it must be above 0")
    with place(folder) as chosen:
        ground = Ground(chosen, rows, seed)
        done = _take_all(ground)
        loaded = next(step.found["loaded"] for step in done if step.name == "load")
        wrong = counts.faults(ground, loaded)
        sums, projected = table.totals(ground, done), table.projection(ground.manifest(), tokens_per_s)
        if sums.answered_again:
            wrong.append(f"{sums.answered_again} requests were answered that had been answered before")
        text = table.markdown(done, sums, projected, tokens_per_s)
        print(text)
        facts = table.as_json(done, sums, projected, rows=rows, seed=seed, faults=wrong)
        write(chosen, text, facts)
        if not keep:
            clear(ground)
    if wrong:
        raise RehearsalError(f"the counts do not add up: {'; '.join(wrong)}")
    return done


def grow(sizes: list[int], folder: Path | None = None, seed: int = 0) -> None:
    """Rehearses at several sizes, and prints what each step takes per 1,000 rows, and its memory.

    Args:
        sizes: rows of each rehearsal.
        folder: see ``rehearse``.
        seed: see ``rehearse``.

    Raises:
        RehearsalError: see ``rehearse``; or there are fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise RehearsalError(f"--growth {' '.join(map(str, sizes))}: name two sizes or more, such as 10000 100000")
    for rows in sizes:
        check(rows)
    with place(folder) as chosen:
        found = {rows: rehearse(rows, chosen / str(rows), seed) for rows in sorted(set(sizes))}
        text, said = table.growth(found)
        words = "\n".join(f"- {line}" for line in said) or "Time grows as the rows do, and memory does not grow."
        print(f"{text}\n{words}")
        (chosen / "growth.md").write_text(f"{text}\n{words}\n", encoding="utf-8")


def rehearse_chaos(rows: int, folder: Path | None = None, seed: int = 0, keep: bool = False) -> list[Struck]:
    """Rehearses twice, the second time under faults, and prints a line for each of them.

    Args:
        rows, folder, seed, keep: see ``rehearse``.

    Raises:
        RehearsalError: see ``rehearse``; or a fault did not end as it should.
    """
    check(rows, folder, keep)
    with place(folder) as chosen:
        struck = chaos(chosen, rows, seed)
        lines = [one.line() for one in struck]
        write(chosen, "\n".join(lines) + "\n", {"rows": rows, "seed": seed, "struck": [asdict(one) for one in struck]})
        if not keep:
            for name in ("alone", "chaos"):
                shutil.rmtree(chosen / name, ignore_errors=True)
    wrong = [one.line() for one in struck if not one.right]
    if wrong:
        raise RehearsalError(f"{len(wrong)} of {len(struck)} did not end as they should: " + "; ".join(wrong))
    print(f"{len(struck)} faults and looks, all as they should be")
    return struck


def check(rows: int, folder: Path | None = None, keep: bool = False) -> None:
    """Refuses fewer rows than make sense, and to keep what lies in a temporary folder.

    Raises:
        RehearsalError: it is so.
    """
    if rows < LEAST_ROWS:
        raise RehearsalError(f"{rows} rows: a rehearsal needs {LEAST_ROWS} or more, so that every stage has some")
    if keep and folder is None:
        raise RehearsalError("--keep needs --folder: a temporary folder is removed")


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder of a rehearsal: the one that was named, which must be empty, or a temporary one.

    Raises:
        RehearsalError: it is not empty.
        RunError: it cannot be made.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
            yield Path(temporary)
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RehearsalError(f"{folder} is not empty; name another --folder, or remove it")
    guarded(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
    yield folder.resolve()


def write(folder: Path, text: str, figures: dict[str, Any]) -> None:
    """Writes the table for people and for machines."""
    (folder / TABLE).write_text(text, encoding="utf-8")
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def clear(ground: Ground) -> None:
    """Removes all that is large."""
    for path in (ground.run, ground.sets):
        shutil.rmtree(path, ignore_errors=True)


def _take_all(ground: Ground) -> list[Done]:
    done: list[Done] = []
    with ground.serve() as server:
        for step in steps(ground, server.url):
            done.append(take(ground, server, step))
            print(f"{step.name}: {done[-1].rows:,} rows in {done[-1].took.seconds:.1f} s", flush=True)
            if step.name == "load":
                shutil.rmtree(ground.sets / "cache", ignore_errors=True)  # text and vectors once more
    return done

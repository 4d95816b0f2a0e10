"""The files that a seed passes on its way to a row of the built data set, and a rejected answer to its second asking.

    python -m benchmarks.seed_path

One of nine seeds holds a word that marks it, and its first answer is cut off. All stages of captions and vectors, and
the build, run in this process. A file counts if a function of it is given, holds or returns the seed's text, request,
answer, caption, row, table or vectors. The card, which quotes some rows, is left out. Ends with a JSON object.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from generation.vectors import VectorShard
from tests.fake_server import Body, FakeServer, Reply

from .processes import ROOT, table

MARK = "gondola"
SEEDS = [f"A {c} {t} in a {p}." for c in ("red", "blue") for t in ("kite", "tractor") for p in ("hall", "park")]
SEEDS.append(f"A red {MARK} in a hall.")  # neither the longest nor the shortest: those warm the server up
PRODUCT = ("generation", "unicorn_1_2m.py")
DEPTH = 4  # of containers


class Pass(NamedTuple):
    """A function that held the marked seed."""

    file: str
    function: str
    event: str  # "call" or "return", which waiting is, too
    caller: str  # the file that called it


def make_all(folder: Path, url: str) -> None:
    """Run the stages of captions and vectors, and build the data set."""
    from generation.builders.build import build
    from generation.captions import make_captions
    from generation.embed import make_text_embeddings
    from generation.recipe import parse_recipe
    from generation.seeds import make_seeds
    from generation.store import Run
    from generation.transfer.stage import make_image_embeddings
    from unicorn_1_2m import Unicorn12M

    (folder / "seeds.txt").write_text("\n".join(SEEDS))
    seeds = {"captions": [{"name": "own", "path": "seeds.txt", "license": "MIT"}], "shard_rows": 6}
    recipe = {"name": "path", "directory": str(folder), "seeds": seeds, "server": {"endpoints": [url]}}
    run = Run(folder / "run", parse_recipe(recipe, "recipe"), create=True)
    for make in (make_seeds, make_captions, make_text_embeddings, make_image_embeddings):
        make(run)
    build(Unicorn12M, run.path, folder / "unicorn-1.2m")


def trace(folder: Path, url: str) -> list[Pass]:
    """Return which functions of the product held the marked seed, in their order."""
    found: list[Pass] = []

    def note(frame: FrameType, event: str, value: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        file = code.co_filename.removeprefix(f"{ROOT}/")
        if event not in ("call", "return") or code.co_name == "<module>" or not file.startswith(PRODUCT):
            return
        if holds(value) or any(map(holds, list(frame.f_locals.values()))):
            by = caller.f_code.co_filename.removeprefix(f"{ROOT}/") if caller else ""
            found.append(Pass(file, code.co_qualname, event, by))

    try:
        threading.setprofile(note)
        sys.setprofile(note)
        make_all(folder, url)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def holds(value: Any, depth: int = DEPTH) -> bool:
    """Return whether a value is, or holds, the marked seed in one of its forms."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return MARK in value
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 2 and value.dtype in (torch.float16, torch.float32, np.float16, np.float32)
    if isinstance(value, pa.Table | pa.RecordBatch | pa.ChunkedArray | pa.Array):
        return MARK in str(value.to_pylist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if depth and isinstance(value, list | tuple | set | frozenset):
        return any(holds(one, depth - 1) for one in [*value])
    return isinstance(value, VectorShard)


def main() -> None:
    """Make a small run and its data set, and print what the seed passed."""
    asked = itertools.count()

    def answer(body: Body, _: int) -> Reply | None:
        marked = MARK in body["messages"][-1]["content"]
        return Reply("A gondola lies", "length") if marked and not next(asked) else None

    with tempfile.TemporaryDirectory() as folder, FakeServer("tgi", script=answer) as server:
        passed = trace(Path(folder), server.url)
    files = dict[str, dict[str, None]]()
    for one in passed:
        files.setdefault(one.file, {})[one.function] = None
    print(table(["file", "functions"], [[file, ", ".join(functions)] for file, functions in files.items()]))
    steps = [(one.function, one.event) for one in passed]
    rejected = steps.index(("CaptionTask.accept", "return"))
    again = steps.index(("Scheduler.ask", "call"), rejected)
    second = dict.fromkeys([passed[rejected].caller, *(one.file for one in passed[rejected : again + 1])])
    print(f"A rejected answer to its second asking: {', '.join(second)}")
    print(json.dumps({"files_passed": len(files), "files_to_second_asking": len(second)}))


if __name__ == "__main__":
    main()

"""The import of the original's release beside json.load of its files, in rows/s and peak memory.

    python -m benchmarks.original [--rows 1200000]

Rows are of our own making, in the release's layout and of its size: captions of some 140 words, and conversations of
seven questions about 39 % of them, half with options. Each way is a fresh process; the rate counts its CPU time, which
other processes move less than the clock; peak memory is that of its resident set (Linux). The import reads everything
twice, joins, checks and seals; json.load only reads. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.processes import in_fresh_process, peak_bytes
from generation.original.importing import import_original
from generation.rundir import RunDir

KINDS = ["boat", "dog", "tree", "house", "lamp", "chair", "tower", "basket"]
THINGS = [f"{size} {kind}" for size, kind in product(("small", "tall"), KINDS)]
COLOURS = ["red", "brown", "green", "white", "black", "yellow", "grey", "blue"]
VERBS = ["stands", "leans", "rests", "is seen", "waits", "can be found", "rises", "is left", "shines"]
PLACES = ["beside the wall", "near the water", "under the roof", "behind the fence", "at the left edge"]
ENDS = [
    "and casts a soft shadow",
    "with dew on its surface",
    "where the grass grows high",
    "in the light of the evening",
    "among leaves that have fallen",
    "while thin clouds drift above",
    "close to a narrow path",
    "before a row of old stones",
    "like something much loved",
    "though nobody comes near it",
]


def caption(generator: random.Random) -> str:
    """Ten sentences of some twelve words."""
    return " ".join(
        f"A {generator.choice(COLOURS)} {thing} {generator.choice(VERBS)} {generator.choice(PLACES)} {end}."
        for thing, end in zip(generator.sample(THINGS, 10), generator.sample(ENDS, 10), strict=True)
    )


def turns(generator: random.Random) -> list[dict[str, str]]:
    """Seven questions: half of the conversations with options, the others with an answer of a few words."""
    said, choice = [], generator.random() < 0.5
    for number, thing in enumerate(generator.sample(THINGS, 7)):
        question = f"{'' if number else '<image>' + chr(10)}Which colour does the {thing} have?"
        options = "\n".join(
            f"{letter}: {colour}" for letter, colour in zip("ABCD", generator.sample(COLOURS, 4), strict=True)
        )
        said.append({"from": "human", "value": f"{question}\n{options}" if choice else question})
        said.append(
            {"from": "gpt", "value": generator.choice("ABCD") if choice else f"It is {generator.choice(COLOURS)}."}
        )
    return said


def captions(rows: int) -> Iterator[dict[str, Any]]:
    """The rows of the pre-training file."""
    for number in range(rows):
        text = caption(random.Random(number))
        first = {"from": "human", "value": "<image>\nDescribe this image in detail."}
        yield {
            "id": f"{number:010d}",
            "caption": text,
            "conversations": [first, {"from": "gpt", "value": text}],
        }


def instructions(rows: int) -> Iterator[dict[str, Any]]:
    """The rows of the instruction file, in another order."""
    numbers = random.Random(0).sample(range(rows), int(0.39 * rows))
    for number in numbers:
        generator = random.Random(number)
        text = caption(generator)
        yield {"id": f"{number:010d}", "caption": text, "conversations": turns(generator)}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Writes one JSON list; returns how many rows it has."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):
            file.write(("[" if count == 1 else ",\n") + json.dumps(row))
        file.write("]")
    return count


def _one(way: str, folder: Path) -> None:
    paths = [folder / "pretrain.json", folder / "instructions.json"]
    start, start_cpu = time.perf_counter(), time.process_time()
    if way == "json.load":
        for path in paths:
            with path.open(encoding="utf-8") as file:
                json.load(file)
    else:
        import_original(RunDir(folder / "run", create=True), paths)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak_bytes() / 1e6}))


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_200_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _one(options.one[0], Path(options.one[1]))
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write(folder / "pretrain.json", captions(options.rows))
        rows += write(folder / "instructions.json", instructions(options.rows))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{rows} rows, {size / 1e9:.2f} GB\n")
        print("| way | rows/s of CPU | CPU s | clock s | peak MB |\n|---|---|---|---|---|", flush=True)
        for way in ("json.load", "import"):
            one = in_fresh_process("benchmarks.original", "--one", way, name)
            rate, figures = rows / one["cpu_s"], [one["cpu_s"], one["seconds"], one["peak_mb"]]
            print(f"| {way} | {rate:.0f} | {' | '.join(f'{figure:.0f}' for figure in figures)} |", flush=True)
            result |= {f"{way}_rows_per_s": round(rate), f"{way}_peak_mb": round(one["peak_mb"])}
    result["memory_ratio"] = round(result["import_peak_mb"] / result["json.load_peak_mb"], 3)
    result["speed_ratio"] = round(result["import_rows_per_s"] / result["json.load_rows_per_s"], 4)
    print(f"cores: {os.cpu_count()}\n{json.dumps(result)}")


if __name__ == "__main__":
    main()

"""Seeds at full size: read, filtered, drawn, searched for duplicates and sharded, beside a bare loop.

    python -m benchmarks.seeds [--rows 1200000]

The rows are made up: of a hundred, 5 repeat an earlier one exactly, 5 with one word changed, and 10 are dirt (links,
addresses, boilerplate, other languages, lists). The bare loop reads the same file, hashes every line, keeps what it
has not seen, and writes Parquet shards. Each is a fresh process; its peak is VmHWM (Linux). Ends with a line of JSON.
"""

import argparse
import json
import os
import random
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

import yaml

from benchmarks.processes import in_fresh_process, peak_bytes
from generation.rehearsal.sources import DIRT

_WORDS = {
    "who": [
        "dog",
        "cat",
        "child",
        "woman",
        "farmer",
        "sailor",
        "horse",
        "nurse",
        "painter",
        "boy",
        "baker",
        "goat",
        "cyclist",
        "driver",
        "bride",
        "monk",
    ],
    "how": [
        "old",
        "young",
        "tired",
        "wet",
        "small",
        "tall",
        "smiling",
        "barefoot",
        "quiet",
        "muddy",
        "elegant",
        "careful",
        "distant",
        "sleepy",
    ],
    "does": [
        "sleeps",
        "waits",
        "sits",
        "stands",
        "rests",
        "looks up",
        "turns around",
        "eats",
        "laughs",
        "works",
        "dances",
        "kneels",
        "reads",
    ],
    "where": [
        "bench",
        "red bus",
        "bridge",
        "well",
        "oak",
        "window",
        "market stall",
        "blue door",
        "fountain",
        "kiosk",
        "barn",
        "pier",
        "lamp",
    ],
    "when": [
        "at noon",
        "in the rain",
        "at dusk",
        "in winter",
        "under a grey sky",
        "before the storm",
        "in soft light",
    ],
}


def write_rows(path: Path, rows: int) -> None:
    """Writes the made-up captions, one a line, the same at every call."""
    generator = random.Random(0)
    recent = ["A boat lies in the harbour."] * 1000
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            kind = row % 100
            who, how, does, where, when = (generator.choice(words) for words in _WORDS.values())
            name = f"{generator.randrange(36**4):x}"  # so that texts differ
            text = f"The {how} {who} {name} {does} near the {where} of {generator.randrange(10**5):x} {when}."
            if kind < 5:
                text = generator.choice(recent)
            elif kind < 10:
                text = f"{generator.choice(recent).removesuffix('.')} today."
            elif kind < 20:
                text = DIRT[kind % len(DIRT)].format(row)
            recent[row % 1000] = text
            file.write(text + "\n")


def bare(path: Path, folder: Path) -> int:
    """The baseline: reads, hashes, writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[bytes] = set()
    waiting: list[str] = []
    shards = 0

    def write() -> None:
        pq.write_table(pa.table({"seed": waiting}), folder / f"{shards:05d}.parquet", compression="zstd")

    with path.open(encoding="utf-8") as file:
        for line in file:
            key = blake2b(line.encode(), digest_size=8).digest()
            if key in seen:
                continue
            seen.add(key)
            waiting.append(line.strip())
            if len(waiting) == 10_000:
                write()
                shards, waiting = shards + 1, []
    write()
    return len(seen)


def ours(path: Path, folder: Path) -> int:
    """What the project does: filters, exact and near-duplicates, drawn order, sealed shards."""
    from generation.recipe import load_recipe
    from generation.rundir import RunDir
    from generation.seeds import make_seeds

    source = {"name": "made_up", "path": str(path), "license": "Apache-2.0", "filters": {}}
    seeds = {"captions": [source], "duplicates": {"action": "drop"}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "seeds", "seeds": seeds}), encoding="utf-8")
    run = RunDir(folder / "run", create=True)
    make_seeds(run, load_recipe(recipe))
    return sum(run.record("seeds", shard)["rows"] for shard in run.sealed("seeds"))


def _one(way: str, path: Path, folder: Path) -> None:
    start = time.perf_counter()
    kept = {"bare": bare, "ours": ours}[way](path, folder)
    peak_mb = peak_bytes() / 2**20
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "kept": kept}), flush=True)


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_200_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _one(options.one[0], Path(options.one[1]), Path(options.one[2]))
    result: dict[str, float] = {"rows": options.rows}
    print("| way | seconds | rows/s | peak MB | seeds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        write_rows(path, options.rows)
        for way in ("bare", "ours"):
            (place := Path(folder) / way).mkdir()
            one = in_fresh_process("benchmarks.seeds", "--one", way, path, place)
            rate = options.rows / one["seconds"]
            print(f"| {way} | {one['seconds']:.1f} | {rate:.0f} | {one['peak_mb']:.0f} | {one['kept']} |", flush=True)
            result |= {f"{way}_{key}": round(value, 1) for key, value in one.items()}
    result["ratio"] = round(result["ours_seconds"] / result["bare_seconds"], 2)
    print(f"cores: {os.cpu_count()}, load: {os.getloadavg()[0]:.1f}\n{json.dumps(result)}")


if __name__ == "__main__":
    main()

"""The transfer compared with ``cp`` of the same bytes, and with the original's way (pickles, a Python loop).

    python -m benchmarks.transfer [--rows 1200000 --rounds 5 --folder DIR]

``ours`` opens all shards, fits ``unicorn`` from the stored sums, and writes all shards to new files in one pass: rows
validated, float16 out. Hashing and fsync, which the stage adds, are in ``committed``. Each turn is a fresh process;
its imports are not counted; turns alternate, the page cache is warm, and medians count. Anonymous memory is sampled in
a process of its own. The original's way is timed on 20,000 rows and scaled: a pickled list of {"id", "caption",
"embed"} is loaded, a float32 sum and a subtraction go row by row, and a pickle is written.

Needs twice the vectors on disk (6 GB). The last line is one JSON object.
"""

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from generation.files import sha256, write_atomically
from generation.transfer import fit, parse_transfer
from generation.transfer.stage import write_moved
from generation.vectors import VectorShard, write_vectors

DIMENSION, SHARD_ROWS, ORIGINAL_ROWS = 1280, 10_000, 20_000


def make_shards(folder: Path, rows: int) -> None:
    """Write text-embedding shards of random unit rows around a common mean."""
    torch.manual_seed(0)
    centre = torch.randn(DIMENSION) * 0.008
    for shard in range(rows // SHARD_ROWS):
        raw = torch.randn(SHARD_ROWS, DIMENSION) / 36 + centre
        vectors = torch.nn.functional.normalize(raw, dim=1).half()
        ids = [f"{shard:05d}{row:05d}" for row in range(SHARD_ROWS)]
        write_vectors(folder / f"{shard:05d}.safetensors", vectors, ids, list(range(SHARD_ROWS)), {})


def ours(source: Path, target: Path, committed: bool) -> float:
    """Return the seconds that the transfer takes."""
    start = time.perf_counter()
    shards = [VectorShard(path) for path in sorted(source.iterdir())]
    rows = sum(map(len, shards))
    fitted = fit(parse_transfer("unicorn"), torch.stack([shard.sum for shard in shards]).sum(0) / rows, rows)

    def one(shard: VectorShard) -> None:
        write = partial(write_moved, source=shard, statistics=fitted, facts={})
        if committed:
            sha256(shard.path)
            write_atomically(target / shard.path.name, write)
        else:
            write(target / shard.path.name)

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(one, shards))
    return time.perf_counter() - start


def peak_anonymous_mb(source: Path, target: Path) -> float:
    """Return the peak of the memory that no file stands behind, in MB, sampled every 5 ms."""
    with ThreadPoolExecutor(1) as pool:
        done, peak = pool.submit(ours, source, target, committed=False), 0.0
        while not done.done():
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 1000)
            time.sleep(0.005)
    done.result()
    return peak


def original(folder: Path) -> float:
    """Return the seconds a row of the original's way: load, mean, subtract, write."""
    vectors = torch.nn.functional.normalize(torch.randn(ORIGINAL_ROWS, DIMENSION), dim=1).half()
    data = [{"id": f"{n:010d}", "caption": "a caption " * 13, "embed": row.clone()} for n, row in enumerate(vectors)]
    path = folder / "original.pkl"
    path.write_bytes(pickle.dumps(data))
    start = time.perf_counter()
    loaded = pickle.loads(path.read_bytes())  # written above by this process
    total = torch.zeros(DIMENSION)
    for row in loaded:
        total += row["embed"]
    for row in loaded:
        row["embed"] = row["embed"] - total / len(loaded)
    path.write_bytes(pickle.dumps(loaded))
    return (time.perf_counter() - start) / ORIGINAL_ROWS


def child(way: str, source: Path, target: Path) -> float:
    """Return what one way gives, measured in a fresh process on an empty target."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    subprocess.run(["sync"], check=True)  # so that what was written before does not slow this turn
    if way == "cp":
        start = time.perf_counter()
        subprocess.run(["cp", *map(str, sorted(source.iterdir())), str(target)], check=True)
        return time.perf_counter() - start
    command = [sys.executable, "-m", "benchmarks.transfer", "--child", way, str(source), str(target)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_200_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, (source, target) = options.child[0], map(Path, options.child[1:])
        if way == "original":
            print(original(target))
        else:
            print(peak_anonymous_mb(source, target) if way == "memory" else ours(source, target, way == "committed"))
        return
    seconds: dict[str, list[float]] = {"cp": [], "ours": [], "committed": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.mkdir()
        make_shards(source, options.rows)
        child("cp", source, target)  # warms the page cache
        for number in range(options.rounds):
            for way, values in seconds.items():
                values.append(child(way, source, target))
            print(f"round {number + 1}:", *(f"{way} {values[-1]:.2f} s" for way, values in seconds.items()))
        peak, loop = child("memory", source, target), child("original", source, target)
    rows = options.rows // SHARD_ROWS * SHARD_ROWS
    median = {way: statistics.median(values) for way, values in seconds.items()}
    for way, taken in (median | {"original": loop * rows}).items():
        print(f"{way:10} {taken:6.2f} s, {rows / taken / 1e3:6.0f}k rows/s")
    figures = {
        "ratio_to_cp": round(median["cp"] / median["ours"], 3),
        "ratio_to_cp_best": round(min(seconds["cp"]) / min(seconds["ours"]), 3),
        "ratio_to_cp_committed": round(median["cp"] / median["committed"], 3),
        "ratio_to_original": round(loop * rows / median["ours"], 1),
        "peak_anon_mb": round(peak),
        "rows": rows,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

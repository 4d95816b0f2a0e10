"""The transfer, against ``cp`` of the same bytes to new files and against the original's way (pickles, a Python loop).

    python -m benchmarks.transfer [--shards 6 --rows 200000 --rounds 5 --folder DIR]

Each of ours is a fresh process; its start-up (imports) is left out. ``ours`` is both passes of `unicorn` over all
shards: validation, exact sums, float16 out into new files. ``sealed`` is the same as the stage does it, with
the sha256 of every source and every result, and fsync. The turns alternate; the page cache is warm; medians count, and
the best of each is printed beside them. Anonymous memory (what a mapped file is not) is sampled in a run of its own.

The original's way is timed on one shard and scaled: a pickled list of {"id", "caption", "embed"} is loaded, a running
float32 sum and a subtraction go row by row, and a pickle is written. Needs 3 times the data on disk (10 GB), less with
fewer rows. Ends with one line of JSON.
"""

import argparse
import json
import pickle
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.processes import Memory, in_fresh_process
from generation.config import Transfer
from generation.files import file_sha256, seal
from generation.tensors import open_shard, write_shard
from generation.transfer.fitting import fit_rows
from generation.transfer.rows import Rows, cores, one_thread_an_operation
from generation.transfer.stage import shard_part, transferred

MODULE = "benchmarks.transfer"
DIMENSION = 1280


def make_shards(folder: Path, shards: int, rows: int) -> None:
    """Random unit rows about a common mean, with ids and hashes."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(DIMENSION, generator=generator) * 0.008
    for shard in range(shards):
        chunks = (
            torch.nn.functional.normalize(
                torch.randn(5000, DIMENSION, generator=generator) / 36 + centre, dim=1
            ).half()
            for _ in range(rows // 5000)
        )
        ids = "".join(f"{shard * 100_000 + row:010d}" for row in range(rows))
        companions = {
            "ids": torch.frombuffer(bytearray(ids, "ascii"), dtype=torch.uint8).view(-1, 10),
            "text_sha256": torch.zeros(rows, 32, dtype=torch.uint8),
        }
        write_shard(folder / f"{shard:05d}.safetensors", chunks, (rows, DIMENSION), companions, {})


def ours(source: Path, target: Path, sealed: bool) -> float:
    """Both passes; seconds."""
    paths = sorted(source.iterdir())
    start = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        if sealed:
            list(pool.map(file_sha256, paths))
        opened = [open_shard(path) for path in paths]
        texts = Rows([shard_part(shard) for shard in opened], cores())
        fitted = fit_rows(Transfer(method="unicorn"), texts, None)

        def one(shard: int) -> None:
            s, path = opened[shard], target / paths[shard].name
            shape = (len(s.embeddings), DIMENSION)

            def write(path: Path) -> None:
                write_shard(path, transferred(s, fitted), shape, s.companions, {})

            seal(path, write) if sealed else write(path)

        with one_thread_an_operation():
            list(pool.map(one, range(len(opened))))
    return time.perf_counter() - start


def memory(source: Path, target: Path) -> float:
    """Peak anonymous memory of both passes, in MB."""
    with Memory() as sampled:
        ours(source, target, sealed=False)
    return sampled.peak


def original(rows: int, folder: Path) -> float:
    """Seconds of the original's way for ``rows`` rows: load, mean, subtract, write."""
    vectors = torch.nn.functional.normalize(torch.randn(rows, DIMENSION), dim=1).half()
    data = [{"id": f"{row:010d}", "caption": "a caption " * 13, "embed": vectors[row].clone()} for row in range(rows)]
    path = folder / "original.pkl"
    path.write_bytes(pickle.dumps(data))
    del data, vectors
    start = time.perf_counter()
    with path.open("rb") as file:
        loaded = pickle.load(file)  # written above by this process
    total = torch.zeros(DIMENSION)
    for row in loaded:
        total += row["embed"]
    mean = total / len(loaded)
    for row in loaded:
        row["embed"] = row["embed"] - mean
    with path.open("wb") as file:
        pickle.dump(loaded, file)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def _copy(source: Path, target: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, sorted(source.iterdir())), str(target)], check=True)
    return time.perf_counter() - start


def _rounds(source: Path, target: Path, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"cp": [], "ours": [], "sealed": []}
    for number in range(rounds):
        for way, values in seconds.items():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            subprocess.run(["sync"], check=True)  # what was written before does not weigh on this turn
            values.append(
                _copy(source, target) if way == "cp" else in_fresh_process(MODULE, "--child", way, source, target)
            )
        print(f"round {number + 1}:", *(f"{way} {values[-1]:.2f} s" for way, values in seconds.items()))
    return seconds


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--rows", type=int, default=200_000, help="a shard, in steps of 5000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--original-rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, first, folder = options.child
        if what == "original":
            print(original(int(first), Path(folder)))
        else:
            source, target = Path(first), Path(folder)
            print(memory(source, target) if what == "memory" else ours(source, target, what == "sealed"))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        make_shards(source, options.shards, options.rows)
        _copy(source, Path(folder))  # warms the page cache
        seconds = _rounds(source, Path(folder) / "target", options.rounds)
        peak = in_fresh_process(MODULE, "--child", "memory", source, Path(folder) / "target")
        loop = in_fresh_process(MODULE, "--child", "original", options.original_rows, folder) / options.original_rows
    rows = options.shards * options.rows
    median = {way: statistics.median(values) for way, values in seconds.items()}
    best = {way: min(values) for way, values in seconds.items()}
    for way in ("cp", "ours", "sealed"):
        print(f"{way:8} median {median[way]:6.2f} s, best {best[way]:6.2f} s, {rows / median[way] / 1e3:6.0f}k rows/s")
    print(f"original {loop * 1e6:.1f} us a row, {loop * rows:.1f} s for {rows} rows")
    print(
        json.dumps(
            {
                "ratio_to_cp": round(median["cp"] / median["ours"], 3),
                "ratio_to_cp_best": round(best["cp"] / best["ours"], 3),
                "ratio_to_cp_sealed": round(median["cp"] / median["sealed"], 3),
                "ratio_to_original": round(loop * rows / median["ours"], 1),
                "peak_anon_mb": round(peak),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()

"""``verify`` of a finished run and of the data set built from it, against reading and hashing the same bytes once.

    python -m benchmarks.verification --rows 100000

One after the other, files in the page cache; the baseline hashes two files at a time, as ``verify`` does.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.builder import SHARD_ROWS, build_it, make_run
from benchmarks.processes import Memory, in_fresh_process
from generation.files import file_sha256
from generation.verification.command import verify

MODULE = "benchmarks.verification"
THREADS = 2


def check(path: Path) -> dict[str, float]:
    """Seconds of ``verify``."""
    start = time.perf_counter()
    found = verify(path)
    return {"seconds": time.perf_counter() - start, "faults": len(found.faults), "mb": found.bytes / 1e6}


def memory(path: Path) -> dict[str, float]:
    """Peak anonymous memory of ``verify`` in MB, in a run of its own, since sampling costs time."""
    with Memory() as sampled:
        verify(path)
    return {"peak_anon_mb": sampled.peak}


def hash_all(path: Path) -> dict[str, float]:
    """Seconds of the baseline."""
    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(file_sha256, filter(Path.is_file, path.rglob("*"))))
    return {"seconds": time.perf_counter() - start}


_CHILDREN = {"check": check, "memory": memory, "hash": hash_all}


def main() -> None:
    """Prints a line for the run and for the data set, and all figures as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_CHILDREN[options.child[0]](Path(options.child[1]))))
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_run(Path(folder) / "run", options.rows)
        build_it(Path(folder) / "run", Path(folder) / "built")
        for name in ("run", "built"):
            found = {
                child: in_fresh_process(MODULE, "--child", child, Path(folder) / name) for child in ("hash", "check")
            }
            peak = in_fresh_process(MODULE, "--child", "memory", Path(folder) / name)["peak_anon_mb"]
            ratio = found["check"]["seconds"] / found["hash"]["seconds"]
            figures[name] = found["check"] | {"hash_seconds": found["hash"]["seconds"], "ratio": ratio, "peak": peak}
            print(
                f"{name}: {found['check']['mb']:,.0f} MB, {found['check']['faults']} faults; verify "
                f"{found['check']['seconds']:.1f} s, {ratio:.1f} x hashing alone; {peak:.0f} MB"
            )
    print(json.dumps({"rows": options.rows} | figures))


if __name__ == "__main__":
    main()

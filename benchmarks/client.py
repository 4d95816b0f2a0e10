"""The caption stage, journal, checks and accounting included, beside a bare aiohttp loop that keeps nothing safe.

    python -m benchmarks.client [--rows 10000]

Server (``fast_server``) and client are processes of their own. CPU a row is the slope between 1,000 rows and
``--rows``, so that start-up does not count; rates are at 64 requests in flight and no latency; efficiency is rows/s
over limit / latency at 200 ms, the limit found by itself. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa

from generation.captions import make_captions
from generation.config import CONFIGS, load_recipe
from generation.records import SEED_SCHEMA, row_id
from generation.rundir import RunDir

SHARD_ROWS = 10_000
FEW = 1_000


def bare(url: str, rows: int, in_flight: int) -> float:
    """Asks ``rows`` questions and writes the answers as JSONL: no retry, no check, no resume. Returns seconds."""

    async def run(out: Any) -> None:
        pending = iter(range(rows))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                for row in pending:
                    body = {"messages": [{"role": "user", "content": _seed(row)}], "max_tokens": 128}
                    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                        text = (await response.json())["choices"][0]["message"]["content"]
                    out.write(json.dumps({"id": row, "text": text}) + "\n")

            await asyncio.gather(*(work() for _ in range(in_flight)))

    with tempfile.TemporaryFile("w") as out:
        start = time.perf_counter()
        asyncio.run(run(out))
        return time.perf_counter() - start


def ours(url: str, rows: int, in_flight: int) -> float:
    """Makes the captions of ``rows`` seeds in a run directory. Returns the seconds of the stage."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run", create=True)
        run.begin("seeds", {})
        for shard in range(-(-rows // SHARD_ROWS)):
            texts = [_seed(row) for row in range(shard * SHARD_ROWS, min(rows, (shard + 1) * SHARD_ROWS))]
            ids = [row_id(shard, row) for row in range(len(texts))]
            table = pa.table([ids, texts, ["own"] * len(texts), ["MIT"] * len(texts)], SEED_SCHEMA)
            run.seal_tables("seeds", shard, table, None)
        run.note("seeds", complete=True)
        recipe = load_recipe(CONFIGS / "demo.yaml", {"endpoints": [url], "max_in_flight": in_flight})
        start = time.perf_counter()
        make_captions(run, recipe)
        seconds = time.perf_counter() - start
        made = sum(run.record("captions", shard)["rows"] for shard in run.finished("captions", "seeds"))
        if made != rows:
            raise SystemExit(f"{rows - made} of {rows} rows are missing")
        return seconds


def _seed(row: int) -> str:
    return f"Scene number {row} with a dog and a red ball on a beach."


@contextmanager
def _server(latency_s: float = 0.0, limit: int = 128) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.fast_server", "--latency-s", str(latency_s), "--limit", str(limit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _measure(way: str, url: str, rows: int, in_flight: int = 64) -> dict[str, float]:
    """One measurement in a fresh process: seconds, CPU seconds (user and system), peak resident set in MB."""
    command = [sys.executable, "-m", "benchmarks.client", "--way", way, "--url", url, "--rows", str(rows)]
    command += ["--in-flight", str(in_flight)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _one(options: argparse.Namespace) -> None:
    seconds = {"bare": bare, "ours": ours}[options.way](options.url, options.rows, options.in_flight)
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / 1000
    print(json.dumps({"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_rss_mb": peak}), flush=True)


def _compare(rows: int, rounds: int) -> dict[str, float]:
    """CPU a row and rows/s of both ways, taking turns; the best round of each counts."""
    cpu: dict[str, list[float]] = {"bare": [], "ours": []}
    rate: dict[str, list[float]] = {"bare": [], "ours": []}
    peak = 0.0
    with _server() as url:
        for _ in range(rounds):
            for way in cpu:
                few, many = _measure(way, url, FEW), _measure(way, url, rows)
                cpu[way].append((many["cpu"] - few["cpu"]) / (rows - FEW) * 1000)
                rate[way].append((rows - FEW) / (many["seconds"] - few["seconds"]))
                peak = many["peak_rss_mb"]
    print("| client | CPU ms a row | rows/s at 0 ms |\n|---|---|---|")
    for way in cpu:
        print(f"| {way} | {min(cpu[way]):.3f} | {max(rate[way]):.0f} |")
    return {
        "cpu_ratio_to_bare": round(min(cpu["ours"]) / min(cpu["bare"]), 2),
        "rate_ratio_to_bare": round(max(rate["ours"]) / max(rate["bare"]), 2),
        "peak_rss_mb": round(peak),
    }


def _efficiency(limit: int, rows: int) -> float:
    """Rows/s over limit / latency against a server that takes ``limit`` requests of 200 ms each."""
    with _server(latency_s=0.2, limit=limit) as url:
        few, many = _measure("ours", url, rows // 2, limit), _measure("ours", url, rows, limit)
    return round((rows - rows // 2) / (many["seconds"] - few["seconds"]) / (limit / 0.2), 3)


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    for hidden in ("--way", "--url"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return _one(options)
    result = _compare(options.rows, options.rounds)
    result["efficiency_128"] = _efficiency(128, 12_000)
    result["efficiency_512"] = _efficiency(512, 24_000)
    print(f"cores: {os.cpu_count()}\n{json.dumps(result)}")


if __name__ == "__main__":
    main()

"""The client with journal, records and checks, beside a bare aiohttp loop that keeps nothing safe.

    python -m benchmarks.client [--rounds 2] [--kills 50]

The fake server has one core, the client the other. ``ours`` is the whole captions stage (requests, limit, retries,
journal, shards) with a short prompt and a task that accepts every answer, as the bare loop does; ``checked`` adds the
checks of the text. CPU a row is the slope between two sizes, so that start-up does not count. Ends with a JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .processes import ROOT, fake_server, table

FEW, MANY, SHARD_ROWS = 1_000, 12_000, 4_000
LATENCY_S = 0.2  # of the runs that measure efficiency
KILL_ROWS, KILL_IN_FLIGHT = 6_000, 32


def bare(url: str, rows: int, in_flight: int) -> None:
    """Ask for ``rows`` answers and write them as JSON lines: no retry, no check, no resume."""
    import aiohttp

    async def run(out: Any) -> None:
        pending = iter(range(rows))

        async def work(session: aiohttp.ClientSession) -> None:
            for row in pending:
                message = {"role": "user", "content": f"Describe in detail: {seed(row)}"}
                body = {"model": "fake/Model-Instruct", "messages": [message], "max_tokens": 128, "seed": row + 1}
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    text = (await response.json())["choices"][0]["message"]["content"]
                out.write(json.dumps({"id": row, "text": text}) + "\n")

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(work(session) for _ in range(in_flight)))

    with tempfile.TemporaryFile("w") as out:
        asyncio.run(run(out))


def ours(run_dir: Path, checked: bool) -> None:
    """Make the captions of a run that has its seeds."""
    from generation.captions import CaptionTask, make_captions
    from generation.engine import Item, generate
    from generation.stages import Row
    from generation.store import Run
    from generation.tgi.client import Answer

    class Accepting(CaptionTask):
        def accept(self, item: Item, answers: list[Answer]) -> Row | str:
            return {"caption": answers[-1].text, "seed": item.values["seed"], "source": "own"}

    run = Run(run_dir)
    if checked:
        make_captions(run)
    else:
        generate(run, [Accepting(run)], run.recipe.server)


def seed(row: int) -> str:
    """Return the seed of a row."""
    return f"Scene number {row} with a dog and a red ball on a beach."


def make_run(folder: Path, url: str, rows: int, in_flight: int, shard_rows: int = SHARD_ROWS) -> Path:
    """Make a run with ``rows`` seeds for the server at ``url``."""
    import pyarrow as pa

    from generation.recipe import parse_recipe
    from generation.stages import SEED_SCHEMA, SEEDS, row_id
    from generation.store import Run, parquet

    server = {"endpoints": [url], "max_in_flight": in_flight}
    recipe = {"name": "benchmark", "directory": str(folder), "server": server}
    run = Run(
        folder / "run",
        parse_recipe(recipe | {"captions": {"words": [5, 483], "prompt": "expand_caption_small"}}, "recipe"),
        create=True,
    )
    for shard in range(-(-rows // shard_rows)):
        texts = [seed(row) for row in range(shard * shard_rows, min(rows, (shard + 1) * shard_rows))]
        columns = [
            [row_id(shard, row) for row in range(len(texts))],
            texts,
            ["own"] * len(texts),
            ["MIT"] * len(texts),
        ]
        run.commit(SEEDS, shard, len(texts), parquet(pa.table(columns, schema=SEED_SCHEMA)))
    return run.path


def measure(way: str, url: str, rows: int, in_flight: int = 64) -> dict[str, float]:
    """Measure one way in a fresh process on the first core: seconds, CPU seconds, peak resident MB."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), url, rows, in_flight) if way != "bare" else ""
        command = [sys.executable, "-m", "benchmarks.client", "--way", way, "--url", url, "--rows", str(rows)]
        command += ["--run-dir", str(run), "--in-flight", str(in_flight)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures


def child(options: argparse.Namespace) -> None:
    """Run one way in this process and print what it took."""
    os.sched_setaffinity(0, {0})
    start = time.perf_counter()
    if options.way == "bare":
        bare(options.url, options.rows, options.in_flight)
    else:
        ours(Path(options.run_dir), options.way == "checked")
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"seconds": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime}
    print(json.dumps(figures | {"peak_rss_mb": used.ru_maxrss / 1024}))


def slopes(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU ms and seconds a row of each way, medians over the rounds, and the peak memory."""
    found: dict[str, list[dict[str, float]]] = {"bare": [], "ours": [], "checked": []}
    for _ in range(rounds):
        for way, samples in found.items():
            few, many = (measure(way, url, rows) for rows in (FEW, MANY))
            rate = (MANY - FEW) / (many["seconds"] - few["seconds"])
            cpu = 1e3 * (many["cpu"] - few["cpu"]) / (MANY - FEW)
            samples.append({"cpu_ms": cpu, "rows_per_s": rate, "peak_rss_mb": many["peak_rss_mb"]})
    return {
        way: {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for way, samples in found.items()
    }


def efficiency(in_flight: int) -> float:
    """Return rows/s over in_flight / latency, between two sizes, for a server with a slot for each request."""
    with fake_server("--latency-s", LATENCY_S, "--slots", in_flight, "--limit", in_flight, core=1) as url:
        few, many = (measure("ours", url, rows, in_flight)["seconds"] for rows in (20 * in_flight, 60 * in_flight))
    return 40 * in_flight / (many - few) / (in_flight / LATENCY_S)


def kills(count: int) -> dict[str, float]:
    """Kill the client ``count`` times at random moments; return rows lost or doubled, and rows asked again a kill."""
    from generation.stages import CAPTIONS
    from generation.store import Run

    with tempfile.TemporaryDirectory() as folder, fake_server("--latency-s", 0.05, core=1) as url:
        run_dir = make_run(Path(folder), url, KILL_ROWS, KILL_IN_FLIGHT, 1_000)
        command = [sys.executable, "-m", "benchmarks.client", "--way", "ours", "--run-dir", str(run_dir)]
        for _ in range(count):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(1.0, 2.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        run = Run(run_dir)
        ids = [id for shard in run.shards(CAPTIONS) for id in run.table(CAPTIONS, shard, ["id"])["id"].to_pylist()]
        requests = sum(record.counts["requests"] for record in run.records(CAPTIONS).values())
    return {"rows_lost": KILL_ROWS - len(set(ids)) + len(ids) - len(set(ids)), "counted_requests": requests}


def main() -> None:
    """Measure everything, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--way", choices=("bare", "ours", "checked"))
    parser.add_argument("--url", default="")
    parser.add_argument("--run-dir", default="")
    parser.add_argument("--rows", type=int, default=MANY)
    parser.add_argument("--in-flight", type=int, default=64)
    options = parser.parse_args()
    if options.way:
        return child(options)
    with fake_server("--slots", 256, core=1) as url:
        found = slopes(url, options.rounds)
    rows = [[way, *values.values()] for way, values in found.items()]
    print(table(["way", "CPU ms a row", "rows/s", "peak MB"], rows))
    result = {
        "cpu_ratio_to_bare": found["ours"]["cpu_ms"] / found["bare"]["cpu_ms"],
        "checked_cpu_ratio": found["checked"]["cpu_ms"] / found["bare"]["cpu_ms"],
        "rate_ratio_to_bare": found["ours"]["rows_per_s"] / found["bare"]["rows_per_s"],
        "efficiency_128": efficiency(128),
        "efficiency_512": efficiency(512),
        **kills(options.kills),
        "peak_rss_mb": found["ours"]["peak_rss_mb"],
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()

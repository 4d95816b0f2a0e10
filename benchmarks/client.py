"""The bulk client, journal and accounts included, beside a bare aiohttp loop that keeps nothing safe.

    python -m benchmarks.client [--rounds 2] [--kills 50]

The server (``fast_server``) has one core, the client the other. CPU a row is the slope between 1,000 and 20,000 rows,
so that start-up does not count. "ours" is a whole stage (requests, retries, limit, journal, accounts, sealing) that
accepts every answer, as the bare loop does; "with checks" is the caption stage with its checks of the text. Ends with
one line of JSON.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

SHARD_ROWS = 10_000
FEW, MANY = 1_000, 20_000
KILL_ROWS, KILL_SHARD_ROWS, KILL_IN_FLIGHT = 12_000, 1_000, 32
FAULT_ROWS = 6_000
RECIPE = {
    "name": "benchmark",
    "seeds": {"captions": [{"name": "own", "path": "none.txt", "license": "MIT"}]},
    "captions": {"prompt": "expand_caption_small"},
    "instructions": {
        task: {"prompt": task, "fraction": 0.5}
        for task in ("multiple_choice", "question_answering", "complex_reasoning")
    },
}


# -- what is measured, each in a process of its own ------------------------------------------------------------


def bare(url: str, rows: int, in_flight: int) -> float:
    """Asks ``rows`` questions and writes the answers as JSONL: no retry, no check, no resume. Returns seconds."""
    import aiohttp

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


def ours(run_dir: Path, url: str, in_flight: int, checked: bool) -> float:
    """Makes the captions of a run directory that holds seeds. Returns the seconds of the stage."""
    from generation.bulk import carry_out
    from generation.captions import caption_task, make_captions
    from generation.recipe import load_recipe
    from generation.rundir import RunDir

    run = RunDir(run_dir)
    recipe = load_recipe(run_dir / "recipe.yaml", {"endpoints": [url], "max_in_flight": in_flight})
    start = time.perf_counter()
    if checked:
        make_captions(run, recipe)
    else:
        task = caption_task(run, recipe.captions, recipe.random_seed)
        run.begin(task.stage, {})
        columns = {"source": "own"}
        accepting = replace(task, check=lambda item, answer, kept: (columns | {"caption": answer.text}, None))
        carry_out(run, recipe.server, accepting)
    return time.perf_counter() - start


def _one(options: argparse.Namespace) -> None:
    if options.way == "bare":
        seconds = bare(options.url, options.rows, options.in_flight)
    else:
        seconds = ours(Path(options.run_dir), options.url, options.in_flight, options.way == "checked")
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_rss_mb": used.ru_maxrss / 1024}
    print(json.dumps(figures), flush=True)


# -- the surroundings ------------------------------------------------------------------------------------------


def _seed(row: int) -> str:
    return f"Scene number {row} with a dog and a red ball on a beach."


def make_run(folder: Path, rows: int, shard_rows: int = SHARD_ROWS) -> Path:
    """A run directory with ``rows`` seeds, and its recipe."""
    import pyarrow as pa

    from generation.records import SEED_SCHEMA, row_id
    from generation.rundir import RunDir

    run = RunDir(folder / "run", create=True)
    run.begin("seeds", {})
    for shard in range(-(-rows // shard_rows)):
        texts = [_seed(row) for row in range(shard * shard_rows, min(rows, (shard + 1) * shard_rows))]
        ids = [row_id(shard, row) for row in range(len(texts))]
        table = pa.table([ids, texts, ["own"] * len(texts), ["MIT"] * len(texts)], SEED_SCHEMA)
        run.seal_tables("seeds", shard, table, None)
    run.note("seeds", complete=True)
    (run.path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return run.path


@contextmanager
def server(*options: object) -> Iterator[str]:
    """The stand-in server in a process of its own, on the last core; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.fast_server", *map(str, options)]
    if (os.cpu_count() or 1) > 1:
        command += ["--core", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    """The server's account."""
    with urllib.request.urlopen(f"{url}/stats", timeout=30) as reply:
        account: dict[str, Any] = json.load(reply)
    return account


def measure(way: str, url: str, rows: int, in_flight: int = 64) -> dict[str, Any]:
    """One measurement in a fresh process on the first core: seconds, CPU seconds, peak resident set, sealed rows."""
    command = [sys.executable, "-m", "benchmarks.client", "--way", way, "--url", url, "--in-flight", str(in_flight)]
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), rows) if way != "bare" else None
        command += ["--run-dir", str(run)] if run else ["--rows", str(rows)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if run:
            manifest = json.loads((run / "manifest.json").read_text())["stages"]["captions"]
            figures["accepted"] = manifest["balance"]["accepted"]
    return figures


# -- the table -------------------------------------------------------------------------------------------------


def compare(rounds: int) -> dict[str, float]:
    """CPU a row and rows/s of all ways, taking turns; the best round of each counts."""
    cpu: dict[str, list[float]] = {"bare": [], "ours": [], "checked": []}
    rate: dict[str, list[float]] = {way: [] for way in cpu}
    with server() as url:
        for _ in range(rounds):
            for way in cpu:
                few, many = measure(way, url, FEW), measure(way, url, MANY)
                cpu[way].append((many["cpu"] - few["cpu"]) / (MANY - FEW) * 1000)
                rate[way].append((MANY - FEW) / (many["seconds"] - few["seconds"]))
    print("| client | CPU ms a row | rows/s at 0 ms |\n|---|---|---|")
    for way in cpu:
        print(f"| {way} | {min(cpu[way]):.3f} | {max(rate[way]):.0f} |", flush=True)
    return {
        "cpu_ratio_to_bare": round(min(cpu["ours"]) / min(cpu["bare"]), 2),
        "rate_ratio_to_bare": round(max(rate["ours"]) / max(rate["bare"]), 2),
        "cpu_ratio_with_checks": round(min(cpu["checked"]) / min(cpu["bare"]), 2),
    }


def efficiency(limit: int, rows: int) -> float:
    """Answers/s over limit / latency (200 ms), of the seconds between the first two and the last of a run."""
    with server("--latency-s", 0.2, "--limit", limit) as url:
        measure("ours", url, rows, limit)
        seconds = stats(url)["seconds"]
    whole: list[int] = [seconds[str(second)].get("answered", 0) for second in range(2, len(seconds) - 2)]
    return round(sum(whole) / len(whole) / (limit / 0.2), 3)


def faults() -> dict[str, Any]:
    """Every twentieth answer spoiled, by kind: rows that are missing, requests too many, wall against undisturbed."""
    options = ("--latency-s", 0.02, "--limit", 64)
    with server(*options) as url:
        undisturbed = measure("ours", url, FAULT_ROWS)["seconds"]
    rows_missing, requests, wall = 0, 0.0, 0.0
    for kind in ("429", "503", "500", "reset"):
        with server(*options, "--fault", kind) as url:
            figures, account = measure("ours", url, FAULT_ROWS), stats(url)
        rows_missing += FAULT_ROWS - figures["accepted"]
        needed = FAULT_ROWS + account["faults"] + 1  # and the warm-up
        requests = max(requests, account["requests"] / needed - 1)
        wall = max(wall, figures["seconds"] / undisturbed)
    return {
        "fault_rows_missing": rows_missing,
        "fault_requests_too_many": round(requests, 4),
        "fault_wall": round(wall, 2),
    }


def capacity() -> dict[str, float]:
    """A limit of 128 that halves after 8 s and doubles after 28 s: from 10 s after each change on, how much of it is
    used, and which share of requests is refused."""
    with server("--latency-s", 0.2, "--limit", 128, "--capacity", "8:64,28:128") as url:
        measure("ours", url, 21_000, 128)
        seconds = stats(url)["seconds"]
    figures = {}
    for name, first, limit in (("halved", 18, 64), ("doubled", 38, 128)):
        window = [seconds[str(second)] for second in range(first, min(first + 8, len(seconds) - 1))]
        answered, refused = (sum(second.get(key, 0) for second in window) for key in ("answered", "refused"))
        figures[f"{name}_used"] = round(answered / len(window) / (limit / 0.2), 3)
        figures[f"{name}_refused"] = round(refused / (answered + refused), 4)
    return figures


def memory() -> dict[str, float]:
    """Peak resident set at 5,000 and at 100,000 rows."""
    with server() as url:
        few, many = measure("ours", url, 5_000)["peak_rss_mb"], measure("ours", url, 100_000)["peak_rss_mb"]
    return {"peak_rss_mb_at_5000": round(few), "peak_rss_mb": round(many), "rss_growth": round(many / few, 2)}


def kills(times: int) -> dict[str, Any]:
    """kill -9 at random moments of the command line, then the same command until it is done; sealed files are compared
    with those of a run that was left alone."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, server("--latency-s", 0.05, "--limit", KILL_IN_FLIGHT) as url:
        alone, killed = (make_run(Path(folder) / name, KILL_ROWS, KILL_SHARD_ROWS) for name in ("alone", "killed"))
        commands = {
            run: [sys.executable, "-m", "generation", "captions", "--config", str(run / "recipe.yaml")]
            + ["--run-dir", str(run), "--endpoint", url]
            for run in (alone, killed)
        }
        subprocess.run(commands[alone], check=True, capture_output=True)
        before = stats(url)["requests"]
        for _ in range(times):
            process = subprocess.Popen(commands[killed], stderr=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0.3, 1.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run(commands[killed], check=True, capture_output=True)
        requests = stats(url)["requests"] - before
        same = all(
            path.read_bytes() == (killed / path.relative_to(alone)).read_bytes()
            for path in sorted((alone / "captions").glob("*.parquet"))
        )
        balance = json.loads((killed / "manifest.json").read_text())["stages"]["captions"]["balance"]
    return {
        "rows_lost": KILL_ROWS - balance["accepted"] - balance["rejected"],
        "sealed_files_equal": same,
        "asked_again_per_kill": round((requests - KILL_ROWS) / times, 1),  # warm-ups included; 32 are in flight
    }


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=50)
    for hidden, kind in {"--way": str, "--url": str, "--run-dir": str, "--rows": int, "--in-flight": int}.items():
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return _one(options)
    result: dict[str, Any] = compare(options.rounds)
    result["efficiency_128"] = efficiency(128, 6_000)
    result["efficiency_512"] = efficiency(512, 20_000)
    for figures in (faults(), capacity(), memory(), kills(options.kills)):
        result |= figures
    print("| what | measured |\n|---|---|")
    for name, value in result.items():
        print(f"| {name} | {value} |")
    print(f"cores: {os.cpu_count()}\n{json.dumps(result)}")


if __name__ == "__main__":
    main()

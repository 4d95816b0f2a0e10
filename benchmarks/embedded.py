"""The embedded default through HTTP, as the pipeline uses it, beside the same engine called in-process.

    python -m benchmarks.embedded [--captions 48] [--in-flight 1 8 32] [--rounds 2]

Both ask the demo's caption prompt about the same seeds with the same sampling seeds. The two take turns, each in a
fresh process, and the better of its rounds counts, since the machine is shared. Memory is the peak resident set of the
process that holds the engine. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import psutil

from benchmarks.processes import in_fresh_process, peak_bytes
from generation.config import Embedded, Server
from generation.prompts import load_prompt
from generation.tgi.client import Endpoint
from generation.tgi.connect import connect
from generation.tgi.embedded import start_server
from generation.tgi.protocol import Question, Request

SEEDS = Path(__file__).parent.parent / "generation" / "seed_data" / "captions.txt"


def requests(count: int) -> list[Request]:
    """The demo's caption requests about the first bundled seeds."""
    question = Question(load_prompt("expand_caption_small"))
    seeds = SEEDS.read_text(encoding="utf-8").splitlines()[:count]
    return [Request(question, {"seed": seed}, number + 1) for number, seed in enumerate(seeds)]


def through_http(in_flight: int, count: int) -> dict[str, float]:
    """Captions/s, tokens/s and peak memory of the pipeline's way: child process, HTTP, our client."""

    async def run() -> dict[str, float]:
        async with connect(Server(embedded=Embedded(slots=in_flight))) as scheduler:
            child = psutil.Process().children()[0]
            await scheduler.warm_up(requests(1)[0].question)
            start = time.perf_counter()
            answers = await asyncio.gather(*map(scheduler.ask, requests(count)))
            seconds = time.perf_counter() - start
            tokens = sum(answer.completion_tokens for answer in answers)
            return _figures(seconds, count, tokens, peak_bytes(child.pid) / 1e6)

    return asyncio.run(run())


def in_process(in_flight: int, count: int) -> dict[str, float]:
    """The same with the engine in this process, called from as many threads."""
    server = start_server(Embedded(slots=in_flight))

    async def bodies() -> list[dict[str, object]]:
        async with aiohttp.ClientSession() as session:
            endpoint = Endpoint(server.listening_address, session)
            return [json.loads(await endpoint.body(request)) for request in requests(count)]

    asked = asyncio.run(bodies())
    server.handle_chat_completions(asked[0] | {"max_tokens": 16})
    with ThreadPoolExecutor(in_flight) as pool:
        start = time.perf_counter()
        replies = list(pool.map(server.handle_chat_completions, asked))
        seconds = time.perf_counter() - start
    tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
    return _figures(seconds, count, tokens, peak_bytes(psutil.Process().pid) / 1e6)


def _figures(seconds: float, count: int, tokens: int, peak_mb: float) -> dict[str, float]:
    return {"captions_per_s": count / seconds, "tokens_per_s": tokens / seconds, "peak_mb": peak_mb}


def _in_fresh_process(way: str, in_flight: int, count: int) -> dict[str, float]:
    options = ["--way", way, "--captions", count, "--in-flight", in_flight]
    figures: dict[str, float] = in_fresh_process("benchmarks.embedded", *options)
    return figures


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=("http", "in-process"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure = through_http if options.way == "http" else in_process
        print(json.dumps(measure(options.in_flight[0], options.captions)), flush=True)
        os._exit(0)  # the engine's threads do not end by themselves
    print("| in flight | way | captions/s | tokens/s | peak MB | HTTP / in-process |\n|---|---|---|---|---|---|")
    result: dict[str, object] = {}
    for in_flight in options.in_flight:
        count = options.captions if in_flight > 1 else max(8, options.captions // 3)
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for way in ("http", "in-process"):
                figures = _in_fresh_process(way, in_flight, count)
                best[way] = max(best.get(way, figures), figures, key=lambda f: f["captions_per_s"])
        ratio = best["http"]["captions_per_s"] / best["in-process"]["captions_per_s"]
        for way, f in best.items():
            row = f"{f['captions_per_s']:.2f} | {f['tokens_per_s']:.0f} | {f['peak_mb']:.0f}"
            print(f"| {in_flight} | {way} | {row} | {f'{ratio:.2f}' if way == 'http' else ''} |", flush=True)
        result[f"ratio_{in_flight}"] = round(ratio, 3)
        result |= {f"{way}_{in_flight}": {k: round(v, 2) for k, v in f.items()} for way, f in best.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

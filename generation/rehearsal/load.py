"""How many answers a second the stand-in server can give: its clients here do nothing but ask.

    python -m generation.rehearsal.load URL --run-dir RUN --config RECIPE --kind captions [--seconds 5]

The requests are those of the run's first rows, made beforehand. As many are in flight as the server takes, each on a
connection of its own, and of an answer nothing is read but its length. Prints one line of JSON.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from ..ask import BulkTask
from ..captions import caption_task
from ..config import Recipe, instruction_tasks
from ..instructions import conversation_task, task_pools
from ..recipe import load_recipe
from ..rundir import RunDir
from ..tgi.protocol import chat_frame
from .answers import CAPTIONS, KINDS
from .server import PROBE

REQUESTS = 2_000  # different ones, asked again and again
RAMP_S = 0.5  # until all connections are in step


def capacity(url: str, requests: list[bytes], in_flight: int, seconds: float) -> float:
    """Answers a second.

    Args:
        url: the server's.
        requests: whole HTTP requests, of which each asked once before any is asked again.
        in_flight: connections.
        seconds: how long it is measured, after ``RAMP_S``.
    """
    return uvloop.run(_ask(url, cycle(requests), in_flight, seconds))


def requests_of(run: RunDir, recipe: Recipe, kind: str) -> list[bytes]:
    """Requests of a kind about the first rows of a run, as bytes on the wire."""
    task: BulkTask[Any]
    if kind == CAPTIONS:
        task = caption_task(run, recipe.captions, recipe.random_seed)
    else:
        settings, pools = instruction_tasks(recipe)[kind], task_pools(recipe)
        task = conversation_task(run, kind, settings, recipe.instructions.attempts, recipe.random_seed, pools)
    frame = chat_frame(task.question, None)
    items: Iterator[Any] = (item for shard in run.sealed(task.source) for item in task.load(shard))
    bodies = [frame.fill(task.request(item, 1)) for item in islice(items, REQUESTS)]
    head = f"POST {PROBE.decode()} HTTP/1.1\r\nhost: stand-in\r\ncontent-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


async def _ask(url: str, requests: Iterator[bytes], in_flight: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    where = urlsplit(url)
    opened = [
        await loop.create_connection(lambda: _Client(requests), where.hostname or "", where.port or 0)
        for _ in range(in_flight)
    ]
    clients = [client for _, client in opened]
    await asyncio.sleep(RAMP_S)
    start, before = time.perf_counter(), sum(client.answers for client in clients)
    await asyncio.sleep(seconds)
    answers, took = sum(client.answers for client in clients) - before, time.perf_counter() - start
    for client in clients:
        client.transport.abort()
    return answers / took


class _Client(asyncio.Protocol):
    """One connection that asks as soon as it is answered."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests, self.answers, self.missing = requests, 0, 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.missing:  # the rest of an answer whose head has come
            self.missing -= len(data)
        else:
            self.buffer += data
            head, blank, rest = self.buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            self.missing = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(rest)
            self.buffer = b""
        if not self.missing:
            self.answers += 1
            self.transport.write(next(self.requests))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    requests = requests_of(RunDir(options.run_dir), load_recipe(options.config), options.kind)
    print(json.dumps({"answers_per_s": capacity(options.url, requests, options.in_flight, options.seconds)}))


if __name__ == "__main__":
    main()

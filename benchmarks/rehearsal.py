"""The whole pipeline at a size of your choice, with two stand-ins: the fake server, and random unit vectors.

    python -m benchmarks.rehearsal --rows 1200000 --folder /data/rehearsal [--keep] [--chaos]

Every command that a user gives runs as a process of its own: seeds, captions, instructions, transfer, both builders,
load_dataset, the loader, the report and verify are the real ones; only the text and the text embeddings are made up.
Prints seconds, CPU, peak memory of any process and disk of each step. By default only the table is kept. ``--chaos``
kills commands and the server, fills the disk, flips bits and deletes files on the way, and checks that both data sets
end up with the rows of an undisturbed run. The last line is one JSON object; the exit status is 1 if a count is wrong.
"""

import argparse
import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .processes import ROOT, Account, ServerProcess, fake_server, run_command, table

DIMENSION = 1280
_WORDS = """
small large old bright dusty striped wooden round narrow broken heavy painted rusty folded wet
red green blue yellow white brown grey orange purple black
kettle bicycle ladder violin lantern tractor canoe parasol bench bucket barrel cart drum kite clock
garden kitchen market harbour meadow station library workshop beach attic courtyard barn bakery
beside behind under near above
"""
_ADJECTIVES, _COLOURS, _THINGS, _PLACES, _SIDES = (line.split() for line in _WORDS.strip().splitlines())
TASKS = {"multiple_choice": 0.13755, "question_answering": 0.16007, "complex_reasoning": 0.08044}


def write_inputs(folder: Path, rows: int) -> Path:
    """Write ``rows`` different seeds and the recipe; return the recipe's path."""
    scenes = itertools.product(_ADJECTIVES, _COLOURS, _THINGS, _SIDES, _ADJECTIVES, _THINGS, _PLACES)
    with (folder / "seeds.txt").open("w", encoding="utf-8") as file:
        for a, colour, thing, side, b, other, place in itertools.islice(scenes, 0, None, max(1, 6_500_000 // rows)):
            file.write(f"A {a} {colour} {thing} {side} a {b} {other} in the {place}.\n")
    recipe = {
        "name": "rehearsal",
        "seeds": {"captions": [{"name": "made_up", "path": "seeds.txt", "license": "Apache-2.0", "limit": rows}]},
        "captions": {"words": [20, 483]},
        "instructions": {task: {"prompt": task, "fraction": share, "items": [2, 8]} for task, share in TASKS.items()},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def embed(run_dir: Path) -> None:
    """Write random unit vectors in place of text embeddings."""
    import torch

    from generation.stages import CAPTIONS, TEXT_EMBEDDINGS, text_hash
    from generation.store import Run
    from generation.vectors import write_vectors

    run = Run(run_dir)
    identity: dict[str, Any] = {"model": "random unit vectors of a rehearsal", "dimension": DIMENSION, "kind": "none"}
    identity |= {"joint_with_images": False, "pooling": None, "max_tokens": 512, "commit": None, "dtype": "float32"}
    run.begin(TEXT_EMBEDDINGS, identity)
    for shard in run.due(TEXT_EMBEDDINGS):
        rows = run.table(CAPTIONS, shard, ["id", "caption"])
        generator = torch.Generator().manual_seed(shard)
        raw = torch.randn(len(rows), DIMENSION, generator=generator) + 0.3
        vectors = torch.nn.functional.normalize(raw, dim=1).half()
        ids, hashes = rows["id"].to_pylist(), [text_hash(text) for text in rows["caption"].to_pylist()]
        run.commit(
            TEXT_EMBEDDINGS,
            shard,
            len(rows),
            lambda path, v=vectors, i=ids, h=hashes: write_vectors(path, v, i, h, {}),  # type: ignore[misc]
        )


def read_back(folder: Path) -> None:
    """Load both data sets and pass once through the loader; print the rows of each."""
    from datasets import load_dataset

    from generation.loader import UnicornDataset

    found = {}
    for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
        found[name] = len(load_dataset(str(folder / name), split="train", cache_dir=str(folder / "cache")))
    dataset = UnicornDataset(folder / "unicorn-1.2m")
    found["loader"] = sum(len(dataset[start]["conversations"]) > 0 for start in range(0, len(dataset), 97))
    print(json.dumps(found))


def steps(folder: Path, url: str) -> dict[str, list[object]]:
    """Return the commands of a run in their order."""
    run = folder / "run"
    place = ["--run-dir", run]
    recipe = ["--config", folder / "recipe.yaml", *place]
    return {
        "seeds": ["-m", "generation", "seeds", *recipe],
        "captions": ["-m", "generation", "captions", *place, "--endpoint", url],
        "instructions": ["-m", "generation", "instructions", *place, "--endpoint", url],
        "embed (random)": ["-m", "benchmarks.rehearsal", "--embed", run],
        "transfer": ["-m", "generation", "transfer", *place],
        "build 1.2m": ["unicorn_1_2m.py", *place, "--output", folder / "unicorn-1.2m"],
        "build 471k": ["unicorn_471k_instruction.py", *place, "--output", folder / "unicorn-471k-instruction"],
        "load": ["-m", "benchmarks.rehearsal", "--read", folder],
        "report": ["-m", "generation", "report", run],
        "verify": ["-m", "generation", "verify", run],
        "verify 1.2m": ["-m", "generation", "verify", folder / "unicorn-1.2m"],
    }


def rehearse(folder: Path, rows: int) -> dict[str, Any]:
    """Run all steps, print the table, and return the figures."""
    write_inputs(folder, rows)
    lines: list[list[Any]] = []
    accounts: dict[str, Account] = {}
    with fake_server("--slots", 512) as url:
        for name, arguments in steps(folder, url).items():
            account = accounts[name] = run_command(*arguments)
            if account.status:
                raise SystemExit(f"{name} failed with {account.status}:\n{account.output[-3000:]}")
            disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
            lines.append(
                [name, round(account.seconds, 1), round(account.cpu_s, 1), round(account.peak_mb), round(disk, 2)]
            )
            print(f"{name}: {account.seconds:.1f} s", file=sys.stderr, flush=True)
    print(table(["step", "seconds", "CPU s", "peak MB", "disk GB so far"], lines))
    asking = accounts["captions"].seconds + accounts["instructions"].seconds
    figures = {
        "rows": rows,
        "seconds_without_asking": round(sum(account.seconds for account in accounts.values()) - asking, 1),
        "seconds_asking": round(asking, 1),
        "peak_mb": round(max(account.peak_mb for account in accounts.values())),
        **counts(folder, rows),
    }
    print(json.dumps(figures))
    return figures


def counts(folder: Path, rows: int) -> dict[str, Any]:
    """Return the counts of a finished run; every seed must have ended once."""
    from generation.stages import CAPTIONS, INSTRUCTIONS, SEEDS
    from generation.store import Run

    run = Run(folder / "run")
    made = {stage.name: sum(record.rows for record in run.records(stage).values()) for stage in (SEEDS, CAPTIONS)}
    rejected = sum(sum(record.counts["rejected"].values()) for record in run.records(CAPTIONS).values())
    conversations = sum(record.rows for stage in INSTRUCTIONS.values() for record in run.records(stage).values())
    right = made["seeds"] == rows and made["captions"] + rejected == rows
    return {**made, "rejected": rejected, "conversations": conversations, "counts_right": right}


def chaos(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Make the data sets twice, the second time under faults; return the faults and whether both have equal rows."""
    draw, done = random.Random(seed), []
    calm, stormy = folder / "calm", folder / "stormy"
    for one in (calm, stormy):
        one.mkdir()
        write_inputs(one, rows)
    server = ServerProcess("--slots", 64, "--latency-s", 0.02)
    try:
        for arguments in steps(calm, server.url).values():
            if (account := run_command(*arguments)).status:
                raise SystemExit(account.output[-3000:])
        for name, arguments in steps(stormy, server.url).items():
            for fault in draw.choices(("kill", "full disk"), (3, 1), k=draw.randint(0, 3)):  # then given again
                done.append(f"{fault}: {name}")
                interrupt(fault, arguments, draw)
            timer = threading.Timer(draw.uniform(1.5, 3), server.restart, [1.0])
            if name in ("captions", "instructions"):
                done.append(f"server killed: {name}")
                timer.start()
            account = run_command(*arguments)
            if timer.is_alive():
                timer.join()
            if account.status:
                raise SystemExit(f"after {done}: {name} failed:\n{account.output[-3000:]}")
            if name in ("captions", "transfer"):
                done.append(f"damage: {damage(stormy, draw).relative_to(stormy)}")
                run_command("-m", "generation", "verify", stormy / "run", "--fix")
                for again, repeated in steps(stormy, server.url).items():
                    run_command(*repeated)
                    if again == name:
                        break
    finally:
        server.kill()
    equal = {
        name: digest(calm / name) == digest(stormy / name) for name in ("unicorn-1.2m", "unicorn-471k-instruction")
    }
    return {"faults": done, "equal": equal, **counts(stormy, rows)}


def interrupt(fault: str, arguments: list[object], draw: random.Random) -> None:
    """Start a command and end it with kill -9 after some seconds, or let no file of it grow beyond some kB."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if fault == "full disk":
        size = draw.randrange(1_000, 60_000)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    else:
        time.sleep(draw.uniform(0.5, 4))
        process.send_signal(signal.SIGKILL)
    process.wait()


def damage(folder: Path, draw: random.Random) -> Path:
    """Flip a bit of a file of the run, or delete it; return its path."""
    files = sorted(path for path in (folder / "run").rglob("0*.*") if path.suffix in (".parquet", ".json"))
    victim = draw.choice(files)
    content = bytearray(victim.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.5:
        victim.write_bytes(content)
    else:
        victim.unlink()
    return victim


def digest(built: Path) -> str:
    """Return the sha256 of all Parquet rows of a built data set, in their order."""
    import hashlib

    import pyarrow.parquet as pq

    found = hashlib.sha256()
    for path in sorted(built.rglob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches():
            found.update(json.dumps(batch.to_pylist(), default=str).encode())
    return found.hexdigest()


def main() -> int:
    """Rehearse, or run one step of a rehearsal in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the run and the data sets")
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embed", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embed or options.read:
        embed(options.embed) if options.embed else read_back(options.read)
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.chaos:
            figures = chaos(folder, options.rows, options.seed)
            print(json.dumps(figures))
            return 0 if figures["counts_right"] and all(figures["equal"].values()) else 1
        return 0 if rehearse(folder, options.rows)["counts_right"] else 1
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

"""The report of a large run: rows a second and peak memory, beside a bare read of the same files.

    python -m benchmarks.report [--rows 50000 --folder DIR]

A run of synthetic captions with d = 1280 is made as for `benchmarks.builder` (not timed), and conversations about two
in five of its captions, as many as the paper has. Then, each a fresh process whose start-up (imports) is left out:
``report`` is the command's whole work (hashes of all files, lengths, variety, neighbours of 300 rows among all, gap
diagnostics, figures, page); ``read`` hashes the same files, decodes the captions and maps the vectors through a sum,
and nothing else. Anonymous memory (what a mapped file is not) is sampled every 5 ms. Ends with one line of JSON.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.builder import SHARD_ROWS, make_run
from benchmarks.processes import Memory, in_fresh_process
from generation.config import TASKS
from generation.files import file_sha256
from generation.records import INSTRUCTION_SCHEMA, row_id
from generation.rundir import RunDir
from generation.tensors import open_shard

ITEMS = 7  # of a conversation
FRACTIONS = (0.1375, 0.16, 0.08)  # of the captions, task by task: 171K, 199K and 100K of 1.24M


def add_conversations(path: Path) -> None:
    """Multi-turn conversations about some captions of a run that ``make_run`` has made."""
    run, generator = RunDir(path), random.Random(1)
    turns = [
        {"from": kind, "value": " ".join(generator.choices(["what", "some", "words", "here"], k=length))}
        for _ in range(ITEMS)
        for kind, length in (("human", 20), ("gpt", 12))
    ]
    for task, fraction in zip(TASKS, FRACTIONS, strict=True):
        stage = f"instructions/{task}"
        run.begin(stage, {"model": {"id": "synthetic"}})
        for shard in run.sealed("captions"):
            rows = sorted(generator.sample(range(SHARD_ROWS), int(fraction * SHARD_ROWS)))
            columns = {
                "id": [row_id(shard, row) for row in rows],
                "task": [task] * len(rows),
                "conversations": [turns] * len(rows),
                "caption_shard": [shard] * len(rows),
                "caption_row": rows,
            }
            missing = {
                field.name: pa.nulls(len(rows), field.type)
                for field in INSTRUCTION_SCHEMA
                if field.name not in columns
            }
            table = pa.table(
                {name: (columns | missing)[name] for name in INSTRUCTION_SCHEMA.names}, INSTRUCTION_SCHEMA
            )
            run.seal_tables(stage, shard, table, None, rejected_by_reason={}, prompt_tokens=0, completion_tokens=0)


def report(run: Path, output: Path) -> dict[str, float]:
    """Our page; seconds by the clock and of CPU, peak anonymous memory in MB, and bytes of the page."""
    from generation.report.command import write_report

    with Memory() as memory:
        start = time.perf_counter()
        cpu = time.process_time()
        page = write_report(run, output)[0]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_anon_mb": memory.peak, "bytes": page.stat().st_size}


def read(path: Path, _: Path) -> dict[str, float]:
    """The baseline: hashes, decoded captions, one pass over the vectors."""
    with Memory() as memory:
        start = time.perf_counter()
        for file in sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".safetensors")):
            file_sha256(file)
            if file.parent.name == "captions":
                with pq.ParquetFile(file) as table:
                    table.read(["caption"], use_threads=False)
            elif "embeddings" in str(file.parent):
                vectors = open_shard(file).embeddings
                for first in range(0, len(vectors), 4096):
                    torch.sum(vectors[first : first + 4096].float())
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_anon_mb": memory.peak}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, run, output = options.child
        print(json.dumps({"report": report, "read": read}[what](Path(run), Path(output))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_run(folder / "run", options.rows)
        add_conversations(folder / "run")
        baseline = in_fresh_process("benchmarks.report", "--child", "read", folder / "run", folder / "report")
        ours = in_fresh_process("benchmarks.report", "--child", "report", folder / "run", folder / "report")
    result = {
        "seconds": round(ours["seconds"], 1),
        "cpu_seconds": round(ours["cpu_seconds"], 1),
        "rows_per_s": round(options.rows / ours["seconds"]),
        "ratio_to_read": round(ours["seconds"] / baseline["seconds"], 2),
        "peak_anon_mb": round(ours["peak_anon_mb"]),
        "page_bytes": round(ours["bytes"]),
        "rows": options.rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

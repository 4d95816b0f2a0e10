"""The builders, against a ``GeneratorBasedBuilder`` of the same rows, and a built directory against a bare reader.

    python -m benchmarks.builder [--rows 60000 --generator-rows 6000 --folder DIR]

A run of synthetic captions with d = 1280 is made (not timed), then each of these is a fresh process: ``build`` is
`unicorn_1_2m.py`'s whole work (both configs, vectors joined and proven by hash, Parquet, companions, manifest, card);
``generator`` yields the rows of `with_embeddings` one by one as Python values, the way most builders are written, on
fewer rows. Start-up (imports) is left out of both. Then, from the built directory: batches of 256 random rows of
`with_embeddings` in torch format with dtype float16, against a hand-written pyarrow reader of the same Arrow cache;
and the time from nothing to the first row of a stream over HTTP on loopback. Anonymous memory is sampled in a
run of its own. Ends with one line of JSON.
"""

import argparse
import http.server
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.processes import Memory, in_fresh_process
from benchmarks.transfer import DIMENSION
from generation.config import Recipe, Seeds
from generation.prompts import load_prompt
from generation.records import CAPTION_SCHEMA, SEED_SCHEMA, row_id
from generation.rundir import RunDir
from generation.tensors import byte_rows, text_hashes
from generation.transfer.stage import transfer
from unicorn_1_2m import Unicorn12M

MODULE = "benchmarks.builder"
SHARD_ROWS = 10_000
BATCHES = 100


def make_run(path: Path, rows: int) -> None:
    """A finished run: captions of about 129 words, random unit vectors, the transfer made for real."""
    run = RunDir(path, create=True)
    vocabulary = [f"word{number}" for number in range(5000)]
    generator, drawn = random.Random(0), torch.Generator().manual_seed(0)
    model, prompt = {"id": "synthetic"}, load_prompt("expand_caption")
    run.begin("seeds", {})
    run.note("seeds", sources={"synthetic": {"license": "Apache-2.0", "rows": rows}})
    run.begin("captions", {"model": model, "prompt": {"name": prompt.name, "sha256": prompt.sha256}})
    run.note("captions", demonstration=False)
    encoder = {"model": "synthetic", "pooling": "none", "dimension": DIMENSION, "max_tokens": 512}
    run.begin("text_embeddings", encoder | {"joint_with_images": False})
    for shard in range(rows // SHARD_ROWS):
        ids = [row_id(shard, row) for row in range(SHARD_ROWS)]
        captions = [" ".join(generator.choices(vocabulary, k=generator.randint(80, 178))) for _ in ids]
        own = {"id": ids, "seed": ["a seed of some words"] * SHARD_ROWS, "source": ["synthetic"] * SHARD_ROWS}
        run.seal_tables("seeds", shard, _table(SEED_SCHEMA, own), None)
        columns = own | {
            "caption": captions,
            "instruction": ["<image>\nDescribe the image in detail."] * SHARD_ROWS,
            "prompt": [prompt.name] * SHARD_ROWS,
            "model": ["synthetic"] * SHARD_ROWS,
        }
        counts = {"rejected_by_reason": {}, "prompt_tokens": 0, "completion_tokens": 0}
        run.seal_tables("captions", shard, _table(CAPTION_SCHEMA, columns), None, **counts)
        vectors = torch.nn.functional.normalize(torch.randn(SHARD_ROWS, DIMENSION, generator=drawn), dim=1).half()
        tensors = {
            "embeddings": vectors,
            "ids": byte_rows("".join(ids).encode(), 10),
            "text_sha256": text_hashes(captions),
        }
        facts = {
            "encoder": run.stage("text_embeddings")["fingerprint"],
            "captions_sha256": run.record("captions", shard)["sha256"],
            "shard": shard,
        }
        target = run.shard_path("text_embeddings", shard)
        run.seal_tensors("text_embeddings", target, tensors, facts, rows=SHARD_ROWS, truncated=0)
    run.note("seeds", complete=True)
    transfer(run, Recipe(name="benchmark", directory=path, seeds=Seeds()))


def _table(schema: pa.Schema, columns: dict[str, list[Any]]) -> pa.Table:
    rows = len(columns["id"])
    return pa.table({field.name: columns.get(field.name, pa.nulls(rows, field.type)) for field in schema}, schema)


def build_it(run: Path, output: Path) -> dict[str, float]:
    """Seconds of our build."""
    from generation.builders.build import build

    start = time.perf_counter()
    build(Unicorn12M, run, output)
    return {"seconds": time.perf_counter() - start}


def memory(run: Path, output: Path) -> dict[str, float]:
    """Peak anonymous memory of our build in MB, in a run of its own, since sampling costs time."""
    with Memory() as sampled:
        build_it(run, output)
    return {"peak_anon_mb": sampled.peak}


def generate(run_dir: Path, cache: Path, rows: int) -> dict[str, float]:
    """The baseline: the same rows of ``with_embeddings`` as Python values."""
    import datasets
    from safetensors.numpy import load_file

    run = RunDir(run_dir)
    ours = Unicorn12M(config_name="with_embeddings", run_dir=str(run_dir), hash="x", cache_dir=str(cache / "ours"))

    class Generator(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=ours.info.features)

        def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator(name="train", gen_kwargs={"shards": list(range(rows // SHARD_ROWS + 1))})]

        def _generate_examples(self, shards: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
            for shard in shards:
                text = ours.text_table(run, "captions", shard).to_pylist()
                vectors = load_file(run.shard_path("image_embeddings/unicorn", shard))["embeddings"]
                for row in text[: rows - shard * SHARD_ROWS]:
                    yield row["id"], row | {"image_embedding": vectors[row["embedding_row"]]}

    start = time.perf_counter()
    Generator(hash="x", cache_dir=str(cache / "generator")).download_and_prepare()
    return {"seconds": time.perf_counter() - start}


def read(output: Path, cache: Path) -> dict[str, float]:
    """Random batches of torch float16 from ``load_dataset``, and from the same Arrow files by hand, in turns."""
    import datasets

    data = datasets.load_dataset(str(output), "with_embeddings", split="train", cache_dir=str(cache))
    formatted = data.with_format("torch", columns=["image_embedding"], dtype=torch.float16)
    parts = [pa.ipc.open_stream(pa.memory_map(file["filename"])).read_all() for file in data.cache_files]
    column = pa.concat_tables(parts)["image_embedding"]
    generator = np.random.default_rng(0)
    seconds = {"datasets": 0.0, "arrow": 0.0}
    for number in range(BATCHES):
        rows = generator.integers(0, len(data), 256)
        for way in ("datasets", "arrow") if number % 2 else ("arrow", "datasets"):
            start = time.perf_counter()
            if way == "datasets":
                batch = formatted[rows]["image_embedding"]
            else:
                taken = pa.concat_arrays([column.slice(int(row), 1).chunk(0) for row in rows])
                batch = torch.from_numpy(taken.flatten().to_numpy().reshape(256, -1))
            seconds[way] += time.perf_counter() - start
            assert batch.dtype == torch.float16 and batch.shape == (256, DIMENSION)
    return {f"{way}_rows_per_s": BATCHES * 256 / value for way, value in seconds.items()}


def stream(output: Path) -> dict[str, float]:
    """Seconds to the first row of a stream over HTTP on loopback."""
    import datasets

    handler = type("Handler", (_Ranges,), {"folder": output})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = sorted(path.name for path in (output / "data").iterdir())
        files = [f"http://127.0.0.1:{server.server_port}/data/{name}" for name in names]
        start = time.perf_counter()
        next(iter(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)))
        seconds = time.perf_counter() - start
        server.shutdown()
    return {"seconds": seconds}


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder whole or by range, as the Hub does."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        size = path.stat().st_size
        asked = self.headers.get("Range")
        first, last = asked.removeprefix("bytes=").split("-") if asked else ("0", "")
        start, end = int(first), min(int(last or size), size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(end - start + 1))

    def log_message(self, *_: Any) -> None:
        pass


_PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "build": build_it,
    "memory": memory,
    "generate": generate,
    "read": read,
    "stream": stream,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--generator-rows", type=int, default=6_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *rest = options.child
        found = _PARTS[what](*(int(value) if value.isdigit() else Path(value) for value in rest))
        print(json.dumps(found), flush=True)
        os._exit(0)  # a stream that is left early may abort the process (apache/arrow#45214)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_run(folder / "run", options.rows)
        built = in_fresh_process(MODULE, "--child", "build", folder / "run", folder / "built")
        peak = in_fresh_process(MODULE, "--child", "memory", folder / "run", folder / "built")["peak_anon_mb"]
        size = sum(path.stat().st_size for path in (folder / "built").rglob("*") if path.is_file())
        loop = in_fresh_process(
            MODULE, "--child", "generate", folder / "run", folder / "cache", options.generator_rows
        )
        first = in_fresh_process(MODULE, "--child", "stream", folder / "built")
        shutil.rmtree(folder / "run")
        batches = in_fresh_process(MODULE, "--child", "read", folder / "built", folder / "cache")
    ours, theirs = options.rows / built["seconds"], options.generator_rows / loop["seconds"]
    result = {
        "rows_per_s": round(ours),
        "ratio_to_generator": round(ours / theirs, 1),
        "peak_anon_mb": round(peak),
        "bytes_per_row": round(size / options.rows),
        "batches_to_arrow": round(batches["datasets_rows_per_s"] / batches["arrow_rows_per_s"], 3),
        "batch_rows_per_s": round(batches["datasets_rows_per_s"]),
        "stream_first_row_s": round(first["seconds"], 2),
        "rows": options.rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

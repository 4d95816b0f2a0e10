"""The builders, against a ``GeneratorBasedBuilder`` of the same rows.

    python -m benchmarks.builder [--rows 60000 --generator-rows 6000 --folder DIR]

A run of synthetic captions with d = 1280 is made (not timed), then each of these is a fresh process, start left out:
``search`` finds the near-duplicates (once a run, both data sets use them); ``build`` is all the rest of
`unicorn_1_2m.py`: both configs, vectors joined and proven by hash, Parquet, links, manifest, card; ``prepare`` puts
``with_embeddings`` into the cache of ``datasets`` by our class, and ``generate`` does so with a builder that yields
the rows one by one as Python values, the way most builders are written, on fewer rows. Anonymous memory is sampled in
a build of its own. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import torch

from generation.builders.build import build
from generation.builders.finished import FinishedRun
from generation.files import parquet
from generation.prompts import load_prompt
from generation.recipe import parse_recipe
from generation.rows import CAPTION_SCHEMA, SEED_SCHEMA, row_id, text_hash
from generation.stages import CAPTIONS, SEEDS, TEXT_EMBEDDINGS
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from generation.vectors import write_vectors
from unicorn_1_2m import Unicorn12M

DIMENSION = 1280
SHARD_ROWS = 10_000


def make_run(path: Path, rows: int) -> None:
    """Make a finished run: captions of about 129 words, random unit vectors, the transfer made for real."""
    recipe = parse_recipe({"name": "benchmark", "directory": str(path.parent)}, "benchmark")
    run, words = Run(path, recipe, create=True), [f"word{number}" for number in range(5000)]
    drawn, generator, prompt = random.Random(0), torch.Generator().manual_seed(0), load_prompt("expand_caption")
    run.begin(SEEDS)
    run.begin(CAPTIONS, {"prompt": prompt.name, "prompt_sha256": prompt.sha256, "model": "synthetic"})
    encoder = {"model": "synthetic", "commit": None, "pooling": "none", "dimension": DIMENSION, "max_tokens": 512}
    run.begin(TEXT_EMBEDDINGS, encoder | {"joint_with_images": False})
    for shard in range(rows // SHARD_ROWS):
        ids = [row_id(shard, row) for row in range(SHARD_ROWS)]
        captions = [" ".join(drawn.choices(words, k=drawn.randint(80, 178))) for _ in ids]
        own = {"id": ids, "caption": captions, "words": [text.count(" ") + 1 for text in captions]}
        same = {"seed": "a seed of some words", "source": "synthetic", "license": "Apache-2.0", "model": "synthetic"}
        same |= {"instruction": "<image>\nDescribe the image in detail.", "prompt": prompt.name}
        columns = own | {name: [text] * SHARD_ROWS for name, text in same.items()}
        for stage, schema in ((SEEDS, SEED_SCHEMA), (CAPTIONS, CAPTION_SCHEMA)):
            arrays = {field.name: columns.get(field.name, pa.nulls(SHARD_ROWS, field.type)) for field in schema}
            run.commit(stage, shard, SHARD_ROWS, parquet(pa.table(arrays, schema)))
        vectors = torch.nn.functional.normalize(torch.randn(SHARD_ROWS, DIMENSION, generator=generator), dim=1).half()
        hashes = [text_hash(text) for text in captions]
        write = partial(write_vectors, vectors=vectors, ids=ids, input_hashes=hashes, metadata={})
        run.commit(TEXT_EMBEDDINGS, shard, SHARD_ROWS, write)
    make_image_embeddings(run)


def search(run: Path, folder: Path, rows: int) -> dict[str, float]:
    """Find the near-duplicates of the run."""
    start = time.perf_counter()
    FinishedRun(run, None, False).duplicates  # noqa: B018
    return {"seconds": time.perf_counter() - start}


def build_it(run: Path, folder: Path, rows: int) -> dict[str, float]:
    """Build the data set."""
    start = time.perf_counter()
    build(Unicorn12M, run, folder / "built")
    return {"seconds": time.perf_counter() - start}


def memory(run: Path, folder: Path, rows: int) -> dict[str, float]:
    """Return the peak of anonymous memory of a build in MB, above that before it."""
    process, peak, done = psutil.Process(), 0, threading.Event()

    def anonymous() -> int:
        found = process.memory_info()
        return int(found.rss - found.shared)

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous())

    thread, before = threading.Thread(target=sample), anonymous()
    thread.start()
    build(Unicorn12M, run, folder / "built")
    done.set()
    thread.join()
    return {"peak": (peak - before) / 1e6}


def _ours(run: Path, cache: Path) -> Unicorn12M:
    return Unicorn12M(config_name="with_embeddings", run_dir=str(run), cache_dir=str(cache))


def prepare(run: Path, folder: Path, rows: int) -> dict[str, float]:
    """Put ``with_embeddings`` into the cache of ``datasets`` by our class."""
    start = time.perf_counter()
    _ours(run, folder / "cache").download_and_prepare()
    return {"seconds": time.perf_counter() - start}


def generate(run: Path, folder: Path, rows: int) -> dict[str, float]:
    """The baseline: the same rows as Python values."""
    from safetensors.numpy import load_file

    ours = _ours(run, folder / "cache_ours")

    class Generator(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=ours.info.features)

        def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator(name="train", gen_kwargs={"shards": list(range(-(-rows // SHARD_ROWS)))})]

        def _generate_examples(self, shards: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
            for shard in shards:
                text = ours.rows(ours.run, shard).select([name for name in ours.info.features if name in names])
                vectors = load_file(run / f"image_embeddings/unicorn/{shard:05d}.safetensors")["vectors"]
                for row in text.slice(0, rows - shard * SHARD_ROWS).to_pylist():
                    yield row["id"], row | {"image_embedding": vectors[row["embedding_row"]]}

    names = set(ours.info.features) - {"image_embedding"}
    start = time.perf_counter()
    Generator(hash="x", cache_dir=str(folder / "cache_generator")).download_and_prepare()
    return {"seconds": time.perf_counter() - start}


PARTS = {"search": search, "build": build_it, "memory": memory, "prepare": prepare, "generate": generate}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--generator-rows", type=int, default=6_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        datasets.disable_progress_bars()
        part, run, folder, rows = options.child
        print(json.dumps(PARTS[part](Path(run), Path(folder), int(rows))), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, found = Path(name), {}
        make_run(folder / "run", options.rows)
        for part in PARTS:
            rows = options.generator_rows if part == "generate" else options.rows
            command = [
                sys.executable,
                "-m",
                "benchmarks.builder",
                "--child",
                part,
                str(folder / "run"),
                name,
                str(rows),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
            found[part] = json.loads(done.stdout.splitlines()[-1])
    rates = {part: options.rows / found[part]["seconds"] for part in ("search", "build", "prepare")}
    theirs = options.generator_rows / found["generate"]["seconds"]
    result = {
        "rows_per_s": round(rates["build"]),
        "ratio_to_generator": round(rates["prepare"] / theirs, 1),
        "build_to_generator": round(rates["build"] / theirs, 1),
        "peak_anon_mb": round(found["memory"]["peak"]),
        "search_rows_per_s": round(rates["search"]),
        "rows": options.rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The builders, against a ``GeneratorBasedBuilder`` of the same rows.

    python -m benchmarks.builder [--rows 60000 --generator-rows 6000 --folder DIR]

A run of synthetic captions with d = 1280 is made (not timed), then each of these is a fresh process, start left out:
``search`` finds the near-duplicates (once a run, if asked for); ``build`` is all the rest of
`unicorn_1_2m.py`: both configs, vectors joined and proven by hash, Parquet, links, manifest, card; ``prepare`` puts
``with_embeddings`` into the cache of ``datasets`` by our class, and ``generate`` does so with a builder that yields
the rows one by one as Python values, the way most builders are written, on fewer rows. Anonymous memory is sampled in
a build of its own. Ends with one line of JSON.
"""

import argparse
import json
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
from safetensors.numpy import load_file

from generation.builders.build import build
from generation.builders.finished import FinishedRun
from generation.prompts import load_prompt
from generation.recipe import parse_recipe
from generation.stages import CAPTION_SCHEMA, CAPTIONS, SEED_SCHEMA, SEEDS, TEXT_EMBEDDINGS, row_id, text_hash
from generation.store import Run, parquet
from generation.transfer.stage import make_image_embeddings
from generation.vectors import write_vectors
from unicorn_1_2m import Unicorn12M

DIMENSION = 1280
SHARD_ROWS = 10_000


def make_run(path: Path, rows: int) -> None:
    """Make a finished run: captions of about 129 words, random unit vectors, the transfer made for real."""
    run = Run(path, parse_recipe({"name": "benchmark", "directory": str(path.parent)}, "benchmark"), create=True)
    words, drawn, generator = [f"word{number}" for number in range(5000)], random.Random(0), torch.Generator()
    generator.manual_seed(0)
    prompt, encoder = load_prompt("expand_caption"), {"model": "synthetic", "commit": None, "pooling": "none"}
    run.begin(SEEDS)
    run.begin(CAPTIONS, {"prompt": prompt.name, "prompt_sha256": prompt.sha256, "model": "synthetic"})
    run.begin(TEXT_EMBEDDINGS, encoder | {"dimension": DIMENSION, "max_tokens": 512, "joint_with_images": False})
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


def measure_memory(run: Path, folder: Path) -> float:
    """Return the peak of anonymous memory of a build in MB, above that before it."""
    process, sizes, done = psutil.Process(), list[int](), threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            found = process.memory_info()
            sizes.append(found.rss - found.shared)

    thread = threading.Thread(target=sample)
    thread.start()
    time.sleep(0.1)
    before = sizes[0]
    build(Unicorn12M, run, folder / "built")
    done.set()
    thread.join()
    return (max(sizes) - before) / 1e6


def generate(run: Path, folder: Path, rows: int) -> None:
    """The baseline: the same rows as Python values."""
    ours = Unicorn12M(config_name="with_embeddings", run_dir=str(run), cache_dir=str(folder / "b"))
    names = [name for name in ours.info.features if name != "image_embedding"]

    class Generator(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=ours.info.features)

        def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator(name="train", gen_kwargs={"shards": list(range(-(-rows // SHARD_ROWS)))})]

        def _generate_examples(self, shards: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
            for shard in shards:
                text = ours.rows(ours.run, shard).select(names).slice(0, rows - shard * SHARD_ROWS)
                vectors = load_file(run / f"image_embeddings/unicorn/{shard:05d}.safetensors")["vectors"]
                for row in text.to_pylist():
                    yield row["id"], row | {"image_embedding": vectors[row["embedding_row"]]}

    Generator(hash="x", cache_dir=str(folder / "c")).download_and_prepare()


def do(part: str, run: Path, folder: Path, rows: int) -> float:
    """Do one part in this process; return the seconds that it takes, or of ``memory`` the MB."""
    datasets.disable_progress_bars()
    start = time.perf_counter()
    match part:
        case "search":
            FinishedRun(run, None, False, search=True).duplicates  # noqa: B018
        case "build":
            build(Unicorn12M, run, folder / "built")
        case "memory":
            return measure_memory(run, folder)
        case "prepare":
            options = {"run_dir": str(run), "cache_dir": str(folder / "a")}
            Unicorn12M(config_name="with_embeddings", **options).download_and_prepare()
        case "generate":
            generate(run, folder, rows)
    return time.perf_counter() - start


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help=f"in steps of {SHARD_ROWS}")
    parser.add_argument("--generator-rows", type=int, default=6_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        part, run, folder, rows = options.child
        print(do(part, Path(run), Path(folder), int(rows)), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found, run = dict[str, float](), f"{name}/run"
        make_run(Path(run), options.rows)
        for part in ("search", "build", "memory", "prepare", "generate"):
            rows = options.generator_rows if part == "generate" else options.rows
            command = [sys.executable, "-m", "benchmarks.builder", "--child", part, run, name, str(rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[part] = float(done.stdout.splitlines()[-1])
    rates = {part: options.rows / found[part] for part in ("search", "build", "prepare")}
    theirs = options.generator_rows / found["generate"]
    result = {
        "rows_per_s": round(rates["build"]),
        "ratio_to_generator": round(rates["prepare"] / theirs, 1),
        "build_to_generator": round(rates["build"] / theirs, 1),
        "peak_anon_mb": round(found["memory"]),
        "search_rows_per_s": round(rates["search"]),
        "rows": options.rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

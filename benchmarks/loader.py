"""The loader compared with the least that it could cost: a gather from one memory-mapped array and one pyarrow take.

    python -m benchmarks.loader [--rows 200000]

Makes a built data set of random unit rows (d = 1280, float16, 10,000 a shard) and captions of 129 words in a temporary
folder (1.4 GB at 200,000 rows). The baseline has the same vectors in one .npy and the same captions in one Arrow file,
mapped. The ways take turns, each with 256 random rows at a time; the median batch counts. ``rows_per_s`` is of whole
rows: vectors, captions and parsed conversations. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader

from generation.files import sha256
from generation.loader import Collate, UnicornDataset, UnicornStream
from generation.stages import CONVERSATION, row_id, text_hash
from generation.transfer import fit, parse_transfer
from generation.vectors import write_vectors

DIMENSION, SHARD_ROWS, WORDS = 1280, 10_000, 129
BATCH, BATCHES = 256, 1_000
Rows = np.ndarray[Any, Any]


def make(folder: Path, rows: int) -> None:
    """Write a built data set into ``folder / "set"``, and the two files of the baseline."""
    built = folder / "set"
    for name in ("data", "image_embeddings/unicorn", "transfer"):
        (built / name).mkdir(parents=True)
    whole = np.lib.format.open_memmap(folder / "all.npy", "w+", np.float16, (rows, DIMENSION))
    captions, total = list[pa.Array](), torch.zeros(DIMENSION, dtype=torch.float64)
    for shard, first in enumerate(range(0, rows, SHARD_ROWS)):
        count, generator = min(SHARD_ROWS, rows - first), np.random.default_rng(shard)
        drawn = torch.from_numpy(generator.standard_normal((count, DIMENSION), np.float32))
        vectors = torch.nn.functional.normalize(drawn).half()
        whole[first : first + count] = vectors.numpy()
        total += vectors.double().sum(0)
        texts = _captions(generator, count)
        captions.append(pa.array(texts, pa.large_string()))
        _write_shard(built, shard, vectors, texts)
    fit(parse_transfer("unicorn"), total / rows, rows).save(built / "transfer" / "unicorn.safetensors")
    names = sorted(str(path.relative_to(built)) for path in built.rglob("*") if path.is_file())
    files = {name: {"bytes": (built / name).stat().st_size, "sha256": sha256(built / name)} for name in names}
    shards = {name: facts["sha256"] for name, facts in files.items() if name.startswith("image_embeddings")}
    manifest = {"name": "unicorn-1.2m", "version": "1.0.0", "digest": "0", "method": "unicorn", "files": files}
    (built / "manifest.json").write_text(json.dumps(manifest | {"vectors": shards}))
    batch = pa.record_batch([pa.concat_arrays(captions)], ["caption"])
    with pa.OSFile(str(folder / "all.arrow"), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _captions(generator: np.random.Generator, rows: int) -> list[str]:
    words = ["".join(generator.choice(list("abcdefghijklmnoprstuvw"), length)) for length in range(2, 10)] * 8
    return [" ".join([words[pick] for pick in row]) for row in generator.integers(0, len(words), (rows, WORDS))]


def _write_shard(built: Path, shard: int, vectors: torch.Tensor, texts: list[str]) -> None:
    ids = [row_id(shard, row) for row in range(len(texts))]
    path = built / "image_embeddings" / "unicorn" / f"{shard:05d}.safetensors"
    write_vectors(path, vectors, ids, [text_hash(text) for text in texts], {})
    human = {"from": "human", "value": "<image>\nDescribe the image in detail."}
    columns = {
        "id": ids,
        "caption": texts,
        "conversations": pa.array([[human, {"from": "gpt", "value": text}] for text in texts], CONVERSATION),
        "embedding_shard": pa.array([shard] * len(texts), pa.int32()),
        "embedding_row": pa.array(range(len(texts)), pa.int32()),
    }
    pq.write_table(pa.table(columns), built / "data" / f"train-{shard:05d}.parquet", compression="zstd")


def bare(folder: Path) -> Callable[[Rows], Any]:
    """Return the baseline's way to fetch rows: (torch float16 [k, d], Arrow captions)."""
    vectors = np.load(folder / "all.npy", mmap_mode="r")
    captions = pa.ipc.open_file(pa.memory_map(str(folder / "all.arrow"))).get_batch(0).column("caption")
    return lambda rows: (torch.from_numpy(vectors[rows]), captions.take(pa.array(rows)))


def rates(ways: dict[str, Callable[[Rows], Any]], rows: int) -> dict[str, float]:
    """Return the rows a second of each way."""
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(BATCHES):
        for name, way in ways.items():
            batch = generator.integers(0, rows, BATCH)
            start = time.perf_counter()
            way(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / float(np.median(values)) for name, values in seconds.items()}


def epoch_rate(dataset: UnicornDataset, workers: int) -> float:
    """Return the rows a second of an epoch through a DataLoader and ``Collate``, start of the workers included."""
    collate: Any = Collate(lambda chats: {"turns": torch.tensor([len(chat) for chat in chats])})
    start = time.perf_counter()
    for _ in DataLoader(UnicornStream(dataset, BATCH), batch_size=None, num_workers=workers, collate_fn=collate):
        pass
    return len(dataset) / (time.perf_counter() - start)


def anonymous_mb() -> float:
    """Return the memory of this process that no file stands behind, in MB."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="(default: %(default)s)")
    rows = parser.parse_args().rows
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, rows)
        start = time.perf_counter()
        UnicornDataset(folder / "set", cache=folder / "cache")
        first, start, before = time.perf_counter() - start, time.perf_counter(), anonymous_mb()
        dataset = UnicornDataset(folder / "set", cache=folder / "cache")
        again, memory = time.perf_counter() - start, anonymous_mb() - before
        moved = UnicornDataset(folder / "set", transfer="none", cache=folder / "cache")
        ways = {"bare": bare(folder), "rows": dataset.__getitems__, "rows, moved by none": moved.__getitems__}
        found = rates(ways, rows)
        through = {workers: epoch_rate(dataset, workers) for workers in (0, 2)}
    print(f"opened first in {first:.1f} s, then in {again:.2f} s; {memory:.0f} MB of anonymous memory")
    for name, rate in found.items():
        print(f"{name:20} {rate:10,.0f} rows/s, {rate / found['bare']:.2f} of the bare gather and take")
    print("through a DataLoader:", ", ".join(f"{n} workers {rate:,.0f} rows/s" for n, rate in through.items()))
    figures = {
        "rows": rows,
        "rows_per_s": round(found["rows"]),
        "ratio_to_memmap": round(found["rows"] / found["bare"], 3),
        "rows_per_s_loader": {str(workers): round(rate) for workers, rate in through.items()},
        "anonymous_mb": round(memory),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

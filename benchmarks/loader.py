"""The loader beside the least that it could cost: a bare gather from one memory-mapped array and one pyarrow take.

    python -m benchmarks.loader [--rows 200000]

Makes a built data set of random unit rows (d = 1280, float16, 10,000 a shard as in the recipe) and 129-word captions
in a temporary folder, about 1.4 GB: real Parquet files and safetensors shards. The baseline has the same vectors in
one .npy and the same captions in one batch of an Arrow file, both mapped. The ways take turns batch by batch, each on
256 random rows of its own; the median time of a batch counts, so that other processes count little. Ends with one line
of JSON.
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

from generation.builders.build import TEXT_ROW_GROUP
from generation.builders.columns import pair_conversations
from generation.loader import Batch, Collate, UnicornDataset, UnicornStream
from generation.manifest import FORMAT
from generation.records import row_id
from generation.tensors import byte_rows, text_hashes, write_shard

DIMENSION, SHARD_ROWS, WORDS = 1280, 10_000, 129
BATCH, BATCHES = 256, 2_000
STAGE = "image_embeddings/unicorn"


def make(folder: Path, rows: int) -> None:
    """A built data set in ``folder / "set"``; the baseline's two files beside it."""
    (folder / "set" / "data").mkdir(parents=True)
    (folder / "set" / STAGE).mkdir(parents=True)
    whole = np.lib.format.open_memmap(folder / "all.npy", "w+", np.float16, (rows, DIMENSION))
    captions = []
    for shard, first in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - first)
        generator = np.random.default_rng(shard)
        vectors = torch.from_numpy(generator.standard_normal((count, DIMENSION), np.float32))
        vectors = torch.nn.functional.normalize(vectors).half()
        whole[first : first + count] = vectors.numpy()
        texts = _captions(generator, count)
        captions.append(pa.array(texts, pa.large_string()))
        _write(folder / "set", shard, vectors, texts)
    files = {
        kind: {f"{kind}/{path.name}": {"bytes": path.stat().st_size, "sha256": ""} for path in root.iterdir()}
        for kind, root in {kind: folder / "set" / kind for kind in (STAGE, "data")}.items()
    }
    encoder = {"fingerprint": {"dimension": DIMENSION}, "files": {}}
    stages = {"text_embeddings": encoder, STAGE: {"files": files[STAGE]}}
    manifest = {"format": FORMAT, "stages": stages, "built": {"files": files["data"]}}
    (folder / "set" / "manifest.json").write_text(json.dumps(manifest))
    batch = pa.record_batch([pa.concat_arrays(captions)], ["caption"])
    with pa.OSFile(str(folder / "all.arrow"), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _captions(generator: np.random.Generator, rows: int) -> list[str]:
    words = ["".join(generator.choice(list("abcdefghijklmnoprstuvw"), length)) for length in range(2, 10)] * 8
    picks = generator.integers(0, len(words), (rows, WORDS)).tolist()
    return [" ".join([words[pick] for pick in row]) for row in picks]


def _write(folder: Path, shard: int, vectors: torch.Tensor, texts: list[str]) -> None:
    ids = [row_id(shard, row) for row in range(len(texts))]
    name = f"{STAGE}/{shard:05d}.safetensors"
    companions = {
        "ids": byte_rows("".join(ids).encode(), 10),
        "text_sha256": text_hashes(texts),
    }
    facts = {"method": "unicorn", "shard": shard, "noise": None}
    write_shard(folder / name, [vectors], (len(texts), DIMENSION), companions, facts)
    human = pa.chunked_array([["<image>\nDescribe the image in detail."] * len(texts)])
    columns = {
        "id": ids,
        "caption": texts,
        "conversations": pair_conversations(human, pa.chunked_array([texts])),
        "embedding_shard": pa.array([shard] * len(texts), pa.int32()),
        "embedding_row": pa.array(range(len(texts)), pa.int32()),
    }
    path = folder / "data" / f"train-{shard:05d}.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=TEXT_ROW_GROUP)


def bare(folder: Path) -> Callable[[np.ndarray], Any]:
    """The baseline's fetch of some rows: (torch float16 [k, d], Arrow captions)."""
    vectors = np.load(folder / "all.npy", mmap_mode="r")
    captions = pa.ipc.open_file(pa.memory_map(str(folder / "all.arrow"))).get_batch(0).column("caption")
    return lambda rows: (torch.from_numpy(vectors[rows]), captions.take(pa.array(rows)))


def fetch(dataset: UnicornDataset, use: Callable[[Batch], Any]) -> Callable[[np.ndarray], Any]:
    """The loader's."""

    def of(rows: np.ndarray) -> Any:
        batch = dataset.__getitems__(rows)
        return batch.embeds, use(batch)

    return of


def rates(ways: dict[str, Callable[[np.ndarray], Any]], rows: int) -> dict[str, float]:
    """Rows a second of each way, by the median time of a batch; the ways take turns."""
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(BATCHES):
        for name, way in ways.items():
            batch = generator.integers(0, rows, BATCH)
            start = time.perf_counter()
            way(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / float(np.median(values)) for name, values in seconds.items()}


def lengths(chats: list[Any]) -> dict[str, torch.Tensor]:
    """A tokenizer that costs nothing."""
    return {"input_ids": torch.tensor([len(chat) for chat in chats])}


def loaded(dataset: UnicornDataset, workers: int) -> float:
    """Rows a second of an epoch through a DataLoader and ``Collate``, worker start-up and conversations included."""
    collate: Any = Collate(lengths)
    stream = UnicornStream(dataset, BATCH)
    start = time.perf_counter()
    for _ in DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=collate):
        pass
    return len(dataset) / (time.perf_counter() - start)


def anonymous_mb() -> float:
    """Memory of this process that no file stands behind."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) / 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="(default: %(default)s)")
    rows = parser.parse_args().rows
    torch.set_num_threads(1)  # as in a DataLoader's worker
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, rows)
        start = time.perf_counter()
        UnicornDataset(folder / "set", cache=folder / "cache")
        first, start, before = time.perf_counter() - start, time.perf_counter(), anonymous_mb()
        dataset = UnicornDataset(folder / "set", cache=folder / "cache")
        again, memory = time.perf_counter() - start, anonymous_mb() - before
        found = rates(
            {
                "bare": bare(folder),
                "captions": fetch(dataset, Batch.captions),
                "captions as str": fetch(dataset, lambda batch: batch.captions().to_pylist()),
                "conversations": fetch(dataset, Batch.conversations),
            },
            rows,
        )
        through = {workers: loaded(dataset, workers) for workers in (0, 2)}
    print(f"opened first in {first:.1f} s, then in {again:.2f} s; {memory:.0f} MB of anonymous memory")
    print("\n| vectors and | rows/s | of the bare gather and take |\n|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:,.0f} | {rate / found['bare']:.2f} |")
    print("\nthrough a DataLoader:", ", ".join(f"{n} workers {rate:,.0f} rows/s" for n, rate in through.items()))
    figures = {
        "rows": rows,
        "rows_per_s": round(found["captions"]),
        "ratio_to_memmap": round(found["captions"] / found["bare"], 3),
        "rows_per_s_loader": {str(workers): round(rate) for workers, rate in through.items()},
        "anonymous_mb": round(memory),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

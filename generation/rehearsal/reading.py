"""What a user does with built data sets, each as a process of its own that prints one line of JSON.

    python -m generation.rehearsal.reading load|stream|train FOLDER

FOLDER holds both sets. ``load``: ``load_dataset`` of both configs of both, and rows drawn at random. ``stream``: the
rows of both with their vectors, those of the conversations joined from the captions' set. ``train``: batches for a
trainer, with their texts, from ``generation.loader`` in two worker processes.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

BATCH, BATCHES = 256, 2_000  # of the trainer
DRAWN = 1_000  # rows that are read from each config
STREAMED = 50_000  # rows of each set
SETS = ("unicorn-1.2m", "unicorn-471k-instruction")
CONFIGS = ("default", "with_embeddings")


def load(folder: Path) -> dict[str, Any]:
    """``load_dataset`` as the README shows it; ``loaded`` has the rows by data set and config."""
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    loaded = {}
    for name in SETS:
        for config in CONFIGS:
            rows = datasets.load_dataset(str(folder / name), config, split="train", cache_dir=str(folder / "cache"))
            chosen = np.random.default_rng(0).integers(0, len(rows), min(DRAWN, len(rows)))
            assert all(row["caption"] and row["conversations"] for row in rows.select(chosen))
            loaded[f"{name} {config}"] = len(rows)
    return {"rows": sum(loaded.values()), "loaded": loaded}


def stream(folder: Path) -> dict[str, Any]:
    """The builders' streams, from the built directories alone."""
    from unicorn_1_2m import Unicorn12M
    from unicorn_471k_instruction import Unicorn471KInstruction

    captions, conversations = (str(folder / name) for name in SETS)
    options: dict[str, Any] = {"config_name": "with_embeddings", "hash": "rehearsal"}
    streams = (
        Unicorn12M(data_dir=captions, **options),
        Unicorn471KInstruction(data_dir=conversations, embeddings=captions, **options),
    )
    rows = 0
    for builder in streams:
        for row in islice(builder.as_streaming_dataset(split="train"), STREAMED):
            assert len(row["image_embedding"]) and row["caption"]
            rows += 1
    return {"rows": rows}


def train(folder: Path) -> dict[str, Any]:
    """An epoch, or its first ``BATCHES`` batches."""
    from typing import cast

    import torch
    from torch.utils.data import DataLoader

    from ..loader import Collate, UnicornDataset, UnicornStream

    torch.set_num_threads(1)
    collate: Any = Collate(_lengths)
    rows = 0
    for name in SETS:
        dataset = UnicornDataset(folder / name, embeddings=folder / SETS[0], cache=folder / "texts")
        batches = DataLoader(UnicornStream(dataset, BATCH), batch_size=None, num_workers=2, collate_fn=collate)
        for batch in islice(batches, BATCHES // len(SETS)):
            rows += len(cast(torch.Tensor, batch["embeds"]))
    return {"rows": rows}


def _lengths(chats: list[Any]) -> dict[str, Any]:
    """A tokenizer that costs nothing."""
    import torch

    return {"input_ids": torch.tensor([len(chat) for chat in chats])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "stream", "train"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(json.dumps({"load": load, "stream": stream, "train": train}[options.what](options.folder)))


if __name__ == "__main__":
    main()

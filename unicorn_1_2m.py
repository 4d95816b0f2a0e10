"""Unicorn-1.2M: dense captions with synthetic image embeddings, to pre-train vision-language models.

    python unicorn_1_2m.py --run-dir RUN --output unicorn-1.2m

writes a directory that ``load_dataset("unicorn-1.2m")`` reads. The class is a builder of ``datasets``: over a run
(``run_dir=``), a built directory or a pinned revision (``data_dir="hf://datasets/USER/unicorn-1.2m@v1.0.0"``).
"""

import sys
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Value

from dataset_card import render_card
from generation.builders.builder import UnicornBuilder, captions_of
from generation.builders.command import main
from generation.builders.finished import FinishedRun

_TEXT = Value("string")


class Unicorn12M(UnicornBuilder):
    """Dense captions with synthetic image embeddings, made from text only."""

    NAME = "unicorn-1.2m"
    INSTRUCTIONS = False
    card = staticmethod(partial(render_card, "unicorn_1_2m.md", "Unicorn-1.2M"))

    COLUMNS: ClassVar[dict[str, Any]] = {
        "id": _TEXT,  # shard and row of the seed, five digits each; it never changes
        "caption": _TEXT,
        "conversations": [{"from": _TEXT, "value": _TEXT}],  # an instruction with <image>, and the caption
        "seed": _TEXT,  # the short caption that was expanded
        "source": ClassLabel(names=[]),  # of the seed; the run names them
        "license": _TEXT,  # of the seed
        "words": Value("int32"),  # of the caption
        "judge": Value("float32"),  # 1: a second model found the seed's facts in the caption; null: not judged
        "duplicate_group": _TEXT,  # id of the first caption that is nearly equal; null: none is, or not searched
        "prompt": _TEXT,  # "<prompt>@<version>"
        "model": _TEXT,  # that wrote the caption
        "embedding_shard": Value("int32"),  # image_embeddings/<method>/<shard>.safetensors
        "embedding_row": Value("int32"),
    }

    def rows(self, run: FinishedRun, shard: int) -> pa.Table:
        """Return the captions of a shard. The conversation is the instruction and the caption, a human and a gpt turn,
        ``list<struct<from, value>>``; an imported row keeps its own."""
        table = captions_of(run, shard)
        rows, place = len(table), table.column_names.index("conversations")
        own = table["conversations"].combine_chunks()
        texts = pa.concat_arrays([*table["instruction"].chunks, *table["caption"].chunks])
        speakers = pa.array(["human", "gpt"]).take(np.repeat([0, 1], rows))
        order = np.arange(2 * rows).reshape(2, rows).T.reshape(-1)  # 0, n, 1, n + 1, ...
        turns = pa.StructArray.from_arrays([speakers, texts], ["from", "value"]).take(order)
        pairs = pa.ListArray.from_arrays(np.arange(0, 2 * rows + 1, 2, dtype=np.int32), turns)
        kept = own.is_valid().to_numpy(zero_copy_only=False)
        chosen = pa.concat_arrays([pairs, own]).take(np.arange(rows) + rows * kept) if kept.any() else pairs
        return table.set_column(place, "conversations", chosen)


if __name__ == "__main__":
    sys.exit(main(Unicorn12M))

"""Unicorn-471K-Instruction: conversations about the captions of Unicorn-1.2M, for instruction tuning.

    python unicorn_471k_instruction.py --run-dir RUN --output unicorn-471k-instruction

writes a directory that ``load_dataset("unicorn-471k-instruction")`` reads; its vectors are those of Unicorn-1.2M. The
class is a builder of ``datasets``, over a run, a built directory or a pinned revision of the Hub.
"""

import sys
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Value

from dataset_card import render_card
from generation.builders.builder import UnicornBuilder, conversations_of
from generation.builders.command import main
from generation.builders.finished import FinishedRun
from generation.stages import TASKS, stable_hash

_TEXT = Value("string")


class Unicorn471KInstruction(UnicornBuilder):
    """Multi-turn visual instructions with synthetic image embeddings, made from text only."""

    NAME = "unicorn-471k-instruction"
    INSTRUCTIONS = True
    card = staticmethod(partial(render_card, "unicorn_471k_instruction.md", "Unicorn-471K-Instruction"))

    COLUMNS: ClassVar[dict[str, Any]] = {
        "id": _TEXT,  # of the caption in Unicorn-1.2M
        "caption": _TEXT,
        "conversations": [{"from": _TEXT, "value": _TEXT}],  # <image> in the first human turn only
        "task": ClassLabel(names=list(TASKS)),
        "question_types": [_TEXT],  # one a question
        "source": ClassLabel(names=[]),  # of the caption's seed; the run names them
        "words": Value("int32"),  # of the caption
        "grounded": Value("float32"),  # mean share of a question's and answer's words that the caption supports
        "judge": Value("float32"),  # share of the questions that a second model confirmed; null: not judged
        "duplicate_group": _TEXT,  # of the caption, as in Unicorn-1.2M
        "prompt": _TEXT,  # "<prompt>@<version>"
        "model": _TEXT,  # that wrote the conversation
        "embedding_shard": Value("int32"),  # of Unicorn-1.2M: image_embeddings/<method>/<shard>.safetensors
        "embedding_row": Value("int32"),
    }

    def rows(self, run: FinishedRun, shard: int) -> pa.Table:
        """Return the conversations about the captions of a shard, the tasks mixed by a drawn order."""
        table = conversations_of(run, shard)
        shares = (fmean(one) if one else None for one in table["grounded"].to_pylist())
        table = table.drop_columns("grounded").append_column("grounded", pa.array(shares, pa.float32()))
        keys = zip(table["id"].to_pylist(), table["task"].to_pylist(), strict=True)
        return table.take(np.argsort([stable_hash("order", *key) for key in keys]))


if __name__ == "__main__":
    sys.exit(main(Unicorn471KInstruction))

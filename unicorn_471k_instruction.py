"""Unicorn-471K-Instruction: conversations about the captions of Unicorn-1.2M, for instruction tuning.

    python unicorn_471k_instruction.py --run-dir RUN --output unicorn-471k-instruction

makes a directory that ``load_dataset("unicorn-471k-instruction")`` reads. Its embeddings are those of Unicorn-1.2M:
``embedding_shard`` and ``embedding_row`` of a row say where; ``with_embeddings`` has them joined.
"""

import sys
from typing import Any

import datasets
import pyarrow as pa

from dataset_card import render_card
from dataset_card.croissant import render_croissant
from generation.builders.build import Built
from generation.builders.builder import UnicornBuilder, source_label
from generation.builders.columns import class_label
from generation.builders.command import main
from generation.config import TASKS
from generation.rundir import RunDir

_TASK = datasets.ClassLabel(names=list(TASKS))


class Unicorn471KInstruction(UnicornBuilder):
    """One row a conversation."""

    NAME = "unicorn-471k-instruction"
    TITLE = "Unicorn-471K-Instruction"
    DESCRIPTION = "Multi-turn visual instructions with synthetic image embeddings, made out of text alone."

    def own_features(self) -> dict[str, Any]:
        """Which of the three tasks the conversation is; `id` is the caption's."""
        return {"task": _TASK}

    def parts(self, run: RunDir) -> list[tuple[str, int]]:
        """Every instruction shard that holds a row, task after task."""
        stages = [f"instructions/{task}" for task in TASKS]
        finished = [(stage, shard) for stage in stages for shard in run.finished(stage, "captions")]
        return [(stage, shard) for stage, shard in finished if run.record(stage, shard)["rows"]]

    def text_table(self, run: RunDir, stage: str, shard: int) -> pa.Table:
        """An instruction shard, joined with its captions by row number."""
        table = run.table(stage, shard)
        captions = run.table("captions", shard).take(table["caption_row"])
        return pa.table(
            {
                "id": table["id"],
                "caption": captions["caption"],
                "conversations": table["conversations"],
                "task": class_label(table["task"], _TASK),
                "source": class_label(captions["source"], source_label(run.manifest)),
                "prompt": table["prompt"],
                "model": table["model"],
                "embedding_shard": table["caption_shard"],
                "embedding_row": table["caption_row"],
            }
        )

    @classmethod
    def documents(cls, run: RunDir, built: Built) -> dict[str, str]:
        """See ``dataset_card/unicorn_471k_instruction.md``."""
        return {
            "README.md": render_card("unicorn_471k_instruction.md", cls.TITLE, run, built),
            "croissant.json": render_croissant(cls.TITLE, cls.DESCRIPTION, run, built),
        }


if __name__ == "__main__":
    sys.exit(main(Unicorn471KInstruction))

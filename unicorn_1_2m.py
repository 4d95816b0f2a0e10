"""Unicorn-1.2M: dense captions and their synthetic image embeddings, for the pre-training of vision-language models.

    python unicorn_1_2m.py --run-dir RUN --output unicorn-1.2m

makes a directory that ``load_dataset("unicorn-1.2m")`` reads. The class is a builder of its own:
``Unicorn12M(config_name="with_embeddings", run_dir="RUN", hash="run").download_and_prepare()``.
"""

import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from dataset_card import render_card
from generation.builders import BuiltConfig, RunBuilder, class_label, main, pair_conversations, transfer_method
from generation.rundir import RunDir


class Unicorn12M(RunBuilder):
    """One row a caption; see ``text_features``."""

    TITLE = "Unicorn-1.2M"
    DESCRIPTION = "Dense captions with synthetic image embeddings, made out of text alone."

    def text_features(self, run: RunDir) -> dict[str, Any]:
        """The row format of LLaVA, Bunny and the original, and where each row comes from."""
        return {
            "id": datasets.Value("string"),
            "caption": datasets.Value("string"),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            "seed": datasets.Value("string"),
            "source": source_label(run),
            "prompt": datasets.Value("string"),
            "model": datasets.Value("string"),
            "embedding_shard": datasets.Value("int32"),
            "embedding_row": datasets.Value("int32"),
        }

    def parts(self, run: RunDir) -> list[tuple[str, int]]:
        """Every caption shard that holds a row."""
        shards = run.finished("captions", "seeds")
        return [("captions", shard) for shard in shards if run.record("captions", shard)["rows"]]

    def text_table(self, run: RunDir, stage: str, shard: int) -> pa.Table:
        """A caption shard with its conversations and the place of its embeddings."""
        table = run.table(stage, shard)
        return pa.table(
            {
                "id": table["id"],
                "caption": table["caption"],
                "conversations": pair_conversations(table["instruction"], table["caption"]),
                "seed": table["seed"],
                "source": class_label(table["source"], source_label(run)),
                "prompt": table["prompt"],
                "model": table["model"],
                "embedding_shard": pa.array([shard] * len(table), pa.int32()),
                "embedding_row": pa.array(range(len(table)), pa.int32()),
            }
        )


def source_label(run: RunDir) -> datasets.ClassLabel:
    """The seed sources of a run, in alphabetical order."""
    return datasets.ClassLabel(names=sorted(run.stage("seeds")["sources"]))


def companions(run: RunDir) -> list[Path]:
    """The safetensors shards for trainers, and the statistics that real images must be treated with."""
    method = transfer_method(run)
    stage = f"image_embeddings/{method}"
    shards = run.finished(stage, "captions")
    paths = [run.path / "transfer" / f"{method}.safetensors", *(run.shard_path(stage, shard) for shard in shards)]
    return [run.verified(stage, path) for path in paths]


def card(run: RunDir, built: list[BuiltConfig]) -> str:
    """The data set's README."""
    return render_card("unicorn_1_2m.md", Unicorn12M.TITLE, run, built)


if __name__ == "__main__":
    sys.exit(main(Unicorn12M, companions, card))

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
from dataset_card.croissant import render_croissant
from generation.builders.build import Built
from generation.builders.builder import UnicornBuilder, source_label
from generation.builders.columns import class_label, conversations_of
from generation.builders.command import main
from generation.builders.places import transfer_method
from generation.rundir import RunDir


class Unicorn12M(UnicornBuilder):
    """One row a caption."""

    NAME = "unicorn-1.2m"
    TITLE = "Unicorn-1.2M"
    DESCRIPTION = "Dense captions with synthetic image embeddings, made out of text alone."

    def own_features(self) -> dict[str, Any]:
        """The seed that the caption was expanded from."""
        return {"seed": datasets.Value("string")}

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
                "conversations": conversations_of(table),
                "seed": table["seed"],
                "source": class_label(table["source"], source_label(run.manifest)),
                "prompt": table["prompt"],
                "model": table["model"],
                "embedding_shard": pa.array([shard] * len(table), pa.int32()),
                "embedding_row": pa.array(range(len(table)), pa.int32()),
            }
        )

    @staticmethod
    def companions(run: RunDir) -> list[Path]:
        """The safetensors shards for trainers, and the statistics that real images must be treated with."""
        method = transfer_method(run.manifest, run.path)
        stage = f"image_embeddings/{method}"
        shards = run.finished(stage, "captions")
        paths = [run.path / "transfer" / f"{method}.safetensors", *(run.shard_path(stage, shard) for shard in shards)]
        return run.all_verified(stage, paths)

    @classmethod
    def documents(cls, run: RunDir, built: Built) -> dict[str, str]:
        """See ``dataset_card/unicorn_1_2m.md``."""
        return {
            "README.md": render_card("unicorn_1_2m.md", cls.TITLE, run, built),
            "croissant.json": render_croissant(cls.TITLE, cls.DESCRIPTION, run, built),
        }


if __name__ == "__main__":
    sys.exit(main(Unicorn12M))

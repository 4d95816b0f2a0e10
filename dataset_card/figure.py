"""The figure of a card: one record from seed to vector, as a PNG file with the same bytes for the same record."""

import textwrap
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")  # Okabe and Ito's, which colour-blind readers tell apart
_SHOWN = 330  # characters of a text


def draw_record(directory: Path, row: dict[str, Any]) -> None:
    """Draw seed (if the row has one), caption, conversation and vector of a row, one box each.

    Args:
        directory: of the built data set; writes ``figures/record.png`` in it.
        row: one of the first rows of its config ``default``.
    """
    from matplotlib.figure import Figure

    with pq.ParquetFile(min((directory / "with_embeddings").glob("*.parquet"))) as file:
        batches = file.iter_batches(columns=["id", "image_embedding"], use_threads=False)
        own = (batch.filter(pc.equal(batch["id"], row["id"])) for batch in batches)
        vector = next(batch for batch in own if len(batch))["image_embedding"][0].as_py()
    turns = [f"{turn['from']}: {turn['value']}" for turn in row["conversations"][:4]]
    shown = ", ".join(f"{value:+.3f}" for value in vector[:6])
    boxes = {
        "seed": row.get("seed") or "",
        "caption": textwrap.shorten(row["caption"], _SHOWN, placeholder=" ..."),
        "conversation": textwrap.shorten(" / ".join(turns), _SHOWN, placeholder=" ..."),
        "vector": f"[{shown}, ...]   {len(vector)} numbers, in place of an image",
    }
    parts = [(name, textwrap.wrap(text, 96)) for name, text in boxes.items() if text]
    height = 0.26 * sum(len(lines) for _, lines in parts) + 0.42 * len(parts)
    figure = Figure(figsize=(9, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9), ylim=(0, height))
    axes.axis("off")
    top = height - 0.1
    for (name, lines), colour in zip(parts, _COLOURS, strict=False):
        bottom = top - 0.26 * len(lines) - 0.16
        axes.fill_between((1.3, 8.9), bottom, top, color=colour, alpha=0.18, linewidth=0)
        axes.text(1.15, (top + bottom) / 2, name, ha="right", va="center", fontsize=11, weight="bold", color="#333333")
        # Text of a run is data: "$" must not begin a formula.
        axes.text(1.45, top - 0.1, "\n".join(lines), va="top", fontsize=10, linespacing=1.35, parse_math=False)
        top = bottom - 0.2
    (directory / "figures").mkdir(exist_ok=True)
    figure.savefig(directory / "figures" / "record.png", dpi=110, facecolor="white", metadata={"Software": None})

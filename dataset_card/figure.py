"""The figure of a card: one record from seed to vector, as a PNG file with the same bytes for the same record."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")  # Okabe and Ito's, which colour-blind readers tell apart
_SHOWN = {"caption": 330, "conversation": 330}  # characters


def draw_record(path: Path, row: dict[str, Any], vector: Sequence[float]) -> None:
    """Draw seed (if the row has one), caption, conversation and vector of a row, one box each.

    Args:
        path: the file.
        row: of the data set.
        vector: its embedding [d].
    """
    turns = [f"{turn['from']}: {turn['value']}" for turn in row["conversations"][:4]]
    shown = ", ".join(f"{value:+.3f}" for value in vector[:6])
    boxes = {
        "seed": row.get("seed") or "",
        "caption": textwrap.shorten(row["caption"], _SHOWN["caption"], placeholder=" ..."),
        "conversation": textwrap.shorten(" / ".join(turns), _SHOWN["conversation"], placeholder=" ..."),
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
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})

"""The rows that a card shows, and its figure: typical rows that repeat nothing of the prompts."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

CANDIDATES = 2_000  # rows to choose from
ECHO_WORDS = 6  # in a row, as in a prompt's few-shot example: an echo
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")  # Okabe and Ito's, which colour-blind readers tell apart
_SHOWN = 330  # characters of a text in the figure


def first_rows(folder: Path, features: Features) -> list[dict[str, Any]]:
    """Return the first rows of a config, names in place of class labels."""
    with pq.ParquetFile(min(folder.glob("*.parquet"))) as file:
        rows: list[dict[str, Any]] = next(file.iter_batches(CANDIDATES, use_threads=False)).to_pylist()
    labels = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    return [row | {name: label.int2str(row[name]) for name, label in labels.items()} for row in rows]


def choose_examples(rows: list[dict[str, Any]], prompts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one of the rows (at least one) of each task, or of captions: of middling length, not refused by the
    judge, without an echo of the prompts' few-shot examples or lists of question types."""
    few_shots = [example for prompt in prompts.values() for example in prompt.examples]
    shown = {run for one in few_shots for text in (*one.values.values(), str(one.answer)) for run in _runs(text)}
    types = [name.lower() for prompt in prompts.values() for name in prompt.question_types]

    def is_sound(text: str, row: dict[str, Any]) -> bool:
        listed = sum(name in text.lower() for name in types)
        return row["judge"] in (None, 1.0) and listed < 3 and not shown & _runs(text)

    chosen = []
    for task in sorted({str(row.get("task")) for row in rows}):
        own = {"\n".join([row["caption"], *_turns(row)]): row for row in rows if str(row.get("task")) == task}
        ordered = sorted([text for text, row in own.items() if is_sound(text, row)] or own, key=len)
        chosen.append(own[ordered[len(ordered) // 2]])
    return chosen


def _turns(row: dict[str, Any]) -> list[str]:
    return [f"{turn['from']}: {turn['value']}" for turn in row["conversations"]]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(ECHO_WORDS)), strict=False))


def draw_record(directory: Path, row: dict[str, Any]) -> None:
    """Draw seed (if there is one), caption, conversation and vector of a row of ``default`` as boxes, into
    ``directory/figures/record.png``: the same bytes for the same row."""
    from matplotlib.figure import Figure

    with pq.ParquetFile(min((directory / "with_embeddings").glob("*.parquet"))) as file:
        batches = file.iter_batches(columns=["id", "image_embedding"], use_threads=False)
        own = (batch.filter(pc.equal(batch["id"], row["id"])) for batch in batches)
        vector = next(batch for batch in own if len(batch))["image_embedding"][0].as_py()
    shown = ", ".join(f"{value:+.3f}" for value in vector[:6])
    boxes = {
        "seed": row.get("seed") or "",
        "caption": textwrap.shorten(row["caption"], _SHOWN, placeholder=" ..."),
        "conversation": textwrap.shorten(" / ".join(_turns(row)[:4]), _SHOWN, placeholder=" ..."),
        "vector": f"[{shown}, ...]   {len(vector)} numbers, in place of an image",
    }
    parts = [(name, textwrap.wrap(text, 96)) for name, text in boxes.items() if text]
    height = 0.26 * sum(len(lines) for _, lines in parts) + 0.42 * len(parts)
    figure = Figure(figsize=(9, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 9), ylim=(0, height))
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

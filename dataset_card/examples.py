"""The rows that a card shows: typical ones that repeat nothing of the prompts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import ClassLabel, Features

CANDIDATES = 2_000  # rows to choose from
ECHO_WORDS = 6  # in a row, as in a prompt's few-shot example: an echo


def first_rows(folder: Path, features: Features) -> list[dict[str, Any]]:
    """Return the first rows of a config, names in place of class labels."""
    with pq.ParquetFile(min(folder.glob("*.parquet"))) as file:
        rows: list[dict[str, Any]] = next(file.iter_batches(CANDIDATES, use_threads=False)).to_pylist()
    labels = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    return [row | {name: label.int2str(row[name]) for name, label in labels.items()} for row in rows]


def choose_examples(rows: list[dict[str, Any]], prompts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of each task, or one row of captions: of middling length, confirmed by the judge if there was one,
    without an echo of a few-shot example or a list of question types.

    Args:
        rows: candidates, at least one.
        prompts: those that wrote them.
    """
    few_shots = [example for prompt in prompts.values() for example in prompt.examples]
    shown = {run for one in few_shots for text in (*one.values.values(), str(one.answer)) for run in _runs(text)}
    types = [name.lower() for prompt in prompts.values() for name in prompt.question_types]
    chosen = []
    for task in dict.fromkeys(row.get("task") for row in rows):
        own = [row for row in rows if row.get("task") == task]
        sound = [row for row in own if row["judge"] in (None, 1.0) and not shown & _runs(_whole(row))]
        sound = [row for row in sound if sum(name in _whole(row).lower() for name in types) < 3]
        ordered = sorted(sound or own, key=lambda row: len(_whole(row)))
        chosen.append(ordered[len(ordered) // 2])
    return sorted(chosen, key=lambda row: str(row.get("task")))


def _whole(row: dict[str, Any]) -> str:
    return " ".join([row["caption"], *(turn["value"] for turn in row["conversations"])])


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(ECHO_WORDS)), strict=False))

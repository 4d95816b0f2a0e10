"""The rows that a card shows: typical ones that repeat nothing of the prompts."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

CANDIDATES = 2_000  # rows to choose from
ECHO_WORDS = 6  # in a row, as in a prompt's few-shot example: an echo


def read_rows(folder: Path, features: Features, id: str | None = None) -> list[dict[str, Any]]:
    """Return the first rows of a config, or the rows of one id, names in place of class labels."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CANDIDATES, use_threads=False):
                rows = batch if id is None else batch.filter(pc.equal(batch["id"], id))
                found += rows.to_pylist()
                if found:
                    break
        if found:
            break
    for name, feature in features.items():
        if isinstance(feature, ClassLabel):
            for row in found:
                row[name] = feature.int2str(row[name])
    return found


def choose_examples(rows: list[dict[str, Any]], prompts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of each task, or one row of captions: of middling length, confirmed by the judge if there was one,
    without an echo of a few-shot example or a list of question types.

    Args:
        rows: candidates, at least one.
        prompts: those that wrote them.
    """
    shown = {run for prompt in prompts.values() for text in _texts(prompt) for run in _runs(text)}
    types = [name.lower() for prompt in prompts.values() for name in prompt.question_types]
    chosen = []
    for task in dict.fromkeys(row.get("task") for row in rows):
        own = [row for row in rows if row.get("task") == task]
        sound = [row for row in own if _is_sound(row, shown, types) and row["judge"] in (None, 1.0)]
        ordered = sorted(sound or own, key=lambda row: len(_whole(row)))
        chosen.append(ordered[len(ordered) // 2])
    return sorted(chosen, key=lambda row: str(row.get("task")))


def _is_sound(row: dict[str, Any], shown: set[tuple[str, ...]], types: list[str]) -> bool:
    text = _whole(row)
    return not shown.intersection(_runs(text)) and sum(name in text.lower() for name in types) < 3


def _whole(row: dict[str, Any]) -> str:
    return " ".join([row["caption"], *(turn["value"] for turn in row["conversations"])])


def _texts(prompt: Any) -> Iterator[str]:
    for example in prompt.examples:
        yield from example.values.values()
        yield str(example.answer)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(ECHO_WORDS)), strict=False))

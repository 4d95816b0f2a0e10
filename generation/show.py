"""One record as it passed through every stage, for people."""

import textwrap
from typing import Any

from .config import TASKS
from .errors import RunError
from .rundir import RunDir
from .tensors import open_shard


def show(run: RunDir, row: str | None = None) -> None:
    """Prints the seed, the caption, the conversations and the embeddings of one record.

    Args:
        run: a run directory.
        row: the record's id, zeros before it left out or not; None takes the first that has a conversation.

    Raises:
        RunError: there is no such record, or nothing has been made yet.
    """
    row = (row or _first_with_conversation(run)).zfill(10)
    shard = int(row[:5]) if row.isdigit() and len(row) == 10 else -1
    if shard not in run.sealed("seeds"):
        raise RunError(f"{run.path} holds no record with id {row!r}; an id is ten digits, such as 0000000003")
    seed = _find(run, "seeds", shard, row)
    if not seed:
        raise RunError(f"{run.path}: seed shard {shard} has no record with id {row}")
    print(f"\nrecord {row}")
    _print("seed", f"{seed[0]['seed'] or 'not in the release'}  (from {seed[0]['source']})")
    for caption in _find(run, "captions", shard, row):
        if run.imported("captions"):
            _print("id in the original", caption["original_id"] or "none")
        _print("caption", f"{caption['caption']}  ({caption['model']}, prompt {caption['prompt'] or 'unknown'})")
    for task in TASKS:
        for instruction in _find(run, f"instructions/{task}", shard, row):
            _print(task.replace("_", " "))
            for turn in instruction["conversations"]:
                _print(f"  {turn['from']}", turn["value"])
    _show_vectors(run, shard, row)


def _find(run: RunDir, stage: str, shard: int, row: str) -> list[dict[str, Any]]:
    """The row of that id, as a list of one, or an empty one where the stage has none."""
    if shard not in run.sealed(stage):
        return []
    return [found for found in run.table(stage, shard).to_pylist() if found["id"] == row]


def _show_vectors(run: RunDir, shard: int, row: str) -> None:
    stages = [
        stage for stage in run.manifest["stages"] if stage.split("/")[0] in ("text_embeddings", "image_embeddings")
    ]
    for stage in stages:
        if shard not in run.sealed(stage):
            continue
        opened = open_shard(run.verified(stage, run.shard_path(stage, shard)))
        for vector in opened.embeddings[opened.numbers() == int(row)].float():
            first = ", ".join(f"{value:+.4f}" for value in vector[:6].tolist())
            _print(stage, f"[{first}, ...]  d = {len(vector)}, norm = {float(vector.norm()):.4f}")


def _first_with_conversation(run: RunDir) -> str:
    for stage in [*(f"instructions/{task}" for task in TASKS), "captions", "seeds"]:
        for shard in run.sealed(stage):
            if len(table := run.table(stage, shard)):
                return str(table["id"][0])
    raise RunError(f"{run.path} holds no record yet")


def _print(label: str, text: str = "") -> None:
    for number, line in enumerate(text.splitlines() or [""]):
        head = f"{label if not number else '':<26}"
        print(
            textwrap.fill(line, 116, initial_indent=f"  {head}", subsequent_indent=" " * 28) if line else f"  {head}"
        )

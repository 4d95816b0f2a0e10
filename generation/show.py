"""One record as it passed through every stage."""

import textwrap
from collections.abc import Iterator

from .errors import RunError
from .stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TEXT_EMBEDDINGS, image_embeddings
from .store import Run
from .vectors import VectorShard


def show_record(run: Run, id: str | None = None) -> str:
    """Return the seed, caption, conversations, verdicts and vectors of one record, laid out for a terminal.

    Args:
        run: a run directory.
        id: ten digits, zeros at the front may be left out; None: the first record that has a conversation.

    Raises:
        RunError: there is no such record, or nothing was made yet.
    """
    id = (id or _first(run)).zfill(10)
    parts = list(_parts(run, id)) if id.isdigit() and len(id) == 10 else []
    if not parts:
        raise RunError(f"{run.path} has no record {id!r}; an id is ten digits, such as 0000000003")
    shown = [f"record {id}"]
    for label, text in parts:
        for number, line in enumerate(text.splitlines() or [""]):
            head = f"  {'' if number else label:<32}"
            shown.append(textwrap.fill(line, 116, initial_indent=head, subsequent_indent=" " * 34) if line else head)
    return "\n".join(shown)


def _first(run: Run) -> str:
    for stage in (*INSTRUCTIONS.values(), CAPTIONS, SEEDS):
        for shard in run.shards(stage):
            if len(table := run.table(stage, shard, ["id"])):
                return str(table["id"][0])
    raise RunError(f"{run.path} holds no record yet; run `python -m generation run --run-dir {run.path}` first")


def _parts(run: Run, id: str) -> Iterator[tuple[str, str]]:
    """Yield (stage, text) of all that is known of a record."""
    shard = int(id[:5])
    for stage in (SEEDS, CAPTIONS, CAPTION_JUDGEMENTS, *INSTRUCTIONS.values(), *JUDGEMENTS.values()):
        record = run.record(stage, shard)
        rows = run.table(stage, shard).to_pylist() if record else []
        for row in (row for row in rows if row["id"].partition("/")[0] == id):
            if stage is SEEDS:
                yield stage.name, f"{row['seed'] or 'not in the release'}  (source {row['source']}, {row['license']})"
            elif stage is CAPTIONS:
                yield stage.name, f"{row['caption']}  ({row['model']}, {row['prompt']})"
            elif "verdict" in row:
                yield stage.name, f"{row['id']}: {row['verdict']}"
            else:
                yield stage.name, "\n".join(f"{turn['from']}: {turn['value']}" for turn in row["conversations"])
        rejected = run.rejected(stage, shard) if record else None
        for row in (row for row in (rejected.to_pylist() if rejected is not None else []) if row["id"] == id):
            yield f"{stage.name}, rejected", f"{row['reason']}: {row['raw']}"
    methods = sorted(path.name for path in run.path.glob("image_embeddings/*"))
    for stage in (TEXT_EMBEDDINGS, *map(image_embeddings, methods)):
        if run.record(stage, shard):
            opened = VectorShard(run.verified(stage, shard))
            if id in opened.ids:
                vector = opened.vectors[opened.ids.index(id)].float()
                shown = ", ".join(f"{value:+.4f}" for value in vector[:6].tolist())
                yield stage.name, f"[{shown}, ...]  d = {len(vector)}, norm {float(vector.norm()):.4f}"

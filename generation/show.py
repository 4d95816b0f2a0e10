"""One record as it passed through every stage."""

import textwrap
from collections.abc import Iterator

from .errors import RunError
from .stages import CAPTIONS, INSTRUCTIONS, SEEDS, STAGES, TEXT_EMBEDDINGS, image_embeddings
from .store import Run
from .vectors import VectorShard

_FORMS = {  # by the column that tells what a row is
    "reason": "{reason}: {raw}",
    "verdict": "{id}: {verdict}",
    "caption": "{caption}  ({model}, {prompt})",
    "seed": "{seed}  (source {source}, {license})",
}


def show_record(run: Run, id: str | None = None) -> str:
    """Return seed, caption, conversations, verdicts and vectors of a record for a terminal: that of ``id`` (zeros at
    the front may be left out), or the first with a conversation. A RunError says that there is no such record."""
    stages = (*INSTRUCTIONS.values(), CAPTIONS, SEEDS)
    tables = (run.table(stage, shard, ["id"]) for stage in stages for shard in run.shards(stage))
    id = (id or next((str(table["id"][0]) for table in tables if len(table)), "")).zfill(10)
    parts = list(_parts(run, id)) if id.isdigit() and len(id) == 10 else []
    if not parts:
        raise RunError(f"{run.path} has no record {id!r}; an id is ten digits, such as 0000000003")
    shown = [f"record {id}"]
    for label, text in parts:
        lines = [line for paragraph in text.splitlines() or [""] for line in textwrap.wrap(paragraph, 82) or [""]]
        shown += [f"  {'' if number else label:<32}{line}" for number, line in enumerate(lines)]
    return "\n".join(shown)


def _parts(run: Run, id: str) -> Iterator[tuple[str, str]]:
    """Yield (stage, text) of all that is known of a record."""
    shard = int(id[:5])
    for stage in (stage for stage in STAGES if stage.schema is not None and run.record(stage, shard)):
        for note, table in (("", run.table(stage, shard)), (", rejected", run.rejected(stage, shard))):
            for row in (row for row in table.to_pylist() if row["id"].partition("/")[0] == id):
                known = {name: value or "unknown" for name, value in row.items()}  # imported rows have no seed
                form = next((form for name, form in _FORMS.items() if name in row), None)
                turns = (f"{turn['from']}: {turn['value']}" for turn in (row["conversations"] if not form else ()))
                yield stage.name + note, form.format(**known) if form else "\n".join(turns)
    made = [image_embeddings(path.name) for path in sorted(run.path.glob("image_embeddings/*"))]
    for stage in (TEXT_EMBEDDINGS, *made):
        if run.record(stage, shard) and id in (opened := VectorShard(run.verified(stage, shard))).ids:
            vector = opened.vectors[opened.ids.index(id)].float()
            shown = ", ".join(f"{value:+.4f}" for value in vector[:6].tolist())
            yield stage.name, f"[{shown}, ...]  d = {len(vector)}, norm {float(vector.norm()):.4f}"

"""Finished runs for tests, written shard by shard through ``generation.store.Run``; no model is involved."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from generation import stages
from generation.config import Recipe
from generation.files import parquet
from generation.instructions import items_of, selection_inputs
from generation.prompts import load_prompt
from generation.recipe import parse_recipe
from generation.rows import REJECTED_SCHEMA, row_id, stable_hash, text_hash
from generation.stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from generation.vectors import write_vectors

MODEL = "fake/Model-Instruct"
LICENSES = {"alpha": "CC-BY-4.0", "beta": "Apache-2.0"}
_THINGS = ("kettle", "bicycle", "heron", "ladder", "violin", "lantern", "tractor", "beehive", "canoe", "parasol")
_COLOURS = ("red", "green", "blue", "yellow", "white", "brown", "grey", "orange", "purple", "black")
_PLACES = ("garden", "kitchen", "market", "harbour", "meadow", "station", "library", "workshop", "beach", "attic")


def make_run(
    path: Path,
    shards: int = 3,
    rows: int = 6,
    dim: int = 16,
    judged: bool = False,
    salt: str = "",
    recipe: dict[str, Any] | None = None,
) -> Run:
    """Make a finished run, or add the shards that it lacks.

    Each shard has ``rows`` captions and one more seed, whose caption was rejected; half of the captions have a
    conversation of each task. Vectors are random, float16 [rows, dim]. With ``judged`` the last caption and the last
    item of each conversation are not confirmed. Another ``salt`` gives other texts and vectors.
    """
    run = Run(path, make_recipe(path, judged=judged, more=recipe), create=True, extend=True)
    run.begin(SEEDS, replace=True)
    prompts = {CAPTIONS: "expand_caption", **{INSTRUCTIONS[task]: task for task in TASKS}}
    prompts |= {CAPTION_JUDGEMENTS: "judge_captions", **dict.fromkeys(JUDGEMENTS.values(), "judge")} if judged else {}
    for stage, name in prompts.items():
        prompt = load_prompt(name)
        run.begin(stage, {"prompt": prompt.name, "prompt_sha256": prompt.sha256, "model": MODEL})
    encoder = {"model": "fake/encoder", "commit": None, "pooling": "mean", "max_tokens": 512, "dimension": dim}
    run.begin(TEXT_EMBEDDINGS, encoder | {"joint_with_images": True})
    for shard in range(shards):
        if run.record(SEEDS, shard) is None:
            captions = _texts(run, shard, rows, salt, judged)
            for task in TASKS:
                _conversations(run, task, shard, captions, judged)
            _vectors(run, shard, captions, dim, salt)
    make_image_embeddings(run)
    return run


def make_recipe(
    path: Path, method: str = "unicorn", judged: bool = False, more: dict[str, Any] | None = None
) -> Recipe:
    """Return the recipe of ``make_run``."""
    captions = [{"name": name, "path": f"{name}.txt", "license": text} for name, text in LICENSES.items()]
    data: dict[str, Any] = {"name": "test", "directory": str(path.parent), "seeds": {"captions": captions}}
    transfer = {"method": method, **({"images": "photos"} if method in ("anchor", "realign") else {})}
    return parse_recipe(data | {"transfer": transfer} | ({"judge": {}} if judged else {}) | (more or {}), "test")


def _pick(words: tuple[str, ...], *key: object) -> str:
    return words[stable_hash(words[0], *key) % len(words)]


def _texts(run: Run, shard: int, rows: int, salt: str, judged: bool) -> dict[str, str]:
    """Make a shard of seeds and of captions; return the captions by id."""
    ids = [row_id(shard, row) for row in range(rows)]
    things = {id: f"{_pick(_COLOURS, id, salt)} {_pick(_THINGS, id, salt)}" for id in ids}
    seeds = {id: f"A {things[id]} in the {_pick(_PLACES, id)}." for id in ids}
    captions = {
        id: f"A {things[id]} stands in the {_pick(_PLACES, id)}, number {int(id)}{salt}. Its surface is smooth and "
        f"slightly worn, and {_pick(_COLOURS, id, 'light')} light from the left falls on its upper edge."
        for id in ids
    }
    sources = [("alpha", "beta")[row % 2] for row in range(rows)]
    own = {"id": ids, "seed": list(seeds.values()), "source": sources, "license": [LICENSES[name] for name in sources]}
    lost = {"id": row_id(shard, rows), "seed": "A thing.", "source": "alpha", "license": LICENSES["alpha"]}
    _commit(run, SEEDS, shard, {name: [*values, lost[name]] for name, values in own.items()})
    made = {
        "caption": list(captions.values()),
        "instruction": ["<image>\nDescribe the image in detail."] * rows,
        "words": [len(caption.split()) for caption in captions.values()],
        "input_hash": [text_hash(seed) for seed in seeds.values()],
    }
    rejected = {"id": [row_id(shard, rows)], "reason": ["too_short"], "raw": ["A <b>kettle</b>."], "request": ["{}"]}
    _commit(run, CAPTIONS, shard, own | made | _provenance("expand_caption", rows), rejected)
    if judged:
        verdicts = ["confirmed"] * (rows - 1) + ["loses_seed"]
        _judge(run, CAPTION_JUDGEMENTS, shard, ids, verdicts, [text_hash(seeds[id], captions[id]) for id in ids])
    return captions


def _conversations(run: Run, task: str, shard: int, captions: dict[str, str], judged: bool) -> None:
    ids = sorted(sorted(captions, key=lambda id: stable_hash(task, id))[: max(1, round(len(captions) / 2))])
    turns = [_turns(task, captions[id]) for id in ids]
    made = {
        "id": ids,
        "task": [task] * len(ids),
        "conversations": turns,
        "question_types": [["what", "how many"]] * len(ids),
        "grounded": [[0.5, 1.0]] * len(ids),
        "dropped": [["letter"]] * len(ids),
        "input_hash": [text_hash(captions[id]) for id in ids],
    }
    _commit(run, INSTRUCTIONS[task], shard, made | _provenance(task, len(ids)), extra=selection_inputs(run, task))
    if judged:
        items = [id for id in ids for _ in (0, 1)]
        parts = [(captions[id], qa) for id, talk in zip(ids, turns, strict=True) for qa in items_of(talk)]
        hashes = [text_hash(text, qa["Question"], *qa.get("Options", {}).values(), qa["Answer"]) for text, qa in parts]
        _judge(run, JUDGEMENTS[task], shard, items, ["confirmed", "wrong_letter"] * len(ids), hashes)


def _turns(task: str, caption: str) -> list[dict[str, str]]:
    thing, place = caption.split(" stands ")[0].lower(), caption.split(" stands in ")[1].split(",")[0]
    pairs = [("What stands there?", f"It is {thing}."), ("Where does it stand?", f"It stands in {place}.")]
    if task == "multiple_choice":
        options = "\nA: {}\nB: a boat\nC: a cloud\nD: a horse"
        pairs = [(question + options.format(answer), "A") for question, answer in pairs]
    texts = [text for pair in pairs for text in pair]
    texts[0] = f"<image>\n{texts[0]}"
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def _vectors(run: Run, shard: int, captions: dict[str, str], dim: int, salt: str) -> None:
    generator = torch.Generator().manual_seed(stable_hash("vectors", shard, salt) % 2**31)
    vectors = torch.nn.functional.normalize(torch.randn(len(captions), dim, generator=generator) + 0.5, dim=1).half()
    ids, hashes = list(captions), [*map(text_hash, captions.values())]
    run.commit(TEXT_EMBEDDINGS, shard, len(ids), lambda path: write_vectors(path, vectors, ids, hashes, {}))


def _provenance(name: str, rows: int) -> dict[str, Any]:
    facts = {"prompt": load_prompt(name).name, "model": MODEL, "sampling_seed": 1, "attempts": 1}
    facts |= {"prompt_tokens": 300, "completion_tokens": 150, "thinking_tokens": 0}
    return {column: [value] * rows for column, value in facts.items()}


def _judge(run: Run, stage: stages.Stage, shard: int, ids: list[str], verdicts: list[str], hashes: list[int]) -> None:
    names = [f"{id}/{hash}" for id, hash in zip(ids, hashes, strict=True)]
    columns = {"id": names, "verdict": verdicts, "votes": ["{}"] * len(ids), "input_hash": hashes}
    _commit(run, stage, shard, columns | _provenance("judge", len(ids)))


def _commit(
    run: Run, stage: stages.Stage, shard: int, columns: dict[str, Any], rejected: Any = None, extra: Any = None
) -> None:
    """Commit a shard; columns that are not given are null."""
    rows = len(columns["id"])
    counts = {"rejected": {"too_short": 1} if rejected else {}, "completion_tokens": 150 * rows}
    counts |= {"dropped": {"letter": rows}} if "dropped" in columns else {}
    aside = _table(REJECTED_SCHEMA, rejected) if rejected else None
    run.commit(stage, shard, rows, parquet(_table(stage.schema, columns)), aside, extra, counts)


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    rows = len(columns["id"])
    return pa.table({field.name: columns.get(field.name) or pa.nulls(rows, field.type) for field in schema}, schema)

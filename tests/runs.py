"""Finished runs for tests, written shard by shard through ``generation.store.Run``; no model is involved."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from generation import stages
from generation.config import Recipe
from generation.instructions import items_of, selection_inputs
from generation.prompts import load_prompt
from generation.recipe import parse_recipe
from generation.stages import CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS, row_id, stable_hash
from generation.store import Run, parquet
from generation.transfer.stage import make_image_embeddings
from generation.vectors import write_vectors

MODEL = "fake/Model-Instruct"
LICENSES = {"alpha": "CC-BY-4.0", "beta": "Apache-2.0"}
_THINGS = ("kettle", "bicycle", "heron", "ladder", "violin", "lantern", "tractor", "beehive", "canoe", "parasol")
_COLOURS = ("red", "green", "blue", "yellow", "white", "brown", "grey", "orange", "purple", "black")
_PLACES = ("garden", "kitchen", "market", "harbour", "meadow", "station", "library", "workshop", "beach", "attic")


def make_run(
    path: Path, shards: int = 3, rows: int = 6, dim: int = 16, judged: bool = False, salt: str = "",
    recipe: dict[str, Any] | None = None,
) -> Run:  # fmt: skip
    """Make a finished run, or add the shards that it lacks.

    Each shard has ``rows`` captions and one more seed, whose caption was rejected; half of the captions have a
    conversation of each task. Vectors are random, float16 [rows, dim]. With ``judged`` the last caption and the last
    item of each conversation are not confirmed. Another ``salt`` gives other texts and vectors.
    """
    run = Run(path, make_recipe(path, judged=judged, more=recipe), create=True, extend=True)
    run.begin(SEEDS, replace=True)
    prompts = {CAPTIONS: "expand_caption", **{INSTRUCTIONS[task]: task for task in TASKS}}
    prompts |= (
        {stages.CAPTION_JUDGEMENTS: "judge_captions", **dict.fromkeys(JUDGEMENTS.values(), "judge")} if judged else {}
    )
    for stage, name in prompts.items():
        prompt = load_prompt(name)
        run.begin(stage, {"prompt": prompt.name, "prompt_sha256": prompt.sha256, "model": MODEL})
    encoder = {"model": "fake/encoder", "commit": None, "pooling": "mean", "max_tokens": 512, "dimension": dim}
    run.begin(TEXT_EMBEDDINGS, encoder | {"joint_with_images": True})
    for shard in range(shards):
        if run.record(SEEDS, shard) is None:
            captions = _captions(run, shard, rows, salt, judged)
            for task in TASKS:
                _conversations(run, task, shard, captions, judged)
            generator = torch.Generator().manual_seed(stable_hash("vectors", shard, salt) % 2**31)
            vectors = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator) + 0.5, dim=1).half()
            own = {
                "vectors": vectors,
                "ids": list(captions),
                "input_hashes": [*map(stages.text_hash, captions.values())],
            }
            run.commit(TEXT_EMBEDDINGS, shard, rows, partial(write_vectors, **own, metadata={}))
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


def _captions(run: Run, shard: int, rows: int, salt: str, judged: bool) -> dict[str, str]:
    """Make a shard of seeds and of captions; return the captions by id."""
    made: list[dict[str, Any]] = []
    for row in range(rows):
        id, source = row_id(shard, row), ("alpha", "beta")[row % 2]
        thing, place = f"{_pick(_COLOURS, id, salt)} {_pick(_THINGS, id, salt)}", _pick(_PLACES, id)
        caption = f"A {thing} stands in the {place}, number {int(id)}{salt}. Its surface is smooth and slightly worn, "
        caption += f"and {_pick(_COLOURS, id, 'light')} light from the left falls on its upper edge."
        own = {"id": id, "seed": f"A {thing} in the {place}.", "source": source, "license": LICENSES[source]}
        own |= {"caption": caption, "instruction": "<image>\nDescribe the image in detail."}
        made.append(own | {"words": len(caption.split()), "input_hash": stages.text_hash(own["seed"])})
    lost = {"id": row_id(shard, rows), "seed": "A thing.", "source": "alpha", "license": LICENSES["alpha"]}
    _commit(run, SEEDS, shard, [*made, lost])
    rejected = {"id": lost["id"], "reason": "too_short", "raw": "A <b>kettle</b>.", "request": "{}"}
    _commit(run, CAPTIONS, shard, _written("expand_caption", made), rejected)
    if judged:
        verdicts = ["confirmed"] * (rows - 1) + ["loses_seed"]
        hashes = [stages.text_hash(row["seed"], row["caption"]) for row in made]
        _judge(run, stages.CAPTION_JUDGEMENTS, shard, [row["id"] for row in made], verdicts, hashes)
    return {row["id"]: row["caption"] for row in made}


def _conversations(run: Run, task: str, shard: int, captions: dict[str, str], judged: bool) -> None:
    ids = sorted(sorted(captions, key=lambda id: stable_hash(task, id))[: max(1, round(len(captions) / 2))])
    same = {"task": task, "question_types": ["what", "how many"], "grounded": [0.5, 1.0], "dropped": ["letter"]}
    made = [
        same | {"id": id, "conversations": _turns(task, captions[id]), "input_hash": stages.text_hash(captions[id])}
        for id in ids
    ]
    _commit(run, INSTRUCTIONS[task], shard, _written(task, made), extra=selection_inputs(run, task))
    if judged:
        parts = [(captions[row["id"]], qa) for row in made for qa in items_of(row["conversations"])]
        hashes = [
            stages.text_hash(text, qa["Question"], *qa.get("Options", {}).values(), qa["Answer"]) for text, qa in parts
        ]
        items = [id for id in ids for _ in (0, 1)]
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


def _judge(run: Run, stage: stages.Stage, shard: int, ids: list[str], verdicts: list[str], hashes: list[int]) -> None:
    made = [
        {"id": f"{id}/{hashed}", "verdict": verdict, "votes": "{}", "input_hash": hashed}
        for id, verdict, hashed in zip(ids, verdicts, hashes, strict=True)
    ]
    _commit(run, stage, shard, _written("judge", made))


def _written(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with what the engine adds."""
    facts = {"prompt": load_prompt(name).name, "model": MODEL, "sampling_seed": 1, "attempts": 1}
    facts |= {"prompt_tokens": 300, "completion_tokens": 150, "thinking_tokens": 0}
    return [row | facts for row in rows]


def _commit(
    run: Run, stage: stages.Stage, shard: int, rows: list[dict[str, Any]], rejected: Any = None, extra: Any = None
) -> None:
    """Commit a shard; columns that a row lacks are null."""
    counts = {"rejected": {"too_short": 1} if rejected else {}, "completion_tokens": 150 * len(rows)}
    counts |= {"dropped": {"letter": len(rows)}} if "dropped" in rows[0] else {}
    aside = pa.Table.from_pylist([rejected], stages.REJECTED_SCHEMA) if rejected else None
    table = parquet(pa.Table.from_pylist(rows, stage.schema))
    run.commit(stage, shard, len(rows), table, aside, extra, counts)

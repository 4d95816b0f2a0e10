"""Stage 2: captions become multi-turn conversations of three tasks (paper, section on Unicorn-471K-Instruction)."""

import math
from dataclasses import dataclass, replace
from typing import Any

from . import checks
from .ask import Asker
from .bulk import BulkStage, Outcome
from .config import InstructionTask, Recipe, instruction_tasks, settings
from .errors import RecipeError
from .progress import progress
from .prompts import Prompt, load_prompt
from .records import INSTRUCTION_SCHEMA, draw
from .rundir import RunDir
from .tgi.client import Answer
from .tgi.grammar import schema_faults
from .tgi.scheduler import connect


@dataclass(frozen=True)
class CaptionRow:
    """A caption that waits for its conversation."""

    id: str
    caption: str
    shard: int
    row: int


async def make_instructions(run: RunDir, recipe: Recipe) -> None:
    """Makes the conversations of all three tasks, on the recipe's servers, task after task.

    Raises:
        RunError: the captions are not complete, or a task was begun with other settings or another model.
        ServerError: the servers cannot be used; what was answered so far is kept.
    """
    run.finished("captions", "seeds")
    for name, task in instruction_tasks(recipe).items():
        await _make_task(run, recipe, name, task)


def check_prompts(recipe: Recipe) -> None:
    """Reads the prompts of all tasks, so that a fault in one stops a run at its start and not after its captions.

    Raises:
        RecipeError: a prompt is missing or wrong, or its schema is none that TGI compiles well.
    """
    for task in instruction_tasks(recipe).values():
        _prompt_and_schema(task)


def _prompt_and_schema(task: InstructionTask) -> tuple[Prompt, dict[str, Any]]:
    prompt = load_prompt(task.prompt)
    schema = prompt.answer_schema(task.min_items, task.max_items)
    if faults := schema_faults(schema):
        raise RecipeError(f"prompt {prompt.name}: its schema is none for TGI: {'; '.join(faults)}")
    return prompt, schema


async def _make_task(run: RunDir, recipe: Recipe, name: str, task: InstructionTask) -> None:
    stage = f"instructions/{name}"
    prompt, schema = _prompt_and_schema(task)
    fingerprint = settings(task) | {
        "prompt": {"name": prompt.name, "sha256": prompt.sha256},
        "attempts": recipe.instructions.attempts,
        "random_seed": recipe.random_seed,
    }
    run.begin(stage, fingerprint)
    shards = [shard for shard in run.sealed("captions") if shard not in run.sealed(stage)]
    if not shards:
        return
    limits = replace(checks.LIMITS[name], min_items=task.min_items, max_items=task.max_items)
    quotas = _quotas(run, task.fraction)

    async with connect(recipe.server) as scheduler:
        asker = Asker(scheduler, prompt, schema, recipe.instructions.attempts, recipe.random_seed)
        await asker.pin(run, stage)

        async def ask(item: CaptionRow) -> Outcome:
            values = {"caption": item.caption, "min_items": str(task.min_items), "max_items": str(task.max_items)}

            def check(answer: Answer) -> tuple[dict[str, Any], str | None]:
                items, fault = checks.instruction_items(answer.text, answer.finish_reason, item.caption, name, limits)
                turns = conversation(item.id, name, items)
                columns = {"task": name, "conversations": turns, "caption_shard": item.shard, "caption_row": item.row}
                return columns, fault

            return await asker.outcome(item.id, values, check)

        def load(shard: int) -> list[CaptionRow]:
            return _sample(run, shard, quotas[shard], f"{recipe.random_seed} {name}")

        with progress(stage, sum(quotas[shard] for shard in shards), 0, "conversation") as bar:
            bulk = BulkStage(run, stage, INSTRUCTION_SCHEMA, load, ask, bar.update)
            await bulk.complete(shards, scheduler.workers)


def conversation(row: str, task: str, items: list[checks.Item]) -> list[dict[str, str]]:
    """The turns of one conversation: each item a human and a gpt turn, ``<image>`` in the first human turn only.

    It stands before or after the question, drawn by id. A multiple-choice question has its options below it and is
    answered by the letter alone."""
    turns = []
    for item in items:
        options = [f"{letter}: {option}" for letter, option in item.get("Options", {}).items()]
        turns.append({"from": "human", "value": "\n".join([item["Question"], *options])})
        turns.append({"from": "gpt", "value": item["Answer"]})
    if turns:
        text = turns[0]["value"]
        turns[0]["value"] = f"<image>\n{text}" if draw("image first", task, row) % 2 else f"{text}\n<image>"
    return turns


def _quotas(run: RunDir, fraction: float) -> dict[int, int]:
    """How many captions each shard gives: ``fraction`` of all captions so far, rounded, less what earlier shards gave.

    So the total is exact to one row, and shards that are added later do not change what earlier ones gave.
    """
    quotas, captions, given = {}, 0, 0
    for shard in run.sealed("captions"):
        captions += run.record("captions", shard)["rows"]
        quotas[shard] = math.floor(fraction * captions + 0.5) - given
        given += quotas[shard]
    return quotas


def _sample(run: RunDir, shard: int, count: int, key: str) -> list[CaptionRow]:
    """``count`` captions of a shard, those with the lowest draws, in row order."""
    columns = run.table("captions", shard).select(["id", "caption"]).to_pylist()
    rows = [CaptionRow(column["id"], column["caption"], shard, row) for row, column in enumerate(columns)]
    drawn = sorted(rows, key=lambda row: draw(key, row.id))[:count]
    return sorted(drawn, key=lambda row: row.row)

"""Stage 2: captions become multi-turn conversations of three tasks (paper, section on Unicorn-471K-Instruction)."""

import math
from dataclasses import asdict, dataclass, replace

from . import checks
from .ask import BulkTask, Row
from .bulk import carry_out
from .config import InstructionTask, Recipe, instruction_tasks, settings
from .errors import RecipeError
from .prompts import load_prompt
from .records import INSTRUCTION_SCHEMA, draw
from .rundir import RunDir
from .tgi.grammar import schema_faults
from .tgi.protocol import Answer, Question


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A caption that waits for its conversation."""

    id: str
    caption: str
    shard: int
    row: int


def make_instructions(run: RunDir, recipe: Recipe) -> None:
    """Makes the conversations of all three tasks, on the recipe's servers, task after task.

    Raises:
        RunError: the captions are not complete, or a task was begun with other settings or another model.
        ServerError: the servers cannot be used; what was answered so far is kept.
        Stopped: by a signal; what was answered so far is kept.
    """
    run.finished("captions", "seeds")
    for name, task in instruction_tasks(recipe).items():
        prompt = load_prompt(task.prompt)
        run.begin(
            stage_of(name),
            settings(task)
            | {
                "prompt": {"name": prompt.name, "sha256": prompt.sha256},
                "attempts": recipe.instructions.attempts,
                "random_seed": recipe.random_seed,
            },
        )
        bulk = conversation_task(run, name, task, recipe.instructions.attempts, recipe.random_seed)
        carry_out(run, recipe.server, bulk)


def check_prompts(recipe: Recipe) -> None:
    """Reads the prompts of all tasks, so that a fault in one stops a run at its start and not after its captions.

    Raises:
        RecipeError: a prompt is missing or wrong, or its schema is none that TGI compiles well.
    """
    for task in instruction_tasks(recipe).values():
        _question(task)


def stage_of(task: str) -> str:
    """The stage's folder of a task."""
    return f"instructions/{task}"


def conversation_task(
    run: RunDir, name: str, task: InstructionTask, attempts: int, random_seed: int
) -> BulkTask[CaptionRow]:
    """What is asked about the captions drawn for one task.

    Raises:
        RecipeError: the prompt is missing or wrong, or its schema is none that TGI compiles well.
    """
    question = _question(task)
    limits = replace(checks.LIMITS[name], min_items=task.min_items, max_items=task.max_items)
    quotas = _quotas(run, name, task.fraction)

    def check(item: CaptionRow, answer: Answer) -> tuple[Row, str | None]:
        items, fault = checks.instruction_items(answer.text, answer.finish_reason, item.caption, name, limits)
        turns = conversation(item.id, name, items)
        columns = {"task": name, "conversations": turns, "caption_shard": item.shard, "caption_row": item.row}
        return columns, fault

    return BulkTask(
        stage=stage_of(name),
        source="captions",
        columns=INSTRUCTION_SCHEMA,
        question=question,
        attempts=attempts,
        random_seed=random_seed,
        count=lambda shard: quotas[shard].count,
        load=lambda shard: _sample(run, shard, quotas[shard], f"{random_seed} {name}"),
        values=lambda item: {
            "caption": item.caption,
            "min_items": str(task.min_items),
            "max_items": str(task.max_items),
        },
        check=check,
    )


def _question(task: InstructionTask) -> Question:
    prompt = load_prompt(task.prompt)
    schema = prompt.answer_schema(task.min_items, task.max_items)
    if faults := schema_faults(schema):
        raise RecipeError(f"prompt {prompt.name}: its schema is none for TGI: {'; '.join(faults)}")
    return Question(prompt, schema)


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


@dataclass(frozen=True)
class Quota:
    """How many captions of a shard are asked about: ``count`` of the first ``of`` rows."""

    count: int
    of: int


def _quotas(run: RunDir, task: str, fraction: float) -> dict[int, Quota]:
    """What each shard gives: ``fraction`` of all captions so far, rounded, less what earlier shards gave.

    So the total is exact to one row, and shards that are added later do not change what earlier ones gave. Nor do
    captions that are recovered later (``retry``): once the stage is begun, its quotas are kept in the manifest.
    """
    stage = run.manifest["stages"].get(stage_of(task))
    kept = stage.get("quotas", {}) if stage else {}
    quotas, captions, given = {}, 0, 0
    for shard in run.sealed("captions"):
        of = run.record("captions", shard)["rows"]
        quota = Quota(math.floor(fraction * (captions + of) + 0.5) - given, of)
        quotas[shard] = Quota(**kept[str(shard)]) if str(shard) in kept else quota
        captions += quotas[shard].of
        given += quotas[shard].count
    if stage and len(quotas) > len(kept):
        run.note(stage_of(task), quotas={str(shard): asdict(quota) for shard, quota in quotas.items()})
    return quotas


def _sample(run: RunDir, shard: int, quota: Quota, key: str) -> list[CaptionRow]:
    """The captions of a shard that are asked about, those with the lowest draws, in row order."""
    columns = run.table("captions", shard).select(["id", "caption"]).slice(0, quota.of).to_pylist()
    rows = [CaptionRow(column["id"], column["caption"], shard, row) for row, column in enumerate(columns)]
    drawn = sorted(rows, key=lambda row: draw(key, row.id))[: quota.count]
    return sorted(drawn, key=lambda row: row.row)

"""Stage 2: captions become multi-turn conversations of three tasks (paper, section on Unicorn-471K-Instruction)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa

from . import checks
from .ask import BulkTask, Row
from .bulk import carry_out
from .config import InstructionTask, Recipe, instruction_tasks, settings
from .errors import RecipeError
from .progress import counted
from .prompts import load_prompt
from .records import INSTRUCTION_SCHEMA, draw
from .rundir import RunDir
from .sampling import TaskSample, pool
from .sealing import open_again
from .tgi.grammar import schema_faults
from .tgi.protocol import Answer, Question

TOP_UPS = 4  # times that a task asks about further captions in the place of rejected ones


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A caption that waits for its conversation."""

    id: str
    caption: str
    shard: int
    row: int


def make_instructions(run: RunDir, recipe: Recipe) -> None:
    """Makes the conversations of all three tasks, on the recipe's servers, task after task; a task that rejects leave
    short of conversations asks about further captions.

    Raises:
        RunError: the captions are not complete, or a task was begun with other settings or another model.
        ServerError: the servers cannot be used; what was answered so far is kept.
        Stopped: by a signal; what was answered so far is kept.
    """
    for name in instruction_tasks(recipe):
        for _ in range(1 + TOP_UPS):
            carry_out(run, recipe.server, begin_task(run, recipe, name))
            sample = task_sample(run, name, recipe.random_seed, task_pools(recipe))
            if not sample.top_up(partial(open_again, run, stage_of(name))):
                break
        run.note(stage_of(name), statistics=asdict(checks.answer_statistics(_items(run, stage_of(name)))))


def ask_instructions(run: RunDir, recipe: Recipe) -> None:
    """Asks about the captions drawn for each task, and about none in the place of rejected ones.

    Raises:
        RunError, ServerError, Stopped: see ``make_instructions``.
    """
    for name in instruction_tasks(recipe):
        carry_out(run, recipe.server, begin_task(run, recipe, name))


def begin_task(run: RunDir, recipe: Recipe, name: str) -> BulkTask[CaptionRow]:
    """Opens a task's stage and draws its captions; returns what it asks.

    Raises:
        RunError: the captions are not complete, or the stage was begun with other settings.
    """
    run.finished("captions", "seeds")
    task, pools = instruction_tasks(recipe)[name], task_pools(recipe)
    prompt, attempts = load_prompt(task.prompt), recipe.instructions.attempts
    run.begin(
        stage_of(name),
        settings(task)
        | {
            "prompt": {"name": prompt.name, "sha256": prompt.sha256},
            "attempts": attempts,
            "random_seed": recipe.random_seed,
            "pools": pools,
        },
    )
    return conversation_task(run, name, task, attempts, recipe.random_seed, pools)


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


def task_pools(recipe: Recipe) -> dict[str, float] | None:
    """None if tasks may share captions; else each task's share, by which each caption belongs to one task."""
    tasks = instruction_tasks(recipe)
    return None if recipe.instructions.overlap else {name: task.fraction for name, task in tasks.items()}


def task_sample(run: RunDir, name: str, random_seed: int, pools: dict[str, float] | None) -> TaskSample:
    """The captions that a task asks about.

    Args:
        run: a run whose captions are complete.
        name: the task's.
        random_seed: of the recipe.
        pools: see ``task_pools``.
    """
    key = f"{random_seed} {name}"
    if pools is None:
        return TaskSample(run, stage_of(name), key)
    return TaskSample(run, stage_of(name), key, lambda id: pool(str(random_seed), id, pools) == name)


def conversation_task(
    run: RunDir,
    name: str,
    task: InstructionTask,
    attempts: int,
    random_seed: int,
    pools: dict[str, float] | None,
) -> BulkTask[CaptionRow]:
    """What is asked about the captions drawn for one task.

    Raises:
        RecipeError: the prompt is missing or wrong, or its schema is none that TGI compiles well.
    """
    question = _question(task)
    limits = replace(checks.LIMITS[name], min_items=task.min_items, max_items=task.max_items)
    if task.min_grounded is not None:
        limits = replace(limits, min_grounded=task.min_grounded)
    sample = task_sample(run, name, random_seed, pools)
    sample.choose(task.fraction)

    def values(item: CaptionRow, attempt: int) -> dict[str, str]:
        kinds = question.prompt.draw_kinds(task.max_items, random_seed, name, item.id, attempt)
        bounds = {"min_items": str(task.min_items), "max_items": str(task.max_items)}
        return {"caption": item.caption, "kinds": kinds, **bounds}

    def check(item: CaptionRow, answer: Answer, kept: list[checks.Item]) -> tuple[Row, str | None]:
        fault = checks.add_items(kept, answer.text, answer.finish_reason, item.caption, name, limits)
        turns = conversation(item.id, name, kept)
        columns = {"task": name, "conversations": turns, "caption_shard": item.shard, "caption_row": item.row}
        return columns, fault

    return BulkTask(
        stage=stage_of(name),
        source="captions",
        columns=INSTRUCTION_SCHEMA,
        question=question,
        attempts=attempts,
        random_seed=random_seed,
        count=sample.count,
        load=lambda shard: _caption_rows(run, shard, sample.rows(shard)),
        values=values,
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

    Order of the items, order of their options (so that right answers fall on all letters alike) and the place of
    ``<image>``, before or after the question, are drawn by id. A multiple-choice question has its options below it and
    is answered by the letter alone.
    """
    turns = []
    for number in sorted(range(len(items)), key=lambda number: draw("turn", task, row, number)):
        item = items[number]
        if "Options" in item:
            item = shuffle_options(item, right_letter(row, task, number), task, row, number)
        options = [f"{letter}: {option}" for letter, option in item.get("Options", {}).items()]
        turns.append({"from": "human", "value": "\n".join([item["Question"], *options])})
        turns.append({"from": "gpt", "value": item["Answer"]})
    if turns:
        text = turns[0]["value"]
        turns[0]["value"] = f"<image>\n{text}" if draw("image first", task, row) % 2 else f"{text}\n<image>"
    return turns


def right_letter(row: str, task: str, number: int) -> str:
    """The letter under which item ``number`` of a conversation has its right option.

    Of four rows that follow each other, the items of one number take all four letters, in an order that is drawn. So
    letters come out even over the data set, while those of one conversation tell nothing of each other.
    """
    block, place = divmod(int(row), len(checks.LETTERS))
    return sorted(checks.LETTERS, key=lambda letter: draw("letter", task, block, number, letter))[place]


def shuffle_options(item: checks.Item, letter: str, *key: object) -> checks.Item:
    """The same multiple-choice item with its right option under ``letter``, the others in an order that ``key``
    draws."""
    options = dict(item["Options"])
    right = options.pop(item["Answer"])
    wrong = iter(sorted(options.values(), key=lambda option: draw("option", *key, option)))
    shuffled = {name: right if name == letter else next(wrong) for name in checks.LETTERS}
    return item | {"Options": shuffled, "Answer": letter}


def _items(run: RunDir, stage: str) -> Iterator[checks.Item]:
    """The items of all conversations of a stage, as their turns show them."""
    for shard in counted(run.sealed(stage), f"{stage}, statistics", "shard"):
        for turns in run.table(stage, shard)["conversations"].to_pylist():
            yield from items_of(turns)


def items_of(turns: list[dict[str, str]]) -> Iterator[checks.Item]:
    """The items of one conversation as its turns show them: what ``conversation`` made of them, told back."""
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        question, *options = [line for line in human["value"].split("\n") if line != "<image>"]
        item = {"Question": question, "Answer": gpt["value"]}
        yield item | {"Options": {line[0]: line[3:] for line in options}} if options else item


def _caption_rows(run: RunDir, shard: int, rows: list[int]) -> list[CaptionRow]:
    table = run.table("captions", shard).select(["id", "caption"])
    columns = table.take(pa.array(rows, pa.int64())).to_pylist()
    return [CaptionRow(column["id"], column["caption"], shard, row) for row, column in zip(rows, columns, strict=True)]

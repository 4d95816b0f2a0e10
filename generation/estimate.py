"""A dry run: rows, tokens, hours, cost and prompts of what is left to request, before it is requested."""

import asyncio
import tempfile
import time
from pathlib import Path

from .captions import CaptionTask
from .config import Recipe
from .engine import GenerationTask, Item, UnfinishedShard
from .instructions import InstructionTask, selection_inputs
from .judge import JudgeTask, judge_server
from .logs import counted, say
from .seeds import make_seeds
from .stages import CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS
from .store import Run
from .tgi.client import Answer
from .tgi.scheduler import connect

SAMPLE = 32  # rows whose prompts are counted
Prices = tuple[float, float, float]  # USD of a million prompt tokens, of a million answer tokens, and of an hour


def estimate_run(
    run_dir: Path, recipe: Recipe, probes: int = 8, usd_per_million: tuple[float, float] | None = None,
    usd_per_hour: float = 0.0,
) -> None:  # fmt: skip
    """Print what captions, instructions and the judge of a run, begun or not, would request. Nothing is written in it.

    As many rows as there are ``probes`` are requested at once, to measure rate and length; their answers are dropped.
    """
    prices = (*(usd_per_million or (0.0, 0.0)), usd_per_hour)
    with tempfile.TemporaryDirectory() as folder:
        begun = any((run_dir / SEEDS.name).glob("[0-9]*.json"))
        run = Run(run_dir) if begun else Run(Path(folder) / "run", recipe, create=True)
        run.recipe = recipe
        if not begun:
            make_seeds(run)
        asyncio.run(_estimate(run, CaptionTask(run), probes, prices))
        seeds = sum(record.rows for record in run.records(SEEDS).values())
        for name in TASKS:
            if run.due(CAPTIONS):
                rows = recipe.task(name).fraction * seeds
                say(f"instructions/{name}: about {rows:,.0f} rows; their captions are to be made first")
            else:
                asyncio.run(_estimate(run, InstructionTask(run, name), probes, prices))
        if (judge := recipe.judge) is None:
            return
        run.recipe = recipe.model_copy(update={"server": judge_server(recipe.server, judge)})
        for name, stage in JUDGEMENTS.items():
            if run.due(CAPTIONS) or run.due(INSTRUCTIONS[name], selection_inputs(run, name)):
                rows = recipe.task(name).fraction * recipe.task(name).items[1] * seeds
                say(f"{stage.name}: up to {rows:,.0f} questions; they are to be written first")
            else:
                asyncio.run(_estimate(run, JudgeTask(run, stage, judge), probes, prices))


async def _estimate(run: Run, task: GenerationTask, probes: int, prices: Prices) -> None:
    """Print the estimate of one stage."""
    rows, items = 0, list[Item]()  # to be requested; those of the first shard that has some
    for shard in counted(run.due(task.stage, task.extra), f"{task.stage.name}, counting", "shard"):
        left = UnfinishedShard(run, task.stage, shard, task.items(run, shard)).todo
        rows, items = rows + len(left), items or left
    if not rows:
        return say(f"{task.stage.name}: nothing left to request")
    longest_item = max(items, key=lambda item: len(str(item.values)))
    sample = [task.request(item, 1) for item in (longest_item, *items[: max(SAMPLE, probes)])]
    async with connect(run.recipe.server) as scheduler:
        context = scheduler.infos[0].max_total_tokens or "not said"
        await scheduler.warm_up(sample[: min(probes, 1)])
        start = time.monotonic()
        replies = await asyncio.gather(*map(scheduler.ask, sample[1 : probes + 1]), return_exceptions=True)
        seconds = time.monotonic() - start
    sizes = [sum(len(message["content"]) for message in request.messages) for request in sample]  # characters
    answered = [(size, reply) for size, reply in zip(sizes[1:], replies, strict=False) if isinstance(reply, Answer)]
    answers, tokens = [answer for _, answer in answered], sum(answer.prompt_tokens for _, answer in answered)
    a_token = sum(size for size, _ in answered) / tokens if tokens else 4.0
    prompts = [size / a_token for size in sizes]
    counted_by = f"{a_token:.1f} characters a token" + (", as the server counts the probes" if tokens else "")
    if probes and not answers:
        raise next(reply for reply in replies if isinstance(reply, BaseException))
    rate, measured = len(answers) / max(seconds, 1e-3), f"{len(answers)} probes at once; more at once are faster"
    if sessions := [session for session in run.sessions(task.stage) if session["rows"] and session["seconds"]]:
        rate, measured = sessions[-1]["rows"] / sessions[-1]["seconds"], f"this run, {sessions[-1]['time']}"
    limit, longest = task.prompt.sampling.max_tokens, max(prompts)
    needed = longest + limit
    lengths = [answer.completion_tokens + answer.thinking_tokens for answer in answers] or [limit]
    prompt, answer = sum(prompts[1:]) / len(prompts[1:]), sum(lengths) / len(lengths)
    hours = rows / rate / 3600 if rate else 0.0
    cost = rows * (prompt * prices[0] + answer * prices[1]) / 1e6 + hours * prices[2]
    basis = f"{len(answers)} probes" if answers else "the most that the prompt allows"
    time_ = f"{hours:8.2f} hours at {rate:.2f} rows/s   ({measured})" if rate else " unknown   (ask for probes)"
    say(f"""\
{task.stage.name}: {rows:,} rows to request, prompt {task.prompt.name}, up to {task.attempts} answers each
  prompt tokens  {prompt:8.0f} a row, {rows * prompt:16,.0f} in all   ({counted_by})
  answer tokens  {answer:8.0f} a row, {rows * answer:16,.0f} in all   ({basis})
  context        {needed:8.0f} tokens: longest prompt {longest:.0f} + max_tokens {limit}; the server has {context}
  time           {time_}""")
    if cost:
        say(f"  cost           {cost:8.2f} USD, if each row takes one answer")
    for number, item in enumerate([items[0], items[len(items) // 2], items[-1]], 1):
        turns = (f"[{message['role']}]\n{message['content']}" for message in task.request(item, 1).messages)
        say("\n".join([f"\n--- prompt {number} of 3, row {item.id}", *turns]))

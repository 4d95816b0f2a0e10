"""What a stage would ask, before it asks: rows, tokens, hours, cost, and three prompts as they would be sent."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ask import BulkTask
from .captions import caption_task
from .config import Recipe, Server, instruction_tasks
from .errors import RunError, ServerError
from .instructions import conversation_task, stage_of, task_pools
from .journal import Journal
from .progress import progress
from .rundir import RunDir
from .seeds import make_seeds
from .tgi.connect import connect
from .tgi.protocol import Answer
from .tgi.scheduler import Scheduler

SAMPLE = 32  # rows whose tokens are counted
CHARACTERS_A_TOKEN = 4.0  # of English, for want of a tokenizer
TokenCount = Callable[[list[dict[str, str]]], int]  # of a conversation's messages


@dataclass(frozen=True)
class Prices:
    """What asking costs, in USD; zero where it costs nothing."""

    million_prompt_tokens: float = 0.0
    million_completion_tokens: float = 0.0
    hour: float = 0.0  # of all servers together


@dataclass(frozen=True)
class Estimate:
    """What is left to ask in one stage.

    Attributes:
        rows: that have not ended.
        prompt_tokens, completion_tokens: of one request, on average; counted as ``prompt_basis`` and
            ``completion_basis`` say.
        rows_per_s: None where no rate has been measured; ``rate_basis`` says how it was.
    """

    rows: int
    prompt_tokens: float
    prompt_basis: str
    completion_tokens: float
    completion_basis: str
    rows_per_s: float | None
    rate_basis: str

    def cost(self, prices: Prices) -> float:
        """In USD, for one request a row."""
        tokens = self.prompt_tokens * prices.million_prompt_tokens
        tokens += self.completion_tokens * prices.million_completion_tokens
        hours = self.rows / self.rows_per_s / 3600 if self.rows_per_s else 0.0
        return self.rows * tokens / 1e6 + hours * prices.hour


def dry_run(
    run_dir: Path,
    recipe: Recipe,
    stages: Collection[str],
    prices: Prices,
    tokenizer: Path | None = None,
    probes: int = 8,
) -> None:
    """Prints what stages would ask; nothing is written. A run that has no seeds yet gets them in a temporary place.

    Args:
        run_dir: the run directory, begun or not.
        recipe: of the run.
        stages: of ``captions`` and ``instructions``.
        prices: what asking costs.
        tokenizer: a directory with a transformers tokenizer, to count prompt tokens with; else the server's
            ``/chat_tokenize`` counts them (TGI), else the probes' answers do.
        probes: rows that are asked for real, at once, to measure the rate and the length of answers; their answers
            are dropped. 0 asks nothing.

    Raises:
        SeedError: a seed source cannot be read.
        RunError: the run is in use, or the tokenizer cannot be read.
        ServerError: the servers cannot be reached or used.
    """
    counted = _count_with(tokenizer) if tokenizer else None
    with tempfile.TemporaryDirectory() as folder:
        begun = (run_dir / "manifest.json").exists()
        run = RunDir(run_dir if begun else Path(folder), create=not begun)
        with run.lock():
            if not begun:
                make_seeds(run, recipe)
            if "captions" in stages:
                _tell(
                    run, recipe.server, caption_task(run, recipe.captions, recipe.random_seed), prices, counted, probes
                )
            for name, task in instruction_tasks(recipe).items() if "instructions" in stages else ():
                if run.sealed("captions") != run.sealed("seeds"):
                    _tell_share(run, stage_of(name), task.fraction)
                    continue
                pools, attempts = task_pools(recipe), recipe.instructions.attempts
                asked = conversation_task(run, name, task, attempts, recipe.random_seed, pools)
                _tell(run, recipe.server, asked, prices, counted, probes)


def _tell(
    run: RunDir, server: Server, task: BulkTask[Any], prices: Prices, counted: TokenCount | None, probes: int
) -> None:
    rows, items = _left(run, task)
    if not rows:
        print(f"{task.stage}: nothing left to ask")
        return
    _print(task, asyncio.run(_estimate(run, server, task, rows, items[:SAMPLE], counted, probes)), prices)
    for number, item in enumerate([items[0], items[len(items) // 2], items[-1]], 1):
        print(f"\n--- prompt {number} of 3, row {item.id}")
        for message in task.question.prompt.messages(task.values(item, 1)):
            print(f"[{message['role']}]\n{message['content']}")
    print()


def _tell_share(run: RunDir, stage: str, fraction: float) -> None:
    """Prints what little is known of a stage whose captions have not been made yet."""
    seeds = sum(run.record("seeds", shard)["rows"] for shard in run.sealed("seeds"))
    print(f"{stage}: about {fraction * seeds:,.0f} rows, {fraction:.2%} of the captions, which are to be made first")


def _left(run: RunDir, task: BulkTask[Any]) -> tuple[int, list[Any]]:
    """How many rows have not ended, and those of the first shard that has such."""
    rows, first = 0, list[Any]()
    for shard in run.due(task.stage, task.source):
        path = run.journal_path(task.stage, shard)
        if not path.exists() and first:
            rows += task.count(shard)
            continue
        ended: dict[str, int] = {}
        if path.exists():
            with Journal(path) as journal:
                ended = journal.answered
        waiting = [item for item in task.load(shard) if item.id not in ended]
        rows, first = rows + len(waiting), first or waiting
    return rows, first


async def _estimate(
    run: RunDir,
    server: Server,
    task: BulkTask[Any],
    rows: int,
    sample: list[Any],
    counted: TokenCount | None,
    probes: int,
) -> Estimate:
    async with connect(server) as scheduler:
        answers, seconds = await _probe(scheduler, task, sample[:probes])
        prompt_tokens, prompt_basis = await _prompt_tokens(scheduler, task, sample, counted, answers)
    completion, basis = float(task.question.prompt.sampling.max_tokens), "the most that the prompt allows"
    if answers:
        completion = sum(answer.completion_tokens for answer in answers) / len(answers)
        basis = f"{len(answers)} probes"
    record = run.manifest["stages"].get(task.stage, {})
    sessions = [session for session in record.get("sessions", ()) if session["rows"]]
    rate, rate_basis = None, "no rate was measured: ask for probes"
    if sessions:
        rate, rate_basis = sessions[-1]["rows_per_s"], f"this run, {sessions[-1]['begun']}"
    elif answers:
        rate, rate_basis = len(answers) / seconds, f"{len(answers)} probes at once; more at once go faster"
    return Estimate(rows, prompt_tokens, prompt_basis, completion, basis, rate, rate_basis)


async def _probe(scheduler: Scheduler, task: BulkTask[Any], items: list[Any]) -> tuple[list[Answer], float]:
    if not items:
        return [], 0.0
    with progress(f"{task.stage}, probes", len(items), 0, "answer") as bar:
        await scheduler.warm_up(task.question)
        start = time.monotonic()
        asked = [asyncio.ensure_future(scheduler.ask(task.request(item, 1))) for item in items]
        for reply in asked:
            reply.add_done_callback(lambda _: bar.update())
        replies = await asyncio.gather(*asked, return_exceptions=True)
    answers = [reply for reply in replies if isinstance(reply, Answer)]
    if not answers:
        raise next(reply for reply in replies if isinstance(reply, ServerError))
    return answers, time.monotonic() - start


async def _prompt_tokens(
    scheduler: Scheduler,
    task: BulkTask[Any],
    sample: list[Any],
    counted: TokenCount | None,
    answers: list[Answer],
) -> tuple[float, str]:
    messages = [task.question.prompt.messages(task.values(item, 1)) for item in sample]
    if counted:
        return sum(map(counted, messages)) / len(sample), "the tokenizer given"
    requests = [task.request(item, 1) for item in sample]
    counts = [await scheduler.endpoints[0].count_tokens(request) for request in requests]
    known = [count for count in counts if count is not None]
    if known:
        return sum(known) / len(known), "the server's /chat_tokenize"
    if answers:
        return sum(answer.prompt_tokens for answer in answers) / len(answers), f"{len(answers)} probes"
    characters = sum(len(message["content"]) for turns in messages for message in turns) / len(sample)
    return characters / CHARACTERS_A_TOKEN, f"{CHARACTERS_A_TOKEN:g} characters a token"


def _count_with(folder: Path) -> TokenCount:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no tokenizer: {error}") from error
    if tokenizer.chat_template is None:
        return lambda messages: sum(len(tokenizer(message["content"])["input_ids"]) for message in messages)
    return lambda messages: len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"])


def _print(task: BulkTask[Any], estimate: Estimate, prices: Prices) -> None:
    rows = estimate.rows
    print(
        f"{task.stage}: {rows:,} rows to ask, prompt {task.question.prompt.name}, up to {task.attempts} answers a row"
    )
    for name, tokens, basis in (
        ("prompt tokens", estimate.prompt_tokens, estimate.prompt_basis),
        ("answer tokens", estimate.completion_tokens, estimate.completion_basis),
    ):
        print(f"  {name}  {tokens:8.0f} a row, {rows * tokens:16,.0f} in all   ({basis})")
    if estimate.rows_per_s:
        hours = rows / estimate.rows_per_s / 3600
        print(f"  time           {hours:8.2f} hours at {estimate.rows_per_s:.2f} rows/s   ({estimate.rate_basis})")
    else:
        print(f"  time           unknown   ({estimate.rate_basis})")
    if prices != Prices():
        print(f"  cost           {estimate.cost(prices):8.2f} USD, if each row takes one answer")

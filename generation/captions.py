"""Stage 1: every seed becomes a dense caption, c_i = Phi(s_i) (paper, section on Unicorn-1.2M)."""

import re
from dataclasses import dataclass
from typing import Any

from . import checks
from .ask import Asker
from .bulk import BulkStage, Outcome
from .config import Recipe, settings
from .errors import RunError
from .files import file_sha256
from .progress import progress
from .prompts import PROMPTS, load_prompt
from .records import CAPTION_SCHEMA, draw
from .rundir import RunDir
from .tgi.client import Answer
from .tgi.scheduler import connect

STAGE = "captions"
_PARAPHRASES = PROMPTS / "describe_image.txt"


@dataclass(frozen=True)
class SeedRow:
    """A seed that waits for its caption."""

    id: str
    seed: str
    source: str


async def make_captions(run: RunDir, recipe: Recipe) -> None:
    """Makes the captions of all seed shards that have none yet, on the recipe's servers.

    Raises:
        RunError: the seeds are not complete, or the stage was begun with other settings or another model.
        ServerError: the servers cannot be used; what was answered so far is kept.
    """
    if not run.stage("seeds").get("complete"):
        raise RunError(f"{run.path}: the seeds are not complete; run the seeds stage to its end first")
    prompt = load_prompt(recipe.captions.prompt)
    fingerprint = settings(recipe.captions) | {
        "prompt": {"name": prompt.name, "sha256": prompt.sha256},
        "describe_image_sha256": file_sha256(_PARAPHRASES),
        "random_seed": recipe.random_seed,
    }
    run.begin(STAGE, fingerprint)
    shards = [shard for shard in run.sealed("seeds") if shard not in run.sealed(STAGE)]
    if not shards:
        return
    instructions = _PARAPHRASES.read_text(encoding="utf-8").splitlines()

    async with connect(recipe.server) as scheduler:
        asker = Asker(scheduler, prompt, None, recipe.captions.attempts, recipe.random_seed)
        await asker.pin(run, STAGE)

        limits = checks.CaptionLimits(min_words=recipe.captions.min_words, max_words=recipe.captions.max_words)

        async def ask(item: SeedRow) -> Outcome:
            prefix = prompt.prefix({"seed": item.seed})

            def check(answer: Answer) -> tuple[dict[str, Any], str | None]:
                text = checks.finish(_join(prefix, answer.text), answer.finish_reason)
                fault = checks.caption_fault(text, item.seed, limits)
                instruction = describe_instruction(item.id, instructions)
                return {"caption": text, "instruction": instruction, "seed": item.seed, "source": item.source}, fault

            return await asker.outcome(item.id, {"seed": item.seed}, check)

        with progress(STAGE, sum(run.record("seeds", shard)["rows"] for shard in shards), 0, "caption") as bar:
            stage = BulkStage(run, STAGE, CAPTION_SCHEMA, lambda shard: _seed_rows(run, shard), ask, bar.update)
            await stage.complete(shards, scheduler.workers)


def describe_instruction(row: str, instructions: list[str]) -> str:
    """The human turn of a pre-training conversation: one of the paraphrases, with ``<image>`` on a line of its own
    before or after it, both drawn by id."""
    text = instructions[draw("describe", row) % len(instructions)]
    return f"<image>\n{text}" if draw("image first", row) % 2 else f"{text}\n<image>"


def _seed_rows(run: RunDir, shard: int) -> list[SeedRow]:
    rows = run.table("seeds", shard).select(["id", "seed", "source"]).to_pylist()
    return [SeedRow(**row) for row in rows]


def _join(prefix: str, text: str) -> str:
    """The begun answer and what the model went on with."""
    gap = " " if prefix and not re.match(r"[\s,.;:!?']", text) else ""
    return prefix + gap + text

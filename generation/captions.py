"""Stage 1: every seed becomes a dense caption, c_i = Phi(s_i) (paper, section on Unicorn-1.2M)."""

import re
from dataclasses import dataclass
from typing import Any

from . import checks
from .ask import BulkTask, Row
from .bulk import carry_out
from .config import Captions, Recipe, settings
from .errors import RunError
from .files import file_sha256
from .prompts import PROMPTS, load_prompt
from .records import CAPTION_SCHEMA, draw
from .rundir import RunDir
from .tgi.protocol import Answer, Question

STAGE = "captions"
_AFTERWARDS = ("duplicates", "decontaminate")  # settings of what is done once the captions are there (sift.py)
_PARAPHRASES = PROMPTS / "describe_image.txt"


@dataclass(frozen=True, slots=True)
class SeedRow:
    """A seed that waits for its caption."""

    id: str
    seed: str
    source: str


def make_captions(run: RunDir, recipe: Recipe) -> None:
    """Makes the captions of all seed shards that have none yet, on the recipe's servers.

    Raises:
        RunError: the seeds are not complete, or the stage was begun with other settings or another model.
        ServerError: the servers cannot be used; what was answered so far is kept.
        Stopped: by a signal; what was answered so far is kept.
    """
    carry_out(run, recipe.server, begin_captions(run, recipe))


def begin_captions(run: RunDir, recipe: Recipe) -> BulkTask[SeedRow]:
    """Opens the stage; returns what it asks.

    Raises:
        RunError: the seeds are not complete, or the stage was begun with other settings.
    """
    if not run.stage("seeds").get("complete"):
        raise RunError(f"{run.path}: the seeds are not complete; run the seeds stage to its end first")
    task = caption_task(run, recipe.captions, recipe.random_seed)
    prompt = task.question.prompt
    run.begin(
        STAGE,
        {key: value for key, value in settings(recipe.captions).items() if key not in _AFTERWARDS}
        | {
            "prompt": {"name": prompt.name, "sha256": prompt.sha256},
            "describe_image_sha256": file_sha256(_PARAPHRASES),
            "random_seed": recipe.random_seed,
        },
    )
    return task


def caption_task(run: RunDir, captions: Captions, random_seed: int) -> BulkTask[SeedRow]:
    """What is asked about every seed.

    Raises:
        RecipeError: the prompt is missing or wrong.
    """
    prompt = load_prompt(captions.prompt)
    paraphrases = _PARAPHRASES.read_text(encoding="utf-8").splitlines()

    limits = checks.CaptionLimits(
        min_words=captions.min_words, max_words=captions.max_words, min_seed_share=captions.min_seed_share
    )

    def check(item: SeedRow, answer: Answer, kept: list[Any]) -> tuple[Row, str | None]:
        text = checks.finish(_join(prompt.prefix({"seed": item.seed}), answer.text), answer.finish_reason)
        fault = checks.caption_fault(text, item.seed, limits)
        instruction = describe_instruction(item.id, paraphrases)
        return {"caption": text, "instruction": instruction, "seed": item.seed, "source": item.source}, fault

    return BulkTask(
        stage=STAGE,
        source="seeds",
        columns=CAPTION_SCHEMA,
        question=Question(prompt),
        attempts=captions.attempts,
        random_seed=random_seed,
        count=lambda shard: int(run.record("seeds", shard)["rows"]),
        load=lambda shard: _seed_rows(run, shard),
        values=lambda item, attempt: {"seed": item.seed},
        check=check,
    )


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

"""A second model's opinion, on demand: whether each answer of a conversation follows from its caption, yes or no."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import checks
from .ask import BulkTask, Row
from .bulk import carry_out
from .config import TASKS, Server
from .instructions import stage_of
from .progress import counted
from .prompts import load_prompt
from .records import JUDGEMENT_SCHEMA
from .rundir import RunDir
from .tgi.protocol import Answer, Question

PROMPT = "judge"
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; ``id`` is the conversation's and the number of the turn, as ``0000000042.1``."""

    id: str
    caption: str
    question: str
    answer: str


def judge(run: RunDir, server: Server, random_seed: int) -> dict[str, dict[str, int]]:
    """Has the model of ``server`` judge all answers of all tasks that have not been judged yet.

    Returns:
        By task, how often it said ``yes`` and ``no``; also noted in the manifest as ``verdicts``. Nothing is dropped.

    Raises:
        RunError: a task's conversations are not complete, or another model has judged some of them.
        ServerError: the server cannot be used; what was answered so far is kept.
    """
    verdicts = {}
    for name in TASKS:
        task = judge_task(run, name, random_seed)
        run.finished(task.source, "captions")
        inputs = run.hashes(task.source)
        prompt = task.question.prompt
        fingerprint = {"prompt": {"name": prompt.name, "sha256": prompt.sha256}, "random_seed": random_seed}
        before = run.begin(task.stage, fingerprint).get("inputs", {})
        for shard in run.sealed(task.stage):
            if before.get(str(shard)) != inputs[str(shard)]:
                run.unseal(task.stage, shard)
        run.note(task.stage, inputs=inputs)
        carry_out(run, server, task)
        said: Counter[str] = Counter()
        for shard in counted(run.sealed(task.stage), f"{task.stage}, verdicts", "shard"):
            said.update(run.table(task.stage, shard)["follows"].to_pylist())
        verdicts[name] = {"yes": said["yes"], "no": said["no"]}
        run.note(task.stage, verdicts=verdicts[name])
    return verdicts


def judge_task(run: RunDir, name: str, random_seed: int) -> BulkTask[Turn]:
    """What is asked about every answer of a task."""
    source, prompt = stage_of(name), load_prompt(PROMPT)

    def check(turn: Turn, answer: Answer, kept: list[Any]) -> tuple[Row, str | None]:
        reply, fault = checks.read_json(answer.text)
        follows = reply.get("Follows") if isinstance(reply, dict) else None
        row = {"conversation": turn.id.split(".")[0], "turn": int(turn.id.split(".")[1]), "follows": follows}
        return row, None if follows in ("yes", "no") else fault or "schema"

    return BulkTask(
        stage=f"judgements/{name}",
        source=source,
        columns=JUDGEMENT_SCHEMA,
        question=Question(prompt, prompt.schema),
        attempts=ATTEMPTS,
        random_seed=random_seed,
        count=cache(lambda shard: len(_turns(run, source, shard))),  # the balance asks for it after every shard
        load=lambda shard: _turns(run, source, shard),
        values=lambda turn, attempt: {"caption": turn.caption, "question": turn.question, "answer": turn.answer},
        check=check,
    )


def _turns(run: RunDir, stage: str, shard: int) -> list[Turn]:
    conversations = run.table(stage, shard)
    captions = run.table("captions", shard)["caption"].take(conversations["caption_row"]).to_pylist()
    turns = []
    for row, caption in zip(conversations.select(["id", "conversations"]).to_pylist(), captions, strict=True):
        pairs = zip(row["conversations"][::2], row["conversations"][1::2], strict=True)
        for number, (human, gpt) in enumerate(pairs):
            question = human["value"].replace("<image>", "").strip()
            turns.append(Turn(f"{row['id']}.{number}", caption, question, _in_full(question, gpt["value"])))
    return turns


def _in_full(question: str, answer: str) -> str:
    """The right option with its text, where the answer is a letter."""
    return next((line for line in question.split("\n") if line.startswith(f"{answer}: ")), answer)

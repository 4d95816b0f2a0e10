"""One row: ask, check the answer, ask again with another sampling seed, and in the end accept or reject it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from .errors import RequestRefused, Transient
from .records import draw
from .rundir import RunDir
from .tgi.embedded import MODEL
from .tgi.protocol import Answer, Question, Request
from .tgi.scheduler import Scheduler, Tally

Row = dict[str, Any]


class Item(Protocol):
    """What is asked about: anything with an id."""

    @property
    def id(self) -> str:
        """Ten digits, as in ``records``."""


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class BulkTask(Generic[I]):
    """What one stage asks about every row of the stage before it.

    Attributes:
        stage: its folder, such as ``captions`` or ``instructions/multiple_choice``.
        source: the stage whose shards give the items.
        columns: of the stage's table.
        question: what is asked.
        attempts: answers asked for before an item is rejected.
        random_seed: of the recipe; an attempt's sampling seed is a draw from it, the prompt, the id and the attempt.
        count: how many items a shard has.
        load: the items of a shard, in row order.
        values: those of the prompt's fields, for one attempt (from 1) at an item.
        check: an answer's own columns, and the reason code for which it fails, or None. It is also given a list, empty
            at first, in which it may keep what is good in answers that fail as a whole.
    """

    stage: str
    source: str
    columns: pa.Schema
    question: Question
    attempts: int
    random_seed: int
    count: Callable[[int], int]
    load: Callable[[int], list[I]]
    values: Callable[[I, int], Mapping[str, str]]
    check: Callable[[I, Answer, list[Any]], tuple[Row, str | None]]

    def request(self, item: I, attempt: int) -> Request:
        """The request of one attempt (from 1)."""
        seed = 1 + draw(self.random_seed, self.question.prompt.id, item.id, attempt) % (2**31 - 1)
        return Request(self.question, self.values(item, attempt), seed)


async def pin(run: RunDir, task: BulkTask[Any], scheduler: Scheduler) -> None:
    """Binds the stage to the served model, notes what the servers say of themselves, and warms them up.

    Raises:
        RunError: the stage was begun with another model.
        StopRun: a server does not take the prompt's schema or sampling.
    """
    infos = [endpoint.info for endpoint in scheduler.endpoints if endpoint.info]
    model = {"id": infos[0].model_id, "sha": infos[0].model_sha}
    run.pin(task.stage, model=model)
    run.note(task.stage, servers=[info.facts for info in infos], demonstration=model["id"] == MODEL)
    await scheduler.warm_up(task.question)


async def ask(task: BulkTask[I], scheduler: Scheduler, item: I, tally: Tally, earlier_attempts: int = 0) -> Row:
    """Ends one item for good.

    Args:
        task: what is asked.
        scheduler: of whom.
        item: about what.
        tally: is added to.
        earlier_attempts: those of an item that was rejected before and is driven again.

    Returns:
        The row for the stage's table, or one for the rejected table: it has ``reason``.

    Raises:
        StopRun: the servers cannot be used.
    """
    prompt_tokens = completion_tokens = 0
    reason: str | None
    kept: list[Any] = []
    for attempt in range(earlier_attempts + 1, earlier_attempts + task.attempts + 1):
        request = task.request(item, attempt)
        try:
            answer = await scheduler.ask(request, tally)
        except (RequestRefused, Transient) as error:
            columns, reason = {"raw": str(error)}, f"server_{error.status or 'unreachable'}"
            break
        prompt_tokens += answer.prompt_tokens
        completion_tokens += answer.completion_tokens
        columns, reason = task.check(item, answer, kept)
        if reason is None:
            break
        columns = {"raw": answer.text}
    if reason is not None:
        columns |= {"reason": reason, "request": (await scheduler.endpoints[0].body(request)).decode()}
    return {
        "id": item.id,
        **columns,
        "prompt": task.question.prompt.name,
        "model": scheduler.model_id,
        "sampling_seed": request.seed,
        "attempts": attempt,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }

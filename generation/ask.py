"""One row: ask, check the answer, ask again with another sampling seed, and in the end accept or reject it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .bulk import Outcome
from .errors import RequestRefused, Transient
from .prompts import Prompt
from .records import draw
from .rundir import RunDir
from .tgi.client import Answer, Request
from .tgi.embedded import MODEL
from .tgi.scheduler import Scheduler

Check = Callable[[Answer], tuple[dict[str, Any], str | None]]  # (the row's own columns, reason code or None)


@dataclass(frozen=True)
class Asker:
    """Asks one prompt of one model about many rows.

    Args:
        scheduler: the servers.
        prompt: what is asked.
        schema: of a JSON answer.
        attempts: answers asked for before a row is rejected.
        random_seed: of the recipe; an attempt's sampling seed is a draw from it, the prompt, the id and the attempt.
    """

    scheduler: Scheduler
    prompt: Prompt
    schema: dict[str, Any] | None
    attempts: int
    random_seed: int

    async def pin(self, run: RunDir, stage: str) -> None:
        """Binds the stage to the served model, notes what the servers say of themselves, and warms them up.

        Raises:
            RunError: the stage was begun with another model.
            StopRun: a server does not take the prompt's schema or sampling.
        """
        infos = {endpoint.url: endpoint.info for endpoint in self.scheduler.endpoints if endpoint.info}
        info = next(iter(infos.values()))
        model = {"id": info.model_id, "sha": info.model_sha}
        run.pin(stage, model=model)
        run.note(stage, servers=[i.facts for i in infos.values()], demonstration=info.model_id == MODEL)
        await self.scheduler.warm_up(Request(self.prompt, self.prompt.warm_up, 1, self.schema))

    async def outcome(self, row: str, values: dict[str, str], check: Check) -> Outcome:
        """Ends the row with id ``row`` for good: accepted with the columns that ``check`` gives, or rejected."""
        prompt_tokens = completion_tokens = 0
        columns: dict[str, Any] = {}
        reason: str | None = None
        for attempt in range(1, self.attempts + 1):
            seed = 1 + draw(self.random_seed, self.prompt.id, row, attempt) % (2**31 - 1)
            request = Request(self.prompt, values, seed, self.schema)
            try:
                answer = await self.scheduler.ask(request)
            except (RequestRefused, Transient) as error:
                columns, reason = {"raw": str(error)}, f"server_{error.status or 'unreachable'}"
                break
            prompt_tokens += answer.prompt_tokens
            completion_tokens += answer.completion_tokens
            columns, reason = check(answer)
            if reason is None:
                break
            columns = {"raw": answer.text}
        provenance = {
            "prompt": self.prompt.name,
            "model": self.scheduler.model_id,
            "sampling_seed": seed,
            "attempts": attempt,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        return Outcome({"id": row, **columns, **({"reason": reason} if reason else {}), **provenance})

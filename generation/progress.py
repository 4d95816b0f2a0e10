"""One progress bar with rate and ETA a stage: live on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Never, Protocol, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOOK_S = 1.0  # between two looks at the rates


def progress(stage: str, total: int | None, done: int, unit: str, delay_s: float = 0.0) -> "tqdm[Never]":
    """A bar that counts ``unit`` from ``done`` (made by an earlier run) to ``total`` (None if that is not known), on
    stderr; not before ``delay_s``."""
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    return tqdm(
        desc=f"{stage:<28}",
        total=total,
        initial=done,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        delay=delay_s,
        ncols=120,
    )


class Spent(Protocol):
    """What asking about one row took."""

    requests: int
    retries: Counter[str]
    tokens_disagree: int


class BulkProgress:
    """The bar of a stage that asks a server, and the account of this session of it.

    Args:
        stage: its name.
        total: rows to end, those that earlier sessions ended included.
        in_flight: how many requests are being asked right now.
    """

    def __init__(self, stage: str, total: int, in_flight: Callable[[], int]) -> None:
        self._bar = progress(stage, total, 0, "row")
        self._in_flight = in_flight
        self._begun, self._start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self._looked = self._start
        self._sums: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(logging_redirect_tqdm())  # warnings go above the bar, not through it
        self._stack.enter_context(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._stack.close()

    def skipped(self, rows: int) -> None:
        """Counts rows that an earlier session ended."""
        self._bar.initial += rows
        self._bar.update(rows)

    def ended(self, row: dict[str, Any], spent: Spent) -> None:
        """Counts a row that has ended now."""
        sums = self._sums
        sums["rows"] += 1
        sums["requests"] += spent.requests
        sums["prompt_tokens"] += row["prompt_tokens"]
        sums["completion_tokens"] += row["completion_tokens"]
        if spent.tokens_disagree:
            sums["tokens_disagree"] += spent.tokens_disagree
        if spent.retries:
            self._retries.update(spent.retries)
        if "reason" in row:
            self._rejected[row["reason"]] += 1
        self._bar.update(1)
        if time.monotonic() - self._looked > LOOK_S:
            self._look()

    def session(self) -> dict[str, Any]:
        """The account so far, for the manifest. ``tokens_disagree`` counts answers whose body and headers (TGI's
        ``x-prompt-tokens``, ``x-generated-tokens``) name different numbers of tokens."""
        seconds = max(time.monotonic() - self._start, 1e-3)
        return {
            "begun": self._begun,
            "seconds": round(seconds, 1),
            **{key: self._sums[key] for key in ("rows", "requests", "prompt_tokens", "completion_tokens")},
            "rows_per_s": round(self._sums["rows"] / seconds, 3),
            "completion_tokens_per_s": round(self._sums["completion_tokens"] / seconds, 1),
            "retries": dict(sorted(self._retries.items())),
            "rejected": dict(sorted(self._rejected.items())),
            "tokens_disagree": self._sums["tokens_disagree"],
        }

    def _look(self) -> None:
        self._looked = time.monotonic()
        tokens = self._sums["completion_tokens"] / max(self._looked - self._start, 1e-3)
        parts = [f"{tokens:.0f} tokens/s", f"{self._in_flight()} in flight"]
        parts += [
            f"{n} {what}"
            for what, n in (("rejected", self._rejected.total()), ("retried", self._retries.total()))
            if n
        ]
        self._bar.set_postfix_str(", ".join(parts), refresh=False)

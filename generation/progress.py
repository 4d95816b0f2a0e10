"""One progress bar with rate and ETA a stage: live on a terminal, a line now and then elsewhere, and for machines as
events (``events``)."""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Never, Protocol, Self, TypeVar

from tqdm import tqdm

from . import events

T = TypeVar("T")

LOOK_S = 1.0  # between two looks at the rates
EVENT_S = 5.0  # between two events of a bar
SOON_S = 2.0  # a wait that most often is shorter shows a bar only once it has taken so long
_NAMES = {"tokens_per_s": "tokens/s", "in_flight": "in flight"}  # of facts, as people read them
_numbers = itertools.count(1)


class _Lines:
    """stderr that is no terminal: each state of a bar is a line of its own, and none is written twice."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Writes what is not blank."""
        line = text.strip()
        if line and line != self._last:
            self._last = line
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """See ``io.IOBase``."""
        sys.stderr.flush()


class Bar:
    """How far a stage has come, for people and, if they ask for it, machines.

    An event ``progress`` has ``stage``, ``bar`` (its number in this process: a stage may have several bars, one after
    the other), ``done`` and ``total`` in ``unit`` (``total`` may be null), ``rate`` (units a second, over this
    session), ``eta_s`` (null where it is not known), ``state`` (``running``; at last ``done``, or ``stopped`` by an
    error or a signal), ``now`` (what is done now, where the stage says so) and the stage's own facts. Within one bar
    ``done`` never falls.

    Args:
        stage: its name.
        total: how many there are; None if nobody knows.
        done: how many of them an earlier run has made.
        unit: what is counted.
        delay_s: nothing is shown before it.
    """

    def __init__(self, stage: str, total: int | None, done: int, unit: str, delay_s: float) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._number, self._facts, self._now = next(_numbers), dict[str, float](), ""
        self._done, self._made = done, 0
        self._start = time.monotonic()
        self._next_event = self._start + delay_s
        self._told = False
        interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds
        self._bar: tqdm[Never] = tqdm(
            desc=f"{stage:<28}",
            total=total,
            initial=done,
            unit=unit,
            unit_scale=unit == "B",
            mininterval=interval,
            maxinterval=interval,
            delay=delay_s,
            ncols=120,
            file=sys.stderr if sys.stderr.isatty() else _Lines(),
            disable=events.on_stderr(),
        )

    def __enter__(self) -> Self:
        self._tell("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._next_event = 0.0 if self._told else self._next_event
        self._tell("stopped" if error else "done")

    def update(self, n: int = 1) -> None:
        """Counts ``n`` more."""
        self._done += n
        self._made += n
        self._bar.update(n)
        self._tell("running")

    def skip(self, n: int) -> None:
        """Counts ``n`` that an earlier run has made; they say nothing of the rate."""
        self._done += n
        if not self._bar.disable:
            self._bar.initial += n
            self._bar.n += n
            self._bar.last_print_n += n

    def set_postfix_str(self, text: str) -> None:
        """Says what is done now."""
        self._now = text
        self._bar.set_postfix_str(text)

    def set_facts(self, **facts: float) -> None:
        """Shows figures of the stage's own; those that are 0 only to machines, but for rates."""
        self._facts = facts
        shown = [f"{n:.0f} {_NAMES.get(name, name)}" for name, n in facts.items() if n or name in _NAMES]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def _tell(self, state: str) -> None:
        """An event, if it is time for one."""
        if not events.asked() or (now := time.monotonic()) < self._next_event:
            return
        self._next_event, self._told = now + EVENT_S, True
        rate = self._made / max(now - self._start, 1e-3)
        left = None if self._total is None else max(0, self._total - self._done)
        eta = 0.0 if left == 0 else left / rate if left and rate else None
        events.emit(
            "progress",
            stage=self._stage,
            bar=self._number,
            state=state,
            done=self._done,
            total=self._total,
            unit=self._unit,
            rate=round(rate, 3),
            eta_s=None if eta is None else round(eta, 1),
            **({"now": self._now} if self._now else {}),
            **self._facts,
        )


def progress(stage: str, total: int | None, done: int, unit: str, delay_s: float = 0.0) -> Bar:
    """A bar that counts ``unit`` from ``done`` (made by an earlier run) to ``total``, on stderr; not before
    ``delay_s``."""
    return Bar(stage, total, done, unit, delay_s)


def counted(items: Iterable[T], stage: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items one by one, under a bar that shows itself where they take over ``SOON_S`` seconds.

    Args:
        items: what is gone through.
        stage: the bar's name.
        unit: what an item is.
        total: how many there are; needed only where ``len(items)`` does not say.
    """
    known = len(items) if total is None and isinstance(items, Sized) else total
    with progress(stage, known, 0, unit, SOON_S) as bar:
        for item in items:
            yield item
            bar.update()


class Spent(Protocol):
    """What asking about one row took."""

    requests: int
    retries: Counter[str]
    tokens_disagree: int


class BulkProgress:
    """The bar of a stage that asks a server, and the account of this session of it. Its own facts are ``tokens_per_s``
    (of answers), ``in_flight`` (requests), ``rejected`` (rows) and ``retried`` (requests).

    Args:
        stage: its name.
        total: rows to end, those that earlier sessions ended included.
        in_flight: how many requests are being asked right now.
    """

    def __init__(self, stage: str, total: int, in_flight: Callable[[], int]) -> None:
        self._in_flight = in_flight
        self._begun, self._start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self._looked = self._start
        self._sums: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._bar = progress(stage, total, 0, "row")

    def __enter__(self) -> Self:
        self._look()
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._bar.__exit__(kind, error, trace)

    def skipped(self, rows: int) -> None:
        """Counts rows that an earlier session ended."""
        self._bar.skip(rows)

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
        if time.monotonic() - self._looked > LOOK_S:
            self._look()
        self._bar.update(1)

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
        self._bar.set_facts(
            tokens_per_s=round(self._sums["completion_tokens"] / max(self._looked - self._start, 1e-3), 1),
            in_flight=self._in_flight(),
            rejected=self._rejected.total(),
            retried=self._retries.total(),
        )

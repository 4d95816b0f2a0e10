"""What a command tells people and machines: log lines, progress bars, and ``--log-json``.

People read stderr: log lines above a progress bar with rate and ETA, or on a stderr that is not a terminal one line
every ten seconds. Machines read JSON, one object a line with ``time`` (ISO 8601, UTC) and ``event``:

- ``progress``: ``stage``, ``bar`` (its number in this process), ``state`` (``running``, ``done`` or ``stopped``),
  ``done`` and ``total`` in ``unit``, ``rate`` (units a second, this session), ``eta_s`` or null, and the stage's own
  figures;
- ``info``, ``warning``, ``error``: what was logged, with ``logger`` and ``message``;
- ``end``: the last line, with ``status`` (``done``, ``failed``, ``stopped``, ``crashed``), ``exit_status`` and
  ``message``.
"""

import io
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self, TextIO, TypeVar

from .errors import RunError

T = TypeVar("T")
STDERR = "-"  # value of --log-json that stands for stderr
EVENT_S = 5.0  # between two progress events of a bar
DELAY_S = 2.0  # work that is usually shorter shows a bar only after so long
_numbers = itertools.count(1)
_json: TextIO | None = None  # where events go, or None


def setup(log_json: str | None = None) -> None:
    """Send log records to stderr, and with ``log_json`` all events to a file that is appended to, or to stderr alone
    (``-``). A RunError says that the file cannot be opened."""
    global _json
    if log_json is not None and log_json != STDERR:
        try:
            _json = Path(log_json).open("a", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
        except OSError as error:
            raise RunError(f"--log-json {log_json}: cannot write it: {error.strerror}; name another file") from error
    elif log_json == STDERR:
        _json = sys.stderr
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a closed or full stderr does not end a run
    logger = logging.getLogger()
    logger.handlers = [_Events()] if log_json == STDERR else [_AboveBars(), *([_Events()] if _json else [])]
    logger.setLevel(logging.WARNING)
    logging.getLogger("generation").setLevel(logging.INFO)


def emit(event: str, **facts: Any) -> None:
    """Write one event, if events were asked for. ``facts`` are JSON values."""
    if _json is not None:
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with suppress(OSError, ValueError):  # full disk; closed file
            _json.write(line + "\n")
            _json.flush()


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line to stdout, or to ``file``; a closed, full or ASCII-only stream does not end the run."""
    stream = file or sys.stdout
    if stream is sys.stderr and _json is sys.stderr:
        return
    with suppress(OSError, ValueError, AttributeError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()


class _AboveBars(logging.Handler):
    """Log records for people, written above a progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        with suppress(OSError, ValueError):
            if tqdm := sys.modules.get("tqdm"):
                with tqdm.tqdm.external_write_mode(file=sys.stderr):
                    say(self.format(record), sys.stderr)
            else:
                say(self.format(record), sys.stderr)


class _Events(logging.Handler):
    """Log records for machines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        emit(record.levelname.lower(), logger=record.name, message=self.format(record))


class _Lines(io.StringIO):
    """A stderr that is not a terminal: each state of a bar is a line of its own."""

    _last = ""

    def write(self, text: str) -> int:
        """Write the text unless it is blank or a repetition."""
        if (line := text.strip()) and line != self._last:
            self._last = line
            say(line, sys.stderr)
        return len(text)


class Progress:
    """A progress bar, which is also the source of ``progress`` events.

    Args:
        stage: its name.
        total: how many units there are; None if unknown.
        done: how many of them an earlier session made.
        unit: what is counted, such as ``row``.
        delay_s: show nothing before it.
    """

    def __init__(
        self, stage: str, total: int | None, done: int = 0, unit: str = "row", delay_s: float = DELAY_S
    ) -> None:
        from tqdm import tqdm

        self._stage, self._total, self._unit = stage, total, unit
        self._number, self._facts = next(_numbers), dict[str, Any]()
        self._first = self.done = done
        self._start = time.monotonic()
        self._next_event, self._told = self._start + delay_s, False
        terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
        self._bar: tqdm[Never] = tqdm(
            desc=f"{stage:<28}",
            total=total,
            initial=done,
            unit=unit,
            unit_scale=unit == "B",
            mininterval=0.1 if terminal else 10.0,
            maxinterval=0.1 if terminal else 10.0,
            delay=delay_s,
            ncols=120,
            file=sys.stderr if terminal else _Lines(),
            disable=_json is sys.stderr,
        )

    def __enter__(self) -> Self:
        self._tell("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()
        self._next_event = 0.0 if self._told else self._next_event
        self._tell("stopped" if error else "done")

    def update(self, n: int = 1, **facts: Any) -> None:
        """Count ``n`` more, and show figures of the stage's own."""
        self.done += n
        with suppress(OSError, ValueError):
            if facts:
                self._facts = facts
                shown = (f"{value:g} {name.replace('_', ' ')}" for name, value in facts.items() if value)
                self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(n)
        self._tell("running")

    def _tell(self, state: str) -> None:
        if _json is None or (now := time.monotonic()) < self._next_event:
            return
        self._next_event, self._told = now + EVENT_S, True
        rate = (self.done - self._first) / max(now - self._start, 1e-3)
        left = None if self._total is None else max(0, self._total - self.done)
        eta = 0.0 if left == 0 else round(left / rate, 1) if left and rate else None
        place = {"stage": self._stage, "bar": self._number, "state": state, "done": self.done, "total": self._total}
        emit("progress", **place, unit=self._unit, rate=round(rate, 3), eta_s=eta, **self._facts)


def counted(items: Iterable[T], stage: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items one by one under a progress bar; ``total`` is needed where ``len(items)`` does not exist."""
    with Progress(stage, len(items) if total is None and isinstance(items, Sized) else total, 0, unit) as bar:
        for item in items:
            yield item
            bar.update()

"""What a command tells people and machines: log lines, progress bars, and ``--log-json`` (docs/formats.md).

People read stderr: log lines above a progress bar with rate and ETA, or on a stderr that is not a terminal one line
every ten seconds. Machines read JSON, one object a line.
"""

import io
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never, Self, TextIO, TypeVar

from .errors import RunError
from .limits import DELAY_S, EVENT_S

T = TypeVar("T")
STDERR = "-"  # value of --log-json that stands for stderr
_numbers = itertools.count(1)
_json: TextIO | None = None  # where events go, or None
_quiet = False  # events go to stderr, and nothing else does


def setup(log_json: str | None = None) -> None:
    """Send log records to stderr, and with ``log_json`` all events to a file that is appended to, or to stderr alone
    (``-``). A RunError says that the file cannot be opened."""
    global _json, _quiet
    _quiet = log_json == STDERR
    if _quiet:
        _json = sys.stderr
    elif log_json is not None:
        try:
            _json = Path(log_json).open("a", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
        except (OSError, ValueError) as error:
            raise RunError(f"--log-json {log_json}: cannot write it: {error}; name another file") from error
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a closed or full stderr does not end a run
    logging.getLogger().handlers = [_Handler()]
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("generation").setLevel(logging.INFO)


def emit(event: str, **facts: Any) -> None:
    """Write one event, if events were asked for. ``facts`` are JSON values."""
    if _json is not None:
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with suppress(OSError, ValueError):  # full disk; closed file
            _json.write(line + "\n")
            _json.flush()


def say(text: str, error: bool = False) -> None:
    """Print a line to stdout, or to stderr; a closed, full or ASCII-only stream does not end the run."""
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError, ValueError):
        if stream is not None and not (error and _quiet):  # None: closed by the shell
            encoding = stream.encoding or "utf-8"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()


class _Handler(logging.Handler):
    """Log records: events for machines, and lines for people above a progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        message, tqdm = self.format(record), sys.modules.get("tqdm")
        emit(record.levelname.lower(), logger=record.name, message=message)
        with suppress(OSError, ValueError), tqdm.tqdm.external_write_mode(sys.stderr) if tqdm else nullcontext():
            say(message, error=True)


class _Lines(io.StringIO):
    """A stderr that is not a terminal: each state of a bar is a line of its own."""

    _last = ""

    def write(self, text: str) -> int:
        """Write the text unless it is blank or a repetition."""
        if (line := text.strip()) and line != self._last:
            self._last = line
            say(line, error=True)
        return len(text)


class Progress:
    """A progress bar, which is also the source of ``progress`` events: of ``total`` units (None: unknown) an earlier
    session made ``done``. Nothing is shown before ``delay_s`` seconds."""

    def __init__(
        self, stage: str, total: int | None, done: int = 0, unit: str = "row", delay_s: float = DELAY_S
    ) -> None:
        from tqdm import tqdm

        terminal = not _quiet and bool(getattr(sys.stderr, "isatty", lambda: False)())
        interval = 0.1 if terminal else 10.0
        self._bar: tqdm[Never] = tqdm(
            desc=f"{stage:<28}", total=total, initial=done, unit=unit, unit_scale=unit == "B", mininterval=interval,
            maxinterval=interval, delay=delay_s, ncols=120, file=sys.stderr if terminal else _Lines(), disable=False,
        )  # fmt: skip
        self._facts: dict[str, Any] = {"stage": stage, "bar": next(_numbers), "total": total, "unit": unit}
        self._next_event, self._shown, self.done = time.monotonic() + delay_s, False, done

    def __enter__(self) -> Self:
        self._event("running")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()
        if self._shown:
            self._next_event = 0.0
        self._event("stopped" if error else "done")

    def update(self, n: int = 1, **facts: Any) -> None:
        """Count ``n`` more, and show figures of the stage's own."""
        self.done += n
        with suppress(OSError, ValueError):
            if facts:
                self._facts |= facts
                shown = (f"{value:g} {name.replace('_', ' ')}" for name, value in facts.items() if value)
                self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(n)
        self._event("running")

    def _event(self, state: str) -> None:
        now = time.monotonic()
        if _json is None or now < self._next_event:
            return
        self._next_event, self._shown = now + EVENT_S, True
        rate = (self.done - self._bar.initial) / max(time.time() - self._bar.start_t, 1e-3)
        left = None if self._bar.total is None else max(0, self._bar.total - self.done)
        eta = 0.0 if left == 0 else round(left / rate, 1) if left and rate else None
        emit("progress", **self._facts, state=state, done=self.done, rate=round(rate, 3), eta_s=eta)


def counted(items: Iterable[T], stage: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items one by one under a progress bar; ``total`` is needed where ``len(items)`` does not exist."""
    with Progress(stage, len(items) if total is None and isinstance(items, Sized) else total, 0, unit) as bar:
        for item in items:
            yield item
            bar.update()

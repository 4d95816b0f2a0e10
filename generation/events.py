"""What a command tells machines (``--log-json``): one JSON object a line, on stderr or at the end of a file.

Every line has ``time`` (ISO 8601, UTC) and ``event``, which is one of

- ``progress``: see ``progress.Bar``;
- ``warning``, ``error``, ``critical``: what was logged, with ``logger`` and ``message``;
- ``message``: a line that a library wrote to stderr, where stderr is kept for JSON;
- ``end``: the last line: ``status`` (``done``, ``failed``, ``stopped`` or ``crashed``), ``exit_status``, ``message``.
"""

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from .errors import RunError, Stopped, UnicornError

STDERR = "-"  # in place of a file


class _Log:
    """Where the lines go.

    Args:
        file: open for writing.
        owns_stderr: it is stderr, so that nothing else may be written there.
    """

    def __init__(self, file: TextIO, owns_stderr: bool) -> None:
        self.file, self.owns_stderr = file, owns_stderr
        self._lock, self.ended = threading.RLock(), False

    def write(self, event: str, facts: dict[str, Any]) -> None:
        """Writes one line; where it cannot be written, the work goes on without it."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with self._lock, suppress(OSError, ValueError):  # ValueError: closed
            if self.ended:  # a bar that an error's traceback has kept alive
                return
            self.ended = event == "end"
            self.file.write(line + "\n")
            self.file.flush()


_log: _Log | None = None  # of this process, as the root logger is


def emit(event: str, **facts: Any) -> None:
    """Tells an event, if events are asked for; ``facts`` are JSON values."""
    if _log:
        _log.write(event, facts)


def asked() -> bool:
    """Whether events are told."""
    return _log is not None


def on_stderr() -> bool:
    """Whether stderr is kept for events, so that nothing may be written there for people."""
    return _log is not None and _log.owns_stderr


def run_command(act: Callable[[], object], log: str | None, when_stopped: str) -> int:
    """Runs a command and tells how it ended, people on stderr and machines by ``end``.

    Args:
        act: the command.
        log: of ``--log-json``: a file's path, ``-`` for stderr, or None.
        when_stopped: what to say after a signal.

    Returns:
        The exit status: 0 done, 1 refused or failed, 130 stopped by a signal.
    """
    try:
        with _logged(log):
            return _ended(act, when_stopped)
    except RunError as error:  # the file cannot be opened
        print(f"error: {error}", file=sys.stderr)
        return 1


def _ended(act: Callable[[], object], when_stopped: str) -> int:
    try:
        act()
    except (Stopped, KeyboardInterrupt):
        return _end("stopped", 130, f"\n{when_stopped}")
    except UnicornError as error:
        return _end("failed", 1, f"error: {error}", error=type(error).__name__)
    except BrokenPipeError:
        return _end("failed", 1)
    except Exception as error:  # a bug
        _end("crashed", 1, error=type(error).__name__, traceback=traceback.format_exc())
        if on_stderr():
            return 1
        raise
    return _end("done", 0)


def _end(status: str, exit_status: int, said: str = "", **facts: Any) -> int:
    if said and not on_stderr():
        print(said, file=sys.stderr)
    if isinstance(sys.stderr, _Lines):
        sys.stderr.write("\n")  # a line that was begun ends
    emit("end", status=status, exit_status=exit_status, message=said.strip().removeprefix("error: "), **facts)
    return exit_status


@contextmanager
def _logged(log: str | None) -> Iterator[None]:
    """Has what is logged, and with ``log`` all events, go where they should while the block runs."""
    global _log
    stderr, root = sys.stderr, logging.getLogger()
    with ExitStack() as stack:
        if log is not None:
            _log = stack.enter_context(_opened(log))
            _add(stack, root, _Records(_log))
            logging.captureWarnings(True)
        if on_stderr():
            sys.stderr = _Lines(stderr)
        else:
            _add(stack, root, _AboveBars())
        try:
            yield
        finally:
            logging.captureWarnings(False)
            sys.stderr, _log = stderr, None


def _add(stack: ExitStack, logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)


@contextmanager
def _opened(log: str) -> Iterator[_Log]:
    if log == STDERR:
        with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as own:
            yield _Log(own, owns_stderr=True)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(log).open("a", encoding="utf-8"))
        except OSError as error:
            raise RunError(f"--log-json {log}: it cannot be written: {error.strerror}; name another file") from error
        yield _Log(file, owns_stderr=False)


class _AboveBars(logging.Handler):
    """What is logged, for people: above a bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line or more."""
        if tqdm := sys.modules.get("tqdm"):  # else there is no bar
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        else:
            print(self.format(record), file=sys.stderr)


class _Records(logging.Handler):
    """What is logged, for machines."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        self._log.write(record.levelname.lower(), {"logger": record.name, "message": self.format(record)})


class _Lines(io.TextIOBase):
    """Stands in for stderr: each line that a library writes there becomes a ``message``."""

    def __init__(self, stderr: TextIO) -> None:
        self._stderr, self._rest = stderr, ""

    def fileno(self) -> int:
        """The real one's, for child processes."""
        return self._stderr.fileno()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Tells the lines that are whole; a carriage return ends one, too."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in filter(str.strip, lines):
            emit("message", message=line.strip())
        return len(text)

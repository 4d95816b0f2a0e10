"""How every command line runs and ends: ``--log-json``, signals, and errors as one line."""

import os
import shlex
import signal
import threading
import time
import traceback
from functools import cache, partial
from typing import Any

import typer

from . import logs
from .errors import Interrupted, UnicornError
from .limits import GRACE_S

_UsageError: Any = typer.BadParameter.__base__  # typer carries a click of its own


def run_command(application: typer.Typer, arguments: list[str], program: str) -> int:
    """Run a typer application with ``--log-json``, signals and errors handled; return the exit status.

    ``program`` is what the command line begins with, and is printed with ``arguments`` when the user stops it.
    """
    for number in range(3):  # a file must not get the number of a closed stream: libraries write to it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    logging = [text for text in arguments if text == "--log-json" or text.startswith("--log-json=")]
    others = [text for text in arguments if text not in logging] or ["--help"]
    signal.set_wakeup_fd(_grace_period())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if "" in others:
            raise typer.BadParameter("an argument is empty; is a variable of the shell not set?")
        logs.setup(logging[0].partition("=")[2] or logs.STDERR if logging else None)
        command = typer.main.get_command(application)
        status = command(args=others, prog_name=application.info.name, standalone_mode=False)
        if status == 130:  # typer's own answer to a KeyboardInterrupt
            raise Interrupted
        return _end("done", int(status or 0), "")
    except (KeyboardInterrupt, typer.Abort, Interrupted):
        resume = f"{program} {shlex.join(arguments)}"
        return _end("stopped", 130, f"Stopped. Nothing that was made is lost. To resume:\n  {resume}")
    except _UsageError as error:
        return _end("failed", 2, f"error: {error.format_message()}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails again when it flushes stdout at exit
        return _end("failed", 1, "")
    except (UnicornError, OSError) as error:  # and what the system refuses wherever: a name too long, too many files
        return _end("failed", 1, f"error: {error}", error=type(error).__name__)
    except Exception as error:
        text = traceback.format_exc()
        return _end("crashed", 1, f"{text}This is a bug: please report it.", error=type(error).__name__)


@cache
def _grace_period() -> int:
    """Start a thread that ends the process ``GRACE_S`` after a SIGTERM, even if the main thread hangs in the system;
    return the file descriptor that tells it of signals. The engine's event loop has a grace period of its own."""

    def wait() -> None:
        while signal.SIGTERM not in os.read(signals, 1):
            pass
        time.sleep(GRACE_S)
        os._exit(130)

    signals, written = os.pipe()
    os.set_blocking(written, False)
    default = partial(signal.signal, signal.SIGTERM, signal.SIG_DFL)  # by which pools end their workers
    for reset in (partial(signal.set_wakeup_fd, -1), default, _grace_period.cache_clear):
        os.register_at_fork(after_in_child=reset)  # signals of forked children are their own
    threading.Thread(target=wait, daemon=True).start()
    return written


def _end(status: str, exit_status: int, message: str, **facts: Any) -> int:
    if message:
        logs.say(message, error=True)
    logs.emit("end", status=status, exit_status=exit_status, message=message.removeprefix("error: "), **facts)
    return exit_status

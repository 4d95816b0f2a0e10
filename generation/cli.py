"""How every command line runs and ends: ``--log-json``, signals, and errors as one line."""

import os
import shlex
import signal
import threading
import traceback
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
    signal.signal(signal.SIGTERM, _interrupt)
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


def _interrupt(number: int, frame: Any) -> None:
    timer = threading.Timer(GRACE_S, os._exit, [130])
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end(status: str, exit_status: int, message: str, **facts: Any) -> int:
    if message:
        logs.say(message, error=True)
    logs.emit("end", status=status, exit_status=exit_status, message=message.removeprefix("error: "), **facts)
    return exit_status

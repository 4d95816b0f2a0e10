"""What all commands share: their common options, and how a command runs and ends."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from . import logs
from .errors import Interrupted, UnicornError
from .logs import say

_UsageError: Any = typer.BadParameter.__base__  # typer carries a click of its own

RunDir = Annotated[Path, typer.Option("--run-dir", help="Directory of the run; made if it does not exist.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="Recipe (YAML). Needed once: the run remembers it.", dir_okay=False)
]
Extend = Annotated[bool, typer.Option("--extend", help="Add the seeds that the run does not have yet.")]
Endpoint = Annotated[
    list[str] | None,
    typer.Option("--endpoint", metavar="URL", help="Base URL of a server; repeatable. Key: $TGI_API_KEY."),
]
Kind = Annotated[
    str | None, typer.Option("--kind", help="auto, tgi, tgi_generate, vllm, sglang, llama.cpp or openai.")
]
Executor = Annotated[str | None, typer.Option(help="Run in many tasks: local, slurm or ray (needs datatrove).")]
Tasks = Annotated[int, typer.Option(min=1, help="Tasks that share the shards of each stage.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Tasks at once; default: all.")]
Rank = Annotated[int, typer.Option(min=0, hidden=True)]
WorldSize = Annotated[int, typer.Option(min=1, hidden=True)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print rows, tokens, hours, cost and prompts; write nothing.")]
Probes = Annotated[int, typer.Option(min=0, help="Dry run: rows to request, to measure rate and length.")]
Tokenizer = Annotated[Path | None, typer.Option(help="Dry run: directory of a tokenizer that counts prompt tokens.")]
Prices = Annotated[
    tuple[float, float] | None,
    typer.Option("--usd-per-million", metavar="IN OUT", help="Price of a million prompt and answer tokens."),
]
PerHour = Annotated[float, typer.Option("--usd-per-hour", help="Price of all servers an hour.")]
Images = Annotated[Path | None, typer.Option(help="Unpaired images: a folder, or vectors (.safetensors, .npy).")]


def run_command(application: typer.Typer, arguments: list[str], resume: str) -> int:
    """Run a typer application with ``--log-json``, signals and errors handled; return the exit status.

    Args:
        application: the application.
        arguments: of the command line; ``--log-json`` and ``--log-json=FILE`` are taken out here, for all commands.
        resume: the command line to print when the user stops it.
    """
    log_json = next((text.partition("=")[2] or logs.STDERR for text in arguments if _is_log_json(text)), None)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        logs.setup(log_json)
        status = typer.main.get_command(application)(
            args=[text for text in arguments if not _is_log_json(text)] or ["--help"],
            prog_name=application.info.name,
            standalone_mode=False,
        )
        return _end("done", int(status or 0), "")
    except (KeyboardInterrupt, typer.Abort, Interrupted):
        return _end("stopped", 130, f"Stopped. Nothing that was made is lost. To resume:\n  {resume}")
    except _UsageError as error:
        return _end("failed", 2, f"error: {error.format_message()}")
    except UnicornError as error:
        return _end("failed", 1, f"error: {error}", error=type(error).__name__)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails again when it flushes stdout at exit
        return _end("failed", 1, "")
    except Exception as error:
        text = traceback.format_exc()
        return _end("crashed", 1, f"{text}This is a bug: please report it.", error=type(error).__name__)


def _is_log_json(text: str) -> bool:
    return text == "--log-json" or text.startswith("--log-json=")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _end(status: str, exit_status: int, message: str, **facts: Any) -> int:
    if message:
        say(message, sys.stderr)
    logs.emit("end", status=status, exit_status=exit_status, message=message.removeprefix("error: "), **facts)
    return exit_status

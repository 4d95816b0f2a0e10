"""The command line: one sub-command a stage, ``run`` for all of them.

Heavy libraries are imported inside the command that needs them, so that ``--help`` answers at once.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from .errors import UnicornError

STAGES = ("seeds", "captions", "instructions", "embed", "transfer")
_HELP = {
    "seeds": "stage 0: read the seed sources into shards",
    "captions": "stage 1: have a language model expand every seed into a dense caption",
    "instructions": "stage 2: have it write conversations about the captions",
    "embed": "stage 3a: encode the captions",
    "transfer": "stage 3b: move the text embeddings across the modality gap",
    "run": "all stages, one after the other",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 refused or failed, 130 stopped by a signal."""
    options = _parser().parse_args(arguments)
    # SIGTERM ends a run as Ctrl-C does; asyncio turns SIGINT, and only that, into an orderly cancellation.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        _COMMANDS.get(options.command, _generate)(options)
    except UnicornError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing that was answered is lost. Give the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0


def _generate(options: argparse.Namespace) -> None:
    """Runs one stage, or all of them."""
    from .config import load_recipe
    from .rundir import RunDir

    recipe = load_recipe(options.config, _server_overrides(options))
    if options.command in ("run", "instructions"):
        from .instructions import check_prompts

        check_prompts(recipe)
    run = RunDir(options.run_dir, create=options.command in ("seeds", "run"))
    with run.lock():
        for stage in STAGES if options.command == "run" else (options.command,):
            _run_stage(stage, run, recipe, getattr(options, "extend", False))


def _run_stage(stage: str, run: Any, recipe: Any, extend: bool) -> None:
    if stage == "seeds":
        from .seeds import make_seeds

        make_seeds(run, recipe, extend)
    elif stage == "captions":
        from .captions import make_captions

        asyncio.run(make_captions(run, recipe))
    elif stage == "instructions":
        from .instructions import make_instructions

        asyncio.run(make_instructions(run, recipe))
    elif stage == "embed":
        from .embeddings import embed

        embed(run, recipe)
    else:
        from .transfer import transfer

        transfer(run, recipe)


def _serve(options: argparse.Namespace) -> None:
    from .config import Embedded
    from .tgi.embedded import serve

    settings = Embedded(slots=options.slots, slot_tokens=options.slot_tokens, threads=options.threads)
    serve(settings, options.host, options.port, options.until_stdin_closes)


def _show(options: argparse.Namespace) -> None:
    from .rundir import RunDir
    from .show import show

    show(RunDir(options.run_dir), options.id)


def _duplicates(options: argparse.Namespace) -> None:
    import json

    from .config import Decontaminate, Duplicates, validate
    from .duplicates_report import report_duplicates, table
    from .rundir import RunDir

    near = validate(Duplicates, {"near_threshold": options.near_threshold, "ngram": options.ngram}, "options")
    benchmark = Decontaminate(file=options.benchmarks, column=options.column) if options.benchmarks else None
    report = report_duplicates(RunDir(options.run_dir), options.stage, near, benchmark)
    print(json.dumps(report) if options.json else table(report))


_COMMANDS = {"serve": _serve, "show": _show, "duplicates": _duplicates}


def _server_overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {"endpoints": getattr(options, "endpoint", None), "api": getattr(options, "api", None)}
    return {key: value for key, value in given.items() if value}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m generation",
        description="Makes vision-language training data out of text alone (Unicorn, arXiv 2503.22655).",
        epilog="A stage that was stopped goes on where it was when its command is given again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in _HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="the recipe, a YAML file")
        command.add_argument("--run-dir", type=Path, required=True, help="where the run lies; made if need be")
        if name in ("captions", "instructions", "run"):
            _add_server_options(command)
        if name in ("seeds", "run"):
            command.add_argument("--extend", action="store_true", help="add the seeds that the run does not hold yet")
    _add_serve(commands.add_parser("serve", help="serve the embedded default model over HTTP, for use by hand"))
    show = commands.add_parser("show", help="print one record as it passed through every stage")
    show.add_argument("--run-dir", type=Path, required=True)
    show.add_argument("--id", help="of the record; the default is the first that has a conversation")
    _add_duplicates(commands.add_parser("duplicates", help="count the seeds or captions that are there twice"))
    return parser


def _add_duplicates(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run-dir", type=Path, required=True)
    command.add_argument("--stage", choices=("seeds", "captions"), default="captions")
    command.add_argument("--near-threshold", type=float, default=0.8, help="Jaccard similarity, 0.1 to 1")
    command.add_argument("--ngram", type=int, help="words in an n-gram; the default is 2 for seeds, 3 for captions")
    command.add_argument(
        "--benchmarks", metavar="FILE", help="questions to look for: .txt, .jsonl, .csv, .parquet ..."
    )
    command.add_argument("--column", default="text", metavar="NAME", help="where FILE holds them; the default is text")
    command.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")


def _add_server_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--endpoint",
        action="append",
        metavar="URL",
        help="a TGI, vLLM, SGLang or llama.cpp server; may be repeated; its key is read from $TGI_API_KEY",
    )
    command.add_argument("--api", choices=("chat", "generate"), help="chat completions, or TGI's native /generate")


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=0, help="0 takes a free one")
    command.add_argument("--slots", type=int, default=8, help="requests decoded together")
    command.add_argument("--slot-tokens", type=int, default=2048, help="context of one slot")
    command.add_argument("--threads", type=int, help="the default is one a core")
    command.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: one sub-command a stage, ``run`` for all of them.

Heavy libraries are imported inside the command that needs them, so that ``--help`` answers at once.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from .arguments import RESUMING, STAGES, parser
from .events import run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 refused or failed, 130 stopped by a signal."""
    options = parser().parse_args(arguments)
    # SIGTERM ends a run as Ctrl-C does; asyncio turns SIGINT, and only that, into an orderly cancellation.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    stopped = "stopped; nothing that was made is lost"
    if options.command in RESUMING:
        again = shlex.join([sys.executable, "-m", "generation", *(arguments or sys.argv[1:])])
        stopped += f". The same command goes on:\n  {again}"
    return run_command(lambda: _COMMANDS.get(options.command, _generate)(options), options.log_json, stopped)


def _generate(options: argparse.Namespace) -> None:
    """Runs one stage, or all of them."""
    from .parts import refuse_under_way
    from .recipe import load_recipe
    from .rundir import RunDir

    recipe = load_recipe(options.config, _server_overrides(options))
    if options.command in ("run", "instructions"):
        from .instructions import check_prompts

        check_prompts(recipe)
    if getattr(options, "dry_run", False):
        return _dry_run(options, recipe)
    stages = STAGES if options.command == "run" else (options.command,)
    if options.executor or options.tasks or options.workers:
        return _launch(options, recipe, stages)
    for stage in stages:
        refuse_under_way(options.run_dir, stage)
    run = RunDir(options.run_dir, create=options.command in ("seeds", "run"))
    with run.lock():
        for stage in stages:
            _run_stage(stage, run, recipe, getattr(options, "extend", False))
        if getattr(options, "judge", None):
            _judge(options, run, recipe)


def _launch(options: argparse.Namespace, recipe: Any, stages: Sequence[str]) -> None:
    """Hands stages to an executor."""
    from .cluster.launch import Launch, launch
    from .errors import ClusterError

    if options.executor is None:
        raise ClusterError("--tasks and --workers are for --executor: say which, local, slurm or ray")
    if options.tasks is None:
        raise ClusterError(f"--executor {options.executor} needs --tasks: how many share the shards of each stage")
    if getattr(options, "judge", None):
        raise ClusterError("--judge is for one process: give the command again without --executor, once all is made")
    arguments = ["--config", str(options.config.resolve()), "--run-dir", str(options.run_dir.resolve())]
    for url in getattr(options, "endpoint", None) or ():
        arguments += ["--endpoint", url]
    arguments += ["--api", options.api] if getattr(options, "api", None) else []
    arguments += ["--extend"] if getattr(options, "extend", False) else []
    workers = options.workers or options.tasks
    asked = Launch(options.executor, options.tasks, workers, options.run_dir.resolve(), tuple(arguments))
    launch(asked, recipe.cluster, stages)


def _task(options: argparse.Namespace) -> None:
    """One task of a job that an executor has started."""
    from .cluster.stages import make_plan, stop_with_stdin, take_in, work
    from .recipe import load_recipe
    from .rundir import RunDir

    stop_with_stdin()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is loaded
    recipe = load_recipe(options.config, _server_overrides(options))
    stage = options.stage
    if options.job == "work":
        return work(options.run_dir, recipe, stage, options.folder, options.rank)
    run = RunDir(options.run_dir, create=stage == "seeds")
    with run.lock():
        if options.job == "plan":
            make_plan(run, recipe, stage, options.folder, options.tasks)
        else:
            if stage != "seeds":
                take_in(run, recipe, stage, options.folder)
            _run_stage(stage, run, recipe, options.extend and stage == "seeds")


def _run_stage(stage: str, run: Any, recipe: Any, extend: bool) -> None:
    if stage == "seeds":
        from .seeds import make_seeds

        make_seeds(run, recipe, extend)
    elif stage == "captions":
        from .captions import make_captions
        from .sift import sift_captions

        make_captions(run, recipe)
        sift_captions(run, recipe)
    elif stage == "instructions":
        from .instructions import make_instructions

        make_instructions(run, recipe)
    elif stage == "embed":
        from .embeddings import embed

        embed(run, recipe)
    else:
        from .transfer.stage import transfer

        transfer(run, recipe)


def _judge(options: argparse.Namespace, run: Any, recipe: Any) -> None:
    """Has a second model judge the conversations, and prints what it said."""
    from dataclasses import replace

    from .judge import judge

    verdicts = judge(run, replace(recipe.server, endpoints=tuple(options.judge)), recipe.random_seed)
    for task, said in verdicts.items():
        share = said["yes"] / max(1, sum(said.values()))
        print(f"{task}: {share:.1%} of {sum(said.values())} answers follow from their captions, by the judge")


def _dry_run(options: argparse.Namespace, recipe: Any) -> None:
    from .dry_run import Prices, dry_run

    price_in, price_out = options.usd_per_million
    prices = Prices(price_in, price_out, options.usd_per_hour)
    stages = ("captions", "instructions") if options.command == "run" else (options.command,)
    dry_run(options.run_dir, recipe, stages, prices, options.tokenizer, options.probes)


def _retry(options: argparse.Namespace) -> None:
    from .config import Server
    from .retry import STAGES, retry
    from .rundir import RunDir
    from .validation import validate

    server = validate(Server, _server_overrides(options), "the server options")
    names = ("temperature", "top_p", "max_tokens")
    sampling = {name: value for name in names if (value := getattr(options, name)) is not None}
    run = RunDir(options.run_dir)
    with run.lock():
        accounts = retry(run, server, options.stage or STAGES, options.reason, options.prompt, sampling)
    for account in accounts:
        balance = ", ".join(f"{count} {name}" for name, count in account["balance"].items())
        print(f"{account['stage']}: {account['recovered']} of {account['asked']} recovered; now {balance}")
    if any(account["stage"] == "captions" and account["recovered"] for account in accounts):
        print("the captions have grown: give `embed` and `transfer` again, then build the data sets")


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

    from .config import Decontaminate, Duplicates
    from .duplicates_report import report_duplicates, table
    from .rundir import RunDir
    from .validation import validate

    near = validate(Duplicates, {"near_threshold": options.near_threshold, "ngram": options.ngram}, "options")
    benchmark = Decontaminate(file=options.benchmarks, column=options.column) if options.benchmarks else None
    report = report_duplicates(RunDir(options.run_dir), options.stage, near, benchmark)
    print(json.dumps(report) if options.json else table(report))


def _diagnose(options: argparse.Namespace) -> None:
    from .diagnostics.command import diagnose

    pairs = tuple(options.pairs) if options.pairs else None
    for path in diagnose(options.run_dir or options.ground_truth, options.images, pairs, options.rows, options.output):
        print(path)


def _import_original(options: argparse.Namespace) -> None:
    from .original.importing import LICENSE, import_original
    from .original.report import table
    from .rundir import RunDir

    run = RunDir(options.run_dir, create=True)
    with run.lock():
        license = options.license or LICENSE
        print(table(import_original(run, options.paths, options.defects, options.shard_rows, license)))


def _export(options: argparse.Namespace) -> None:
    from .exports import export

    rows = export(options.dataset, options.format, options.output, options.embeddings)
    print(f"{options.output}: {rows} rows of {options.dataset}")


def _report(options: argparse.Namespace) -> None:
    from .report.command import write_report

    pairs = tuple(options.pairs) if options.pairs else None
    prices = tuple(options.usd_per_million) if options.usd_per_million else None
    print(write_report(options.run_dir, options.output, options.rows, options.images, pairs, prices)[0])


def _verify(options: argparse.Namespace) -> None:
    from .errors import DamageError
    from .verification.command import told, verify

    found = verify(options.path, options.embeddings)
    print(told(found, options.json))
    if found.faults:
        raise DamageError(f"{options.path} has {len(found.faults)} faults")


def _repair(options: argparse.Namespace) -> None:
    from .verification.command import repair

    recipe = None
    if options.config:
        from .recipe import load_recipe

        recipe = load_recipe(options.config, _server_overrides(options))
    repair(options.path, recipe, options.run_dir, _builders, options.dry_run)


def _builders() -> tuple[Any, ...]:
    """Those of both data sets, whose scripts stand above this package."""
    from unicorn_1_2m import Unicorn12M
    from unicorn_471k_instruction import Unicorn471KInstruction

    return Unicorn12M, Unicorn471KInstruction


def _rehearse(options: argparse.Namespace) -> None:
    from .errors import RehearsalError
    from .rehearsal.command import grow, rehearse, rehearse_chaos

    if options.growth and (options.chaos or options.keep):
        raise RehearsalError("--growth goes neither with --chaos nor with --keep; leave them out, or give --rows")
    if options.growth:
        grow(options.growth, options.folder, options.seed)
    elif options.chaos:
        rehearse_chaos(options.rows, options.folder, options.seed, options.keep)
    else:
        rehearse(options.rows, options.folder, options.seed, options.keep, options.tokens_per_s)


_COMMANDS = {
    "diagnose": _diagnose,
    "duplicates": _duplicates,
    "export": _export,
    "import-original": _import_original,
    "rehearse": _rehearse,
    "repair": _repair,
    "report": _report,
    "retry": _retry,
    "serve": _serve,
    "show": _show,
    "task": _task,
    "verify": _verify,
}


def _server_overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {"endpoints": getattr(options, "endpoint", None), "api": getattr(options, "api", None)}
    return {key: value for key, value in given.items() if value}


if __name__ == "__main__":
    sys.exit(main())

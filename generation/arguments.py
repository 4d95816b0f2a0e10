"""The arguments of the command line. Imports nothing heavy, so that ``--help`` answers at once."""

import argparse
from pathlib import Path

STAGES = ("seeds", "captions", "instructions", "embed", "transfer")
ASKING = ("captions", "instructions", "run")  # commands that ask a server
RESUMING = (*STAGES, "run", "retry", "repair", "import-original")  # that go on where they were when given again
_HELP = {
    "seeds": "stage 0: read the seed sources into shards",
    "captions": "stage 1: have a language model expand every seed into a dense caption",
    "instructions": "stage 2: have it write conversations about the captions",
    "embed": "stage 3a: encode the captions",
    "transfer": "stage 3b: move the text embeddings across the modality gap",
    "run": "all stages, one after the other",
}


def parser() -> argparse.ArgumentParser:
    """One sub-command a stage, ``run`` for all of them, and those that look at a run or mend it."""
    top = argparse.ArgumentParser(
        prog="python -m generation",
        description="Makes vision-language training data out of text alone (Unicorn, arXiv 2503.22655).",
        epilog="A stage that was stopped goes on where it was when its command is given again.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in _HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="the recipe, a YAML file")
        command.add_argument("--run-dir", type=Path, required=True, help="where the run lies; made if need be")
        if name in ASKING:
            _add_server(command)
            _add_dry_run(command)
        if name in ("instructions", "run"):
            command.add_argument(
                "--judge",
                action="append",
                metavar="URL",
                help="afterwards, have this server's model say of each answer whether it follows from its caption",
            )
        _add_executor(command)
        if name in ("seeds", "run"):
            command.add_argument("--extend", action="store_true", help="add the seeds that the run does not hold yet")
    _add_task(commands.add_parser("task"))
    _add_retry(commands.add_parser("retry", help="ask the rejected rows of a run again"))
    _add_serve(commands.add_parser("serve", help="serve the embedded default model over HTTP, for use by hand"))
    show = commands.add_parser("show", help="print one record as it passed through every stage")
    show.add_argument("--run-dir", type=Path, required=True)
    show.add_argument("--id", help="of the record; the default is the first that has a conversation")
    _add_import(commands.add_parser("import-original", help="make a run of the original's released JSON files"))
    _add_duplicates(commands.add_parser("duplicates", help="count the seeds or captions that are there twice"))
    _add_diagnose(commands.add_parser("diagnose", help="measure the modality gap, and what the transfer does to it"))
    _add_export(commands.add_parser("export", help="write a built data set in another format"))
    _add_report(commands.add_parser("report", help="write one HTML page about a run, with figures and rows to browse"))
    _add_verify(commands.add_parser("verify", help="check everything that a run or a built data set holds"))
    _add_repair(commands.add_parser("repair", help="make again what is broken in a run or a built data set"))
    _add_rehearse(commands.add_parser("rehearse", help="run every stage at a size of your choice, with stand-ins"))
    for command in commands.choices.values():
        add_log_json(command)
    return top


def add_log_json(command: argparse.ArgumentParser) -> None:
    """``--log-json``, of every command."""
    command.add_argument(
        "--log-json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="progress, warnings and the end as one JSON object a line: on stderr, in place of what people read; or "
        "at the end of FILE (as --log-json=FILE), beside it",
    )


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--endpoint",
        action="append",
        metavar="URL",
        help="a TGI, vLLM, SGLang or llama.cpp server; may be repeated; its key is read from $TGI_API_KEY",
    )
    command.add_argument("--api", choices=("chat", "generate"), help="chat completions, or TGI's native /generate")


def _add_executor(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("in many tasks, on a cluster")
    group.add_argument("--executor", choices=("local", "slurm", "ray"), help="datatrove's; it needs datatrove")
    group.add_argument("--tasks", type=positive, metavar="N", help="that share the shards of each stage")
    group.add_argument("--workers", type=positive, metavar="W", help="tasks at once, at most (all)")


def positive(text: str) -> int:
    """A whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _add_task(command: argparse.ArgumentParser) -> None:
    """What the jobs of ``--executor`` run; not for people, and so without help."""
    command.add_argument("job", choices=("plan", "work", "finish"))
    command.add_argument("stage", choices=STAGES)
    command.add_argument("--config", type=Path, required=True)
    command.add_argument("--run-dir", type=Path, required=True)
    command.add_argument("--folder", type=Path, required=True, help="of the plan")
    command.add_argument("--tasks", type=positive, required=True)
    command.add_argument("--rank", type=int, required=True)
    command.add_argument("--threads", type=positive, help="of the process's arithmetic; the default is one a core")
    command.add_argument("--extend", action="store_true")
    _add_server(command)


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("dry run")
    group.add_argument(
        "--dry-run", action="store_true", help="print rows, tokens, hours, cost and three prompts; stop"
    )
    group.add_argument("--probes", type=int, default=8, help="rows asked to measure rate and length (8; 0 asks none)")
    group.add_argument("--tokenizer", type=Path, metavar="DIR", help="count prompt tokens with this tokenizer")
    _add_prices(group, (0.0, 0.0))
    group.add_argument("--usd-per-hour", type=float, default=0.0, metavar="USD", help="price of all servers an hour")


def _add_retry(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run directory")
    command.add_argument("--reason", action="append", default=[], help="only rows rejected so; may be repeated")
    command.add_argument("--stage", action="append", help="captions or instructions/TASK; the default is all of them")
    command.add_argument("--prompt", metavar="NAME", help="ask with another prompt of generation/prompts")
    command.add_argument("--temperature", type=float)
    command.add_argument("--top-p", type=float)
    command.add_argument("--max-tokens", type=int)
    _add_server(command)


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=0, help="0 takes a free one")
    command.add_argument("--slots", type=int, default=8, help="requests decoded together")
    command.add_argument("--slot-tokens", type=int, default=2048, help="context of one slot")
    command.add_argument("--threads", type=int, help="the default is one a core")
    command.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="the pre-training file and, if wanted, the instruction files of Yu2020/Unicorn",
    )
    command.add_argument("--run-dir", type=Path, required=True, help="where the run lies; made if need be")
    command.add_argument(
        "--defects", choices=("drop", "keep"), default="drop", help="reject rows with a defect (drop), or keep them"
    )
    command.add_argument("--shard-rows", type=int, default=10_000, help="pre-training rows in a shard (10000)")
    command.add_argument("--license", metavar="TEXT", help="of the release, for the card")


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


def _add_diagnose(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run-dir", type=Path, metavar="RUN", help="the run directory")
    source.add_argument(
        "--ground-truth",
        type=int,
        nargs="?",
        const=1280,
        metavar="D",
        help="in place of a run: every method on made-up pairs of D dimensions (1280), without weights",
    )
    _add_images(command)
    command.add_argument(
        "--rows", type=int, default=10_000, help="sampled for what grows with their square; or made up (10000)"
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="the default is RUN/report/diagnostics, or runs/ground_truth"
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", type=Path, metavar="RUN", help="the run directory; it need not be finished")
    command.add_argument("--output", type=Path, metavar="DIR", help="the default is RUN/report")
    command.add_argument("--rows", type=int, default=300, help="that can be browsed in the page, at most (300)")
    _add_images(command)
    _add_prices(command, None)


def _add_prices(command: argparse._ActionsContainer, default: tuple[float, float] | None) -> None:
    command.add_argument(
        "--usd-per-million",
        type=float,
        nargs=2,
        default=default,
        metavar=("IN", "OUT"),
        help="price of a million prompt tokens and of a million answer tokens",
    )


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images", type=Path, metavar="PATH", help="unpaired images' embeddings of the run's encoder, as a file"
    )
    command.add_argument(
        "--pairs",
        type=Path,
        nargs=2,
        metavar=("TEXT", "IMAGE"),
        help="embeddings of texts and of their images, row for row: .safetensors or .npy",
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="a built directory, or hf://datasets/USER/NAME@REVISION")
    command.add_argument("--format", choices=("llava", "messages", "webdataset", "original"), required=True)
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        help="what to make: a file (llava; messages: .jsonl or .parquet) or a directory (webdataset, original)",
    )
    command.add_argument(
        "--embeddings",
        metavar="DIR",
        help="the built Unicorn-1.2M to take vectors from; the default is DATASET's config with_embeddings",
    )


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, metavar="PATH", help="a run directory or a built data set")
    command.add_argument(
        "--embeddings", type=Path, metavar="DIR", help="the built Unicorn-1.2M that holds the vectors of PATH"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_repair(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, metavar="PATH", help="a run directory or a built data set")
    command.add_argument("--config", type=Path, metavar="RECIPE", help="the recipe of a run")
    command.add_argument("--run-dir", type=Path, metavar="RUN", help="the run that a data set was built from")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    _add_server(command)


def _add_rehearse(command: argparse.ArgumentParser) -> None:
    size = command.add_mutually_exclusive_group()
    size.add_argument("--rows", type=int, default=3_000, help="captions to be made (3000; the paper's: 1200000)")
    size.add_argument("--growth", type=int, nargs="+", metavar="ROWS", help="at several sizes, and how the cost grows")
    command.add_argument("--folder", type=Path, metavar="DIR", help="an empty one; the default is a temporary one")
    command.add_argument("--seed", type=int, default=0, help="of all that is made up (0)")
    command.add_argument("--keep", action="store_true", help="leave the run and the data sets in DIR")
    command.add_argument("--chaos", action="store_true", help="with kills, damage, a full disk and a jumping clock")
    command.add_argument(
        "--tokens-per-s",
        type=float,
        default=5_000.0,
        metavar="N",
        help="answer tokens a second of all your servers, for the projection (5000)",
    )

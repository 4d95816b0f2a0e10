"""The command line: one function a command. Heavy libraries are imported inside the command that needs them."""

import inspect
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .cli import run_command
from .errors import ClusterError
from .logs import say

if TYPE_CHECKING:
    from .config import Recipe

app = typer.Typer(
    name="python -m generation",
    help="Make vision-language training data out of text alone (Unicorn, arXiv 2503.22655).",
    epilog="Every command resumes where it stopped when it is given again. --log-json writes JSON lines to stderr, "
    "--log-json=FILE to a file.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

FUNCTIONS = {  # module and function of each command: f(run, rank, world_size); the first two: f(run, extend)
    "run": ("pipeline", "run_pipeline"),
    "seeds": ("seeds", "make_seeds"),
    "captions": ("captions", "make_captions"),
    "instructions": ("instructions", "make_instructions"),
    "judge": ("judge", "make_judgements"),
    "judge --captions": ("judge", "judge_captions"),
    "embed": ("embed", "make_text_embeddings"),
    "transfer": ("transfer.stage", "make_image_embeddings"),
}
RunDir = Annotated[Path, typer.Option(help="Directory of the run; made if it does not exist.", file_okay=False)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", file_okay=False)]
Config = Annotated[Path | None, typer.Option(help="Recipe (YAML). Needed once: the run remembers it.", dir_okay=False)]
Extend = Annotated[bool, typer.Option("--extend", help="Add the seeds that the run does not have yet.")]
_ENDPOINT = typer.Option("--endpoint", metavar="URL", help="Base URL of a server; repeatable. Key: $TGI_API_KEY.")
Endpoint = Annotated[list[str] | None, _ENDPOINT]
Kind = Annotated[str | None, typer.Option(help="auto, tgi, vllm, sglang, llama.cpp or openai.")]
Captions = Annotated[bool, typer.Option("--captions", help="Check captions against their seeds instead.")]
Executor = Annotated[Literal["local", "slurm", "ray"] | None, typer.Option(help="Run in many tasks.")]
Tasks = Annotated[int, typer.Option(min=1, help="Tasks that share the shards of each stage.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Tasks at once; default: all.")]
Rank = Annotated[int, typer.Option(min=0, hidden=True)]
WorldSize = Annotated[int, typer.Option(min=1, hidden=True)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print rows, tokens, hours, cost and prompts; write nothing.")]
Probes = Annotated[int, typer.Option(min=0, help="Dry run: rows to request, to measure rate and length.")]
_PRICES = typer.Option("--usd-per-million", metavar="IN OUT", help="Price of a million prompt and answer tokens.")
Prices = Annotated[tuple[float, float] | None, _PRICES]
PerHour = Annotated[float, typer.Option("--usd-per-hour", help="Price of all servers an hour.")]
Id = Annotated[str | None, typer.Option(help="Default: the first with a conversation.")]
RunOrDataset = Annotated[Path, typer.Argument(metavar="PATH", help="A run directory or a built data set.")]
Fix = Annotated[bool, typer.Option("--fix", help="Remove bad records of a run, so that `run` makes them.")]
Images = Annotated[Path | None, typer.Option(help="Unpaired images: a folder, or vectors (.safetensors, .npy).")]


def read_recipe(run_dir: Path, config: Path | None, endpoint: list[str] | None, kind: str | None) -> "Recipe":
    """Return the recipe that is given, or else the one that the run remembers; ``--endpoint`` and ``--kind`` win."""
    from .recipe import load_recipe, parse_recipe
    from .store import Run

    server = {key: value for key, value in (("endpoints", endpoint), ("kind", kind)) if value}
    if config is not None:
        return load_recipe(config, server)
    return parse_recipe(Run(run_dir).recipe.model_dump(mode="json"), str(run_dir / "run.json"), server)


def _add_stage(name: str, help: str, *without: str) -> None:
    """Add the command of a stage, or with ``run`` of all, without the options that it has no use for."""

    def command(
        run_dir: RunDir, config: Config = None, endpoint: Endpoint = None, kind: Kind = None, extend: Extend = False,
        captions: Captions = False, dry_run: DryRun = False, probes: Probes = 8, usd_per_million: Prices = None,
        usd_per_hour: PerHour = 0.0, executor: Executor = None, tasks: Tasks = 1, workers: Workers = None,
        rank: Rank = 0, world_size: WorldSize = 1,
    ) -> None:  # fmt: skip
        if tasks > 1 and not executor:
            raise ClusterError(f"--tasks {tasks} needs --executor: local, slurm or ray")
        if rank >= world_size:
            raise ClusterError(f"--rank {rank} must be below --world-size {world_size}")
        recipe = read_recipe(run_dir, config, endpoint, kind)
        if dry_run:
            from .estimate import estimate_run

            return estimate_run(run_dir, recipe, probes, usd_per_million, usd_per_hour)
        from .store import Run

        run, full_name = Run(run_dir, recipe, name in ("run", "seeds"), extend), name + " --captions" * captions
        if executor:
            from .cluster import COMMANDS, launch

            launch(executor, run, COMMANDS if name == "run" else (full_name,), tasks, workers or tasks, extend)
        else:
            module, function = FUNCTIONS[full_name]
            make = getattr(import_module(f".{module}", __package__), function)
            make(run, extend) if name in ("run", "seeds") else make(run, rank, world_size)

    signature = inspect.signature(command)
    kept = [option for option in signature.parameters.values() if option.name not in without]
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    app.command(name, help=help)(command)


_DRY, _RANK = ("dry_run", "probes", "usd_per_million", "usd_per_hour"), ("rank", "world_size")
_SERVER, _NO = ("endpoint", "kind"), ("extend", "captions")
_add_stage("run", "All stages, one after the other.", "captions", *_RANK)
_add_stage("seeds", "Stage 0: read the sources into shards of seeds.", "captions", *_SERVER, *_DRY, *_RANK)
_add_stage("captions", "Stage 1: expand every seed into a dense caption.", *_NO, *_DRY)
_add_stage("instructions", "Stage 2: write conversations about the captions.", *_NO, *_DRY)
_add_stage("judge", "Have a second model check every question against its caption (section `judge`).", "extend", *_DRY)
_add_stage("embed", "Stage 3a: encode the captions.", *_NO, *_SERVER, *_DRY)
_add_stage("transfer", "Stage 3b: move the text embeddings across the modality gap.", *_NO, *_SERVER, *_DRY)


@app.command()
def retry(
    run_dir: RunArgument,
    reason: Annotated[list[str] | None, typer.Option(help="Only rows rejected for this reason; repeatable.")] = None,
    config: Config = None, endpoint: Endpoint = None, kind: Kind = None,
) -> None:  # fmt: skip
    """Ask the rejected rows of a run again, and have them judged if the recipe has a judge."""
    from .judge import retry_rejected
    from .store import Run

    if retry_rejected(Run(run_dir, read_recipe(run_dir, config, endpoint, kind)), reason):
        say("Give `embed` and `transfer` again if captions were added, then build the data sets again.")


@app.command()
def duplicates(
    run_dir: RunDir,
    stage: Annotated[str, typer.Option(help="seeds or captions")] = "captions",
    threshold: Annotated[float, typer.Option(min=0.1, max=1.0, help="Jaccard similarity of word n-grams.")] = 0.8,
    questions: Annotated[Path | None, typer.Option(help="A .txt file of benchmark questions to look for.")] = None,
) -> None:
    """Count the seeds or captions that repeat each other or hold a benchmark's question."""
    from .dedup import report_duplicates
    from .store import Run

    say(report_duplicates(Run(run_dir), stage, threshold, questions))


@app.command()
def import_original(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Released JSON files of Yu2020/Unicorn.")],
    run_dir: RunDir,
    keep_defects: Annotated[bool, typer.Option(help="Keep rows with a defect instead of rejecting them.")] = False,
    license: Annotated[str | None, typer.Option(help="Licence of the release, for the card.")] = None,
) -> None:
    """Make a run of the original's released JSON files, instead of generating data."""
    from .original import import_release

    say(import_release(paths, run_dir, keep_defects, license))


@app.command()
def verify(path: RunOrDataset, fix: Fix = False) -> None:
    """Check every hash, count, id and join of a run, or every hash and id of a built data set."""
    from .verify import verify_path

    say(verify_path(path, fix))


@app.command()
def report(
    run_dir: RunArgument,
    output: Annotated[Path | None, typer.Option(help="Directory to write to; default: RUN/report.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to browse in the page.")] = 300,
    images: Images = None,
    pairs: Annotated[tuple[Path, Path] | None, typer.Option(help="Vectors of texts and of their images.")] = None,
    usd_per_million: Prices = None,
) -> None:
    """Write one HTML page about a run: figures, the modality gap, and rows to browse."""
    from .report import write_report
    from .store import Run

    say(str(write_report(Run(run_dir), output, rows, images, pairs, usd_per_million)))


@app.command()
def export(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Built; or hf://datasets/USER/NAME@REVISION.")],
    output: Annotated[Path, typer.Option(help="File (llava, messages) or directory (webdataset) to write.")],
    format: Annotated[str, typer.Option(help="llava, messages or webdataset.")],
    embeddings: Annotated[str | None, typer.Option(help="The built Unicorn-1.2M that holds the vectors.")] = None,
) -> None:
    """Write a built data set in another format."""
    from .export import export_dataset

    say(f"{output}: {export_dataset(dataset, format, output, embeddings)} rows")


@app.command()
def show(run_dir: RunDir, id: Id = None) -> None:
    """Print one record as it passed through every stage."""
    from .show import show_record
    from .store import Run

    say(show_record(Run(run_dir), id))


@app.command()
def serve(
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
) -> None:
    """Serve the embedded model over HTTP, to try things by hand."""
    from .tgi.embedded import serve as serve_embedded

    serve_embedded(host, port)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 stopped by a signal."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(app, given, f"{shlex.quote(sys.executable)} -m generation")


if __name__ == "__main__":
    sys.exit(main())

"""The command line of both builder scripts."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import datasets
import typer

from ..cli import run_command
from ..logs import say
from .build import build
from .builder import FIRST_VERSION, UnicornBuilder
from .published import Publication

Option = typer.Option
RunDir = Annotated[Path, Option(help="A finished run.")]
Output = Annotated[Path, Option(help="Directory to write; an earlier build in it is replaced.")]
Version = Annotated[str, Option(help="Of the data set, semantic.")]
Method = Annotated[str | None, Option(help="Transfer method; default: the recipe's.")]
Duplicates = Annotated[bool, Option("--duplicates", help="Search near-duplicate captions: minutes for a million.")]
Push = Annotated[str | None, Option(metavar="USER/NAME", help="Upload and tag it v<version>; needs $HF_TOKEN.")]
Private = Annotated[bool, Option("--private", help="Make the repository private if it is new.")]
Discard = Annotated[bool, Option("--discard-edits", help="Replace files that somebody changed on the Hub.")]
Config = Literal["default", "with_embeddings"]
Fill = Annotated[Config | None, Option(help="Make load_dataset(NAME) work from any directory.")]


def main(builder_class: type[UnicornBuilder]) -> int:
    """Build a data set, then fill the cache or publish it if asked for; return the exit status."""
    name = f"python {Path(sys.argv[0]).name}"
    app = typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=f"{builder_class.__doc__} Build {builder_class.NAME} from a finished run.")
    def build_command(
        run_dir: RunDir, output: Output, version: Version = FIRST_VERSION, method: Method = None,
        duplicates: Duplicates = False, push_to_hub: Push = None, private: Private = False,
        discard_edits: Discard = False, fill_cache: Fill = None,
    ) -> None:  # fmt: skip
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            raise typer.BadParameter(f"{version!r} is not a semantic version such as 1.0.0")
        target = Publication(push_to_hub, version, private, discard_edits) if push_to_hub else None  # or refuses
        previous = target.previous if target else None
        manifest = build(builder_class, run_dir, output, version, method, push_to_hub, previous, duplicates)
        say(f"{output}: {builder_class.NAME} {version}, built from {run_dir}")
        if fill_cache:
            # The directory is part of the class's configs: an option would become part of their names in the cache.
            configs = [replace(known, data_dir=str(output.resolve())) for known in builder_class.BUILDER_CONFIGS]  # type: ignore[call-arg]
            attributes = {"BUILDER_CONFIGS": configs, "__module__": builder_class.__module__}  # as datasets needs it
            cached = type("Cached", (builder_class,), attributes)
            builder = cached(config_name=fill_cache, dataset_name=builder_class.NAME)
            datasets.disable_progress_bars()  # they know no total and are not JSON
            builder.download_and_prepare()
            Path(builder.cache_dir).touch()  # datasets takes the newest of several builds; this one may be older
            say(f'load_dataset("{builder_class.NAME}", "{fill_cache}") now works from any directory')
        if target:
            target.upload(output, manifest)
            say(f'Published. Load it with load_dataset("{push_to_hub}", revision="v{version}")')

    return run_command(app, sys.argv[1:], name)

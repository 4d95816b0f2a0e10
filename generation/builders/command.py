"""The command line of both builder scripts."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ..arguments import add_log_json
from ..events import run_command
from ..manifest import read_manifest
from ..progress import SOON_S, progress
from .build import build
from .builder import FIRST_VERSION, FOLDERS, UnicornBuilder


def main(builder_class: type[UnicornBuilder]) -> int:
    """Builds, and publishes or fills the cache where asked; returns the exit status."""
    options = _parser(builder_class).parse_args()
    again = "stopped; an older build, if there is one, is as it was. Give the same command again"
    return run_command(lambda: _build(builder_class, options), options.log_json, again)


def _build(builder_class: type[UnicornBuilder], options: argparse.Namespace) -> None:
    if options.push_to_hub:
        from .publish import check_token

        check_token()
    build(builder_class, options.run_dir, options.output, options.version, options.method)
    print(f"{options.output}: version {options.version}, built from {options.run_dir}")
    if options.fill_cache:
        _fill_cache(builder_class, options.output, options.fill_cache)
    if options.push_to_hub:
        from .publish import publish

        tag = publish(options.output, options.push_to_hub, options.private)
        print(f'load_dataset("{options.push_to_hub}", revision="{tag}") reads it from the Hub')


def _parser(builder_class: type[UnicornBuilder]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=builder_class.DESCRIPTION)
    parser.add_argument("--run-dir", type=Path, required=True, help="a finished run")
    parser.add_argument("--output", type=Path, required=True, help="the directory; an older build is replaced")
    parser.add_argument(
        "--version",
        type=_version,
        default=FIRST_VERSION,
        help=f"of the data set ({FIRST_VERSION}); never bumped by itself",
    )
    parser.add_argument("--method", help="of the transfer; needed where the run has embeddings by several methods")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload it and tag it v<version>; needs $HF_TOKEN")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    parser.add_argument(
        "--fill-cache",
        nargs="?",
        const="default",
        choices=tuple(FOLDERS),
        metavar="CONFIG",
        help=f'put a config into the cache of datasets: load_dataset("{builder_class.NAME}") then works from anywhere',
    )
    add_log_json(parser)
    return parser


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no semantic version such as 1.0.0")
    return text


def _fill_cache(builder_class: type[UnicornBuilder], output: Path, config: str) -> None:
    """Prepares a config under the data set's bare name, from the built directory. The directory is part of the class's
    own configs here: given as an option, it would become part of their names in the cache."""
    folder = str(output.resolve())
    configs = [replace(known, data_dir=folder) for known in builder_class.BUILDER_CONFIGS]  # type: ignore[call-arg]
    files = read_manifest(output / "manifest.json")["built"]["files"]
    rows = sum(facts["rows"] for name, facts in files.items() if name.startswith(f"{FOLDERS[config]}/"))

    def tables(self: UnicornBuilder, parts: Sequence[str]) -> Iterator[tuple[Any, Any]]:
        with progress(f"cache {config}", rows, 0, "row", SOON_S) as bar:
            for key, table in builder_class._generate_tables(self, parts):
                yield key, table
                bar.update(len(table))

    datasets.disable_progress_bars()  # they know no total, and are no JSON
    own = {"BUILDER_CONFIGS": configs, "_generate_tables": tables}
    cached = type(builder_class.__name__, (builder_class,), own)
    cached(config_name=config, dataset_name=builder_class.NAME, hash="built").download_and_prepare()
    print(f'load_dataset("{builder_class.NAME}", "{config}") now works from any directory')

"""Open-domain seeds: captions of files and of data sets of the Hub, filtered, one an image, drawn up to a limit."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import CaptionFile, HubCaptions, Recipe
from .errors import SeedError
from .filters import BlockedWords, read_blocked_words, reject
from .pool import Pool, Rows, Texts
from .progress import progress
from .texts import batches, open_file

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCH_ROWS = 1000
Candidate = tuple[str, str | None]  # a caption ("" for none), and which image it is of


def check_revision(source: HubCaptions) -> None:
    """Refuses a revision that can move.

    Raises:
        SeedError: it is no commit, such as the placeholder of a recipe that comes with the project.
    """
    if not _COMMIT.fullmatch(source.revision):
        raise SeedError(
            f"seed source '{source.name}': revision {source.revision!r} is no commit. On the Hub's page of "
            f"{source.dataset}, read the card and its licence; then, in the history under 'Files and versions', copy "
            "the commit that you want (40 digits) into the recipe, or leave the source out"
        )


def draw_captions(
    source: CaptionFile | HubCaptions, number: int, recipe: Recipe, texts: Texts
) -> tuple[Rows, Counter[str], int]:
    """The captions of one source that are drawn.

    Args:
        source: the file or data set.
        number: of the source.
        recipe: for its directory and random seed.
        texts: where the captions are written.

    Returns:
        The rows; how many captions were dropped, by reason; how many were read.

    Raises:
        SeedError: the source cannot be read, has no such column, holds no caption, or, where no filters are set, has
            a row without one.
    """
    blocked: BlockedWords | None = None
    if source.filters and source.filters.blocked_words:
        blocked = read_blocked_words(recipe.directory / source.filters.blocked_words)
    pool = Pool(texts, source.name, number, recipe.random_seed, source.limit)
    dropped: Counter[str] = Counter()
    read = 0
    with progress(f"seeds of {source.name}", None, 0, "caption", delay_s=2.0) as bar:
        for batch in _candidates(source, recipe.directory):
            for text, group in batch:
                reason = reject(text, source.filters, blocked) if source.filters else None
                if reason:
                    dropped[reason] += 1
                else:
                    pool.add(text, group)
            read += len(batch)
            bar.update(len(batch))
    if not read:
        raise SeedError(f"seed source '{source.name}': {_place(source, recipe.directory)} holds no caption")
    rows = pool.drawn()
    return rows, dropped + pool.dropped, read


def _candidates(source: CaptionFile | HubCaptions, directory: Path) -> Iterator[list[Candidate]]:
    """The captions of a source in its order, white space made single, some rows at a time."""
    place, what = _place(source, directory), f"seed source '{source.name}'"
    column = "text" if place.endswith(".txt") and isinstance(source, CaptionFile) else source.column
    columns = [column] if source.group_column is None else [column, source.group_column]
    rows = open_file(Path(place), what) if isinstance(source, CaptionFile) else _open_hub(source)
    for first, found in batches(rows, columns, _BATCH_ROWS, what, place):
        values, groups = found[0], found[1] if len(found) > 1 else [None] * len(found[0])
        batch: list[Candidate] = []
        for number, (value, group) in enumerate(zip(values, groups, strict=True), first):
            captions = _captions_of(value, group)
            if source.filters is None and not all(text for text, _ in captions):
                raise SeedError(
                    f"{what}: {place}, row {number}: column '{column}' holds {value!r}, no caption; mend it, or give "
                    "the source filters, which drop and count such rows"
                )
            batch += captions
        yield batch


def _captions_of(value: Any, group: Any) -> list[Candidate]:
    """The captions of a row: one, or a list of those of one image; "" stands for none."""
    group = None if group is None else str(group)
    if isinstance(value, str):
        return [(" ".join(value.split()), group)]
    if not isinstance(value, list):
        return [("", group)]
    found = [" ".join(text.split()) for text in value if isinstance(text, str)]
    image = group if group is not None else "\x1f".join(found)
    return [(text, image) for text in found] or [("", group)]


def _open_hub(source: HubCaptions) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision, streaming=True
        )
    except Exception as error:  # whatever the Hub's client raises
        raise SeedError(
            f"seed source '{source.name}': data set {source.dataset} (config {source.config}, split {source.split}, "
            f"revision {source.revision}) cannot be opened: {error}"
        ) from error


def _place(source: CaptionFile | HubCaptions, directory: Path) -> str:
    """Where a source lies, for messages and for opening it."""
    return source.dataset if isinstance(source, HubCaptions) else str((directory / source.path).resolve())

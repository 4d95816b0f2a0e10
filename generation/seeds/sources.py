"""What one source gives: captions of a file or a data set of the Hub, one an image, filtered, drawn up to a limit."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..config import CaptionFile, HubCaptions, Recipe
from ..errors import SeedError
from ..files import read_lines
from ..logs import counted
from ..rows import stable_hash
from .filters import plain_words, reject
from .tables import BadRow, Cells, read_rows

logger = logging.getLogger(__name__)
MAX_CHARACTERS = 20_000  # of a caption
_BATCH_ROWS = 1000
_LEAST_WAITING = 10_000  # drawn captions beyond the limit, before the highest are dropped
_BROKEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = " \ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_JSON = re.compile(r"""[\[{]\s*["'\[{].*[\]}]""", re.S)


def reasons(dropped: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted((+dropped).items())) or "none"


class Sample:
    """The captions that are drawn from one source. Which ones depends on its name and texts alone.

    Args:
        name: of the source.
        random_seed: of the draw.
        limit: how many captions to draw; None: all.
        facts: what is known of the source, such as its license.

    Attributes:
        rows: rows that were read.
        read: captions that were read: the seeds and all that were dropped.
        dropped: captions that were dropped, by reason.
    """

    def __init__(self, name: str, random_seed: int, limit: int | None = None, **facts: Any) -> None:
        self.name, self.facts, self.limit, self.random_seed = name, facts, limit, random_seed
        self.rows, self.read, self.dropped = 0, 0, Counter[str]()
        self._drawn: dict[int, str] = {}  # by hash: the lowest are drawn
        self._bound: int | None = None

    def add(self, text: str, group: str | None = None) -> None:
        """Take a caption in; of the captions of one group (image) one is drawn."""
        key = ("text", text) if group is None else ("group", group)
        draw = stable_hash(self.random_seed, self.name, *key)
        if self._bound is not None and draw > self._bound:
            self.dropped["over_limit"] += 1
            return
        other = self._drawn.get(draw)
        if other is not None:
            self.dropped["repeated" if other == text else "same_image"] += 1
            text = min(text, other, key=lambda caption: stable_hash(self.random_seed, self.name, caption))
        self._drawn[draw] = text
        if self.limit and len(self._drawn) >= 2 * self.limit + _LEAST_WAITING:
            self._cut(self.limit)

    def _cut(self, limit: int) -> None:
        lowest = sorted(self._drawn)[:limit]
        self.dropped["over_limit"] += len(self._drawn) - len(lowest)
        self._bound = lowest[-1]
        self._drawn = {draw: self._drawn[draw] for draw in lowest}

    def texts(self) -> list[str]:
        """Return the captions that are drawn; ``dropped`` is final after it."""
        if self.limit and len(self._drawn) > self.limit:
            self._cut(self.limit)
        found = list(dict.fromkeys(self._drawn.values()))  # two images may have the same caption
        self.dropped["repeated"] += len(self._drawn) - len(found)
        return found

    def account(self, made: Counter[str]) -> dict[str, Any]:
        """Return what ``stage.json`` says of the source; ``made`` counts seeds by source."""
        figures = {"rows": self.rows, "read": self.read, "seeds": made[self.name]}
        return self.facts | figures | {"dropped": dict(sorted((+self.dropped).items()))}


def read_source(source: CaptionFile | HubCaptions, recipe: Recipe) -> Sample:
    """Read, filter and draw the captions of one source.

    Raises:
        SeedError: it cannot be read, lacks a column, or has a broken row: any without filters, else most.
    """
    facts = source.model_dump(include={"license", "dataset", "config", "split", "revision"})
    sample, filters, blocked = (
        Sample(source.name, recipe.random_seed, source.limit, **facts),
        source.filters,
        list[str](),
    )
    if filters and filters.blocked_words:
        entries = read_lines(recipe.directory / filters.blocked_words, "blocked_words")
        blocked = [plain_words(entry) for entry in entries if not entry.startswith("#")]
        if not blocked:
            raise SeedError(f"{recipe.directory / filters.blocked_words} holds no word; leave blocked_words out")
    if isinstance(source, HubCaptions):
        where, rows = source.dataset, _hub_rows(source)
    else:
        path = recipe.directory / source.path
        where, rows = str(path), read_rows(path, _columns(source))
    broken, first = 0, ""
    try:
        for place, cells in counted(rows, f"seeds of {source.name}", "row"):
            sample.rows += 1
            captions, group = _captions(cells, source.column)
            sample.read += len(captions)
            for caption in captions:
                if isinstance(caption, BadRow):
                    fault = f"{where}, {place}: {caption.detail}"
                    if filters is None:
                        raise SeedError(f"{fault}. Correct it, or give the source filters to drop and count such rows")
                    if caption.reason != "empty":
                        broken, first = broken + 1, first or fault
                        if caption.reason not in sample.dropped:
                            logger.warning("seed source '%s': dropped as %s: %s", source.name, caption.reason, fault)
                    sample.dropped[caption.reason] += 1
                elif filters and (reason := reject(caption, filters, blocked)):
                    sample.dropped[reason] += 1
                else:
                    sample.add(caption, group)
        if broken > sample.read / 2:
            raise SeedError(f"{broken:,} of {sample.read:,} captions are dropped ({reasons(sample.dropped)}): {first}")
    except SeedError as error:
        raise SeedError(f"seed source '{source.name}': {error}") from error
    return sample


def _columns(source: CaptionFile | HubCaptions) -> list[str]:
    text = isinstance(source, CaptionFile) and source.path.lower().endswith(".txt")
    return ["text" if text else source.column, *([source.group_column] if source.group_column else [])]


def _hub_rows(source: HubCaptions) -> Iterator[tuple[str, Cells]]:
    """Yield the rows of a data set of the Hub as ``read_rows`` does."""
    import datasets

    what = f"data set {source.dataset} (config {source.config}, split {source.split}, revision {source.revision})"
    number, columns = 0, _columns(source)
    place = {"split": source.split, "revision": source.revision}
    try:
        stream = datasets.load_dataset(source.dataset, source.config, streaming=True, **place).with_format("arrow")
        for table in stream.iter(_BATCH_ROWS):
            if missing := [column for column in columns if column not in table.column_names]:
                raise ValueError(f"it has no column '{missing[0]}'; its columns: {', '.join(table.column_names)}")
            for cells in zip(*(table[column].to_pylist() for column in columns), strict=True):
                yield f"row {(number := number + 1)}", list(cells)
    except Exception as error:  # whatever the Hub's client or the loader of the format raises
        raise SeedError(f"{what} cannot be read: {error}") from error
    if not number:
        raise SeedError(f"{what} holds no rows")


def _captions(cells: Cells, column: str) -> tuple[list[str | BadRow], str | None]:
    """Return the captions of a row, one or those of one image, and what names that image."""
    if isinstance(cells, BadRow):
        return [cells], None
    value, group = cells[0], cells[1] if len(cells) > 1 else None
    image = None if group is None or group != group or not str(group).strip() else str(group)
    if not isinstance(value, list):
        return [_caption(value, column)], image
    return [_caption(text, column) for text in value or [None]], image or "\x1f".join(map(str, value))


def _caption(value: Any, column: str) -> str | BadRow:
    """Return a caption, its white space single blanks, or why the value is none."""
    text = " ".join(value.split()).strip(_INVISIBLE) if isinstance(value, str) else ""
    if text and len(text) <= MAX_CHARACTERS and not _BROKEN.search(value) and not _JSON.fullmatch(text):
        return text
    shown = f"column '{column}' holds {value!r:.100}"
    if value is None or value != value or (isinstance(value, str) and not text):
        return BadRow("empty", f"{shown}, no caption")
    if not isinstance(value, str):
        return BadRow("not_text", f"{shown}, which is not text")
    if (found := _BROKEN.search(value)) and "\udc80" <= found[0] <= "\udcff":
        remedy = "if the file is Latin-1 or Windows-1252, convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        return BadRow("not_utf8", f"{shown}; byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8: {remedy}")
    if found:
        return BadRow("control_character", f"{shown}, with the character {found[0]!r}")
    if len(text) > MAX_CHARACTERS:
        return BadRow("too_long", f"{shown} and so on, {len(text):,} characters; at most {MAX_CHARACTERS:,}")
    return BadRow("json", f"{shown}, JSON source text; read the file as .jsonl or .json, or name another column")

"""What one source gives: captions of a file or a data set of the Hub, one an image, filtered, drawn up to a limit; or
sentences about the labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..config import CaptionFile, HubCaptions, Name, Recipe, Section, Text
from ..errors import RecipeError, SeedError
from ..files import read_lines
from ..logs import counted
from ..recipe import read_yaml, validate
from ..rows import stable_hash
from .filters import plain_words, reject
from .tables import BATCH_ROWS, BadRow, Cells, Rows, arrow_rows, located, read_file

logger = logging.getLogger(__name__)
MAX_CHARACTERS = 20_000  # of a caption
_BROKEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = " \ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_SLOTS = ("{label}", "{a_label}", "{labels}")
Label = Annotated[str, Field(pattern=r"\S")]
_JSON = re.compile(r"""[\[{]\s*["'\[{].*[\]}]""", re.S)


def reasons(dropped: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted((+dropped).items())) or "none"


class Sample:
    """The captions that are drawn from one source: up to ``limit``, chosen by the source's name and their texts alone.

    ``facts`` (license, origin) go to ``stage.json``; ``files`` are those that were read, as the recipe names them.
    ``read`` counts the captions of all ``rows``: the seeds, and those in ``dropped``, by reason.
    """

    def __init__(self, name: str, random_seed: int, files: list[str], limit: int | None = None, **facts: Any) -> None:
        self.name, self.random_seed, self.files, self.limit, self.facts = name, random_seed, files, limit, facts
        self.rows, self.read, self.dropped = 0, 0, Counter[str]()
        self._found: dict[int, str] = {}  # by hash: the lowest are drawn

    def add(self, text: str, group: str | None = None) -> None:
        """Take a caption in; of the captions of one group (image) one is drawn."""
        draw = stable_hash(self.random_seed, self.name, *(("text", text) if group is None else ("group", group)))
        if (other := self._found.get(draw)) is not None:
            self.dropped["repeated" if other == text else "same_image"] += 1
            text = min(text, other, key=lambda caption: stable_hash(self.random_seed, self.name, caption))
        self._found[draw] = text

    def texts(self) -> list[str]:
        """Return the captions that are drawn, and count the others in ``dropped``; call it once."""
        drawn = [self._found[draw] for draw in sorted(self._found)[: self.limit]]
        found = list(dict.fromkeys(drawn))  # two images may have the same caption
        self.dropped += Counter(over_limit=len(self._found) - len(drawn), repeated=len(drawn) - len(found))
        return found


def read_source(source: CaptionFile | HubCaptions, recipe: Recipe) -> Sample:
    """Read, filter and draw the captions of one source.

    A SeedError says that it cannot be read, lacks a column, or has a broken row: any without filters, else most.
    """
    filters, blocked, files = source.filters, list[str](), list[str]()
    if filters and filters.blocked_words:
        lines = read_lines(recipe.directory / filters.blocked_words, f"blocked_words of '{source.name}'")
        files, blocked = [filters.blocked_words], [plain_words(line) for line in lines if not line.startswith("#")]
        if not blocked:
            raise SeedError(f"{recipe.directory / filters.blocked_words} holds no word; leave blocked_words out")
    columns = [source.column, *filter(None, [source.group_column])]
    if isinstance(source, HubCaptions):
        where = f"data set {source.dataset} (config {source.config}, split {source.split}, revision {source.revision})"
        rows = located(where, _hub_rows(where, source, columns))
    else:
        path = recipe.directory / source.path
        files.append(source.path)
        columns[0] = "text" if path.suffix.lower() == ".txt" else columns[0]
        where, rows = str(path), located(path, read_file(path, columns))
    facts = source.model_dump(include={"license", "dataset", "config", "split", "revision"})
    sample, broken, first = Sample(source.name, recipe.random_seed, files, source.limit, **facts), 0, ""
    try:
        for place, cells in counted(rows, f"seeds of {source.name}", "row"):
            captions, group = _captions(cells, source.column)
            sample.rows, sample.read = sample.rows + 1, sample.read + len(captions)
            for caption in captions:
                reason = filters and isinstance(caption, str) and reject(caption, filters, blocked)
                if isinstance(caption, BadRow):
                    reason, fault = caption.reason, f"{where}, {place}: {caption.detail}"
                    if filters is None:
                        raise SeedError(f"{fault}. Correct it, or give the source filters to drop and count such rows")
                    if reason != "empty":
                        broken, first = broken + 1, first or fault
                        if reason not in sample.dropped:
                            logger.warning("seed source '%s': dropped as %s: %s", source.name, reason, fault)
                elif not reason:
                    sample.add(caption, group)
                if reason:
                    sample.dropped[reason] += 1
        if broken > sample.read / 2:
            raise SeedError(f"{broken:,} of {sample.read:,} captions are dropped ({reasons(sample.dropped)}): {first}")
    except SeedError as error:
        raise SeedError(f"seed source '{source.name}': {error}") from error
    return sample


def _hub_rows(what: str, source: HubCaptions, columns: list[str]) -> Rows:
    import datasets

    place = {"split": source.split, "revision": source.revision}
    stream = datasets.load_dataset(source.dataset, source.config, streaming=True, **place).with_format("arrow")
    yield from arrow_rows(what, stream.iter(BATCH_ROWS), columns)


def _captions(cells: Cells, column: str) -> tuple[list[str | BadRow], str | None]:
    """Return the captions of a row, one or those of one image, and what names that image."""
    if isinstance(cells, BadRow):
        return [cells], None
    value, group = cells[0], cells[-1] if len(cells) > 1 else None
    image = None if group is None or group != group or not str(group).strip() else str(group)
    if not isinstance(value, list):
        return [_caption(value, column)], image
    if len(value) > 2 and all(isinstance(part, str) and part.isascii() and len(part.split()) == 1 for part in value):
        detail = f"column '{column}' holds {value!r:.100}, a list of words and not of captions; join them by blanks"
        return [BadRow("not_text", detail)], image
    return [_caption(text, column) for text in value or [None]], image or "\x1f".join(map(str, value))


def _caption(value: Any, column: str) -> str | BadRow:
    """Return a caption, its white space single blanks, or why the value is none."""
    shown = f"column '{column}' holds {value!r:.100}"
    text = " ".join(value.split()).strip(_INVISIBLE) if isinstance(value, str) else ""
    if value is None or value != value or (isinstance(value, str) and not text):
        return BadRow("empty", f"{shown}, no caption")
    if not isinstance(value, str):
        return BadRow("not_text", f"{shown}, which is not text")
    if (found := _BROKEN.search(value)) and "\udc80" <= found[0] <= "\udcff":
        remedy = "convert the file to UTF-8, from Latin-1 by iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        return BadRow("not_utf8", f"{shown}; byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8: {remedy}")
    if found:
        return BadRow("control_character", f"{shown}, with the character {found[0]!r}")
    if len(text) > MAX_CHARACTERS:
        return BadRow("too_long", f"{shown} and so on, {len(text):,} characters; at most {MAX_CHARACTERS:,}")
    if _JSON.fullmatch(text):
        return BadRow("json", f"{shown}, JSON source text; read the file as .jsonl or .json, or name another column")
    return text


class DomainFile(Section):
    """Labels of a domain, and templates with ``{label}``, ``{a_label}`` (with article) or ``{labels}`` (plural)."""

    domain: Name
    license: Text
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    labels_file: str | None = None  # one label a line; relative to the domain file


def read_domain(path: Path) -> DomainFile:
    """Read and check a domain file; ``labels`` of the result are filled, wherever they were."""
    what = f"domain file {path}"
    domain = validate(DomainFile, read_yaml(path, "domain file"), what)
    for template in domain.templates:
        if sum(template.count(slot) for slot in _SLOTS) != 1:
            raise RecipeError(f"{what}: template {template!r} must hold one of {', '.join(_SLOTS)}, once")
    if (domain.labels is None) == (domain.labels_file is None):
        raise RecipeError(f"{what}: give either labels or labels_file")
    labels = domain.labels or tuple(read_lines(path.parent / str(domain.labels_file), f"labels_file of {what}"))
    return domain.model_copy(update={"labels": labels})


def read_domains(recipe: Recipe) -> list[Sample]:
    """Return what each domain file of a recipe gives: labels x templates, those of each label drawn."""
    if not (wanted := recipe.seeds.domains):
        return []
    import inflect

    english, samples = inflect.engine(), list[Sample]()
    for pattern in wanted.files:
        paths = sorted(recipe.path(name) for name in glob.glob(pattern, root_dir=recipe.directory))
        if not paths:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        for path in paths:
            domain = read_domain(path)
            files = [str(path), *([str(path.parent / domain.labels_file)] if domain.labels_file else [])]
            key = recipe.random_seed, f"domain_{domain.domain}"
            sample = Sample(key[1], key[0], files, license=domain.license, labels=domain.source)
            labels = sorted(set(domain.labels or ()), key=lambda label: stable_hash(*key, label))
            for label in labels[: wanted.labels_per_domain]:
                forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
                templates = sorted(set(domain.templates), key=lambda template: stable_hash(*key, label, template))
                for template in templates[: wanted.templates_per_label]:
                    slot = next(slot for slot in _SLOTS if slot in template)
                    text = " ".join(template.replace(slot, forms[slot]).split())
                    sample.rows, sample.read = sample.rows + 1, sample.read + 1
                    sample.add(text[0].upper() + text[1:])
            samples.append(sample)
    return samples

"""What one source gives: captions of a file or a data set of the Hub, one an image, filtered, drawn up to a limit; or
labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ..config import CaptionFile, Filters, HubCaptions, Name, Recipe, Section, Text
from ..errors import SeedError
from ..files import read_lines
from ..logs import counted
from ..recipe import read_yaml, validate
from ..rows import stable_hash
from .tables import BadRow, read_rows

logger = logging.getLogger(__name__)
MAX_CHARACTERS = 20_000  # of a caption
_BROKEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = " \ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_JSON = re.compile(r"""[\[{]\s*["'\[{].*[\]}]""", re.S)
_SLOTS = ("{label}", "{a_label}", "{labels}")
Label = Annotated[str, Field(pattern=r"\S")]

_WORDS = read_yaml(Path(__file__).with_name("filters.yaml"), "word lists")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+")
_PATTERNS = {str(reason): re.compile("|".join(parts), re.I) for reason, parts in _WORDS["patterns"].items()}
_PATTERNS["boilerplate"] = re.compile(rf"\b(?:{'|'.join(_WORDS['boilerplate'])})\b|©|®|™|\|", re.I)
_ENGLISH, _OTHER, _NAMES = (frozenset(_WORDS[key].split()) for key in ("english", "foreign", "foreign_or_names"))
_LISTING = re.compile(r"[,;|/•·]|\s[-–—]\s")


def reasons(dropped: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted((+dropped).items())) or "none"


class Sample:
    """The captions that are drawn from one source: up to ``limit``, chosen by the source's name and their texts alone.
    ``facts`` (license, origin) go to ``stage.json``; ``files`` are those that were read, as the recipe names them.
    ``read`` counts all captions: the seeds, and those in ``dropped``, by reason."""

    def __init__(self, name: str, random_seed: int, files: list[str], limit: int | None = None, **facts: Any) -> None:
        self.name, self.files, self.limit, self.facts = name, files, limit, facts
        self.key, self.read, self.dropped = (random_seed, name), 0, Counter[str]()
        self._found, self._highest = dict[int, str](), 2**63  # by hash: the lowest are drawn, none above the highest

    def add(self, text: str, group: str | None = None) -> None:
        """Take a caption in; of the captions of one group (image) one is drawn. Up to twice the limit are held."""
        draw = stable_hash(*self.key, *(("text", text) if group is None else ("group", group)))
        if draw > self._highest:
            self.dropped["over_limit"] += 1
            return
        if (other := self._found.get(draw)) is not None:
            self.dropped["repeated" if other == text else "same_image"] += 1
            text = min(text, other, key=lambda caption: stable_hash(*self.key, caption))
        self._found[draw] = text
        if self.limit and len(self._found) > 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        kept = dict(sorted(self._found.items())[: self.limit])
        self.dropped["over_limit"] += len(self._found) - len(kept)
        self._found, self._highest = kept, max(kept, default=0)

    def texts(self) -> list[str]:
        """Return the captions that are drawn, and count the others in ``dropped``; call it once."""
        self._cut()
        texts = list(dict.fromkeys(self._found.values()))  # two images may have the same caption
        self.dropped["repeated"] += len(self._found) - len(texts)
        return texts


def read_source(source: CaptionFile | HubCaptions, recipe: Recipe) -> Sample:
    """Read, filter and draw the captions of one source. A SeedError says that it cannot be read, lacks a column, or
    has a broken row: any without filters, else most."""
    filters, blocked, broken, first = source.filters, list[str](), 0, ""
    files = [source.path] if isinstance(source, CaptionFile) else []
    if filters and filters.blocked_words:
        files.append(filters.blocked_words)
        path = recipe.directory / filters.blocked_words
        lines = read_lines(path, f"blocked_words of '{source.name}'")
        if not (blocked := [plain_words(line) for line in lines if not line.startswith("#")]):
            raise SeedError(f"{path} holds no word; leave blocked_words out")
    facts = source.model_dump(include={"license", "dataset", "config", "split", "revision"})
    sample = Sample(source.name, recipe.random_seed, files, source.limit, **facts)
    try:
        for place, cells in counted(read_rows(source, recipe.directory), f"seeds of {source.name}", "row"):
            captions, group = _captions(cells, source.column)
            sample.read += len(captions)
            for caption in captions:
                reason = filters and isinstance(caption, str) and reject(caption, filters, blocked)
                if isinstance(caption, BadRow):
                    reason, fault = caption.reason, f"{place}: {caption.detail}"
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


def _captions(cells: list[Any] | BadRow, column: str) -> tuple[list[str | BadRow], str | None]:
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


def reject(text: str, settings: Filters, blocked: Iterable[str] = ()) -> str | None:
    """Return the first reason why a caption (its white space single blanks) cannot be a seed, or None.

    ``blocked`` are words and phrases that it must not hold, as ``plain_words`` makes them. Language is decided by
    function words of seven languages, a heuristic of ours: a caption without any ("red sports car") counts as English,
    and further languages in Latin letters may pass.
    """
    if not settings.words[0] <= (count := text.count(" ") + 1) <= settings.words[1]:
        return "too_short" if count < settings.words[0] else "too_long"
    for reason, pattern in _PATTERNS.items():
        if pattern.search(text):
            return reason
    plain = plain_words(text)
    if any(entry in plain for entry in blocked):
        return "blocked_word"
    if sum(map(len, _LATIN.findall(text))) < 0.75 * (len(text) - text.count(" ")):
        return "alphabet"
    words = plain.split()
    if settings.language == "en":
        other = sum(word in _OTHER for word in words) + sum(word in _NAMES for word in words) // 2
        if other > sum(word in _ENGLISH for word in words):
            return "language"
    count = max(1, len(words))
    signs = (  # of a caption
        0.1 <= sum(word in _ENGLISH for word in words) / count <= 0.75,  # function words
        len(_LISTING.findall(text)) / count <= 0.25,  # else it is a list
        sum(word[0].isupper() for word in _WORD.findall(text)[1:]) / max(1, count - 1) <= 0.5,
        len(set(words)) / count >= 0.7,
        sum(any(map(str.isdigit, word)) for word in words) / count <= 0.2,
    )
    return "unlike_caption" if sum(signs) < 3 else None


def plain_words(text: str) -> str:
    """Return the case-folded words of a text between single blanks, one at each end: whole words are found in it."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


class DomainFile(Section):
    """Labels of a domain, and templates with ``{label}``, ``{a_label}`` (with article) or ``{labels}`` (plural)."""

    domain: Name
    license: Text
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    labels_file: str | None = None  # one label a line; relative to the domain file

    @model_validator(mode="after")
    def _check(self) -> Self:
        for template in self.templates:
            if sum(template.count(slot) for slot in _SLOTS) != 1:
                raise ValueError(f"template {template!r} must hold one of {', '.join(_SLOTS)}, once")
        if (self.labels is None) == (self.labels_file is None):
            raise ValueError("give either labels or labels_file")
        return self


def read_domain(path: Path) -> DomainFile:
    """Read and check a domain file; ``labels`` of the result are filled, wherever they were."""
    what = f"domain file {path}"
    domain = validate(DomainFile, read_yaml(path, "domain file"), what)
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
            facts: dict[str, Any] = {"license": domain.license, "labels": domain.source}
            samples.append(sample := Sample(f"domain_{domain.domain}", recipe.random_seed, files, **facts))
            labels = sorted(set(domain.labels or ()), key=lambda label: stable_hash(*sample.key, label))
            for label in labels[: wanted.labels_per_domain]:
                forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
                templates = sorted(set(domain.templates), key=lambda one: stable_hash(*sample.key, label, one))
                for template in templates[: wanted.templates_per_label]:
                    slot = next(slot for slot in _SLOTS if slot in template)
                    text = " ".join(template.replace(slot, forms[slot]).split())
                    sample.add(text[0].upper() + text[1:])
                    sample.read += 1
    return samples

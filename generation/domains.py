"""Domain seeds: labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from .config import STRICT, Domains, Recipe
from .errors import RecipeError, SeedError
from .records import draw
from .validation import read_yaml, validate

_PLACES = ("{label}", "{a_label}", "{labels}")
Label = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True, config=STRICT)
class DomainFile:
    """Labels of one domain and the templates they are put into: ``{label}``, ``{a_label}`` (with its indefinite
    article) or ``{labels}`` (plural). The labels stand in the file itself or, one a line, in a file beside it."""

    domain: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    license: str
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    labels_file: str | None = None  # relative to the domain file


def domain_paths(recipe: Recipe) -> list[Path]:
    """The domain files that a recipe names, each once.

    Raises:
        SeedError: a pattern matches nothing, or two files have one name.
    """
    if recipe.seeds.domains is None:
        return []
    paths = []
    for pattern in recipe.seeds.domains.files:
        found = sorted(Path(name).resolve() for name in glob.glob(str(recipe.directory / pattern)))
        if not found:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        paths += found
    stems = [path.stem for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise SeedError(
            f"domain files: {', '.join(twice)} named more than once; each domain needs one file of its name"
        )
    return paths


def read_domain(path: Path) -> DomainFile:
    """Reads and checks one domain file; its ``labels`` are there, wherever they stand.

    Raises:
        RecipeError: it is no YAML mapping of the right keys, a template does not hold exactly one place, or the file
            of its labels cannot be read or has an empty line.
    """
    domain: DomainFile = validate(DomainFile, read_yaml(path, "domain file"), f"domain file {path}")
    for template in domain.templates:
        if sum(template.count(place) for place in _PLACES) != 1:
            raise RecipeError(f"domain file {path}: template {template!r} must hold one of {', '.join(_PLACES)}, once")
    if (domain.labels is None) == (domain.labels_file is None):
        raise RecipeError(f"domain file {path}: give its labels under labels or under labels_file, and not both")
    return replace(domain, labels=domain.labels or _read_labels(path.parent / str(domain.labels_file), path))


def labels_path(path: Path) -> Path | None:
    """The file of labels that a domain file names; None if its labels stand in itself."""
    name = read_yaml(path, "domain file").get("labels_file")
    return path.parent / name if isinstance(name, str) else None


def domain_seeds(domain: DomainFile, wanted: Domains, random_seed: int) -> Iterator[str]:
    """Labels x templates, the templates drawn for each label (paper: 10 a label)."""
    import inflect

    english = inflect.engine()
    source = f"domain_{domain.domain}"
    labels = sorted(set(domain.labels or ()), key=lambda label: draw(random_seed, source, label))
    for label in labels[: wanted.labels_per_domain]:
        forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
        templates = sorted(set(domain.templates), key=lambda template: draw(random_seed, source, label, template))
        for template in templates[: wanted.templates_per_label]:
            place = next(place for place in _PLACES if place in template)
            text = template.replace(place, forms[place])
            yield text[0].upper() + text[1:]


def _read_labels(path: Path, domain: Path) -> tuple[str, ...]:
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        raise RecipeError(f"domain file {domain}: labels_file {path} cannot be read: {error}") from error
    if not labels or not all(labels):
        row = labels.index("") if labels else 0
        raise RecipeError(f"domain file {domain}: labels_file {path}, row {row}: there is no label; give one a line")
    return labels

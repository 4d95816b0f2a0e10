"""Domain seeds: labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..config import Domains, Name, Recipe, Section, Text
from ..errors import RecipeError, SeedError
from ..files import read_lines
from ..recipe import read_yaml, validate
from ..rows import stable_hash

_SLOTS = ("{label}", "{a_label}", "{labels}")
Label = Annotated[str, Field(pattern=r"\S")]


class DomainFile(Section):
    """Labels of one domain and the templates they are put into: ``{label}``, ``{a_label}`` (with its indefinite
    article) or ``{labels}`` (plural). The labels are in the file itself or, one a line, in a file next to it."""

    domain: Name
    license: Text
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    labels_file: str | None = None  # relative to the domain file


def domain_paths(recipe: Recipe) -> list[Path]:
    """Return the domain files that a recipe names.

    Raises:
        SeedError: a pattern matches nothing.
    """
    paths: list[Path] = []
    for pattern in recipe.seeds.domains.files if recipe.seeds.domains else ():
        found = sorted(recipe.path(name) for name in glob.glob(pattern, root_dir=recipe.directory))
        if not found:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        paths += found
    return paths


def read_domain(path: Path) -> DomainFile:
    """Read and check a domain file; ``labels`` of the result are filled, wherever they were.

    Raises:
        RecipeError: keys or values are wrong, or a template does not hold exactly one slot.
        SeedError: the file of labels cannot be read.
    """
    what = f"domain file {path}"
    domain = validate(DomainFile, read_yaml(path, "domain file"), what)
    for template in domain.templates:
        if sum(template.count(slot) for slot in _SLOTS) != 1:
            raise RecipeError(f"{what}: template {template!r} must hold one of {', '.join(_SLOTS)}, once")
    if (domain.labels is None) == (domain.labels_file is None):
        raise RecipeError(f"{what}: give either labels or labels_file")
    labels = domain.labels or tuple(read_lines(path.parent / str(domain.labels_file), f"labels_file of {what}"))
    return domain.model_copy(update={"labels": labels})


def domain_seeds(domain: DomainFile, wanted: Domains, random_seed: int) -> Iterator[str]:
    """Yield labels x templates; the templates of each label are drawn (paper: 10 a label)."""
    import inflect

    english, key = inflect.engine(), (random_seed, f"domain_{domain.domain}")
    labels = sorted(set(domain.labels or ()), key=lambda label: stable_hash(*key, label))
    for label in labels[: wanted.labels_per_domain]:
        forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
        templates = sorted(set(domain.templates), key=lambda template: stable_hash(*key, label, template))
        for template in templates[: wanted.templates_per_label]:
            slot = next(slot for slot in _SLOTS if slot in template)
            text = " ".join(template.replace(slot, forms[slot]).split())
            yield text[0].upper() + text[1:]

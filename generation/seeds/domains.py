"""Labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ..config import Domains, Name, Recipe, Section, Text
from ..errors import SeedError
from ..files import read_lines
from ..recipe import read_yaml, validate
from ..stages import stable_hash

_SLOTS = ("{label}", "{a_label}", "{labels}")
Label = Annotated[str, Field(pattern=r"\S")]


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


def read_domains(recipe: Recipe) -> Iterator[tuple[str, list[str], dict[str, Any], list[str]]]:
    """Yield what each domain file of a recipe gives: a source's name, files, facts (license, origin) and texts."""
    if not (wanted := recipe.seeds.domains):
        return
    for pattern in wanted.files:
        paths = sorted(recipe.path(name) for name in glob.glob(pattern, root_dir=recipe.directory))
        if not paths:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        for path in paths:
            domain = read_domain(path)
            name, files = f"domain_{domain.domain}", [domain.labels_file] if domain.labels_file else []
            files = [str(path), *(str(path.parent / file) for file in files)]
            texts = list(_texts(domain, wanted, (recipe.random_seed, name)))
            yield name, files, {"license": domain.license, "labels": domain.source}, texts


def _texts(domain: DomainFile, wanted: Domains, key: tuple[object, ...]) -> Iterator[str]:
    """Yield labels x templates, as many of both as are wanted, drawn by the stable hash of ``key`` and the text."""
    import inflect

    english = inflect.engine()
    labels = sorted(set(domain.labels or ()), key=lambda label: stable_hash(*key, label))
    for label in labels[: wanted.labels_per_domain]:
        forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
        templates = sorted(set(domain.templates), key=lambda one: stable_hash(*key, label, one))
        for template in templates[: wanted.templates_per_label]:
            slot = next(slot for slot in _SLOTS if slot in template)
            text = " ".join(template.replace(slot, forms[slot]).split())
            yield text[0].upper() + text[1:]

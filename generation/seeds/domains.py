"""Domain seeds: labels of fine-grained classes, put into templates of their domain (paper, Unicorn-1.2M-Seed)."""

import glob
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..config import Name, Recipe, Section, Text
from ..errors import RecipeError, SeedError
from ..files import read_lines
from ..recipe import read_yaml, validate
from ..rows import stable_hash
from .sources import Sample

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


def read_domain(path: Path) -> DomainFile:
    """Read and check a domain file; ``labels`` of the result are filled, wherever they were.

    A RecipeError says that keys or values are wrong, a SeedError that the file of labels cannot be read.
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


def read_domains(recipe: Recipe) -> list[Sample]:
    """Return what each domain file of a recipe gives: labels x templates, those of each label drawn.

    A SeedError says that a pattern matches no file.
    """
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

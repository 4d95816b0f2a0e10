"""The domains of the full recipe: how many they are, and that their sentences are sound."""

import re
from pathlib import Path

import pytest
import yaml

from generation.config import CONFIGS, Domains
from generation.domains import domain_paths, domain_seeds, read_domain
from generation.errors import RecipeError
from generation.recipe import load_recipe

RECIPE = load_recipe(CONFIGS / "unicorn_1_2m.yaml")
PATHS = domain_paths(RECIPE)


def test_the_full_recipe_reaches_the_paper_s_counts() -> None:
    domains = [read_domain(path) for path in PATHS]
    assert RECIPE.seeds.domains is not None
    assert len(domains) == len({domain.domain for domain in domains}) >= 18
    assert sum(len(domain.labels or ()) for domain in domains) >= 10_000
    seeds = [text for domain in domains for text in domain_seeds(domain, RECIPE.seeds.domains, 0)]
    assert 104_000 <= len(set(seeds)) <= 110_000
    assert all(text[0].isupper() or not text[0].isalpha() for text in seeds)
    assert [
        text
        for text in seeds
        if re.search(r"[{}]|\b[Aa] (?!eu|Eu|ewe|one)[aeioAEIO]|\b[Aa]n [b-df-gj-np-tv-z]|  ", text)
    ] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_domain_has_its_source_and_enough_templates(path: Path) -> None:
    domain = read_domain(path)
    assert len(set(domain.templates)) == len(domain.templates) >= 12
    assert "WordNet" in domain.license or "MIT" in domain.license
    assert "timm 1.0.31" in domain.source or "clip-benchmark 1.6.2" in domain.source
    labels = domain.labels or ()
    assert len({label.casefold() for label in labels}) == len(labels)


def test_labels_are_the_same_in_the_file_and_beside_it(tmp_path: Path) -> None:
    data = {"domain": "birds", "license": "MIT", "source": "x", "templates": ["{labels} sing", "see {a_label}"]}
    (tmp_path / "birds.txt").write_text("owl\nhen\n")
    made = []
    for name, labels in (("in.yaml", {"labels": ["owl", "hen"]}), ("beside.yaml", {"labels_file": "birds.txt"})):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(data | labels))
        made.append(sorted(domain_seeds(read_domain(path), Domains(files=()), 0)))
    assert made[0] == made[1] == ["Hens sing", "Owls sing", "See a hen", "See an owl"]


@pytest.mark.parametrize(
    ("labels", "content", "words"),
    [
        ({"labels_file": "none.txt"}, None, "cannot be read"),
        ({"labels_file": "birds.txt"}, "owl\n\nhen\n", "row 1: there is no label"),
        ({"labels_file": "birds.txt"}, "", "there is no label"),
        ({"labels_file": "birds.txt", "labels": ["owl"]}, "owl\n", "not both"),
        ({}, None, "not both"),
    ],
)
def test_a_file_of_labels_that_cannot_be_used_is_named(
    tmp_path: Path, labels: dict[str, object], content: str | None, words: str
) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(
        yaml.safe_dump({"domain": "birds", "license": "MIT", "source": "x", "templates": ["{label}"]} | labels)
    )
    if content is not None:
        (tmp_path / "birds.txt").write_text(content)
    with pytest.raises(RecipeError, match=words) as caught:
        read_domain(path)
    assert str(path) in str(caught.value)

"""Recipes: read, or refused with every wrong key and value by name."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import ImageTransfer, TextTransfer
from generation.errors import RecipeError
from generation.recipe import CONFIGS, load_recipe, parse_recipe

CASE_10 = (  # of /work/shared/cases
    b"name: bug\nseeds:\n  captions:\n    - {name: a, path: a.txt, license: MIT}\n  captions:\n"
    b"    - {name: b, path: b.txt, license: MIT}\ncaptions: {attempts: 5}\ncaptions: {words: [20, 90]}\n"
)
LAUGHS = (b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghij")
FAULTS = yaml.safe_load(Path(__file__).with_name("seed_cases.yaml").read_text(encoding="utf-8"))["recipes"]
SMALL: dict[str, Any] = {"name": "small", "seeds": {"captions": [{"name": "own", "path": "a.txt", "license": "MIT"}]}}


def recipe(tmp_path: Path, text: str = "", **sections: Any) -> Path:
    """A recipe with the sections, and with lines of YAML at its end."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL | sections) + text, encoding="utf-8")
    return path


def test_a_recipe_is_read_with_its_paths_and_the_command_line_wins(tmp_path: Path) -> None:
    assert load_recipe(CONFIGS / "demo.yaml").attempts == 10
    path = recipe(tmp_path, server={"endpoints": ["http://a"], "timeout_s": 5.0})
    read = load_recipe(path, {"endpoints": ["http://b"]})
    assert (read.server.endpoints, read.server.timeout_s) == (("http://b",), 5.0)
    assert read.path("a.txt") == tmp_path.resolve() / "a.txt"
    assert isinstance(load_recipe(recipe(tmp_path, transfer={})).transfer, TextTransfer)
    chosen = load_recipe(recipe(tmp_path, transfer={"method": "realign", "images": "v.npy"})).transfer
    assert isinstance(chosen, ImageTransfer)


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(tmp_path, f"{text}\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CASE_10, "key 'captions' occurs twice, in lines 7 and 8"),
        (b"seeds:\n  domains: {files: [a], files: [b]}\n", "key 'files' occurs twice"),
        (b"- a\n", "must hold a mapping of keys to values, not list"),
        (b"", "not NoneType"),
        (b"\xff\xfen\x00", "cannot read recipe"),
        (b"a: [", "cannot read recipe"),
        (b"\tname: a\n", r"cannot start any token\n.*line 1"),
        (b"name: a\n---\nname: b\n", "expected a single document"),
        (b"[" * 100_000, "cannot read recipe"),
        (b"? {a: b}\n: c\n", "cannot read recipe|unknown key"),
        (b"name: &a [*a]\n", "holds what a recipe cannot: Circular reference"),
        (b"name: !!set {a, b}\n", "holds what a recipe cannot: Object of type set"),
        (b"a: &a [x]\n" + b"".join(LAUGHS), "more than 5,000,000 characters, its aliases written out"),
    ],
)
def test_files_that_are_not_recipes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_plain_values_are_what_they_look_like(tmp_path: Path) -> None:
    server = "server: {thinking: off, timeout_s: 1e3, <<: {give_up_s: 2000.0}, <<: {max_in_flight: 9}}\n"
    rest = "random_seed: 1_000\ncluster: {sbatch: {time: 24:00:00}}\ncard: {homepage: 2024-01-02 3:04}\n"
    read = load_recipe(recipe(tmp_path, server + rest))
    assert (read.server.thinking, read.server.timeout_s, read.server.max_in_flight) == ("off", 1000, 9)
    assert (read.random_seed, read.cluster.sbatch) == (1000, {"time": "24:00:00"})
    assert read.card.homepage == "2024-01-02 3:04"


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    words = {"pipe.yaml": "not a regular file", "loop.yaml": "does not exist", f"{'x' * 300}.yaml": "does not exist"}
    for name, message in {**words, "no.yaml": r"does not exist. Recipes .*demo\.yaml"}.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / name)
    assert parse_recipe(SMALL | {"directory": str(tmp_path)}, "recipe").path("loop.yaml").name == "loop.yaml"


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["seeds", "server", "captions", "instructions", "judge", "embed", "transfer", "cluster", "card"]),
)
def test_any_value_of_a_section_is_read_or_refused(value: Any, section: str) -> None:
    with suppress(RecipeError):
        parse_recipe(SMALL | {"directory": ".", section: value}, "recipe")

"""Recipes: read, or refused with every wrong key and value by name."""

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

SMALL: dict[str, Any] = {"name": "small", "seeds": {"captions": [{"name": "own", "path": "a.txt", "license": "MIT"}]}}


def recipe(tmp_path: Path, **sections: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL | sections), encoding="utf-8")
    return path


def test_the_demo_recipe_is_valid_and_the_full_one_asks_for_commits() -> None:
    assert load_recipe(CONFIGS / "demo.yaml").attempts == 10
    with pytest.raises(RecipeError, match=r"seeds\.hub\.0\.revision = \"COMMIT\": give the commit"):
        load_recipe(CONFIGS / "unicorn_1_2m.yaml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    assert load_recipe(recipe(tmp_path)).path("a.txt") == tmp_path.resolve() / "a.txt"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, server={"endpoints": ["http://a"], "timeout_s": 5.0})
    server = load_recipe(path, {"endpoints": ["http://b"]}).server
    assert (server.endpoints, server.timeout_s) == (("http://b",), 5.0)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"captoins": {}}, "unknown key 'captoins'; did you mean 'captions'"),
        ({"captions": {"min_word": 3}}, r"unknown key 'captions\.min_word'; did you mean 'min_words'"),
        ({"attempts": "3"}, 'attempts = "3": Input should be a valid integer'),
        ({"attempts": True}, "attempts = true"),
        ({"server": {"timeout_s": float("nan")}}, "timeout_s"),
        ({"server": {"timeout_s": 60.0, "give_up_s": 30.0}}, r"give_up_s = 30 must be above timeout_s = 60"),
        ({"captions": {"min_words": 90, "max_words": 80}}, "min_words = 90 is above max_words = 80"),
        (
            {"instructions": {"multiple_choice": {"prompt": "multiple_choice", "fraction": 0.1, "items": [8, 6]}}},
            "the lower bound 8 is above the upper bound 6",
        ),
        ({"instructions": {"overlap": False, "multiple_choice": {"prompt": "a", "fraction": 0.9}}}, "add up to 1.1"),
        ({"transfer": {"method": "anchor"}}, "missing key 'transfer.anchor.images'"),
        ({"transfer": {"method": "unicron"}}, "unicron"),
        ({"transfer": {"method": "unicorn", "images": "x"}}, r"unknown key 'transfer\.unicorn\.images'"),
        ({"directory": "/"}, "remove the key 'directory'"),
        ({"name": None}, "name = null"),
    ],
)
def test_faults_are_named(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path, **sections))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b\n", "key 'name' occurs twice, in lines 1 and 2"),
        (b"seeds:\n  domains: {files: [a], files: [b]}\n", "key 'files' occurs twice"),
        (b"- a\n", "must hold a mapping of keys to values, not list"),
        (b"", "not NoneType"),
        (b"\xff\xfen\x00", "cannot read recipe"),
        (b"a: [", "cannot read recipe"),
        (b"[" * 100_000, "cannot read recipe"),
        (b"? {a: b}\n: c\n", "cannot read recipe|unknown key"),
    ],
)
def test_files_that_are_not_recipes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_missing_recipe_names_those_of_the_project(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"demo\.yaml"):
        load_recipe(tmp_path / "no.yaml")


def test_the_transfer_is_chosen_by_its_method(tmp_path: Path) -> None:
    assert isinstance(load_recipe(recipe(tmp_path, transfer={})).transfer, TextTransfer)
    chosen = load_recipe(recipe(tmp_path, transfer={"method": "realign", "images": "v.npy"})).transfer
    assert isinstance(chosen, ImageTransfer)


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

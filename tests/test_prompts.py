"""Prompts as data: the bundled ones keep the rules of every server, and values never become templates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from generation.errors import RecipeError
from generation.prompts import PROMPTS, Prompt, load_prompt

BUNDLED = {path.stem: load_prompt(path.stem) for path in sorted(PROMPTS.glob("*.yaml"))}
Load = Callable[..., Prompt]
MINIMAL: dict[str, Any] = {"id": "mine", "version": "1.0.0", "changelog": ["1.0.0: first version"]}
MINIMAL |= {"user": "Say {seed}", "warm_up": {"seed": "A dog."}}
MINIMAL |= {"sampling": {"max_tokens": 16, "temperature": 0.5, "top_p": 0.9}}
FULL = MINIMAL | {"system": "You write.", "answer_prefix": "Now {seed}:"}
FULL |= {"examples": [{"values": {"seed": "A cat."}, "answer": "Meow."}]}
FULL |= {"schema": {"type": "object", "properties": {"QA Pairs": {"type": "array"}}}}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads a prompt from a folder in place of the bundled ones."""
    monkeypatch.setattr("generation.prompts.PROMPTS", tmp_path)

    def load(data: Any, name: str = "mine") -> Prompt:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        return load_prompt(name)

    return load


def test_a_prompt_renders_a_chat_that_ends_with_the_beginning_of_the_answer(load: Load) -> None:
    prompt = load(FULL)
    assert prompt.name == "mine@1.0.0"
    seed = "A {seed} {caption} fox."
    turns = [("system", "You write."), ("user", "Say A cat."), ("assistant", "Meow.")]
    turns += [("user", f"Say {seed}"), ("assistant", f"Now {seed}:")]
    assert [(turn["role"], turn["content"]) for turn in prompt.messages({"seed": seed})] == turns
    assert prompt.answer_schema(2, 5)["properties"]["QA Pairs"] == {"type": "array", "minItems": 2, "maxItems": 5}
    assert prompt.answer_schema(2, 5) is not prompt.json_schema
    with pytest.raises(RecipeError, match="QA Pairs"):
        load(MINIMAL).answer_schema(1, 2)
    with pytest.raises(RecipeError, match=r"'yours' does not exist.*mine"):
        load(MINIMAL, "yours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"max_tokens": 0, "temperature": 0.5, "top_p": 0.9}}, "max_tokens"),
        ({"sampling": MINIMAL["sampling"] | {"top_p": 1.0}}, "top_p"),
        ({"version": "1.0"}, "version"),
        ({"usr": "x"}, "did you mean 'user'"),
        ({"id": "other"}, "must be the file's name"),
        ({"user": "Say {sead}"}, "'{sead}' has no value.*warm_up"),
        ({"changelog": "none"}, "changelog"),
    ],
)
def test_a_faulty_file_is_refused_with_the_key(load: Load, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(MINIMAL | change)


def test_the_hash_moves_with_everything_that_can_change_the_output(load: Load) -> None:
    changed = {"system": "You.", "user": "Tell {seed}", "answer_prefix": "So", "examples": [], "openings": ["x"]}
    changed |= {"sampling": MINIMAL["sampling"] | {"temperature": 0.6}, "schema": None, "question_types": ["x"]}
    same = {"changelog": ["new"], "warm_up": {"seed": "Other."}}
    before = load(FULL).sha256
    moved = [key for key, value in (changed | same).items() if load(FULL | {key: value}).sha256 != before]
    assert moved == list(changed)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_prompt_keeps_the_rules_of_the_servers(name: str) -> None:
    prompt = BUNDLED[name]
    assert prompt.changelog[-1].startswith(prompt.version)
    roles = [turn["role"] for turn in prompt.messages(prompt.warm_up)]
    alternating = roles[1:] if roles[0] == "system" else roles
    assert alternating == (["user", "assistant"] * len(roles))[: len(alternating)]
    if prompt.json_schema:  # jsonschema refuses what the grammar compilers do
        Draft202012Validator.check_schema(prompt.json_schema)
        assert all(key in json.dumps(prompt.json_schema) for key in ("required", "additionalProperties"))
        assert not prompt.answer_prefix, "a grammar cannot continue a begun answer"
        for example in prompt.examples:
            Draft202012Validator(prompt.json_schema).validate(example.answer)
    for example in prompt.examples if "QA Pairs" in str(prompt.json_schema) else ():
        low, types = int(example.values.get("min_items", "2")), example.values["types"].split(";")
        assert len(example.answer["QA Pairs"]) in (low, len(types))
        if not name.endswith("_small"):
            assert low <= len(example.answer["QA Pairs"]) == len(types)
            assert {kind.strip() for kind in types} <= set(prompt.question_types)
            assert 120 <= len(example.values["caption"].split()) <= 180

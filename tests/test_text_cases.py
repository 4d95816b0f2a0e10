"""Good text of strong writers stays and defects are caught: the cases from the wild, and our own."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from generation.checks.dense import caption_fault, finish
from generation.checks.items import Scene, Shown, item_fault, question_type, sound_items
from generation.checks.text import shingles
from generation.prompts import load_prompt

HERE = Path(__file__).parent
GOOD = json.loads((HERE / "text_good.json").read_text(encoding="utf-8"))
DEFECTS = json.loads((HERE / "text_defects.json").read_text(encoding="utf-8"))
OWN = yaml.safe_load((HERE / "text_cases.yaml").read_text(encoding="utf-8"))
PAIRS = {(row["seed"], row["caption"]) for part in (*GOOD.values(), DEFECTS) for row in part if row["caption"]}


def shown(task: str) -> Shown:
    prompt = load_prompt(task)
    return Shown(prompt.question_types, [item for example in prompt.examples for item in example.answer["QA Pairs"]])


def answered(row: dict[str, Any]) -> list[dict[str, Any]]:
    answer: dict[str, Any] = json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
    return list(answer["QA Pairs"])


def kept(row: dict[str, Any], task: str) -> list[dict[str, Any]]:
    text = json.dumps({"QA Pairs": answered(row)})
    return sound_items(text, row.get("finish", "stop"), row["caption"], task, shown(task))[0]


def test_good_captions_are_kept() -> None:
    prompt = load_prompt("expand_caption")
    texts = shingles([prompt.system or "", prompt.user, *(example.answer for example in prompt.examples)])
    assert {caption: fault for seed, caption in PAIRS if (fault := caption_fault(caption, seed, shown=texts))} == {}


def test_good_items_are_kept_of_every_type() -> None:
    """Issue 17 asks for 97 % of all items and 90 % of each type."""
    before, after = Counter[str](), Counter[str]()
    for row in GOOD["conversations"]:
        before.update(question_type(item["Question"]) for item in answered(row))
        after.update(question_type(item["Question"]) for item in kept(row, row["task"]))
    assert before.total() == 151
    assert before == after


def test_rules_alone_catch_most_defects_and_drop_nothing_good_for_it() -> None:
    """Issue 17 asks for 60 %. The others contradict themselves or the seed's relation, or have two right options."""
    missed = []
    for row in DEFECTS:
        if row["stage"] == "caption":
            caught = caption_fault(finish(row["answer"], row["finish"]), row["seed"]) is not None
        else:
            items, left = answered(row), kept(row, row["stage"])
            caught = not any(items[place] in left for place in row["bad"])
            assert all(item in left for place, item in enumerate(items) if place not in row["bad"])
        missed += [] if caught else [row["kind"]]
    assert missed == ["relation turned round", "contradiction inside", "two right options"]


def caption_text(number: int) -> str:
    row = OWN["captions"][number]
    text: str = row.get("caption") or caption_text(row["based_on"])
    for old, new in row.get("replace", []):
        assert old in text or old[0].upper() + old[1:] in text
        text = text.replace(old, new).replace(old[0].upper() + old[1:], new)
    return text


@pytest.mark.parametrize("number", range(len(OWN["captions"])))
def test_our_own_captions_end_as_said(number: int) -> None:
    row = OWN["captions"][number]
    assert caption_fault(caption_text(number), row["seed"]) == (None if row["code"] == "judge" else row["code"])


@pytest.mark.parametrize("row", OWN["items"], ids=lambda row: f"{row['code']}: {row['Question']}")
def test_our_own_items_end_as_said(row: dict[str, Any]) -> None:
    item = {key: row[key] for key in ("Question", "Options", "Answer") if key in row}
    fault = item_fault(item, row["task"], Scene(caption_text(row["about"])), shown(row["task"]))
    assert fault == (None if row["code"] == "judge" else row["code"])


@pytest.mark.parametrize("name", ["multiple_choice", "question_answering", "complex_reasoning"])
@pytest.mark.parametrize("size", ["", "_small"])
def test_what_a_prompt_shows_is_sound_and_may_not_be_repeated(name: str, size: str) -> None:
    for example in load_prompt(name + size).examples:
        text, caption = json.dumps(example.answer), example.values["caption"]
        assert sound_items(text, "stop", caption, name) == (example.answer["QA Pairs"], [])
        assert set(sound_items(text, "stop", caption, name, shown(name + size))[1]) == {"repeats_prompt"}


def test_example_captions_are_sound_and_may_not_be_repeated() -> None:
    for example in load_prompt("expand_caption").examples:
        seed, text = example.values["seed"], example.answer
        assert caption_fault(text, seed) is None
        assert caption_fault(text, seed, shown=shingles([text])) == "repeats_prompt"
        assert len(text.split()) == pytest.approx(int(example.values["words"]), rel=0.1)

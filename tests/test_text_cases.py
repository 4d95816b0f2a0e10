"""Good text of strong writers stays and defects are caught: the cases from the wild, and our own."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from generation.checks.items import Scene, Shown, item_fault, question_type, sound_items
from generation.checks.text import caption_fault, finish, shingles
from generation.prompts import load_prompt

HERE = Path(__file__).parent
GOOD = json.loads((HERE / "text_good.json").read_text(encoding="utf-8"))
DEFECTS = json.loads((HERE / "text_defects.json").read_text(encoding="utf-8"))
PAIRS = {(row["seed"], row["caption"]) for part in (*GOOD.values(), DEFECTS) for row in part if row["caption"]}


def read_own(name: str) -> tuple[list[Any], list[Any]]:
    """Return captions (seed, text, code) and items (caption, item, code) of a file; code None is good text."""
    data = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    captions, items = list[tuple[str, str, str | None]](), []
    for row in data["captions"]:
        seed, text, _ = captions[row["based_on"]] if "based_on" in row else ("", row["caption"], None)
        for old, new in row.get("replace", []):
            old = old if old in text else old[0].upper() + old[1:]
            assert old in text
            text = text.replace(old, new)
        captions.append((row.get("seed", seed), text + row.get("append", ""), row.get("code")))
    for row in data["items"]:
        item = {key: value for key, value in row.items() if key not in ("about", "task", "code")}
        items.append((row["task"], captions[row["about"]][1], item, row.get("code")))
    return captions, items


OWN = [read_own(name) for name in ("text_cases.yaml", "text_more.yaml")]
OWN_CAPTIONS, OWN_ITEMS = ([row for part in OWN for row in part[place]] for place in (0, 1))


def shown(task: str) -> Shown:
    prompt = load_prompt(task)
    return Shown(prompt.question_types, [item for example in prompt.examples for item in example.answer["QA Pairs"]])


def answered(row: dict[str, Any]) -> list[dict[str, Any]]:
    return list((json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"])["QA Pairs"])


def kept(row: dict[str, Any], task: str) -> list[dict[str, Any]]:
    text = json.dumps({"QA Pairs": answered(row)})
    return sound_items(text, row.get("finish", "stop"), row["caption"], task, shown(task))[0]


def test_good_captions_are_kept() -> None:
    prompt = load_prompt("expand_caption")
    texts = frozenset(shingles([prompt.system or "", prompt.user, *(one.answer for one in prompt.examples)]))
    assert {caption: fault for seed, caption in PAIRS if (fault := caption_fault(caption, seed, shown=texts))} == {}


def test_good_items_are_kept_of_every_type() -> None:
    """Issue 17 asks for 97 % of all items and 90 % of each type."""
    before, after = Counter[str](), Counter[str]()
    for row in GOOD["conversations"]:
        before.update(question_type(item["Question"]) for item in answered(row))
        after.update(question_type(item["Question"]) for item in kept(row, row["task"]))
    assert before == after and before.total() == 151


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


@pytest.mark.parametrize(("seed", "text", "code"), OWN_CAPTIONS, ids=lambda value: str(value)[:30])
def test_our_own_captions_end_as_said(seed: str, text: str, code: str | None) -> None:
    """The code ``judge`` is a defect that no rule sees."""
    assert caption_fault(text, seed) == (None if code == "judge" else code)


@pytest.mark.parametrize(("task", "caption", "item", "code"), OWN_ITEMS, ids=lambda value: str(value)[:30])
def test_our_own_items_end_as_said(task: str, caption: str, item: Any, code: str | None) -> None:
    assert item_fault(item, task, Scene(caption), shown(task)) == (None if code == "judge" else code)


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
        assert caption_fault(text, seed, shown=frozenset(shingles([text]))) == "repeats_prompt"
        assert len(text.split()) == pytest.approx(int(example.values["words"]), rel=0.1)

"""Each reason code has a text that fails by it and a near twin that passes; nothing a model writes breaks a check."""

import copy
import inspect
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from generation.checks import items, text
from generation.checks.items import Scene, item_fault, leaks, sound_items
from generation.checks.text import caption_fault, finish, measures, shingles, stem
from generation.prompts import load_prompt
from generation.stages import TASKS

CASES = yaml.safe_load(Path(__file__).with_name("text_cases.yaml").read_text(encoding="utf-8"))
CAPTION_CODES = {row[0] for row in CASES["caption_codes"]}
# The last four are those of answers, see below.
ITEM_CODES = {row[0] for row in CASES["item_codes"]} | {"too_long", "cut_off", "not_json", "duplicate_question"}
SHOWN = frozenset(shingles(["A spotted dog runs over the meadow with a ball in its mouth."]))
SCENE = (
    "A brown dog carries a ball over the wet beach near a red kite. A child in a blue coat stands beside the water "
    "and laughs. Behind them a wooden pier, 40 metres long, reaches into the sea; four gulls sit on it."
)
WRITTEN = f"{SCENE} A page of text lies on a bench in a narrow passage."
OPEN: dict[str, Any] = {"Question": "What does the dog carry?", "Answer": "It carries a ball."}
OPTIONS = {"A": "A stick", "B": "A ball", "C": "A shoe", "D": "A fish"}
CHOICE: dict[str, Any] = {"Question": "What does the animal carry?", "Options": OPTIONS, "Answer": "B"}
TYPES = ["what something is used for", "what is", "where", "who"]
PROMPT = items.Shown(TYPES, [{"Question": "Who runs?", "Answer": "He."}])
GOOD = json.dumps({"QA Pairs": [OPEN, {"Question": "Who is it that laughs?", "Answer": "A child."}]})


def changed(task: str, change: Any) -> Any:
    """Return a sound item of the task with other values; keys of one letter are options."""
    item = copy.deepcopy(CHOICE if task == "multiple_choice" else OPEN)
    if not isinstance(change, dict):
        return change
    for key, value in change.items():
        (item["Options"] if len(key) == 1 else item)[key] = value
    return item


@pytest.mark.parametrize("row", CASES["caption_codes"], ids=lambda row: f"{row[0]}: {row[1][:30]!r}")
def test_a_caption_fails_by_its_code_and_its_near_twin_passes(row: list[str]) -> None:
    code, bad, twin, *seeds = [*row, "Dog."] if len(row) == 3 else row
    assert caption_fault(bad, seeds[0], 3, 40, SHOWN) == code
    assert caption_fault(twin, seeds[-1], 3, 40, SHOWN) is None


@pytest.mark.parametrize("row", CASES["item_codes"], ids=lambda row: f"{row[0]}: {str(row[2])[:30]!r}")
def test_an_item_fails_by_its_code_and_its_near_twin_passes(row: list[Any]) -> None:
    code, task, bad, twin = row
    assert item_fault(changed(task, bad), task, Scene(SCENE), PROMPT) == code
    assert item_fault(changed(task, twin), task, Scene(SCENE), PROMPT) is None


def test_every_code_has_texts_on_both_sides() -> None:
    for source, codes in ((text, CAPTION_CODES), (text.form_faults, ITEM_CODES), (items, ITEM_CODES)):
        assert set(re.findall(r'yield "(\w+)"', inspect.getsource(source))) <= codes


@pytest.mark.parametrize(("words", "code"), [(50, "too_short"), (51, None), (483, None), (484, "too_long")])
def test_the_bounds_of_the_paper_are_included(words: int, code: str | None) -> None:
    names = [f"{first}{second}{third}" for first in "bdfkl" for second in "aeiou" for third in "mnprstgl"]
    text = [names[number // 2 % 200] + names[number // 7 % 200] if number % 2 else "the" for number in range(words)]
    assert caption_fault(" ".join(text) + ".", "") == code


def test_cuts_leaks_groundedness_and_question_types_are_as_the_tables_say() -> None:
    for said, cut in CASES["cut"]:
        assert (finish(f" {said}\n", "length"), finish(f" {said}\n", "stop")) == (cut, said)
    for question, leak in CASES["leaks"]:
        assert leaks(question, Scene(WRITTEN)) == leak, question
    for question, said, score in CASES["grounded"]:
        assert items.groundedness(question, said, Scene(SCENE)) == score, question
    assert CASES["question_types"].keys() == set(items.QUESTION_TYPES)
    assert all(items.question_type(asked) == name for name, asked in CASES["question_types"].items())


def test_measurements_are_numbers_with_a_unit() -> None:
    assert measures("10-inch") == measures("ten inches") == {("ten", "inch")}
    assert measures("about 3.5 to 4 kg, 6'2\" tall, 5 °C") == {("3.5", "kg"), ("six", "foot"), ("five", "degree")}
    assert measures("on two feet in four yards, Route 66, a metre-wide strip, 3 men, 4 inns") == set()
    assert measures("2,115 m") == measures("2115 metres")


@pytest.mark.parametrize(
    ("text", "end", "codes"),
    [
        (GOOD, "length", ["cut_off"]),
        (GOOD[:-1], "stop", ["not_json"]),
        (f"{GOOD}{GOOD}", "stop", ["not_json"]),
        (f"[{GOOD}]", "stop", ["not_json"]),
        (GOOD.replace('"Answer"', '"Question"'), "stop", ["not_json"]),
        ('{"QA Pairs": ' + "[" * 100_000, "stop", ["not_json"]),
        ("{" * 100_000, "stop", ["not_json"]),
        ("x" * 1_000_000, "stop", ["not_json"]),
        (GOOD.replace("QA Pairs", "QA"), "stop", ["schema"]),
        (GOOD.replace('"It carries a ball."', "1e999"), "stop", ["schema"]),
        (f"Sure: ```json\n{GOOD}\n``` Done.", "stop", []),
    ],
    ids=lambda value: str(value)[:20],
)
def test_answers_are_read_or_refused_by_a_code(text: str, end: str, codes: list[str]) -> None:
    kept, dropped = sound_items(text, end, SCENE, "question_answering")
    assert (len(kept), dropped) == ((2 if not codes else 1 if "1e999" in text else 0), codes)


def test_of_two_answers_to_one_question_the_supported_one_is_kept() -> None:
    first, second = OPEN | {"Answer": "A purple umbrella."}, {"Question": "What does dog carry?", "Answer": "A ball."}
    text = json.dumps({"QA Pairs": [first, second, first]})
    assert sound_items(text, "stop", SCENE, "question_answering") == ([second], ["duplicate_question"] * 2)
    assert sound_items(text, "stop", SCENE, "question_answering", kept=[first]) == ([], ["duplicate_question"] * 3)


PARTS = ["a", "a ", "A. ", "<", "**", "é ", "1. ", "'", "Ã", "\n# ", "the dog and ", "&a", "one ", "\ud800 ", "this "]


@pytest.mark.parametrize("part", PARTS)
def test_a_monstrous_text_is_judged_within_a_second(part: str) -> None:
    text, start = part * (100_000 // len(part)), time.perf_counter()
    assert caption_fault(text, text, 1, 10**6) in CAPTION_CODES
    assert finish(text, "length") is not None
    for task, key in (("question_answering", "Question"), ("complex_reasoning", "Answer"), ("multiple_choice", "A")):
        assert item_fault(changed(task, {key: text}), task, Scene(text)) == "too_long"
        item_fault(changed(task, {key: text[:2000]}), task, Scene(SCENE))
    caption_fault(" ".join([part.strip()[:45] or "a"] * 483), text)
    assert time.perf_counter() - start < 3


SHAPES = {task: Draft202012Validator(load_prompt(task).answer_schema(0, 99)) for task in TASKS}
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from("AE\ud800")
keys = st.text() | st.sampled_from("ABCDE")
junk = st.recursive(leaf, lambda one: st.lists(one, max_size=3) | st.dictionaries(keys, one, max_size=5), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(junk | st.just(dict.fromkeys("ABCD", "x")), st.sampled_from(["", "item", "Question", "Options", "A", "Answer"]))
def test_any_value_in_any_place_is_judged_and_its_shape_as_json_schema_does(value: Any, place: str) -> None:
    for task in TASKS:
        item = copy.deepcopy(CHOICE if task == "multiple_choice" else OPEN)
        (item.setdefault("Options", {}) if place == "A" else item)[place] = value
        item = value if place == "item" else item if place else copy.deepcopy(OPEN | CHOICE)
        found, dropped = sound_items(json.dumps({"QA Pairs": [item] if place else value}), "stop", SCENE, task)
        assert set(dropped) <= set(ITEM_CODES)
        json.dumps(found, ensure_ascii=False).encode()
        fault = item_fault(item, task, Scene(SCENE)) in ("schema", "not_four_options", "answer_not_an_option")
        assert fault != SHAPES[task].is_valid({"QA Pairs": [item]})


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text("A dog. \n#*-<>|\ud800\ufffd\x00{\"'", max_size=80), st.text(max_size=20))
def test_any_text_and_seed_end_in_a_code(text: str, seed: str) -> None:
    assert caption_fault(text, seed, 2, 9) in (None, *CAPTION_CODES)
    assert text.strip().startswith(finish(text, "length"))
    assert items.read_object(text) is None or isinstance(items.read_object(text), dict)
    assert all(len(stem(word)) <= max(5, len(word)) for word in text.split())

"""Answers: each reason code has a text that fails by it alone and a near twin that passes, and nothing raises."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from generation.checks import caption_fault, finish, instruction_items
from generation.prompts import load_prompt

VALIDATORS = {
    task: Draft202012Validator(load_prompt(task).answer_schema(2, 3))
    for task in ("multiple_choice", "question_answering")
}
CHOICE: dict[str, Any] = {
    "Question": "What does the dog carry?",
    "Options": {"A": "A stick", "B": "A ball", "C": "A shoe", "D": "A fish"},
    "Answer": "B",
}
OPEN: dict[str, Any] = {"Question": "What does the dog carry?", "Answer": "It carries a ball."}
OTHER: dict[str, Any] = {"Question": "Who stands near the water?", "Answer": "A child in a blue coat."}
CAPTION_CODES = {
    *("empty", "bad_characters", "several_paragraphs", "markup", "meta_talk"),
    *("too_short", "too_long", "unfinished", "loop"),
}
ANSWER_CODES = {
    *("cut_off", "not_json", "schema", "empty", "bad_characters", "markup", "not_a_question"),
    *("duplicate_question", "options_not_distinct", "leak"),
}
SIX = "the dog runs over the grass"
WORDS = " ".join(f"dog{number}" for number in range(20))


def answer(*items: Any) -> str:
    return json.dumps({"QA Pairs": items})


def verdict(task: str, *items: Any, finish_reason: str = "stop") -> tuple[list[dict[str, Any]], str | None]:
    return instruction_items(answer(*items), finish_reason, VALIDATORS[task], 2)


# The bounds are 3 to 20 words.
CAPTIONS = [
    ("empty", " \n\t ", "A dog runs."),
    ("bad_characters", "A dog\x00 runs.", "A dog\t runs."),
    ("bad_characters", "A dog runs.\r", "A dog runs.\n"),
    ("bad_characters", "A dog\x1b[1m runs.", "A dog [1m] runs."),
    ("bad_characters", "A dog\x85 runs.", "A dog\xa0 runs."),
    ("bad_characters", "A caf\ufffd is open.", "A café is open 🦄."),
    ("bad_characters", "A \ud800 dog runs.", "A \U00010000 dog runs."),
    ("several_paragraphs", "A dog runs.\nIt barks.", "\nA dog runs. It barks.\n"),
    ("markup", "# A dog runs.", "A dog runs to #4."),
    ("markup", "- A dog runs.", "A well-fed dog runs."),
    ("markup", "* A dog runs.", "A *dog* runs."),
    ("markup", "• A dog runs.", "A dog • runs."),
    ("markup", "1. A dog runs.", "1.5 m above, a dog runs."),
    ("markup", "2) A dog runs.", "A dog (2) runs."),
    ("markup", "A **dog** runs.", "A * dog * runs."),
    ("markup", "A dog<br> runs.", "A dog < b > runs."),
    ("markup", "A dog<BR> runs.", "A dog <3 runs."),
    ("markup", "A dog runs.</s>", "A dog runs over an S."),
    ("markup", "A ```dog``` runs.", "A `dog` runs."),
    ("markup", "A dog <|im_end|> runs.", "A dog | runs."),
    ("meta_talk", "As an AI, it sees a dog.", "As an airplane, it flies."),
    ("meta_talk", "A language model runs.", "A fashion model runs."),
    ("meta_talk", "I cannot see a dog.", "A canary sees a dog."),
    ("meta_talk", "I'm sorry for the dog.", "A sorry dog runs."),
    ("meta_talk", "Here is a dog.", "There is a dog."),
    ("meta_talk", "Here's your dog running.", "Where it runs is your dog."),
    ("meta_talk", "In this description a dog runs.", "In this inscription a dog runs."),
    ("meta_talk", "The caption has a dog.", "The captain has a dog."),
    ("too_short", "Dogs run.", "A dog runs."),
    ("too_long", f"{WORDS} on.", f"{WORDS}."),
    ("unfinished", "A dog runs over", "A dog runs over."),
    ("unfinished", "A dog runs. It barks,", "A dog runs. It barks!"),
    ("unfinished", 'A dog named "Rex"', 'A dog named "Rex?"'),
    ("unfinished", "A dog runs (fast.]x", "A dog runs (fast.)"),
    ("loop", f"{SIX} " * 3 + ".", f"{SIX} " * 2 + "."),
]


@pytest.mark.parametrize(("code", "bad", "twin"), CAPTIONS, ids=lambda value: repr(value)[:30])
def test_a_caption_fails_by_its_code_and_its_near_twin_passes(code: str, bad: str, twin: str) -> None:
    assert caption_fault(bad, 3, 20) == code
    assert caption_fault(twin, 3, 20) is None


def test_the_table_of_captions_holds_every_code() -> None:
    assert {code for code, _, _ in CAPTIONS} == CAPTION_CODES


@pytest.mark.parametrize(("words", "code"), [(50, "too_short"), (51, None), (483, None), (484, "too_long")])
def test_the_bounds_of_the_paper_are_included(words: int, code: str | None) -> None:
    assert caption_fault(" ".join(map(str, range(words))) + ".", 51, 483) == code


@settings(deadline=None)
@given(st.text(st.characters()) | st.text("A dog. \n#*-<>|\ud800\ufffd\x00", max_size=80))
def test_a_caption_fault_is_always_one_of_the_codes(text: str) -> None:
    assert caption_fault(text, 2, 9) in {None, *CAPTION_CODES}


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("A dog runs. It ba", "A dog runs."),
        ("A dog runs.", "A dog runs."),
        ("A dog runs! It barks? And th", "A dog runs! It barks?"),
        ('It says "Stop." and mo', 'It says "Stop."'),
        ("It runs (fast.) and mo", "It runs (fast.)"),
        ("It is 1.5 m high. It is 2.5", "It is 1.5 m high."),
        ("A dog runs over 1.5", ""),
        ("A dog", ""),
        ("", ""),
    ],
)
def test_only_an_answer_cut_for_length_is_shortened(text: str, cut: str) -> None:
    assert finish(f" {text}\n", "length") == cut
    assert finish(f" {text}\n", "stop") == text
    assert finish(f" {text}\n", "eos_token") == text


@settings(deadline=None)
@given(st.text() | st.text("ab .!?\"')]\n", max_size=40))
def test_a_shortened_answer_is_a_finished_beginning(text: str) -> None:
    cut = finish(text, "length")
    assert text.strip().startswith(cut)
    assert not cut or caption_fault(cut.replace("\n", " "), 1, 99) != "unfinished"
    assert finish(cut, "length") == cut


def changed(item: dict[str, Any], **values: Any) -> dict[str, Any]:
    return copy.deepcopy(item) | values


def options(**values: str) -> dict[str, Any]:
    return changed(CHOICE, Options=CHOICE["Options"] | values)


# The item stands beside OTHER (or, for multiple choice, beside SECOND).
SECOND = changed(CHOICE, Question="Where does the child stand?")
ITEMS = [
    ("empty", changed(OPEN, Answer=" "), changed(OPEN, Answer="7")),
    ("empty", changed(OPEN, Question="???"), changed(OPEN, Question="Où est-il ?")),
    ("empty", options(C="—"), options(C="— x")),
    ("bad_characters", changed(OPEN, Answer="A\x00 ball."), changed(OPEN, Answer="A\tball.\n")),
    (
        "bad_characters",
        changed(OPEN, Question="What \ud800 does it do?"),
        changed(OPEN, Question="What é does it do?"),
    ),
    ("bad_characters", options(D="A \ufffd fish"), options(D="A 🐟 fish")),
    ("markup", changed(OPEN, Answer="It carries a ball.}"), changed(OPEN, Answer="It carries (a ball).")),
    ("markup", changed(OPEN, Question="What {does it do?"), changed(OPEN, Question="What: does it do?")),
    ("markup", options(A="A stick]"), options(A="A stick,")),
    ("markup", options(A="[A stick"), options(A="<A stick")),
    ("not_a_question", changed(OPEN, Question="Name the carried thing."), changed(OPEN, Question="Name the thing? ")),
    ("not_a_question", changed(OPEN, Question="Why not?"), changed(OPEN, Question="Why not run?")),
    ("not_a_question", changed(OPEN, Question="Is it red? Say so."), changed(OPEN, Question="Say so. Is it red?")),
    ("duplicate_question", changed(OPEN, Question="who stands near the WATER ?"), OPEN),
    ("duplicate_question", changed(CHOICE, Question=SECOND["Question"]), CHOICE),
    ("options_not_distinct", options(A="a ball."), options(A="a bell.")),
    (
        "leak",
        changed(OPEN, Question="What does the caption say?"),
        changed(OPEN, Question="What does the captain say?"),
    ),
    ("leak", changed(OPEN, Answer="The text says so."), changed(OPEN, Answer="The texture says so.")),
    ("leak", options(A="A Passage"), options(A="A passenger")),
    ("leak", options(A="two descriptions"), options(A="two prescriptions")),
]


@pytest.mark.parametrize(("code", "bad", "twin"), ITEMS)
def test_an_item_fails_by_its_code_and_its_near_twin_passes(code: str, bad: dict[str, Any], twin: Any) -> None:
    task, beside = ("multiple_choice", SECOND) if "Options" in bad else ("question_answering", OTHER)
    assert verdict(task, beside, bad) == ([beside], code)
    assert verdict(task, beside, twin) == ([beside, twin], None)


GOOD = answer(OPEN, OTHER)
ANSWERS = [
    ("cut_off", GOOD, "length", GOOD, "stop"),
    ("not_json", GOOD[:-1], "stop", f" {GOOD}\n", "stop"),
    ("not_json", f"Sure: {GOOD}", "stop", GOOD, "eos_token"),
    ("not_json", f"```json\n{GOOD}\n```", "stop", GOOD, ""),
    ("not_json", "", "stop", GOOD, "stop_sequence"),
    ("schema", GOOD.replace("QA Pairs", "QA"), "stop", GOOD.replace(" ", "  ", 1).replace("QA  ", "QA "), "stop"),
    ("schema", answer(OPEN), "stop", GOOD, "stop"),
    ("schema", answer(OPEN, OTHER, OPEN, OPEN), "stop", answer(OPEN, OTHER, OPEN), "stop"),
    ("schema", answer(OPEN, changed(OTHER, Why="x")), "stop", GOOD, "stop"),
    ("schema", answer(OPEN, {"Question": "Who stands here?"}), "stop", GOOD, "stop"),
]


@pytest.mark.parametrize(("code", "bad", "bad_end", "twin", "twin_end"), ANSWERS)
def test_an_answer_fails_by_its_code_and_its_near_twin_passes(
    code: str, bad: str, bad_end: str, twin: str, twin_end: str
) -> None:
    validator = VALIDATORS["question_answering"]
    assert instruction_items(bad, bad_end, validator, 2) == ([], code)
    assert instruction_items(twin, twin_end, validator, 2) == ([OPEN, OTHER], None)


@pytest.mark.parametrize("wrong", ["E", "b", "A ball", 2, None])
def test_a_choice_must_be_answered_by_one_of_the_letters(wrong: Any) -> None:
    assert verdict("multiple_choice", SECOND, changed(CHOICE, Answer=wrong)) == ([], "schema")
    assert verdict("multiple_choice", SECOND, changed(CHOICE, Answer="D"))[1] is None


def test_the_tables_of_answers_hold_every_code() -> None:
    assert {row[0] for row in [*ITEMS, *ANSWERS]} == ANSWER_CODES


def test_a_bad_item_is_dropped_where_enough_are_left() -> None:
    assert verdict("question_answering", OPEN, changed(OPEN, Answer="-"), OTHER) == ([OPEN, OTHER], None)


def test_the_commonest_fault_of_the_items_is_the_answer_s() -> None:
    leaks = [changed(OPEN, Question=f"What is in caption {number}?") for number in range(2)]
    assert verdict("question_answering", changed(OTHER, Answer=""), *leaks) == ([], "leak")


def checked(text: str, finish_reason: str = "stop") -> None:
    """An answer is judged: items and a known code, never an exception, and what is accepted is sound."""
    for validator in VALIDATORS.values():
        items, fault = instruction_items(text, finish_reason, validator, 2)
        assert fault in {None, *ANSWER_CODES}
        assert fault or len(items) >= 2
        json.dumps(items, ensure_ascii=False).encode()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("Question"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text(st.characters()) | junk.map(json.dumps))
def test_any_text_is_judged(text: str) -> None:
    checked(text)


@settings(deadline=None)
@given(st.sampled_from([answer(CHOICE, SECOND), GOOD]), st.data())
def test_any_truncation_of_a_good_answer_is_judged(text: str, data: st.DataObject) -> None:
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assert instruction_items(cut, "stop", VALIDATORS["question_answering"], 2) == ([], "not_json")
    checked(cut, "length")


@settings(deadline=None)
@given(junk, st.sampled_from(["QA Pairs", "item", "Question", "Options", "A", "Answer"]))
def test_any_value_in_any_place_is_judged(value: Any, place: str) -> None:
    for item, beside in ((copy.deepcopy(CHOICE), SECOND), (copy.deepcopy(OPEN), OTHER)):
        (item.setdefault("Options", {}) if place == "A" else item)[place] = value
        items = value if place == "QA Pairs" else [beside, value if place == "item" else item]
        checked(json.dumps({"QA Pairs": items}))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"QA Pairs":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        answer(OPEN, OTHER).replace('"It carries a ball."', "[" * 500 + "]" * 500),
        answer(OPEN, OTHER).replace("a ball", "a ball " * 1_500_000),
        answer(OPEN, OTHER).replace("a ball", "\\u0000" * 1_500_000),
        answer(changed(OPEN, Question="is it " * 1_700_000 + "?"), OTHER),
        "x" * 10_000_000,
        "1" * 10_000_000,
        answer(OPEN, OTHER).replace('"It carries a ball."', "1e999"),
        answer(OPEN, OTHER).replace("a ball", "\\ud800\\ud800"),
        answer(OPEN, OTHER).replace("Question", "\\ud800"),
    ],
    ids=lambda text: f"{text[:20]}, {len(text)}",
)
def test_a_monstrous_answer_is_judged(text: str) -> None:
    checked(text)


@pytest.mark.parametrize("depth", [900, 989, 991, 993, 2000, 100_000])
def test_an_answer_of_any_depth_is_judged(depth: int) -> None:
    for text in ('{"QA Pairs": ' + "[" * depth + "]" * depth + "}", '{"QA Pairs": [{"Question": ' + "[" * depth):
        checked(text)


@pytest.mark.parametrize("opening", ["Certainly! ", "Sure, ", "Of course. ", "I’m sorry, but "])
def test_meta_talk_is_seen_with_any_blank_or_apostrophe(opening: str) -> None:
    text = opening + "the dog runs along a wide and sandy beach with a ball. " + "Waves roll in behind it. "
    assert caption_fault(text, 1, 99) == "meta_talk"


def test_a_caption_may_end_in_a_curly_quote() -> None:
    assert caption_fault("A sign on the old gate reads “Stop.”", 1, 99) is None

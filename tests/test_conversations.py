"""Items become conversations: letters come out even, answers follow their options, every draw repeats."""

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from generation import checks
from generation.captions import _PARAPHRASES
from generation.instructions import conversation, shuffle_options
from generation.prompts import load_prompt

CAPTION = "A brown dog runs across a wet beach with a yellow ball in its mouth. A child in a blue coat stands there."
ITEM = {
    "Question": "What does the dog carry?",
    "Options": {"A": "A stick", "B": "A ball", "C": "A shoe", "D": "A fish"},
    "Answer": "B",
}


@given(st.text(), st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_shuffled_options_are_the_same_and_the_right_one_stays_right(key: str, letter: str, wanted: str) -> None:
    item = ITEM | {"Answer": letter}
    shuffled = shuffle_options(item, wanted, key)
    assert sorted(shuffled["Options"].values()) == sorted(item["Options"].values())
    assert list(shuffled["Options"]) == ["A", "B", "C", "D"]
    assert shuffled["Answer"] == wanted
    assert shuffled["Options"][wanted] == item["Options"][letter]
    assert shuffle_options(item, wanted, key) == shuffled


def letters(rows: range) -> list[str]:
    conversations = [conversation(f"{row:010d}", "multiple_choice", [ITEM] * 3) for row in rows]
    return [turn["value"] for turns in conversations for turn in turns[1::2]]


def test_right_answers_fall_on_all_letters_alike_though_the_model_always_says_b() -> None:
    assert Counter(letters(range(2000))) == dict.fromkeys("ABCD", 1500)
    some = Counter(letters(range(0, 9000, 7)))  # a sample of the rows, as a task has it
    assert checks.chi_square_p([some[letter] for letter in "ABCD"]) > 0.01


def test_letters_of_one_conversation_tell_nothing_of_each_other() -> None:
    said = letters(range(4000))
    pairs = Counter(zip(said[::3], said[1::3], strict=True))
    assert len(pairs) == 16
    assert all(190 < count < 310 for count in pairs.values())  # 250 on average


def test_the_letter_names_the_right_option_of_its_own_question() -> None:
    for row in range(50):
        for human, gpt in zip(*[iter(conversation(f"{row:010d}", "multiple_choice", [ITEM] * 3))] * 2, strict=True):
            assert f"{gpt['value']}: A ball" in human["value"].split("\n")


def test_turns_come_in_an_order_that_is_drawn_and_repeats() -> None:
    items: list[Any] = [{"Question": f"What is number {n}?", "Answer": str(n)} for n in range(3)]
    orders = set()
    for row in range(60):
        turns = conversation(f"{row:010d}", "question_answering", items)
        assert turns == conversation(f"{row:010d}", "question_answering", items)
        assert [turn["value"].count("<image>") for turn in turns] == [1, 0, 0, 0, 0, 0]
        orders.add(tuple(turn["value"] for turn in turns[1::2]))
    assert len(orders) == 6


def test_kinds_of_questions_are_drawn_evenly_and_without_repeats() -> None:
    prompt = load_prompt("multiple_choice")
    first, all_kinds = Counter[str](), Counter[str]()
    for row in range(1200):
        kinds = prompt.draw_kinds(8, row).split("; ")
        assert len(set(kinds)) == 8
        first[kinds[0]] += 1
        all_kinds.update(kinds)
    assert first.keys() == all_kinds.keys() == set(prompt.question_kinds)
    assert max(first.values()) < 150  # 100 on average
    assert max(all_kinds.values()) - min(all_kinds.values()) < 120  # of 800


def test_sound_items_of_answers_that_fail_are_kept_until_there_are_enough() -> None:
    limits = checks.InstructionLimits(min_items=2, max_items=3)
    bad = {"Question": "Where is the zebra that the wizard feeds?", "Answer": "On a purple mountain of glass."}
    good = [
        {"Question": "What colour is the ball?", "Answer": "It is yellow."},
        {"Question": "Who stands there?", "Answer": "A child in a blue coat."},
    ]
    kept: list[Any] = []

    def add(*items: Any) -> str | None:
        text = json.dumps({"QA Pairs": list(items)})
        return checks.add_items(kept, text, "stop", CAPTION, "question_answering", limits)

    assert add(good[0], bad) == "ungrounded"
    assert add(good[0]) == "duplicate_question"
    assert kept == [good[0]]
    assert add(bad, good[1]) is None
    assert kept == good


def test_there_are_two_dozen_ways_to_ask_for_the_pre_training_caption() -> None:
    lines = _PARAPHRASES.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) >= 24
    assert not any("caption" in line.lower() or "<image>" in line for line in lines)

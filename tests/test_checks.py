"""Each reason code has a text that fails by it and a near twin that passes; nothing a model writes breaks a check."""

import copy
import inspect
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from generation.checks import dense, items
from generation.checks.dense import caption_fault, finish
from generation.checks.facts import measures
from generation.checks.items import (
    QUESTION_TYPES,
    Scene,
    Shown,
    groundedness,
    item_fault,
    leaks,
    question_type,
    read_object,
    sound_items,
)
from generation.checks.text import shingles
from generation.checks.words import stem
from generation.prompts import load_prompt

LONG = (
    "A brown dog runs along the wet sand with a ball in its mouth while a child in a blue coat stands near the water "
    "and looks at the waves that roll in from the other side of a bay"
)  # 40 words
GERMAN = "Ein brauner Hund rennt mit einem Ball im Maul über den nassen Sand, und das Kind in blauem Mantel steht"
SIX = "the dog runs over the grass"
SHOWN = shingles(["A spotted dog runs over the meadow with a ball in its mouth."])

# code, a text that fails by it, a twin that passes, and the seed if it is not "Dog."; the bounds are 3 to 40 words
CAPTIONS = [
    ("empty", " \n\t ", "A dog runs."),
    ("bad_characters", "A dog\x00 runs.", "A dog\t runs."),
    ("bad_characters", "A dog\x1b[1m runs.", "A dog [1n] runs."),
    ("bad_characters", "A dog at a caf\ufffd runs.", "A dog at a café 🦄 runs."),
    ("bad_characters", "A \u202egod runs by a dog.", "A “dog?” runs….", 'dog "dog"'),
    ("bad_characters", "The dogâ€™s tail wags.", "The dog’s tail wags."),
    ("bad_characters", f"A dog runs past {'a-' * 23}z.", "A dog runs past a black-and-white-and-red-all-over sign."),
    ("refusal", "I cannot see a dog.", "A canary sees a dog."),
    ("refusal", "I’m unable to see the dog.", "A dog is unable to see."),
    ("refusal", "More information about the dog would be needed.", "More dogs would be needed."),
    ("refusal", "It is not possible to describe the dog.", "The dog describes a circle."),
    ("meta_talk", "As an AI, it sees a dog.", "As an airplane, a dog flies."),
    ("meta_talk", "Here is a dog.", "There is a dog."),
    ("meta_talk", "In this description a dog runs.", "In this inscription a dog runs."),
    ("meta_talk", "The dog agrees with the sentence.", "The dog sits on a sentence in chalk."),
    ("meta_talk", "The sentence mentions a dog.", "A sentence about a dog is printed there."),
    ("meta_talk", "A dog runs in the above text.", "A dog runs above the text, a line below the caption."),
    ("refusal", "The dog is too vague to describe.", "The leash of the dog is too short to reach."),
    ("meta_talk", "Caption: a dog runs.", "Captain: a dog runs."),
    ("meta_talk", "Sure, a dog runs.", "A sure dog, it runs."),
    ("markup", "# A dog runs.", "A dog runs to #4."),
    ("markup", "- A dog runs.", "A well-fed dog runs."),
    ("markup", "1. A dog runs.", "1.5 dogs run above."),
    ("markup", "A **dog** runs.", "A * dog * runs."),
    ("markup", "A dog<br> runs.", "A dog <3 runs."),
    ("markup", "A dog <|im_end|> runs.", "A dog | runs."),
    ("markup", "A [dog](dog.html) runs.", "A [dog] (brown) runs."),
    ("markup", "A dog at https://dog.example runs.", "A dog at https runs."),
    ("markup", "A dog [/INST] runs.", "A dog [fast] runs."),
    ("several_paragraphs", "A dog runs.\nIt barks.", "\nA dog runs. It barks.\n"),
    ("too_short", "Dogs run.", "A dog runs."),
    ("too_long", f"{LONG} now.", f"{LONG}."),
    ("not_english", f"{GERMAN} neben dem Dog.", f"{LONG}."),
    ("not_english", "A dog runs. 天空湛蓝 and it barks.", "A dog runs by a sign with 犬."),
    ("not_english", "A dog 天空湛蓝 runs.", "A dog 天空湛蓝 runs.", "dog", "dog 天空湛蓝"),
    ("not_english", f"A dog is here. {GERMAN}.", "A dog is here. Its name is Hund."),
    ("unfinished", "A dog runs over", "A dog runs over."),
    ("unfinished", 'A dog runs "by"', 'A dog runs "Dog?"'),
    ("unfinished", "A dog sees Dr.", "A dog sees Dr. No."),
    ("loop", f"{SIX} " * 3 + ".", f"{SIX} " * 2 + "."),
    ("loop", "A very very very very very big dog.", "A very very very very big dog."),
    ("loop", "A dog runs fast. It barks. A dog runs fast.", "A dog runs fast. It barks. A cat runs fast."),
    ("mood", "A magical dog runs.", "A magical dog runs.", "Dog.", "A magical dog."),
    ("mood", "Overall, the dog is nice.", "A dog in overalls runs."),
    ("mood", "A dog gives a sense of wonder.", "A dog gives a sense of depth."),
    ("mood", "A dog runs. She feels proud of it.", "A dog feels the wind."),
    ("mood", "The dog evokes longing.", "The dog is long."),
    ("repeats_prompt", "A spotted dog runs over the meadow with a ball.", "A spotted dog runs over a meadow."),
    ("lost_seed", "A dog runs by.", "Two cats and a dog sleep on a roof.", "Cats sleep on a sunny roof."),
    ("lost_subject", "Horses stand on a field of dust.", "Three zebras stand.", "Three zebras stand on a field."),
    ("lost_subject", "Wolves sit on a red sofa.", "Two dogs sit on a red couch.", "Two puppies sit on the red couch."),
    ("changed_number", "Three men repair a track.", "Four men repair a track.", "Four men repair a track."),
    ("changed_number", "Men repair a track.", "Both men repair a track.", "Two men repair a track."),
    ("changed_number", "Two cats, two bowls.", "Two of the three cats rest.", "Three cats rest."),
    ("changed_colour", "A blue dress.", "A dress of crimson silk.", "A red dress."),
    ("changed_colour", "A blue dress by a big old wall of red bricks.", "A blue wall, a red dress.", "Red dress."),
    ("changed_colour", "A tree in bloom.", "A tree in shades of grey.", "A black and white photo of a tree."),
    ("lost_lettering", "A dog with a sign.", "A dog with a STOP sign.", 'A dog with a sign "Stop".'),
    ("invented_lettering", 'A stop sign reads "Open!"', 'A stop sign reads "Stop!"', "A stop sign."),
    ("invented_lettering", "A dog by a box of 'Milk'.", "The dogs' box of the boys' milk, a dog's."),
    ("invented_lettering", "A dog by a box reading MILK.", "A dog is reading X-rays."),
    ("invented_measurement", "A dog, 8 inches tall.", "A dog on four feet."),
    ("invented_measurement", "A dog ten feet away.", "A dog ten feet away.", "Dog.", "A dog ten feet away."),
    ("invented_measurement", "A dog of 45 kg runs.", "A dog at a 45-degree angle runs."),
    ("invented_name", "A dog and a man, Tony, run.", "A dog in Paris, France, runs."),
    ("invented_name", "A dog named Rex runs.", "A dog named Rex runs.", "Dog.", "A dog named Rex."),
]


@pytest.mark.parametrize("row", CAPTIONS, ids=lambda row: f"{row[0]}: {row[1][:30]!r}")
def test_a_caption_fails_by_its_code_and_its_near_twin_passes(row: tuple[str, ...]) -> None:
    code, bad, twin, *seeds = row
    seed = seeds[0] if seeds else "Dog."
    assert caption_fault(bad, seed, 3, 40, SHOWN) == code
    assert caption_fault(twin, seeds[-1] if seeds else seed, 3, 40, SHOWN) is None


@pytest.mark.parametrize(("words", "code"), [(50, "too_short"), (51, None), (483, None), (484, "too_long")])
def test_the_bounds_of_the_paper_are_included(words: int, code: str | None) -> None:
    names = [f"{first}{second}{third}" for first in "bdfkl" for second in "aeiou" for third in "mnprstgl"]
    text = [names[number // 2 % 200] + names[number // 7 % 200] if number % 2 else "the" for number in range(words)]
    assert caption_fault(" ".join(text) + ".", "") == code


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("A dog runs. It ba", "A dog runs."),
        ('It says "Stop." and mo', 'It says "Stop."'),
        ("It is 1.5 m high. It is 2.5", "It is 1.5 m high."),
        ("It runs. It sees Dr. Smith and", "It runs."),
        ("A dog", ""),
    ],
)
def test_only_an_answer_cut_for_length_is_shortened(text: str, cut: str) -> None:
    assert finish(f" {text}\n", "length") == cut
    assert finish(f" {text}\n", "stop") == text


SCENE = (
    "A brown dog carries a ball over the wet beach near a red kite. A child in a blue coat stands beside the water "
    "and laughs. Behind them a wooden pier, 40 metres long, reaches into the sea; four gulls sit on it."
)
WRITTEN = f"{SCENE} A page of text lies on a bench in a narrow passage."
OPEN: dict[str, Any] = {"Question": "What does the dog carry?", "Answer": "It carries a ball."}
CHOICE: dict[str, Any] = {
    "Question": "What does the animal carry?",
    "Options": {"A": "A stick", "B": "A ball", "C": "A shoe", "D": "A fish"},
    "Answer": "B",
}
PROMPT = Shown(["what something is used for", "what is", "where", "who"], [{"Question": "Who runs?", "Answer": "He."}])


def opened(question: str = OPEN["Question"], answer: str = OPEN["Answer"]) -> dict[str, Any]:
    return {"Question": question, "Answer": answer}


def chosen(question: str = CHOICE["Question"], right: str = "B", **options: str) -> dict[str, Any]:
    return {"Question": question, "Options": CHOICE["Options"] | options, "Answer": right}


def reasoned(answer: str) -> dict[str, Any]:
    return opened("Why does the child laugh at the dog?", answer)


ITEMS = [
    ("schema", opened() | {"Why": "so"}, opened()),
    ("schema", chosen() | {"Options": CHOICE["Options"] | {"A": None}}, chosen()),
    ("schema", "item", opened()),
    ("not_four_options", chosen(E="A hat"), chosen(D="A hat")),
    ("answer_not_an_option", chosen(right="b"), chosen(right="B")),
    ("too_long", opened(answer="A ball. " * 300), opened(answer="A ball. ")),
    ("empty", opened(answer=" "), opened(answer="4")),
    ("empty", chosen(C="—"), chosen(C="— x")),
    ("bad_characters", chosen(D="A \u202efish"), chosen(D="A “fish”")),
    ("markup", opened(answer="It carries a ball.}"), opened(answer="It carries (a ball).")),
    ("markup", chosen(A="**A stick**"), chosen(A="A *stick*")),
    ("markup", opened(answer="Step 1: a ball."), opened(answer="One step: a ball.")),
    ("not_english", opened(answer="A ball 天空湛蓝."), opened(answer="A ball, É.")),
    ("leak", opened("What does the caption say?"), opened("What does the captain carry?")),
    ("leak", opened("As described, what is there?"), opened("How would one describe it?")),
    ("leak", opened(answer="It is not mentioned."), opened(answer="It is a ball, not a shoe.")),
    ("leak", chosen(A="two descriptions"), chosen(A="two prescriptions")),
    ("not_a_question", opened("Is it red? Say so."), opened("Say so. Is it red?")),
    ("repeats_prompt", opened("Can one say what something is used for?"), opened("What is the ball used for?")),
    ("repeats_prompt", opened("What is, where, who?"), opened("What is it, and where?")),
    ("repeats_prompt", opened("Who is it that runs?", "he."), opened("Who is it that runs?", "A dog.")),
    ("options_not_distinct", chosen(A="the balls."), chosen(A="a bell.")),
    ("refers_to_options", chosen(C="All of the above"), chosen(C="All of the sand")),
    ("refers_to_options", chosen(C="Both A and B"), chosen(C="Both of them")),
    ("refers_to_options", chosen(C="All of these"), chosen(C="All of these dogs")),
    ("no_answer", opened(answer="It cannot be determined."), opened(answer="It is determined.")),
    ("first_person", opened(answer="I think a ball."), opened(answer='A ball with "I" on it.')),
    ("first_person", opened(answer="Sure, a ball."), opened(answer="A sure ball.")),
    ("loop", opened(answer="The child stands there. The child stands there."), opened(answer="The child is there.")),
    ("too_short", reasoned("It is happy."), reasoned("The dog carries a ball, and it is wet. So the child is happy.")),
    ("unfinished", reasoned("The dog carries a ball, and it is wet. So the child"), reasoned(f"{SIX}, so it is wet.")),
    ("too_short", opened("Is it a dog?", "Yes."), opened("Is it a dog?", "Yes, a brown one.")),
    ("unfinished", opened(answer="It carries the"), opened(answer="A ball")),
    ("copied", opened(answer=SCENE.split(". ")[1]), opened(answer=SCENE.split(". ")[1][:-11])),
    ("given_away", opened("What colour is the red kite?", "Red."), opened("What colour is the kite?", "Red.")),
    ("given_away", opened("What does the red kite have?", "Red."), opened("Which is it, red or blue?", "Red.")),
    (
        "given_away",
        opened("Is it a dog on the wet sand?", "Yes, a dog on the wet sand."),
        opened("Is it a dog?", "Yes, it is."),
    ),
    (
        "given_away",
        opened("Does a dog run by the sea?", "Yes, a dog run by sea."),
        opened("Is it wet?", "Yes, it is."),
    ),
    ("given_away", chosen("What ball does the dog carry?"), chosen("What ball or fish does the dog carry?")),
    ("given_away", chosen(B="A ball that a dog carries"), chosen(B="A ball it carries")),
    ("invented_measurement", opened(answer="A ball, 8 inches wide."), opened(answer="A ball by a 40-metre pier.")),
    ("contradiction", opened("What colour is the kite?", "Green."), opened("What colour is the sky?", "Green.")),
    ("contradiction", opened("How many gulls sit there?", "Nine."), opened("How many legs are there?", "Nine.")),
    (
        "ungrounded",
        opened(
            "What shows how late it is?", "The church clock strikes eight, and commuters with briefcases hurry by."
        ),
        opened("What shows how wet it is?", "The church clock strikes eight, and commuters hurry over the beach."),
    ),
]


@pytest.mark.parametrize(("code", "bad", "twin"), ITEMS, ids=lambda value: str(value)[:40])
def test_an_item_fails_by_its_code_and_its_near_twin_passes(code: str, bad: Any, twin: dict[str, Any]) -> None:
    task = "multiple_choice" if "Options" in twin else "question_answering"
    task = "complex_reasoning" if twin["Question"].startswith("Why") else task
    assert item_fault(bad, task, Scene(SCENE), PROMPT) == code
    assert item_fault(twin, task, Scene(SCENE), PROMPT) is None


CAPTION_CODES = {row[0] for row in CAPTIONS}
ITEM_CODES = {row[0] for row in ITEMS} | {"cut_off", "not_json", "duplicate_question"}  # see the tests of answers


def test_the_tables_hold_every_code() -> None:
    for module, codes in ((dense, CAPTION_CODES), (items, ITEM_CODES)):
        assert set(re.findall(r'yield "(\w+)"', inspect.getsource(module))) <= codes


@pytest.mark.parametrize(
    ("question", "leak"),
    [
        ("What text is printed on the page?", False),
        ("Where does the narrow passage lead?", False),
        ("Which word is on the page?", False),
        ("What is the subject of the text?", True),
        ("According to the passage, what lies there?", True),
        ("The text mentions a dog; what else is there?", True),
        ("As the caption has it, what lies there?", False),  # a scene with writing may have one
    ],
)
def test_a_word_that_the_scene_holds_leaks_only_where_it_means_the_source(question: str, leak: bool) -> None:
    assert leaks(question, Scene(WRITTEN)) == leak


@pytest.mark.parametrize(
    ("question", "said", "score"),
    [
        ("What is there?", "Yes.", 1.0),
        ("What is there?", "A dog with an umbrella.", 0.5),
        ("Which umbrella?", "Dogs carrying balls", 0.75),
        ("How many gulls are there?", "4", 1.0),
        ("What is there?", "Likely a dog, because it appears so.", 1.0),
    ],
)
def test_groundedness_is_the_share_of_content_words_that_are_held(question: str, said: str, score: float) -> None:
    assert groundedness(question, said, Scene(SCENE)) == score


def test_measurements_are_numbers_with_a_unit() -> None:
    assert measures("10-inch") == measures("ten inches") == {("ten", "inch")}
    assert measures("about 3.5 to 4 kg, 6'2\" tall, 5 °C") == {("3.5", "kg"), ("six", "foot"), ("five", "degree")}
    assert measures("on two feet in four yards, Route 66, a metre-wide strip, 3 men, 4 inns") == set()


def test_every_type_of_question_is_recognised() -> None:
    asked = {
        "hypothesis": "What would happen if it rained?",
        "before_after": "What will the dog do next?",
        "reason": "Why is the sand wet?",
        "purpose": "What is the pier used for?",
        "conclusion": "What can be concluded from the sand?",
        "comparison": "How do the two gulls differ?",
        "count": "How many gulls are there?",
        "lettering": "What is written on the sign?",
        "position": "Where is the kite?",
        "action": "What is the dog doing?",
        "attribute": "Which colour is the kite?",
        "person": "Who stands at the water?",
        "yes_no": "Is the child alone?",
        "object": "What reaches into the sea?",
        "other": "How deep is the water?",
    }
    assert {name: question_type(question) for name, question in asked.items()} == {
        name: name for name in QUESTION_TYPES
    }


GOOD = json.dumps({"QA Pairs": [OPEN, opened("Who laughs?", "A child.") | {"Question": "Who is it that laughs?"}]})


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
    first, second = opened("What does the dog carry?", "A purple umbrella."), opened("What does dog carry?", "A ball.")
    text = json.dumps({"QA Pairs": [first, second, first]})
    assert sound_items(text, "stop", SCENE, "question_answering") == ([second], ["duplicate_question"] * 2)
    assert sound_items(text, "stop", SCENE, "question_answering", kept=[first]) == ([], ["duplicate_question"] * 3)


@pytest.mark.parametrize("task", ["multiple_choice", "question_answering"])
def test_the_shape_check_says_what_jsonschema_says(task: str) -> None:
    validator = Draft202012Validator(load_prompt(task).answer_schema(0, 99))
    good = CHOICE if task == "multiple_choice" else OPEN
    for key in (None, "Question", "Options", "Answer", "A", "E"):
        for value in (None, True, 3, "A", "B", "E", "", [], {}, [good], {"A": "x"}, dict.fromkeys("ABCD", "x")):
            item = copy.deepcopy(good)
            (item["Options"] if key in ("A", "E") and "Options" in item else item)[key or "Question"] = value
            fault = item_fault(item, task, Scene(SCENE)) in ("schema", "not_four_options", "answer_not_an_option")
            assert fault != validator.is_valid({"QA Pairs": [item]}), item


@pytest.mark.parametrize(
    "part",
    ["a", "a ", "A. ", "<", "**", "é ", "1. ", "'", "Ã", "\n# ", "the dog and ", "&a", "one ", "\ud800 ", "this "],
)
def test_a_monstrous_text_is_judged_within_a_second(part: str) -> None:
    text, start = part * (100_000 // len(part)), time.perf_counter()
    assert caption_fault(text, text, 1, 10**6) in CAPTION_CODES
    assert finish(text, "length") is not None
    for item in (opened(text), opened(answer=text), chosen(A=text)):
        assert item_fault(item, "multiple_choice" if "Options" in item else "question_answering", Scene(text))
        short = {name: value[:2000] if isinstance(value, str) else value for name, value in item.items()}
        item_fault(short, "multiple_choice" if "Options" in item else "question_answering", Scene(SCENE))
    caption_fault(" ".join([part.strip()[:45] or "a"] * 483), text)
    assert time.perf_counter() - start < 3


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("Question"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(junk, st.sampled_from(["QA Pairs", "item", "Question", "Options", "A", "Answer"]))
def test_any_value_in_any_place_is_judged(value: Any, place: str) -> None:
    for task, good in (("multiple_choice", CHOICE), ("complex_reasoning", OPEN)):
        item = copy.deepcopy(good)
        (item.setdefault("Options", {}) if place == "A" else item)[place] = value
        pairs = value if place == "QA Pairs" else [good, value if place == "item" else item]
        found, dropped = sound_items(json.dumps({"QA Pairs": pairs}), "stop", SCENE, task)
        assert set(dropped) <= set(ITEM_CODES)
        json.dumps(found, ensure_ascii=False).encode()


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text("A dog. \n#*-<>|\ud800\ufffd\x00{\"'", max_size=80), st.text(max_size=20))
def test_any_text_and_seed_end_in_a_code(text: str, seed: str) -> None:
    assert caption_fault(text, seed, 2, 9) in (None, *CAPTION_CODES)
    assert text.strip().startswith(finish(text, "length"))
    assert read_object(text) is None or isinstance(read_object(text), dict)
    assert all(len(stem(word)) <= max(5, len(word)) for word in text.split())

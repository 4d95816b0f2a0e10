"""Answers: each reason code has a text that fails by it alone and a near twin that passes."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from generation.checks import (
    ANSWER_CODES,
    CAPTION_CODES,
    LIMITS,
    READER_CODES,
    CaptionLimits,
    InstructionLimits,
    answer_statistics,
    caption_fault,
    chi_square_p,
    finish,
    groundedness,
    instruction_items,
    read_source,
    schema_fault,
)
from generation.checks.measures import measures
from generation.checks.statistics import question_kind
from generation.checks.words import tokens
from generation.prompts import load_prompt

LONG = (
    "A brown dog runs along the wet sand with a ball in its mouth while a child in a blue coat stands near the water "
    "and looks at the waves that roll in from the other side of a bay"
)  # 40 words
GERMAN = (
    "Ein brauner Hund rennt mit einem Ball im Maul über den nassen Sand, während ein Kind in blauem Mantel am Wasser"
)
ENGLISH = "A brown dog runs over the wet sand with a ball in its mouth, while a child in a coat is at the water"
MASHED = "asdkfj qwlrtz xvbnmq"
SIX = "the dog runs over the grass"

# The bounds are 3 to 40 words; the seed is "Dog." unless a third text is given.
CAPTIONS = [
    ("empty", " \n\t ", "A dog runs."),
    ("bad_characters", "A dog\x00 runs.", "A dog\t runs."),
    ("bad_characters", "A dog runs.\r", "A dog runs.\n"),
    ("bad_characters", "A dog\x1b[1m runs.", "A dog [1m] runs."),
    ("bad_characters", "A dog\x85 runs.", "A dog\xa0 runs."),
    ("bad_characters", "A dog at a caf\ufffd runs.", "A dog at a café 🦄 runs."),
    ("bad_characters", "A \ud800 dog runs.", "A \U0001f415 dog runs."),
    ("bad_characters", "A \u202egod runs by a dog.", "A “dog” runs…."),
    ("bad_characters", "A dog\u200b runs.", "A dog — it runs."),
    ("garbled", "A dog in a cafÃ© runs.", "A dog in a café runs."),
    ("garbled", "The dogâ€™s tail wags.", "The dog’s tail wags."),
    ("garbled", f"A dog runs past {MASHED} trees.", "A dog runs past textile exhibits and watchstraps."),
    ("garbled", f"A dog runs past {'ab' * 16}.", "A dog runs past antidisestablishmentarians."),
    ("garbled", f"A dog runs past {'a-' * 23}z.", "A dog runs past a black-and-white-and-red-all-over sign."),
    ("garbled", "A dog runs by. " + "#17 $93 %4 ^88 @31 " * 3 + "~" * 150, "A dog runs by. #17 $93 %4 ^88."),
    ("refusal", "I cannot see a dog.", "A canary sees a dog."),
    ("refusal", "I'm sorry for the dog.", "A sorry dog runs."),
    ("refusal", "I’m unable to see the dog.", "A dog is unable to see."),
    ("refusal", "I apologize to the dog.", "Children apologize to the dog."),
    ("meta_talk", "As an AI, it sees a dog.", "As an airplane, a dog flies."),
    ("meta_talk", "A language model sees the dog.", "A fashion model sees the dog."),
    ("meta_talk", "Here is a dog.", "There is a dog."),
    ("meta_talk", "Here's your dog running.", "Where it runs is your dog."),
    ("meta_talk", "In this description a dog runs.", "In this inscription a dog runs."),
    ("meta_talk", "The caption has a dog.", "The captain has a dog."),
    ("meta_talk", "Caption: a dog runs.", "Captain: a dog runs."),
    ("meta_talk", "Sure, a dog runs.", "A sure dog, it runs."),
    ("meta_talk", "A dog runs. Let me know.", "A dog runs. It lets me know."),
    ("meta_talk", "A dog runs. I hope this helps.", "A dog runs. Hope fills it."),
    ("markup", "# A dog runs.", "A dog runs to #4."),
    ("markup", "- A dog runs.", "A well-fed dog runs."),
    ("markup", "* A dog runs.", "A *dog* runs."),
    ("markup", "• A dog runs.", "A dog • runs."),
    ("markup", "1. A dog runs.", "1.5 m above, a dog runs."),
    ("markup", "2) A dog runs.", "A dog (2) runs."),
    ("markup", "A **dog** runs.", "A * dog * runs."),
    ("markup", "A dog<br> runs.", "A dog < b > runs."),
    ("markup", "A dog<BR/> runs.", "A dog <3 runs."),
    ("markup", 'A <a href="x">dog</a> runs.', "A dog runs for < 3."),
    ("markup", "A dog runs.</s>", "A dog runs over an S."),
    ("markup", "A ```dog``` runs.", "A `dog` runs."),
    ("markup", "A dog <|im_end|> runs.", "A dog | runs."),
    ("markup", "A [dog](dog.html) runs.", "A [dog] (brown) runs."),
    ("markup", "A dog at https://dog.example runs.", "A dog at https runs."),
    ("markup", "A dog&nbsp;runs over.", "A dog & a cat run."),
    ("several_paragraphs", "A dog runs.\nIt barks.", "\nA dog runs. It barks.\n"),
    ("too_short", "Dogs run.", "A dog runs."),
    ("too_long", f"{LONG} now.", f"{LONG}."),
    ("not_english", f"{GERMAN} steht neben dem Dog.", f"{ENGLISH} near the dog."),
    ("not_english", "一只棕色的狗在潮湿的沙滩上奔跑 dog.", "A dog runs by a sign with 犬 on it."),
    ("not_english", f"A dog is here in the yard and it runs. {GERMAN[:96]}.", f"{ENGLISH}. Its name is Hund."),
    ("unfinished", "A dog runs over", "A dog runs over."),
    ("unfinished", "A dog runs. It barks,", "A dog runs. It barks!"),
    ("unfinished", 'A dog named "Rex"', 'A dog named "Rex?"'),
    ("unfinished", "A dog runs (fast.]x", "A dog runs (fast.)"),
    ("unfinished", "A dog sees Dr.", "A dog sees Dr. No."),
    ("loop", f"{SIX} " * 3 + ".", f"{SIX} " * 2 + "."),
    ("loop", "A dog runs and runs and runs and runs.", "A dog runs and runs and barks."),
    ("loop", "A very very very very very big dog.", "A very very very very big dog."),
    ("loop", "A dog runs fast. It barks. A dog runs fast.", "A dog runs fast. It barks. A cat runs fast."),
    ("loop", f"{LONG[:64]} and so {LONG[2:60]}.", f"{LONG[:64]} and so {LONG[2:30]}."),
    ("lost_seed", "A dog runs along a beach.", "A cat sleeps on a beach.", "Two cats sleep on a sunny roof."),
    ("lost_seed", "A ship.", "The cats were sleeping.", "A cat sleeps."),
    ("lost_seed", "A big dog runs.", "A big dog runs.", ""),
]
PASSES = CaptionLimits(min_words=3, max_words=40)


@pytest.mark.parametrize(
    ("code", "bad", "twin", "seed"), [(*row, "Dog.")[:4] for row in CAPTIONS if row[0] != "lost_seed"]
)
def test_a_caption_fails_by_its_code_and_its_near_twin_passes(code: str, bad: str, twin: str, seed: str) -> None:
    assert caption_fault(bad, seed, PASSES) == code
    assert caption_fault(twin, seed if "dog" in twin.lower() else "", PASSES) is None


@pytest.mark.parametrize(
    ("seed", "bad", "twin"),
    [
        (
            "Two cats sleep on a sunny roof.",
            "A dog runs over a beach.",
            "A pair of cats is asleep on a roof in the sun.",
        ),
        ("A cat sleeps.", "A big ship sails.", "The cats were sleeping."),
        (
            "A photo of a Boeing 747, a type of aircraft.",
            "A photo of a type of dog.",
            "A Boeing aircraft stands here.",
        ),
        ("A gray wolf trots.", "A dog trots by.", "Grey wolves are trotting by."),
        ("Men in berets.", "A dog runs by.", "A man wears a beret."),
    ],
)
def test_a_caption_must_keep_its_seed_s_content_words_in_whatever_form(seed: str, bad: str, twin: str) -> None:
    share = replace(PASSES, min_seed_share=0.51)
    assert caption_fault(bad, seed, share) == "lost_seed"
    assert caption_fault(twin, seed, replace(share, min_seed_share=0.5)) is None
    assert caption_fault(bad, "", share) is None
    assert caption_fault(bad, "Here it is.", share) is None


def test_the_table_of_captions_holds_every_code() -> None:
    assert {row[0] for row in CAPTIONS} == set(CAPTION_CODES)


@pytest.mark.parametrize(("words", "code"), [(50, "too_short"), (51, None), (483, None), (484, "too_long")])
def test_the_bounds_of_the_paper_are_included(words: int, code: str | None) -> None:
    names = [f"{first}{second}{third}" for first in "bdfkl" for second in "aeiou" for third in "mnprstgl"]
    text = [names[number // 2 % 200] + names[number // 7 % 200] if number % 2 else "the" for number in range(words)]
    assert caption_fault(" ".join(text) + ".", "") == code


@pytest.mark.parametrize("opening", ["Certainly! ", "Sure, ", "Of course. ", "Absolutely: ", "Okay, "])
def test_meta_talk_is_seen_at_the_start_of_a_long_caption(opening: str) -> None:
    assert caption_fault(f"{opening}{LONG}.", "A dog.", replace(PASSES, max_words=99)) == "meta_talk"


def test_a_caption_may_end_in_a_curly_quote() -> None:
    assert caption_fault("A sign on the old gate reads “Stop.”", "", PASSES) is None


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("A dog runs. It ba", "A dog runs."),
        ("A dog runs.", "A dog runs."),
        ("A dog runs! It barks? And th", "A dog runs! It barks?"),
        ('It says "Stop." and mo', 'It says "Stop."'),
        ("It runs (fast.) and mo", "It runs (fast.)"),
        ("It is 1.5 m high. It is 2.5", "It is 1.5 m high."),
        ("It runs. It sees Dr. Smith and", "It runs."),
        ("A dog runs over 1.5", ""),
        ("A dog", ""),
        ("", ""),
    ],
)
def test_only_an_answer_cut_for_length_is_shortened(text: str, cut: str) -> None:
    assert finish(f" {text}\n", "length") == cut
    assert finish(f" {text}\n", "stop") == text
    assert finish(f" {text}\n", "eos_token") == text


SCENE = (
    "A brown dog carries a ball over the wet beach near a red kite. A child in a blue coat stands beside the water "
    "and laughs. Behind them a wooden pier, 40 metres long, reaches into the sea; four gulls sit on it."
)
WRITTEN = f"{SCENE} A page of text lies on a bench in a narrow passage."
CHOICE: dict[str, Any] = {
    "Question": "What does the animal carry?",
    "Options": {"A": "A stick", "B": "A ball", "C": "A shoe", "D": "A fish"},
    "Answer": "B",
}
OPEN: dict[str, Any] = {"Question": "What does the dog carry?", "Answer": "It carries a ball."}
OTHER: dict[str, Any] = {"Question": "Who stands near the water?", "Answer": "A child in a blue coat."}
SECOND: dict[str, Any] = CHOICE | {"Question": "Which thing is carried along?"}
BOUNDS = {task: replace(limits, min_items=2, max_items=3) for task, limits in LIMITS.items()}


def answer(*items: Any) -> str:
    return json.dumps({"QA Pairs": items})


def verdict(
    task: str, *items: Any, finish_reason: str = "stop", caption: str = SCENE, **limits: Any
) -> tuple[list[dict[str, Any]], str | None]:
    return instruction_items(answer(*items), finish_reason, caption, task, replace(BOUNDS[task], **limits))


def opened(question: str = OPEN["Question"], answer: str = OPEN["Answer"]) -> dict[str, Any]:
    return {"Question": question, "Answer": answer}


def chosen(question: str = CHOICE["Question"], right: str = "B", **options: str) -> dict[str, Any]:
    return copy.deepcopy({"Question": question, "Options": CHOICE["Options"] | options, "Answer": right})


ALL = {letter: f"A {thing}" for letter, thing in zip("ABCD", ("kite", "coat", "pier", "gull"), strict=True)}
ITEMS = [
    ("schema", opened() | {"Why": "so"}, opened()),
    ("schema", {"Question": "Who stands here?"}, opened()),
    ("schema", opened() | {"Answer": 7}, opened() | {"Answer": "4"}),
    ("schema", chosen() | {"Options": ["A ball"]}, chosen()),
    ("schema", chosen() | {"Options": CHOICE["Options"] | {"A": None}}, chosen()),
    ("schema", "item", opened()),
    ("not_four_options", chosen() | {"Options": {"A": "A stick", "B": "A ball"}}, chosen()),
    ("not_four_options", chosen(E="A hat"), chosen(D="A hat")),
    ("answer_not_an_option", chosen(right="E"), chosen(right="B")),
    ("answer_not_an_option", chosen(right="b"), chosen(right="B")),
    ("answer_not_an_option", chosen() | {"Answer": None}, chosen()),
    ("empty", opened(answer=" "), opened(answer="Yes")),
    ("empty", opened("???"), opened("Où est le dog ?")),
    ("empty", chosen(C="—"), chosen(C="— x")),
    ("bad_characters", opened(answer="A\x00 ball."), opened(answer="A\tball.\n")),
    ("bad_characters", opened("What \ud800 does it do?"), opened("What é does it do?")),
    ("bad_characters", chosen(D="A \ufffd fish"), chosen(D="A 🐟 fish")),
    ("bad_characters", chosen(D="A \u202efish"), chosen(D="A “fish”")),
    ("markup", opened(answer="It carries a ball.}"), opened(answer="It carries (a ball).")),
    ("markup", opened("What {does it do?"), opened("What: does it do?")),
    ("markup", chosen(A="A stick]"), chosen(A="A stick,")),
    ("markup", chosen(A="**A stick**"), chosen(A="A *stick*")),
    ("markup", chosen(A="- A stick"), chosen(A="A -stick")),
    ("leak", opened("What does the caption say?"), opened("What does the captain carry?")),
    ("leak", opened(answer="The text has a ball."), opened(answer="The textile ball.")),
    ("leak", opened("As described, what is there?"), opened("How would you describe it?")),
    ("leak", opened("Which ball is mentioned here?"), opened("Which ball is there, in context?")),
    ("leak", chosen(A="A Passage"), chosen(A="A passenger")),
    ("leak", chosen(A="two descriptions"), chosen(A="two prescriptions")),
    ("not_a_question", opened("Name the carried thing."), opened("Name the thing? ")),
    ("not_a_question", opened("Why not?"), opened("Why not run?")),
    ("not_a_question", opened("Is it red? Say so."), opened("Say so. Is it red?")),
    ("duplicate_question", opened("who stands near the WATER ?"), opened("Who stands near the pier?")),
    ("duplicate_question", opened("Who is it that stands near water?"), opened("Who is it that laughs near water?")),
    ("duplicate_question", chosen(SECOND["Question"]), chosen()),
    ("options_not_distinct", chosen(A="a ball."), chosen(A="a bell.")),
    ("refers_to_options", chosen(C="All of the above"), chosen(C="All of the sand")),
    ("refers_to_options", chosen(C="Both A and B"), chosen(C="Both its paws")),
    (
        "copied",
        opened("A child in a blue coat stands beside the water and laughs?"),
        opened("A child stands beside it?"),
    ),
    (
        "loop",
        opened(answer="The child stands there. The child stands there."),
        opened(answer="The child stands there, near the water."),
    ),
    ("copied", opened(answer=SCENE.split(". ")[1]), opened(answer=SCENE.split(". ")[1][:-11])),
    ("given_away", opened("What colour is the red kite?", "Red."), opened("What colour is the kite?", "Red.")),
    ("given_away", opened("What are the wooden piers made of?", "Wood"), opened("Is it a wooden pier?", "Wooden")),
    ("given_away", opened("What does the red kite have?", "Red."), opened("Which is it, red or blue?", "Red.")),
    ("given_away", opened("Where is the red kite?", "The kite is red."), opened("Is the kite red or blue?", "Red.")),
    ("given_away", chosen("What ball does the dog carry?"), chosen("What ball or fish does the dog carry?")),
    ("given_away", chosen("What ball does the dog carry?"), chosen("What ball, not stick, does the dog carry?")),
    ("given_away", chosen(B="A ball that a dog carries"), chosen(B="A ball it carries")),
    ("invented_measurement", opened(answer="A ball, 8 inches wide."), opened(answer="A ball by a 40-metre pier.")),
    ("invented_measurement", chosen("What is ten feet away from it?"), chosen("What is on two feet beside it?")),
    ("invented_measurement", chosen("What lies 3 m from the dog?"), chosen("What lies 40 m from the dog?")),
    ("ungrounded", opened(answer="A purple umbrella."), opened(answer="A brown ball.")),
    ("ungrounded", opened(answer="A red umbrella."), opened(answer="A red kite.")),
    ("ungrounded", chosen(B="A newspaper"), chosen(B="A kite")),
]


@pytest.mark.parametrize(("code", "bad", "twin"), ITEMS)
def test_an_item_fails_by_its_code_and_its_near_twin_passes(code: str, bad: Any, twin: dict[str, Any]) -> None:
    task, beside = ("multiple_choice", SECOND) if "Options" in twin else ("question_answering", OTHER)
    assert verdict(task, beside, bad) == ([beside], code)
    assert verdict(task, beside, twin) == ([beside, twin], None)


@pytest.mark.parametrize(
    ("question", "leaks"),
    [
        ("What lies beside the page of text?", False),
        ("Where does the narrow passage lead?", False),
        ("What is the subject of the text?", True),
        ("According to the passage, what lies there?", True),
        ("What does the page of text lie on?", False),
        ("The text mentions a dog; what else is there?", True),
        ("As the caption has it, what lies there?", True),
    ],
)
def test_a_word_that_the_scene_holds_leaks_only_where_it_means_the_source(question: str, leaks: bool) -> None:
    found = verdict("question_answering", OTHER, opened(question, "A page on a bench."), caption=WRITTEN)[1]
    assert found == ("leak" if leaks else None)


def test_a_reasoned_answer_may_add_more_words_of_its_own_than_a_short_one() -> None:
    item = opened(
        "Why does the child laugh?", "The dog carries a ball, which surely amuses a playful, happy youngster."
    )
    assert verdict("complex_reasoning", OTHER, item)[1] is None
    assert verdict("question_answering", OTHER, item)[1] == "ungrounded"


@pytest.mark.parametrize(
    ("question", "said", "score"),
    [
        ("What is there?", "Yes.", 1.0),
        ("What is there?", "A dog with an umbrella.", 0.5),
        ("What is there?", "An umbrella.", 0.0),
        ("Is the umbrella here?", "An umbrella.", 1.0),
        ("How many gulls are there?", "Four.", 1.0),
        ("How many gulls are there?", "4", 1.0),
        ("How many gulls are there?", "Nine.", 0.0),
        ("What is there?", "Likely a dog, because it appears so.", 1.0),
        ("What is there?", "Dogs carrying balls", 1.0),
    ],
)
def test_groundedness_is_the_share_of_content_words_that_are_held(question: str, said: str, score: float) -> None:
    assert groundedness(question, said, read_source(SCENE)) == score


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10-inch", {("ten", "inch")}),
        ("ten inches", {("ten", "inch")}),
        ("about 3.5 to 4 kg", {("3.5", "kg")}),
        ("6'2\" tall", {("six", "foot")}),
        ("5 °C", {("fiv", "degree")}),
        ("three feet tall", {("thre", "foot")}),
        ("on two feet", set()),
        ("in four yards", set()),
        ("Route 66 at No. 7", set()),
        ("a metre-wide strip", set()),
        ("3 men, 4 inns", set()),
    ],
)
def test_measurements_are_numbers_with_a_unit(text: str, found: set[tuple[str, str]]) -> None:
    assert measures(text, tokens(text.lower())) == found


GOOD = answer(OPEN, OTHER)
ANSWERS = [
    ("cut_off", GOOD, "length", GOOD, "stop"),
    ("not_json", GOOD[:-1], "stop", f" {GOOD}\n", "stop"),
    ("not_json", f"{GOOD}{GOOD}", "stop", f"{GOOD}]", "eos_token"),
    ("not_json", "", "stop", f"Sure: {GOOD} Done.", "stop_sequence"),
    ("not_object", f"[{GOOD}]", "stop", f"```json\n{GOOD}\n```", ""),
    ("not_object", '"none"', "stop", GOOD, "stop"),
    ("duplicate_key", GOOD.replace('"Answer"', '"Question"'), "stop", GOOD, "stop"),
    ("not_finite", GOOD.replace('"It carries a ball."', "NaN"), "stop", GOOD, "stop"),
    ("not_finite", GOOD.replace('"It carries a ball."', "1e999"), "stop", GOOD, "stop"),
    ("too_deep", '{"QA Pairs": ' + "[" * 100_000, "stop", GOOD, "stop"),
    ("too_large", GOOD.replace("a ball", "a ball " * 30_000), "stop", GOOD.replace("a ball", "a ball " * 2), "stop"),
    ("schema", GOOD.replace("QA Pairs", "QA"), "stop", GOOD, "stop"),
    ("schema", '{"QA Pairs": {}}', "stop", GOOD, "stop"),
    ("too_few_items", answer(OPEN), "stop", GOOD, "stop"),
    ("too_few_items", answer(), "stop", GOOD, "stop"),
]


@pytest.mark.parametrize(("code", "bad", "bad_end", "twin", "twin_end"), ANSWERS)
def test_an_answer_fails_by_its_code_and_its_near_twin_passes(
    code: str, bad: str, bad_end: str, twin: str, twin_end: str
) -> None:
    task, bounds = "question_answering", BOUNDS["question_answering"]
    items, fault = instruction_items(bad, bad_end, SCENE, task, bounds)
    assert (len(items) < 2, fault) == (True, code)
    items, fault = instruction_items(twin, twin_end, SCENE, task, bounds)
    assert (len(items), fault) == (2, None)


def test_the_tables_of_answers_hold_every_code() -> None:
    assert {row[0] for row in [*ITEMS, *ANSWERS]} == set(ANSWER_CODES)
    assert set(READER_CODES) < set(ANSWER_CODES)


def test_a_bad_item_is_dropped_where_enough_are_left() -> None:
    assert verdict("question_answering", OPEN, opened(answer="-"), OTHER) == ([OPEN, OTHER], None)
    assert verdict("question_answering", OPEN, None, OTHER) == ([OPEN, OTHER], None)


def test_the_surplus_of_good_items_is_cut() -> None:
    more = [opened(f"What does the {thing} do?", "It is near the dog.") for thing in ("child", "gull", "kite")]
    assert verdict("question_answering", OPEN, opened(answer=""), *more) == ([OPEN, *more[:2]], None)


def test_a_question_whose_item_was_dropped_may_be_asked_again() -> None:
    assert verdict("question_answering", OTHER, opened(answer="-"), OPEN) == ([OTHER, OPEN], None)


def test_the_commonest_fault_of_the_items_is_the_answer_s() -> None:
    leaks = [opened(f"What is in caption {number}?") for number in range(2)]
    assert verdict("question_answering", OTHER | {"Answer": ""}, *leaks) == ([], "leak")


def test_the_thresholds_are_arguments() -> None:
    half = opened(answer="A dog with an umbrella.")
    assert verdict("question_answering", OTHER, half)[1] is None
    assert verdict("question_answering", OTHER, half, min_grounded=0.51)[1] == "ungrounded"
    longer = chosen(B="A ball that a dog carries")
    assert verdict("multiple_choice", SECOND, longer, max_length_ratio=4.0)[1] is None
    assert InstructionLimits().min_items, InstructionLimits().max_items == (6, 8)
    assert LIMITS["complex_reasoning"].min_items == 3


@pytest.mark.parametrize("task", LIMITS)
def test_the_shape_check_says_what_jsonschema_says(task: str) -> None:
    validator = Draft202012Validator(load_prompt(task).answer_schema(0, 99))
    good = CHOICE if task == "multiple_choice" else OPEN
    for key in (None, "QA Pairs", "Question", "Options", "Answer", "A", "E"):
        for value in (
            None,
            True,
            3,
            1.5,
            "A",
            "B",
            "E",
            "",
            [],
            {},
            [good],
            {"A": "x"},
            [None],
            [[]],
            dict.fromkeys("ABCD", "x"),
        ):
            item = copy.deepcopy(good)
            whole: Any = {"QA Pairs": [good, item]}
            place = (
                whole if key == "QA Pairs" else item["Options"] if key in ("A", "E") and "Options" in item else item
            )
            if key:
                place[key] = value
            for given in (whole, value, {**whole, "id": value}, {"QA Pairs": [value]}):
                assert (schema_fault(given, task) is None) == validator.is_valid(given), given


@pytest.mark.parametrize("name", ["expand_caption", "expand_caption_small"])
def test_the_captions_shown_to_a_model_pass_their_own_checks(name: str) -> None:
    for example in load_prompt(name).examples:
        assert caption_fault(example.answer, example.values["seed"]) is None


@pytest.mark.parametrize("task", LIMITS)
@pytest.mark.parametrize("size", ["", "_small"])
def test_the_items_shown_to_a_model_pass_their_own_checks(task: str, size: str) -> None:
    prompt = load_prompt(task + size)
    assert prompt.examples
    for example in prompt.examples:
        items = example.answer["QA Pairs"]
        caption = example.values["caption"]
        limits = replace(LIMITS[task], min_items=len(items))
        assert instruction_items(json.dumps(example.answer), "stop", caption, task, limits) == (items, None)


def test_statistics_count_letters_longest_options_and_kinds_of_question() -> None:
    long_right = chosen(B="A large ball")
    counted = answer_statistics([CHOICE, chosen(right="A"), long_right, long_right, OPEN, OTHER])
    assert counted.items == 6
    assert counted.letters == {"A": 1, "B": 3, "C": 0, "D": 0}
    assert counted.longest_right == (0 + 1 / 1 + 1 + 1) / 4
    assert counted.question_kinds == {"what": 5, "who": 1}
    assert answer_statistics([]).letters_p == 1.0


# Critical values of chi-square with 3 degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4.
@pytest.mark.parametrize(("critical", "p"), [(6.251, 0.10), (7.815, 0.05), (11.345, 0.01), (16.266, 0.001)])
def test_the_chi_square_p_is_that_of_the_printed_tables(critical: float, p: float) -> None:
    # Counts n + d, n - d, n, n give chi-square 2 d^2 / n.
    n = 10_000_000
    d = round((critical * n / 2) ** 0.5)
    assert chi_square_p([n + d, n - d, n, n]) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("In which corner is it?", "which"),
        ("How many are there?", "how many"),
        ("How does it run?", "how"),
        ("With whom does it run?", "who"),
        ("Is it red?", "yes_no"),
        ("Name it?", "other"),
        ("?", "other"),
    ],
)
def test_the_kind_of_a_question_is_its_first_question_word(question: str, kind: str) -> None:
    assert question_kind(question) == kind

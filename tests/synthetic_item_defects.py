"""What makes a clean synthetic instruction answer, or one of its items, a bad one, by reason code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from generation.rehearsal.scenes import Item, Scene
from tests.synthetic_caption_defects import strange_letters

LETTERS = "ABCD"

# Things, people and doings that no scene holds.
STRANGE = (
    *(
        "A police helicopter",
        "Two astronauts",
        "A marble fountain",
        "A jazz orchestra",
        "Some tourists with umbrellas",
    ),
    *("A snow leopard", "A pepperoni pizza", "Several skyscrapers", "A plastic dinosaur", "An inflatable pool"),
    *("A crowded football stadium", "Pink flamingos", "A neon billboard", "A wedding cake", "An armoured vehicle"),
)
STRANGE_REASONS = (
    "A football match has just finished at the stadium. Thousands of supporters head home, which explains the noise.",
    "Snow has covered the mountain pass for weeks. Skiers arrived by helicopter, and avalanches threaten the cabins.",
    "The wedding guests were served champagne. Their dancing lasted until dawn, as an orchestra had been hired.",
    "Astronauts train underwater to imitate weightlessness. Rockets demand flawless teamwork from every crew.",
    "Elections are approaching, and politicians distribute leaflets. Voters gather outside parliament with banners.",
)
SIZES = ("{n} inches", "about {n} cm", "{n}-foot", "{n} metres", "roughly {n} kilograms", "{n} °C", "{n} pounds")


LEAKING_QUESTIONS = (
    "What is the main idea here, as written?",
    "Which details are given in the prompt?",
    "According to the information provided, who is there?",
    "What does the author emphasize?",
    "What is said about the person?",
    "Which object is not mentioned?",
    "What does the narrator see?",
    "In the story, who is there?",
    "Who is described as being at work?",
    "What does the statement say?",
    "What is specified about the light?",
    "What colour is the garment said to be?",
    "Going by the summary, who is there?",
    "Based on the given information, what happens next?",
    "What does the passage tell us about the hour?",
    "How would the provided text answer this?",
)


@dataclass(frozen=True)
class Context:
    """What a bad item is made from."""

    scene: Scene
    caption: str
    good: Item  # a clean item of the same conversation that it replaces
    other: Item  # another one, which stays and comes before


def dump(items: Any) -> str:
    """An answer that holds ``items``."""
    return json.dumps({"QA Pairs": items})


def _cut(rng: Random, text: str) -> str:
    return text[: rng.randrange(1, len(text))]


def _wrong_shape(rng: Random, items: list[Item]) -> str:
    return rng.choice(
        (
            json.dumps({"QA": items}),
            json.dumps({"QA Pairs": items, "Note": "done"}),
            dump(items[0]),
            dump("none"),
            "{}",
        )
    )


ANSWER_DEFECTS: Mapping[str, Callable[[Random, list[Item]], str]] = {
    "cut_off": lambda rng, items: _cut(rng, dump(items)),
    "not_json": lambda rng, items: _cut(rng, dump(items)),
    "not_object": lambda rng, items: rng.choice((json.dumps(items), '"none"', "17", "null", f" [{dump(items)}]")),
    "duplicate_key": lambda rng, items: dump(items).replace('"Answer":', '"Answer": "A", "Answer":', 1),
    "not_finite": lambda rng, items: f'{{"Score": {rng.choice(("NaN", "-Infinity", "1e999"))}, {dump(items)[1:]}',
    "too_deep": lambda rng, items: '{"QA Pairs": ' + "[" * rng.randint(5_000, 20_000),
    "too_large": lambda rng, items: dump(items) + " " * 250_000,
    "wrong_shape": _wrong_shape,
    "too_few_items": lambda rng, items: dump(items[: rng.randint(0, 2)]),
}


def _right(item: Item, text: str) -> Item:
    """The item with ``text`` as its right option or answer."""
    if "Options" in item:
        return item | {"Options": item["Options"] | {item["Answer"]: text}}
    return item | {"Answer": text}


def _text_place(rng: Random, item: Item, change: Callable[[str], str]) -> Item:
    """One of the item's texts changed: the question (its mark kept at its end) or the answer."""
    if rng.random() < 0.5:
        return item | {"Question": change(item["Question"][:-1]) + "?"}
    return _right(item, change(item["Options"][item["Answer"]] if "Options" in item else item["Answer"]))


def _leak(rng: Random, c: Context) -> Item:
    word = rng.choice(("caption", "description", "paragraph", "sentence", "excerpt"))
    question = c.good["Question"]
    asked = question[0].lower() + question[1:]
    if rng.random() < 0.3 and "Options" not in c.good:
        return c.good | {"Answer": f"{c.good['Answer'].rstrip('.')}, as the {word} says."}
    if rng.random() < 0.3:
        return c.good | {"Question": rng.choice(LEAKING_QUESTIONS)}
    forms = (f"According to the {word}, {asked}", f"In the {word}, {asked}", f"Going by this {word}, {asked}")
    return c.good | {
        "Question": rng.choice((*forms, "What is the main subject of the text?", f"As described, {asked}"))
    }


def _duplicate(rng: Random, c: Context) -> Item:
    question = c.other["Question"]
    return (
        c.good
        | {"Question": rng.choice((question, question.upper(), question.replace("?", " ?"), f" {question} "))}
        | {key: c.other[key] for key in c.good if key != "Question"}
    )


def _copy(rng: Random, c: Context) -> Item:
    whole = [
        sentence for sentence in c.caption.rstrip(".").split(". ") if len(sentence.split()) > 6 and "." not in sentence
    ]
    sentence = rng.choice(whole)
    if "Options" in c.good or rng.random() < 0.5:
        return c.good | {"Question": f"{sentence}?"}
    return c.good | {"Answer": f"{sentence}."}


def _give_away(rng: Random, c: Context) -> Item:
    who = c.scene.person[0]
    if "Options" in c.good and rng.random() < 0.5:
        shown = c.good["Options"][c.good["Answer"]]
        right = f"{shown}, which is right there for everyone to see, {c.scene.place}, near {c.scene.backdrop}"
        return _right(c.good, right)
    question, answer = rng.choice(
        (
            (
                f"Which colour does the {c.scene.colour} {c.scene.garment} of the {who} have?",
                c.scene.colour.capitalize(),
            ),
            (f"What are the {c.scene.group[1]} {c.scene.group[0]} made of?", c.scene.group[1].capitalize()),
            (f"What is the {who} who is {c.scene.action[1]} doing?", c.scene.action[1].capitalize()),
        )
    )
    return _right(c.good | {"Question": question}, answer)


def _invent(rng: Random, c: Context) -> Item:
    if "Options" in c.good:
        return c.good | {"Options": dict(zip(LETTERS, rng.sample(STRANGE, 4), strict=True))}
    return c.good | {"Answer": rng.choice(STRANGE_REASONS if len(c.good["Answer"]) > 100 else STRANGE)}


def _measure(rng: Random, c: Context) -> Item:
    size = rng.choice(SIZES).replace("{n}", str(rng.randint(13, 90)))
    if "Options" in c.good:
        return c.good | {"Question": f"What else stands {size} from the {c.scene.person[0]}?"}
    return c.good | {"Answer": f"{c.good['Answer'].rstrip('.')}, {size} in all."}


ITEM_DEFECTS: Mapping[str, Callable[[Random, Context], Any]] = {
    "schema": lambda rng, c: rng.choice(
        (None, "item", [], c.good | {"Question": 3}, c.good | {"Why": "so"}, {"Question": c.good["Question"]}, {})
    ),
    "empty": lambda rng, c: _text_place(rng, c.good, lambda text: rng.choice(("", " ", "...", "—"))),
    "bad_characters": lambda rng, c: _text_place(rng, c.good, lambda text: strange_letters(rng, f"{text} ")),
    "markup": lambda rng, c: _text_place(
        rng, c.good, lambda text: rng.choice((f"**{text}**", f"{text}}}", f"[{text}", f"<b>{text}</b>", f"- {text}"))
    ),
    "leak": _leak,
    "not_a_question": lambda rng, c: (
        c.good | {"Question": rng.choice((c.good["Question"][:-1] + ".", "What now?", "Why?"))}
    ),
    "duplicate_question": _duplicate,
    "copied": _copy,
    "given_away": _give_away,
    "invented_measurement": _measure,
    "ungrounded": _invent,
}
CHOICE_DEFECTS: Mapping[str, Callable[[Random, Context], Any]] = {
    "not_four_options": lambda rng, c: (
        c.good | {"Options": dict(list(c.good["Options"].items())[: rng.randint(0, 3)])}
    ),
    "answer_not_an_option": lambda rng, c: c.good | {"Answer": rng.choice(("E", "a", "", "A and B", None, 1))},
    "options_not_distinct": lambda rng, c: (
        c.good
        | {
            "Options": c.good["Options"]
            | {letter: f"{c.good['Options']['D'].lower()}." for letter in rng.choice("ABC")}
        }
    ),
}

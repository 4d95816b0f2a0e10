"""Scenes put together at random, and what a careful writer would say, ask and answer about them: nothing here is a
defect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ..checks import LETTERS
from .words import (
    ACTIONS,
    AGES,
    ANIMAL_PLACES,
    ANIMALS,
    ASIDES,
    BACKDROPS,
    COLOURS,
    COUNTS,
    GARMENTS,
    GROUPS,
    HOURS,
    PEOPLE,
    PLACES,
    SIDES,
)

Item = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What is so in one scene."""

    age: str
    person: tuple[str, str, str]
    colour: str
    garment: str
    action: tuple[str, str, str]
    place: str
    count: str
    group: tuple[str, str, str]
    backdrop: str
    side: str
    hour: str
    animal: str
    animal_place: str
    asides: tuple[str, ...]


def scene(rng: Random) -> Scene:
    """A scene at random; there are some 10^14."""
    pick = rng.choice
    return Scene(
        *(pick(AGES), pick(PEOPLE), pick(COLOURS), pick(GARMENTS), pick(ACTIONS), pick(PLACES), pick(COUNTS)),
        *(pick(GROUPS), pick(BACKDROPS), pick(SIDES), pick(HOURS), pick(ANIMALS), pick(ANIMAL_PLACES)),
        tuple(rng.sample(ASIDES, rng.randint(1, 3))),
    )


def an(phrase: str) -> str:
    """``phrase`` with its article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def seed(rng: Random, s: Scene) -> str:
    """The short sentence from which the caption is made."""
    who, (verb, doing, _) = s.person[0], s.action
    forms = (
        f"{an(s.age)} {who} {verb} {s.place}.",
        f"{an(who)} in {an(s.colour)} {s.garment} {doing}.",
        f"{an(who)} {doing} {s.place}, with {s.animal} {s.animal_place}.",
        f"{s.count} {s.group[1]} {s.group[0]} {s.group[2]} as {an(who)} {verb}.",
    )
    text = rng.choice(forms)
    return text[0].upper() + text[1:]


def caption(rng: Random, s: Scene) -> str:
    """A dense caption of the scene, about 110 words, in one of many wordings."""
    who, he, his = s.person
    verb, doing, _ = s.action
    things, material, where = s.group
    head = rng.choice(
        (
            f"{an(s.age)} {who} in {an(s.colour)} {s.garment} {verb} {s.place}.",
            f"{s.place}, {an(s.age)} {who} {verb}; {he} is wearing {an(s.colour)} {s.garment}.",
            f"{an(s.age)} {who} is {doing} {s.place}, dressed in {an(s.colour)} {s.garment}.",
        )
    )
    body = [
        rng.choice(
            (
                f"{he.capitalize()} bends forward over the work, and {his} hands, marked by labour, move slowly.",
                f"{his.capitalize()} sleeves are rolled up to the elbow, and a fold of cloth hangs from {his} belt.",
                f"{he.capitalize()} stands with {his} weight on one foot, the other resting against a block of stone.",
            )
        ),
        rng.choice(
            (
                f"{s.count.capitalize()} {material} {things} stand {where}, their rims dented and stained with use.",
                f"There are {s.count} {things} made of {material} {where}, each slightly different in height.",
                f"{s.count.capitalize()} {things} of plain {material} have been set down {where}.",
            )
        ),
        rng.choice(
            (
                f"Behind the {who} there is {s.backdrop}, a little out of focus.",
                f"{s.backdrop.capitalize()} can be seen behind the {who}.",
                f"The background is taken up by {s.backdrop}, which closes off the view.",
            )
        ),
        rng.choice(
            (
                f"{s.animal.capitalize()} rests {s.animal_place} and pays no attention to what goes on.",
                f"Nearby, {s.animal} has settled {s.animal_place}.",
                f"{s.animal.capitalize()} lies {s.animal_place}, its head turned towards the {who}.",
            )
        ),
        rng.choice(
            (
                f"The light of {an(s.hour)} falls from the {s.side} and throws soft shadows across the ground.",
                f"It is {s.hour}: light enters from the {s.side} and leaves the far corner in shade.",
                f"Pale {s.hour} light comes in from the {s.side}, so that half of the {s.garment} looks washed out.",
            )
        ),
        *s.asides,
    ]
    rng.shuffle(body)
    return head[0].upper() + " ".join([head[1:], *body])


def facts(s: Scene) -> list[tuple[tuple[str, ...], str, Sequence[str], tuple[str, ...]]]:
    """What can be asked: wordings of the question, the right option, all options of its kind, worded answers."""
    who, he, his = s.person
    verb, doing, _ = s.action
    things, material, where = s.group
    at = s.place[0].upper() + s.place[1:]
    light = f"From the {s.side}"
    return [
        (
            (f"Who is {doing}?", f"Who can be seen {doing} here?", f"Which person {verb}?"),
            f"{an(s.age).capitalize()} {who}",
            [f"{an(s.age).capitalize()} {other[0]}" for other in PEOPLE],
            (
                f"{an(s.age).capitalize()} {who}.",
                f"It is {an(s.age)} {who}.",
                f"{an(who).capitalize()} in {an(s.colour)} {s.garment}.",
            ),
        ),
        (
            (
                f"What colour is the {who}'s {s.garment}?",
                f"Which colour does {his} {s.garment} have?",
                f"What is the colour of the {who}'s {s.garment}?",
            ),
            s.colour.capitalize(),
            [colour.capitalize() for colour in COLOURS],
            (
                f"{s.colour.capitalize()}.",
                f"The {s.garment} is {s.colour}.",
                f"{he.capitalize()} is wearing {s.colour}.",
            ),
        ),
        (
            (f"What is the {who} doing?", f"What does the {who} do {s.place}?", f"Which task keeps the {who} busy?"),
            doing.capitalize(),
            [action[1].capitalize() for action in ACTIONS],
            (f"{he.capitalize()} {verb}.", f"{he.capitalize()} is {doing}.", f"{doing.capitalize()}."),
        ),
        (
            (f"Where is the {who}?", f"Where does the {who} work?", f"In which place is the {who} {doing}?"),
            at,
            [place[0].upper() + place[1:] for place in PLACES],
            (f"{at}.", f"The {who} is {s.place}.", f"{he.capitalize()} works {s.place}."),
        ),
        (
            (
                f"How many {things} are there?",
                f"How many {things} stand {where}?",
                f"What number of {things} can be counted?",
            ),
            s.count.capitalize(),
            [count.capitalize() for count in COUNTS],
            (f"{s.count.capitalize()}.", f"There are {s.count}.", f"{s.count.capitalize()} {things} are there."),
        ),
        (
            (f"What are the {things} made of?", f"Which material are the {things} made of?"),
            material.capitalize(),
            [group[1].capitalize() for group in GROUPS],
            (f"They are made of {material}.", f"{material.capitalize()}.", f"All of the {things} are {material}."),
        ),
        (
            (f"What is behind the {who}?", f"What does one see in the background, behind the {who}?"),
            s.backdrop.capitalize(),
            [backdrop.capitalize() for backdrop in BACKDROPS],
            (f"{s.backdrop.capitalize()}.", f"Behind the {who} there is {s.backdrop}."),
        ),
        (
            ("From which side does the light come?", "Which direction does the light fall from?"),
            light,
            (light, f"From the {SIDES[s.side == 'left']}", "From straight above", "From behind the viewer"),
            (
                f"From the {s.side}.",
                f"It comes from the {s.side}.",
                f"The light falls in from the {s.side}-hand side.",
            ),
        ),
        (
            (
                f"Which animal rests {s.animal_place}?",
                "What animal keeps the worker company?",
                "Is there an animal nearby, and which one is it?",
            ),
            s.animal.capitalize(),
            [animal.capitalize() for animal in ANIMALS],
            (f"{s.animal.capitalize()}.", f"Yes, {s.animal} is resting {s.animal_place}.", f"It is {s.animal}."),
        ),
        (
            (f"Where has {s.animal} settled down?", f"Where exactly is {s.animal}?"),
            s.animal_place.capitalize(),
            [place.capitalize() for place in ANIMAL_PLACES],
            (f"{s.animal_place.capitalize()}.", f"It lies {s.animal_place}."),
        ),
    ]


def reasons(s: Scene) -> list[tuple[str, str]]:
    """Questions that want deduction, with answers that set it out; conclusions bring in words of their own."""
    who, he, his = s.person
    him = "him" if he == "he" else "her"
    verb, doing, why = s.action
    things, material, where = s.group
    _, animal = s.animal.split(" ", 1)
    return [
        (
            f"Why might the {who} be {doing}?",
            f"The {who} is {doing} {s.place}. {why} So the work most likely serves a practical purpose.",
        ),
        (
            f"Is the {animal} afraid of the {who}?",
            f"The {animal} is {s.animal_place}, close to the {who}, and does not run away. An animal that was afraid "
            f"would keep its distance. It therefore seems to be used to {his} company.",
        ),
        (
            f"What would happen to the {things} if someone stumbled against them?",
            f"The {s.count} {things} are made of {material} and stand {where}. If someone stumbled, the {things} "
            f"would fall over, and the {animal} nearby would probably be startled.",
        ),
        (
            "How would the shadows change if the light came from the other side?",
            f"The light now comes from the {s.side}, so the shadows fall away from it. If it came from the other "
            f"side, the shadows on the ground would point towards the {s.side} instead.",
        ),
        (
            f"What suggests that the {who} has done this work many times before?",
            f"The {who} {verb} calmly, and {his} {s.garment} and the {s.count} {material} {things} {where} are all to "
            f"hand. This points to somebody with experience, because a beginner would hardly be so well prepared.",
        ),
        (
            f"How can one tell what time of day it is for the {who}?",
            f"The light comes from the {s.side}, and together with its look this indicates {s.hour}. At that hour "
            f"{an(who)} is usually at work.",
        ),
        (
            f"Could the {who} keep working here if it started to rain?",
            f"The {who} is {s.place}, and behind {him} there is {s.backdrop}. Whether the work could go on depends on "
            f"the shelter there; the {s.colour} {s.garment} alone would not keep {him} dry for long.",
        ),
    ]


def items(rng: Random, task: str, s: Scene) -> list[Item]:
    """6 to 8 items of an instruction task about a scene (reasoning: 3 to 7), in any order."""
    if task == "complex_reasoning":
        return [{"Question": q, "Answer": a} for q, a in rng.sample(reasons(s), rng.randint(3, 7))]
    made = []
    for questions, right, kin, worded in rng.sample(facts(s), rng.randint(6, 8)):
        item: Item = {"Question": rng.choice(questions)}
        if task == "multiple_choice":
            options = [right, *rng.sample([option for option in kin if option != right], 3)]
            rng.shuffle(options)
            item["Options"] = dict(zip(LETTERS, options, strict=True))
            item["Answer"] = LETTERS[options.index(right)]
        else:
            item["Answer"] = rng.choice(worded)
        made.append(item)
    return made

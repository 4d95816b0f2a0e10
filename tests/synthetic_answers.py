"""Synthetic answers at known rates of clean ones and of every defect that the checks name: see ``answers``."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from generation.checks import LIMITS, caption_fault, instruction_items
from generation.rehearsal import scenes
from generation.rehearsal.scenes import caption, scene, seed
from tests.synthetic_caption_defects import CAPTION_DEFECTS
from tests.synthetic_item_defects import ANSWER_DEFECTS, CHOICE_DEFECTS, ITEM_DEFECTS, Context, dump

CLEAN_SHARE = 0.5
TASKS = ("multiple_choice", "question_answering", "complex_reasoning")


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """One answer of a model.

    Args:
        kind: ``caption`` or a task's name.
        defect: the reason code it was made for; None for a clean one.
        text: the answer.
        finish_reason: of the server.
        seed: of the caption.
        caption: the caption of an instruction answer (its source); for a caption the same as ``text``.
        bad_item: the planted item, where a single item is bad.
    """

    kind: str
    defect: str | None
    text: str
    finish_reason: str
    seed: str
    caption: str
    bad_item: Any = None


def answers(count: int, random_seed: int = 0) -> Iterator[Synthetic]:
    """``count`` answers: four kinds in turn, ``CLEAN_SHARE`` of each clean, the others with each defect in turn."""
    rng = Random(random_seed)
    turns = dict.fromkeys(("caption", *TASKS), 0)
    for number in range(count):
        kind = list(turns)[number % len(turns)]
        defects = list(CAPTION_DEFECTS) if kind == "caption" else [*ANSWER_DEFECTS, *item_defects(kind)]
        defect = None
        if rng.random() >= CLEAN_SHARE:
            defect, turns[kind] = defects[turns[kind] % len(defects)], turns[kind] + 1
        yield _caption(rng, defect) if kind == "caption" else _instructions(rng, kind, defect)


def item_defects(task: str) -> dict[str, Callable[[Random, Context], Any]]:
    """The makers of bad items that a task can have, by reason code."""
    return {**ITEM_DEFECTS, **(CHOICE_DEFECTS if task == "multiple_choice" else {})}


def _caption(rng: Random, defect: str | None) -> Synthetic:
    s = scene(rng)
    clean = caption(rng, s)
    text = CAPTION_DEFECTS[defect](rng, clean) if defect else clean
    return Synthetic(kind="caption", defect=defect, text=text, finish_reason="stop", seed=seed(rng, s), caption=text)


def _instructions(rng: Random, task: str, defect: str | None) -> Synthetic:
    s = scene(rng)
    source = caption(rng, s)
    items = scenes.items(rng, task, s)
    bad: Any = None
    text = ""
    if defect and defect in ANSWER_DEFECTS:
        text = ANSWER_DEFECTS[defect](rng, items)
    elif defect:
        place = rng.randrange(1, len(items))
        bad = item_defects(task)[defect](rng, Context(s, source, items[place], items[place - 1]))
        items[place] = bad
    clean_form = rng.choice(("{}", "{}", " {}\n", "```json\n{}\n```", "Here are the questions:\n{}\nThat is all."))
    return Synthetic(
        kind=task,
        defect=defect,
        text=text or (dump(items) if defect else clean_form.replace("{}", dump(items))),
        finish_reason="length" if defect == "cut_off" else "stop",
        seed=seed(rng, s),
        caption=source,
        bad_item=bad,
    )


def verdict(answer: Synthetic) -> str | None:
    """The reason code; where one item is bad, that of the answer were no item to spare."""
    if answer.kind == "caption":
        return caption_fault(answer.text, answer.seed)
    limits = LIMITS[answer.kind]
    if answer.defect in item_defects(answer.kind):
        limits = replace(limits, min_items=limits.max_items + 1)
    return instruction_items(answer.text, answer.finish_reason, answer.caption, answer.kind, limits)[1]


def kept(answer: Synthetic) -> bool:
    """Whether the planted defect, or its item, is among what would be sealed."""
    if answer.kind == "caption":
        return caption_fault(answer.text, answer.seed) is None
    items, fault = instruction_items(
        answer.text, answer.finish_reason, answer.caption, answer.kind, LIMITS[answer.kind]
    )
    if answer.defect not in item_defects(answer.kind):
        return fault is None
    given = json.loads(answer.text)["QA Pairs"]  # a duplicate question may be a copy of a whole item
    return fault is None and items.count(answer.bad_item) == given.count(answer.bad_item)


def code(answer: Synthetic) -> str | None:
    """The reason code that a planted defect should be caught by."""
    return "schema" if answer.defect == "wrong_shape" else answer.defect

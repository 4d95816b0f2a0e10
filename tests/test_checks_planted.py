"""Of many synthetic answers with planted defects, the checks catch the bad ones, by name, and keep the clean ones."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from generation.checks import LIMITS, instruction_items
from tests.synthetic_answers import Synthetic, answers, code, item_defects, kept, verdict

SAMPLE = 12_000


def hold(sample: Iterable[Synthetic]) -> None:
    planted, caught, named = Counter[str](), Counter[str](), Counter[str]()
    clean, rejected = Counter[str](), Counter[str]()
    for answer in sample:
        if answer.defect is None:
            clean[answer.kind] += 1
            rejected[answer.kind] += verdict(answer) is not None
        else:
            kind = f"{answer.kind}: {answer.defect}"
            planted[kind] += 1
            caught[kind] += not kept(answer)
            named[kind] += verdict(answer) == code(answer)
    assert len(planted) == 13 + 9 * 3 + 11 * 3 + 3
    assert {kind: caught[kind] / count for kind, count in planted.items() if caught[kind] < 0.99 * count} == {}
    assert {kind: named[kind] / count for kind, count in planted.items() if named[kind] < 0.95 * count} == {}
    assert {kind: rejected[kind] / count for kind, count in clean.items() if rejected[kind] >= 0.01 * count} == {}


def test_planted_defects_are_caught_by_name_and_clean_answers_kept() -> None:
    hold(answers(SAMPLE))


@pytest.mark.slow
def test_so_are_they_among_a_hundred_thousand() -> None:
    hold(answers(100_000, random_seed=1))


def test_a_bad_item_is_dropped_and_its_neighbours_kept() -> None:
    for answer in answers(2_000, random_seed=2):
        if answer.kind != "caption" and answer.defect in item_defects(answer.kind):
            given = json.loads(answer.text)["QA Pairs"]
            limits = replace(LIMITS[answer.kind], min_items=1)
            items, fault = instruction_items(answer.text, "stop", answer.caption, answer.kind, limits)
            assert fault is None
            assert len(items) == len(given) - 1
            assert all(item in given for item in items)


def test_the_same_seed_gives_the_same_answers_and_another_gives_others() -> None:
    first, again, other = (list(answers(50, random_seed=number)) for number in (3, 3, 4))
    assert first == again
    assert all(a.text != b.text for a, b in zip(first, other, strict=True) if a.text.strip() and b.text.strip())


def test_half_of_each_kind_is_clean_and_hardly_any_two_are_alike() -> None:
    clean = [answer for answer in answers(4_000) if answer.defect is None]
    assert all(450 < count < 550 for count in Counter(answer.kind for answer in clean).values())
    assert len({answer.text for answer in clean}) == len(clean)
    assert len({answer.caption for answer in clean}) == len(clean)

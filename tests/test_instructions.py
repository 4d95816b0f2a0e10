"""Captions and instructions: what is asked, what is selected, and what becomes of the answers."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from generation.captions import CaptionTask, make_captions
from generation.checks.items import LETTERS
from generation.engine import Item
from generation.errors import RunError
from generation.instructions import InstructionTask, conversation, items_of, make_instructions, shuffle_options
from generation.recipe import parse_recipe
from generation.stages import CAPTION_SCHEMA, CAPTIONS, INSTRUCTIONS, SEED_SCHEMA, SEEDS, TASKS, row_id
from generation.store import Run, parquet
from generation.tgi.client import Answer
from tests.fake_server import FakeServer

SCENE = "A brown dog carries a ball over the wet beach near a red kite. Four gulls sit on a long wooden pier."
THINGS = ("kite", "boat", "chair", "lamp", "wagon", "ladder")


def make_run(path: Path, **sections: Any) -> Run:
    tasks = {task: {"prompt": task, "fraction": 0.5, "items": [2, 3]} for task in TASKS}
    tasks |= sections.pop("instructions", {})
    data = {"name": "t", "directory": "/", "seeds": {"captions": []}, "instructions": tasks}
    return Run(path, parse_recipe(data | sections, "test"), create=True)


def add_seeds(run: Run, shard: int, rows: int = 6) -> None:
    seeds = [f"A red {THINGS[row % 6]} stands in yard {shard}." for row in range(rows)]
    found = [{"id": row_id(shard, row), "seed": s, "source": "own", "license": "MIT"} for row, s in enumerate(seeds)]
    run.commit(SEEDS, shard, rows, parquet(pa.Table.from_pylist(found, SEED_SCHEMA)))


def said(*items: Any, end: str = "stop") -> Answer:
    return Answer(json.dumps({"QA Pairs": items}), end, 1, 1)


def qa(question: str, answer: str = "A ball.") -> dict[str, str]:
    return {"Question": question, "Answer": answer}


def test_lengths_openings_and_types_are_drawn_with_the_paper_s_spread(tmp_path: Path) -> None:
    """Appendix D: mean 129 words, 51 to 483."""
    run = make_run(tmp_path / "run")
    task, asking = CaptionTask(run), InstructionTask(run, "complex_reasoning")
    prompts = [task.request(Item(str(id), 0, {"seed": "A dog."}), 1).messages[-1]["content"] for id in range(3_000)]
    lengths = [int(prompt.split("about ")[1].split()[0]) for prompt in prompts]
    openings = Counter(prompt.split("Begin with ")[1].split(".\n")[0] for prompt in prompts)
    assert sum(lengths) / len(lengths) == pytest.approx(129, abs=4)
    assert 51 <= min(lengths) < 65 and 350 < max(lengths) <= 483
    assert set(openings) == set(task.prompt.openings) and min(openings.values()) > 200
    assert prompts[0] == task.request(Item("0", 0, {"seed": "A dog."}), 1).messages[-1]["content"]

    prompts = [asking.request(Item(str(id), 0, {"caption": SCENE}), 1).messages[-1]["content"] for id in range(2_000)]
    drawn = Counter(kind for prompt in prompts for kind in prompt.split("types: ")[1].split(".\n")[0].split("; "))
    types = asking.prompt.question_types
    assert drawn.keys() == set(types) and drawn.total() == 2_000 * 3
    assert all(abs(count / 2_000 - 3 / len(types)) < 0.05 for count in drawn.values())


def test_a_caption_joins_the_begun_answer_and_is_checked(tmp_path: Path) -> None:
    settings = {"prompt": "expand_caption_small", "words": [5, 40]}
    task = CaptionTask(make_run(tmp_path / "run", captions=settings))
    item = Item("0", 0, {"seed": "A dog runs.", "source": "own", "license": "MIT"})
    row = task.accept(item, [Answer("bad", "stop", 1, 1), Answer("a ball lies on the grass. It is", "length", 1, 1)])
    assert isinstance(row, dict)
    assert (row["caption"], row["words"]) == ("A dog runs. In the foreground, a ball lies on the grass.", 12)
    assert sorted(row["instruction"].split("\n")).count("<image>") == 1
    assert task.accept(item, [Answer("I cannot see it.", "stop", 1, 1)]) == "refusal"


def test_a_higher_fraction_only_adds_and_without_overlap_each_caption_serves_one_task(tmp_path: Path) -> None:
    captions = [{"id": row_id(0, row), "caption": f"{SCENE} It is day {row}."} for row in range(20)]
    for overlap in (True, False):
        before = set[str]()
        for share in (0.05, 0.2, 0.33, 0.5):
            fractions = dict(zip(TASKS, (share, 0.3, 0.2), strict=True))
            tasks = {name: {"prompt": name, "fraction": fraction} for name, fraction in fractions.items()}
            run = make_run(tmp_path / f"{overlap}{share}", instructions=tasks | {"overlap": overlap})
            add_seeds(run, 0, 20)
            run.commit(CAPTIONS, 0, 20, parquet(pa.Table.from_pylist(captions, CAPTION_SCHEMA)))
            found = {name: {item.id for item in InstructionTask(run, name).items(run, 0)} for name in TASKS}
            assert {name: len(ids) for name, ids in found.items()} == {n: round(f * 20) for n, f in fractions.items()}
            assert overlap or len(set().union(*found.values())) == sum(map(len, found.values()))
            assert before <= found[TASKS[0]]
            before = found[TASKS[0]]
        own = fractions if not overlap else {TASKS[2]: 0.2}
        assert InstructionTask(run, TASKS[2]).extra == {name: str(fraction) for name, fraction in own.items()}


def test_sound_items_are_kept_from_answer_to_answer(tmp_path: Path) -> None:
    task = InstructionTask(make_run(tmp_path / "run"), "question_answering")
    item = Item("0", 0, {"caption": SCENE})
    first = said(qa("What does the dog carry?"), qa("What does the caption say?"), qa("Who is it?", "I think a dog."))
    again = said(qa("What does the dog carry?"), qa("What is the pier made of?", "Wood."))
    many = said(*(qa(f"What does the {thing} carry?") for thing in ("dog", "gull", "kite", "pier", "beach")))
    reasons = [task.accept(item, [answer]) for answer in (said(end="length"), said(), first)]
    assert reasons == ["cut_off", "too_few_items", "leak"]
    row, full = task.accept(item, [first, said(end="length"), again]), task.accept(item, [many])
    assert isinstance(row, dict) and isinstance(full, dict)
    asked = {found["Question"] for found in items_of(row["conversations"])}
    assert asked == {"What does the dog carry?", "What is the pier made of?"}
    assert row["dropped"] == ["leak", "first_person", "cut_off", "duplicate_question"]
    assert (sorted(row["question_types"]), row["grounded"]) == (["attribute", "object"], [1.0, 1.0])
    assert len(full["conversations"]) == 6  # max_items is 3


def test_options_are_shuffled_alike_and_turns_can_be_read_back() -> None:
    options = {"A": "a stick", "B": "a ball", "C": "a shoe", "D": "a fish"}
    item = {"Question": "What does it carry?", "Options": options, "Answer": "B"}
    letters, first = Counter[str](), Counter[bool]()
    for id in range(2_000):
        shuffled = shuffle_options(item, "task", id)
        letters[shuffled["Answer"]] += 1
        assert shuffled["Options"][shuffled["Answer"]] == "a ball"
        assert sorted(shuffled["Options"].values()) == sorted(options.values())
        turns = conversation([shuffled, qa("Where?")], "task", id)
        first[turns[0]["value"].startswith("<image>\n")] += 1
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 2
        assert [turn["value"].count("<image>") for turn in turns] == [1, 0, 0, 0]
        assert items_of(turns) == [shuffled, qa("Where?")]
    assert sum((letters[letter] - 500) ** 2 / 500 for letter in LETTERS) < 16.3  # chi-square: p = 0.001
    assert abs(first[True] - 1_000) < 150


def test_captions_and_conversations_are_made_and_counted(tmp_path: Path) -> None:
    with FakeServer("tgi", max_total_tokens=9_000) as server:
        run = make_run(tmp_path / "run", server={"endpoints": [server.url]})
        with pytest.raises(RunError, match="stage 'seeds' is not complete"):
            make_captions(run)
        add_seeds(run, 0)
        add_seeds(run, 1, 4)
        make_captions(run)
        captions = [row for shard in (0, 1) for row in run.table(CAPTIONS, shard).to_pylist()]
        assert len(captions) == 10
        assert all(row["words"] == len(row["caption"].split()) >= 51 for row in captions)
        make_instructions(run)
        for task, stage in ((task, INSTRUCTIONS[task]) for task in TASKS):
            rows, dropped = run.table(stage, 0).to_pylist() + run.table(stage, 1).to_pylist(), Counter[str]()
            for record in run.records(stage).values():
                dropped.update(record.counts.get("dropped"))
            assert Counter(reason for row in rows for reason in row["dropped"]) == dropped
            assert len(rows) == 3 + 2
            for row in rows:
                options = ["Options" in item for item in items_of(row["conversations"])]
                assert options == [task == "multiple_choice"] * len(row["question_types"]) and 2 <= len(options) <= 3

"""What the stand-in for the language model says, and the source of seeds: held against the checks at their real
strictness, and against the stage itself."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import checks
from generation.config import TASKS
from generation.errors import SeedError
from generation.prompts import load_prompt
from generation.recipe import load_recipe
from generation.rehearsal.answers import HOPELESS, KINDS, reply
from generation.rehearsal.sources import SOURCE, write_recipe, write_source
from generation.rundir import RunDir
from generation.seeds import make_seeds
from generation.tgi.protocol import Question, Request, chat_frame

EXPECTED_BAD = 0.033  # of the answers, the hopeless ones included


def bodies(kind: str, texts: list[str], first_seed: int = 1) -> Iterator[bytes]:
    """The requests of a kind about texts, as the client sends them."""
    if kind == "captions":
        question, field = Question(load_prompt("expand_caption")), "seed"
    else:
        limits, prompt = checks.LIMITS[kind], load_prompt(kind)
        question, field = Question(prompt, prompt.answer_schema(limits.min_items, limits.max_items)), "caption"
    frame = chat_frame(question, None)
    others = {"kinds": "what it is; where it is", "min_items": "6", "max_items": "8"}
    for number, text in enumerate(texts, first_seed):
        yield frame.fill(Request(question, {field: text, **others}, number))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Seeds as the stage makes them of the source."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder / SOURCE, 1500)
    run = RunDir(folder / "run", create=True)
    make_seeds(run, load_recipe(write_recipe(folder, 1500)))
    return [text for shard in run.sealed("seeds") for text in run.table("seeds", shard)["seed"].to_pylist()]


@pytest.fixture(scope="module")
def captions(seeds: list[str]) -> list[str]:
    """Those that pass the checks."""
    said = [reply(body) for body in bodies("captions", seeds)]
    texts = [checks.finish(one.text, one.finish_reason) for one in said]
    return [text for text, seed in zip(texts, seeds, strict=True) if checks.caption_fault(text, seed) is None]


def test_captions_pass_the_checks_at_the_expected_rate_and_fail_in_many_ways(seeds: list[str]) -> None:
    codes = Counter[str | None]()
    for seed, said in zip(seeds, map(reply, bodies("captions", seeds)), strict=True):
        codes[checks.caption_fault(checks.finish(said.text, said.finish_reason), seed)] += 1
    bad = 1 - codes[None] / len(seeds)
    assert EXPECTED_BAD / 2 < bad < 2 * EXPECTED_BAD
    assert {"refusal", "too_short", "lost_seed", "meta_talk"} <= codes.keys()


@pytest.mark.parametrize("task", TASKS)
def test_conversations_pass_the_checks_at_the_expected_rate(task: str, captions: list[str]) -> None:
    codes = Counter[str | None]()
    for caption, said in zip(captions, map(reply, bodies(task, captions)), strict=True):
        assert said.kind == task
        items, fault = checks.instruction_items(said.text, said.finish_reason, caption, task, checks.LIMITS[task])
        codes[fault] += 1
    assert EXPECTED_BAD / 2 < 1 - codes[None] / len(captions) < 2 * EXPECTED_BAD
    assert {"cut_off", "not_json", "too_few_items", "ungrounded"} <= codes.keys()


def test_all_captions_differ(captions: list[str]) -> None:
    assert len(set(captions)) == len(captions)


def test_what_is_hopeless_is_refused_whatever_the_sampling_seed(seeds: list[str]) -> None:
    told = {seed: [] for seed in seeds[:1200]}
    for first in (1, 10_000, 20_000):
        for seed, body in zip(told, bodies("captions", list(told), first), strict=True):
            told[seed].append(checks.caption_fault(reply(body).text, seed))
    always = [faults for faults in told.values() if faults == ["refusal"] * 3]
    assert 1 <= len(always) < 4 * HOPELESS * len(told)


@given(st.integers(0, 2**31 - 1), st.sampled_from(KINDS), st.text(min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_an_answer_is_a_function_of_its_request(seed: int, kind: str, text: str) -> None:
    (body,) = bodies(kind, [text], seed)
    (other,) = bodies(kind, [text], seed + 1)
    said = reply(body)
    assert said == reply(body)
    assert said.key != reply(other).key
    assert said.completion_tokens > 0 < said.prompt_tokens


def test_a_question_is_about_the_scene_of_its_caption_and_about_no_other(captions: list[str]) -> None:
    task, strict = "question_answering", checks.LIMITS["question_answering"]
    found = Counter[bool]()
    for body, caption in zip(bodies(task, captions[:200]), captions[1:201], strict=True):
        said = reply(body)
        found[checks.instruction_items(said.text, said.finish_reason, caption, task, strict)[1] is None] += 1
    assert found[True] < 10  # of 200, held against the next caption


def test_the_source_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "same", "other")]
    lines = [write_source(path, 400, seed) for path, seed in zip(paths, (7, 7, 8), strict=True)]
    one, same, other = (path.read_text() for path in paths)
    assert one == same != other
    assert lines[0] == one.count("\n")


def test_the_source_has_dirt_and_repeats_and_yields_the_seeds_that_are_wanted(
    seeds: list[str], tmp_path: Path
) -> None:
    lines = write_source(tmp_path / SOURCE, 1500)
    run = RunDir(tmp_path / "run", create=True)
    make_seeds(run, load_recipe(write_recipe(tmp_path, 1500)))
    account = run.stage("seeds")["sources"]["made_up"]
    assert account["read"] == lines > 1.1 * 1500
    assert {"repeated", "link", "personal", "language", "boilerplate"} <= account["dropped"].keys()
    assert 1500 <= account["seeds"] <= 1.06 * 1500
    assert len(run.sealed("seeds")) > 10
    assert account["dropped"].get("duplicate_near", 0) + account["dropped"].get("duplicate_exact", 0) > 0


def test_a_recipe_beside_no_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=SOURCE):
        make_seeds(RunDir(tmp_path / "run", create=True), load_recipe(write_recipe(tmp_path, 200)))


def test_seeds_are_plain_sentences(seeds: list[str]) -> None:
    for seed in Random(0).sample(seeds, 200):
        assert 10 < len(seed.split()) < 40
        assert seed.count(". ") == 0 or seed.endswith("today.")

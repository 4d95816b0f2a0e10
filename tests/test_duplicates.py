"""Duplicates and contamination: what repeats is found, what differs is not, and the first in run order is kept."""

import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from generation import duplicates
from generation.config import TASKS, Decontaminate, Duplicates
from generation.contamination import Benchmark, find_contaminated, read_benchmark
from generation.duplicates import Finding, banding, duplicate_ids, find_duplicates
from generation.errors import RecipeError, RunError, SeedError
from generation.ngrams import ngrams, normalised
from generation.recipe import load_recipe
from generation.records import SEED_SCHEMA, row_id
from generation.rundir import RunDir
from generation.seeds import make_seeds
from tests.conftest import ROOT, generation

QUESTIONS = [
    "How many red boats are tied to the old wooden pier today?",
    "Is it raining?",
    "What colour is the scarf that the tall woman by the window wears?",
]
HOSTILE = [
    *("", " \t\n", "!!! ... ???", "\0", "a\0b", "\ud800", "dog \udfff dog", "\u202edog\u202c", "\u200f", "🐕", "🐈"),
    *(
        "👨‍👩‍👧 on a beach",
        "{label} {{x}} %s",
        "<b>dog</b>",
        "word " * 20_000,
        "x" * 100_000,
        "हिन्दी",
        "हन्द",
        "ﬁsh",
        "ẞ",
    ),
]


def numbered(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"{number:010d}", text) for number, text in enumerate(texts)]


def find(texts: list[str], folder: Path, near: float = 0.8, ngram: int = 2, kept: int = 0) -> dict[int, Finding]:
    """Findings by place in ``texts``."""
    found = find_duplicates(numbered(texts), near, ngram, folder, kept)
    return {int(row): finding for row, finding in found.items()}


def jaccard(one: str, other: str, n: int) -> float:
    """The similarity of two texts, worked out with nothing of the module's own."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = normalised(text).split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or ({tuple(words)} if words else set())

    return len(grams(one) & grams(other)) / (len(grams(one) | grams(other)) or 1)


def pairs(count: int, words: int, changed: int) -> Iterator[str]:
    """``count`` texts of words that no other has, each followed by itself with its last words changed."""
    for number in range(count):
        text = [f"w{number}x{place}" for place in range(words)]
        yield " ".join(text)
        yield " ".join(text[: words - changed] + [f"{word}y" for word in text[words - changed :]])


@pytest.mark.parametrize(
    "other",
    [
        *("A dog sleeps on the red rug", "a DOG sleeps, on the red rug!", " A  dog\tsleeps\non the red rug. "),
        *("A dog sleeps—on the “red” rug…", "A dog sleeps on the ｒｅｄ rug.", "A dog sle\u00adeps on the red rug."),
        *("\u200fA dog sleeps on the red rug.\u200f", "A dog sleeps\0on the red rug."),
    ],
)
def test_texts_of_the_same_words_are_exact_duplicates(tmp_path: Path, other: str) -> None:
    found = find(["A dog sleeps on the red rug.", "Two boats.", other], tmp_path)
    assert found == {2: Finding("duplicate_exact", "0000000000", 1.0)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog chases a man across the yard.", "A man chases a dog across the yard."),
        ("A photo of an osprey in a busy street.", "A photo of a hen in a busy street."),
        ("🐕", "🐈"),
        ("हिन्दी", "हेन्दा"),
        ("dog", "dogs"),
        ("2 + 2", "2 - 2"),
        ("", "a"),
    ],
)
def test_texts_of_other_words_are_no_duplicates(tmp_path: Path, one: str, other: str) -> None:
    assert find([one, other], tmp_path) == {}


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert not any(unicodedata.category(letter)[0] in "PC" for letter in once)


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.integers(1, 6))
def test_n_grams_are_counted_as_sets(words: list[str], n: int) -> None:
    distinct = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or ({tuple(words)} if words else set())
    found = ngrams(" ".join(words), n)
    assert len(found) == len(distinct)
    assert sorted(found) == list(found)


@pytest.mark.parametrize(("words", "ngram"), [(12, 2), (130, 3)])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8])
def test_pairs_well_above_the_threshold_are_found_and_none_below_it(
    tmp_path: Path, threshold: float, words: int, ngram: int
) -> None:
    for changed in range(1, words, 1 if words < 100 else 6):
        texts = list(pairs(300, words, changed))
        true = jaccard(texts[0], texts[1], ngram)
        found = find(texts, tmp_path, threshold, ngram)
        assert all(finding == Finding("duplicate_near", f"{row - 1:010d}", true) for row, finding in found.items())
        if true >= threshold + 0.1:
            assert len(found) >= 0.99 * 300, f"changed {changed}: {true:.2f}"
        if true < threshold:
            assert found == {}


@pytest.mark.parametrize("threshold", [number / 100 for number in range(10, 101)])
def test_bands_propose_nearly_all_pairs_a_tenth_above_the_threshold(threshold: float) -> None:
    bands, width = banding(threshold)
    assert bands * width <= 128
    assert 1 - (1 - threshold**width) ** bands >= 0.9
    assert 1 - (1 - min(1, threshold + 0.1) ** width) ** bands >= 0.99


def test_a_threshold_of_one_finds_only_equal_sets_of_n_grams(tmp_path: Path) -> None:
    texts = ["a b a b a", "a b a b", "b a b", "a b c"]
    assert find(texts, tmp_path, near=1) == {row: Finding("duplicate_near", "0000000000", 1.0) for row in (1, 2)}


def test_the_first_in_run_order_is_kept_and_every_match_is_a_kept_row(tmp_path: Path) -> None:
    base = [f"w{place}" for place in range(40)]
    near, nearer = " ".join(base[:-3]), " ".join(base[:-6])
    texts = [near, "other", " ".join(base), near.upper(), nearer, " ".join(base) + "!", nearer]
    found = find(texts, tmp_path)
    assert [(row, found[row].reason, found[row].match) for row in found] == [
        (2, "duplicate_near", "0000000000"),
        (3, "duplicate_exact", "0000000000"),
        (4, "duplicate_near", "0000000000"),
        (5, "duplicate_near", "0000000000"),  # the row of the same words is not kept itself
        (6, "duplicate_near", "0000000000"),
    ]


def test_rows_that_are_kept_are_not_judged_but_are_repeated_by_others(tmp_path: Path) -> None:
    texts = ["A dog.", "A dog.", "a dog", "A cat."]
    assert list(find(texts, tmp_path, kept=2)) == [2]
    chain = [" ".join(f"w{place}" for place in range(40 - cut)) for cut in (0, 5, 10)]
    assert {row: finding.match for row, finding in find(chain, tmp_path, kept=2).items()} == {2: "0000000001"}


LIKE = st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), max_size=30)


@given(LIKE, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 4))
@examples(deadline=None)
def test_the_result_does_not_depend_on_chunks_and_what_is_kept_is_apart(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], threshold: float, ngram: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = find(texts, folder, threshold, ngram)
    with pytest.MonkeyPatch.context() as patch:
        for rows, grams in ((1, 10**9), (7, 10**9), (10**9, 10)):
            patch.setattr(duplicates, "_BATCH_ROWS", rows)
            patch.setattr(duplicates, "_BATCH_NGRAMS", grams)
            patch.setattr(duplicates, "_COMPARED", 2)
            assert find(texts, folder, threshold, ngram) == found
    for row, finding in found.items():
        match = int(finding.match)
        assert match < row
        assert match not in found
        if finding.reason == "duplicate_exact":
            assert normalised(texts[row]) == normalised(texts[match])
        else:
            assert finding.jaccard == jaccard(texts[row], texts[match], ngram) >= threshold
    kept = [text for row, text in enumerate(texts) if row not in found]
    assert len({normalised(text) for text in kept}) == len(kept)
    if threshold == 1:  # found for certain: all their MinHash values agree
        assert not any(jaccard(one, other, ngram) == 1 for one, other in combinations(filter(None, kept), 2))


@given(LIKE, st.randoms())
@examples(deadline=None)
def test_another_order_keeps_the_same_words(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shuffle: random.Random
) -> None:
    folder, other = tmp_path_factory.getbasetemp(), list(texts)
    shuffle.shuffle(other)
    kept = [[text for row, text in enumerate(t) if row not in find(t, folder, 1, 99)] for t in (texts, other)]
    assert sorted(kept[0]) == sorted(kept[1]) == sorted(set(texts))


def test_hostile_texts_repeat_themselves_and_nothing_else(tmp_path: Path) -> None:
    found = find([*HOSTILE, *HOSTILE], tmp_path)
    wordless = [row for row, text in enumerate(HOSTILE) if not normalised(text)]
    assert [HOSTILE[row] for row in wordless] == ["", " \t\n", "!!! ... ???", "\0", "\ud800", "\u200f"]
    repeats = {row + len(HOSTILE): row for row in range(len(HOSTILE)) if row not in wordless}
    repeats |= dict.fromkeys([*wordless[1:], *(row + len(HOSTILE) for row in wordless)], 0)
    assert {row: int(finding.match) for row, finding in found.items()} == repeats
    assert {finding.reason for finding in found.values()} == {"duplicate_exact"}
    assert not dict(find_contaminated(numbered(HOSTILE), Benchmark(QUESTIONS, 8)))
    assert Benchmark(HOSTILE, 8).hit("\ud800") is None
    assert Benchmark(HOSTILE, 8).hit("dog dog") == "dog \udfff dog"


def test_ids_may_be_anything(tmp_path: Path) -> None:
    rows = [("", "A dog."), ("\ud800", "A cat."), ("é" * 100_000, "A dog."), ("z", "a cat")]
    found = find_duplicates(rows, 0.8, 2, tmp_path)
    assert {row: finding.match for row, finding in found.items()} == {"é" * 100_000: "", "z": "\ud800"}
    assert find_duplicates([], 0.8, 2, tmp_path) == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none"):
        find(["a"], tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("words", [12, 130])
def test_memory_is_bounded_by_rows_whatever_the_length_of_the_texts(words: int) -> None:
    command = [sys.executable, "-m", "benchmarks.duplicates", "--way", "ours", "--rows", "100000", "--words"]
    done = subprocess.run([*command, str(words)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["bytes_a_row"] < 500


# -- contamination ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("It says: how many RED boats are tied to the old pier", QUESTIONS[0]),
        ("of the scarf that the tall woman by the window: a colour", QUESTIONS[2]),
        ("is it raining", QUESTIONS[1]),
        ("The scarf that the tall woman by the window. How many red boats are tied to the", QUESTIONS[0]),
        ("how many red boats are tied to an old wooden pier", None),
        ("Is it raining on the old wooden pier today?", None),
        ("It is raining.", None),
        ("", None),
        ("🐕", None),
    ],
)
def test_eight_words_in_a_row_or_a_whole_short_text_are_a_hit(text: str, question: str | None) -> None:
    assert Benchmark(QUESTIONS, 8).hit(text) == question
    found = dict(find_contaminated([("0", "A dog."), ("1", text)], Benchmark(QUESTIONS, 8)))
    assert found == ({"1": Finding("contaminated", question)} if question else {})


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)), st.lists(st.sampled_from("abc")))
def test_a_hit_is_the_first_question_that_shares_an_n_gram(questions: list[str], words: list[str]) -> None:
    text = " ".join(words)
    shared = [question for question in questions if jaccard(question, text, 3) > 0]
    assert Benchmark(questions, 3).hit(text) == (shared[0] if shared else None)


def test_shorter_n_grams_hit_more() -> None:
    assert Benchmark(QUESTIONS, 4).hit("red boats are tied")
    assert not Benchmark(QUESTIONS, 5).hit("red boats are tied")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "does not exist"),
        ("q.xlsx", "x", "must end with one of .txt"),
        ("q.csv", "id,query\n1,Is it?\n", "has no column 'text'; its columns: id, query"),
        ("q.txt", "", "holds no question"),
        ("q.json", "[{", "cannot be read"),
    ],
)
def test_a_benchmark_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: Any, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SeedError) as caught:
        read_benchmark(tmp_path / name, "text", 8)
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)


# -- in the seeds stage ----------------------------------------------------------------------------------------

SEEDS = [
    "A dog sleeps on the red rug by the fire in the old house at night.",
    "A dog sleeps on the red rug by the fire in the old house tonight.",
    "Two boats lie on the beach.",
    "We count how many red boats are tied to the old pier.",
    *(f"Scene number {number} of the harbour." for number in range(6)),
]


def make(folder: Path, texts: list[str] = SEEDS, extend: bool = False, **seeds: Any) -> RunDir:
    """Makes the seeds of two sources: ``texts``, and one exact duplicate of one of them."""
    folder.mkdir(exist_ok=True)
    for name, lines in (("own", texts), ("other", ["TWO boats lie on the beach", "A cat."]), ("questions", QUESTIONS)):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    captions = [{"name": name, "path": f"{name}.txt", "license": "MIT"} for name in ("own", "other")]
    data = {"name": "small", "seeds": {"captions": captions, "shard_rows": 4, **seeds}}
    data |= {"instructions": {task: {"prompt": task, "fraction": 0.5} for task in TASKS}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    run = RunDir(folder / "run", create=True)
    make_seeds(run, load_recipe(folder / "recipe.yaml"), extend)
    return run


def seeds(run: RunDir) -> list[str]:
    return [text for _, text in duplicates.stage_texts(run, "seeds")]


DROP = {
    "duplicates": {"action": "drop", "near_threshold": 0.7},
    "decontaminate": {"action": "drop", "file": "questions.txt"},
}
BY_REASON = {"contaminated": 1, "duplicate_exact": 1, "duplicate_near": 1}


def test_dropped_seeds_are_counted_and_told_by_reason(tmp_path: Path) -> None:
    plain, run = make(tmp_path / "plain"), make(tmp_path / "sifted", **DROP)
    assert len(seeds(plain)) == 12
    assert run.stage("seeds")["dropped_by_reason"] == run.stage("seeds")["found_by_reason"] == BY_REASON
    told = [json.loads(line) for line in (run.path / "report" / "dropped_seeds.jsonl").read_text().splitlines()]
    assert sorted(line["reason"] for line in told) == sorted(BY_REASON)
    assert [text for text in seeds(plain) if text not in [line["seed"] for line in told]] == seeds(run)
    matches = {line["reason"]: line["match"] for line in told}
    assert matches["contaminated"] == QUESTIONS[0]
    assert {matches["duplicate_near"], matches["duplicate_exact"]} <= set(seeds(run))
    assert [row for row, _ in duplicates.stage_texts(run, "seeds")] == [row_id(n // 4, n % 4) for n in range(9)]


def test_seeds_that_are_only_reported_stay(tmp_path: Path) -> None:
    reported = {key: {**value, "action": "report"} for key, value in DROP.items()}
    run = make(tmp_path / "sifted", **reported)
    assert seeds(run) == seeds(make(tmp_path / "plain"))
    assert run.stage("seeds")["found_by_reason"] == BY_REASON
    assert run.stage("seeds")["dropped_by_reason"] == {}


def test_a_recipe_that_asks_for_neither_counts_nothing(tmp_path: Path) -> None:
    run = make(tmp_path / "plain")
    assert not {"found_by_reason", "dropped_by_reason"} & run.stage("seeds").keys()
    assert not (run.path / "report").exists()


def test_a_seed_like_one_dropped_as_contaminated_stays(tmp_path: Path) -> None:
    near = "now how many red boats are tied to the old wooden pier today"
    texts = ["how many red boats are tied to the old wooden pier today", near]
    run = make(tmp_path / "a", texts, duplicates={"action": "drop", "near_threshold": 0.5}, decontaminate=None)
    assert len(seeds(run)) == 3
    run = make(tmp_path / "b", texts, **(DROP | {"decontaminate": {**DROP["decontaminate"], "ngram": 13}}))
    assert len(seeds(run)) == 3  # only the first is the question as a whole
    assert run.stage("seeds")["dropped_by_reason"] == {"contaminated": 1}
    assert near in seeds(run)


@pytest.mark.parametrize("shard", [0, 1, 2, 3])
def test_a_run_stopped_and_resumed_or_extended_gives_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    seal = RunDir.seal_tables

    def killed(run: RunDir, stage: str, number: int, *tables: Any) -> None:
        if number == shard:
            raise KeyboardInterrupt
        seal(run, stage, number, *tables)

    more = [*SEEDS, SEEDS[0].upper(), "A new one.", "Another new one here."]
    for texts, extend in ((SEEDS, False), (more, True)):
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(RunDir, "seal_tables", killed)
            make(tmp_path / "stopped", texts, extend, **DROP)
        resumed = make(tmp_path / "stopped", texts, extend, **DROP)
        whole = make(tmp_path / "whole", texts, extend, **DROP)
        assert seeds(resumed) == seeds(whole)
        assert resumed.stage("seeds")["dropped_by_reason"] == whole.stage("seeds")["dropped_by_reason"]
    assert resumed.stage("seeds")["dropped_by_reason"] == BY_REASON | {"duplicate_exact": 2}
    assert len(seeds(resumed)) == 11


def test_another_benchmark_file_or_threshold_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, **DROP)
    with pytest.raises(RunError, match=r"duplicates\.near_threshold: 0\.7 -> 0\.9"):
        make(tmp_path, **(DROP | {"duplicates": {"action": "drop", "near_threshold": 0.9}}))
    with pytest.raises(SeedError, match=r"none\.txt does not exist"):
        make(tmp_path, **(DROP | {"decontaminate": {"file": "none.txt"}}))
    QUESTIONS.append("A question more?")
    try:
        with pytest.raises(RunError, match="benchmark_sha256"):
            make(tmp_path, **DROP)
    finally:
        QUESTIONS.pop()


def test_an_extension_with_a_bad_benchmark_leaves_the_finished_run_as_it_was(tmp_path: Path) -> None:
    before = (make(tmp_path).path / "manifest.json").read_bytes()
    with pytest.raises(SeedError, match="must end with one of"):
        make(tmp_path, extend=True, decontaminate={"file": "recipe.yaml"})
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("threshold", [0, 0.09, 1.01, -1, "0.8", True])
def test_a_threshold_out_of_range_is_refused(tmp_path: Path, threshold: Any) -> None:
    with pytest.raises(RecipeError, match=r"seeds\.duplicates\.near_threshold"):
        make(tmp_path, duplicates={"near_threshold": threshold})
    with pytest.raises(ValidationError):
        Duplicates(near_threshold=threshold)


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two sealed shards of seeds, with one row of each reason."""
    run = RunDir(tmp_path / "run", create=True)
    run.begin("seeds", {})
    for shard, texts in enumerate((SEEDS[:3], [SEEDS[3], SEEDS[2].upper(), SEEDS[0] + " Again."])):
        columns = [[row_id(shard, row) for row in range(3)], texts, ["own"] * 3, ["MIT"] * 3]
        run.seal_tables("seeds", shard, pa.table(columns, SEED_SCHEMA), None)
    return run


def test_the_command_prints_and_writes_what_it_finds(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("query\n" + "".join(f"{line}\n" for line in QUESTIONS), encoding="utf-8")
    options = ("duplicates", "--run-dir", run.path, "--stage", "seeds", "--near-threshold", "0.7")
    options += ("--benchmarks", tmp_path / "q.csv", "--column", "query")
    done = generation(*options)
    assert done.returncode == 0, done.stderr
    assert "| duplicate_near | 2 | 33.33% |" in done.stdout
    assert f"contaminated: 0000100000\n  {SEEDS[3]}\n  {QUESTIONS[0]}" in done.stdout
    assert f"duplicate_exact: 0000100001 (Jaccard 1.00)\n  {SEEDS[2].upper()}\n  repeats 0000000002" in done.stdout
    lines = generation(*options, "--json").stdout.splitlines()
    report = json.loads((run.path / "report" / "duplicates_seeds.json").read_text(encoding="utf-8"))
    found = report.pop("findings")
    assert [json.loads(line) for line in lines] == [report]
    assert report["counts"] == {"duplicate_exact": 1, "duplicate_near": 2, "contaminated": 1}
    assert (report["rows"], report["ngram"], report["benchmark"]["column"]) == (6, 2, "query")
    assert [(row["id"], row["reason"], row["match"]) for row in found] == [
        ("0000000001", "duplicate_near", "0000000000"),
        ("0000100000", "contaminated", QUESTIONS[0]),
        ("0000100001", "duplicate_exact", "0000000002"),
        ("0000100002", "duplicate_near", "0000000000"),
    ]
    assert list(duplicate_ids(run, "seeds", Duplicates(near_threshold=0.7))) == [
        *("0000000001", "0000100001", "0000100002")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--stage", "seeds", "--near-threshold", "1.5"),
            "options: 'near_threshold' = 1.5: Input should be less than",
        ),
        (("--stage", "seeds", "--ngram", "0"), "'ngram' = 0"),
        (("--stage", "seeds", "--benchmarks", "none.txt"), "benchmark file none.txt does not exist"),
        (("--stage", "captions"), "stage 'captions' has not been run"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(run: RunDir, options: tuple[str, ...], words: str) -> None:
    done = generation("duplicates", "--run-dir", run.path, *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (run.path / "report").exists()


def test_captions_of_a_finished_run_are_searched_too(run_copy: Path) -> None:
    done = generation("duplicates", "--run-dir", run_copy, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["stage"], report["rows"], report["ngram"], report["benchmark"]) == ("captions", 18, 3, None)
    assert (run_copy / "report" / "duplicates_captions.json").is_file()


def test_decontaminate_is_by_eight_words_and_report_unless_told() -> None:
    assert (Decontaminate(file="q.txt").ngram, Decontaminate(file="q.txt").action) == (8, "report")

"""Duplicates and contamination: what repeats is found, what differs is not, and the first in run order is kept."""

import os
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from generation.config import Captions, Recipe
from generation.dedup import drop_caption_duplicates, duplicate_groups, find_repeats
from generation.dedup import report_duplicates as report
from generation.errors import RunError, SeedError
from generation.files import write_atomically
from generation.stages import CAPTION_SCHEMA, CAPTIONS, REJECTED_SCHEMA, SEED_SCHEMA, SEEDS, row_id
from generation.store import Run, parquet, read_table

QUESTIONS = [
    "How many red boats are tied to the old wooden pier today?",
    "Is it raining?",
    "What colour is the scarf that the tall woman by the window wears?",
]
WORDLESS = ["", "!!! ... ???", "\0", "\ud800", "\u200f"]
HOSTILE = [
    *(*WORDLESS, "a\0b", "dog \udfff dog", "\u202edog\u202c", "🐕", "🐈", "👨‍👩‍👧 on a beach", "{label} {{x}} %s"),
    *("<b>dog</b>", "word " * 20_000, "x" * 100_000, "हिन्दी", "हन्द", "ﬁsh", "ẞ"),
]


def find(texts: list[str], threshold: float = 0.8, n: int = 2, kept: int = 0) -> dict[int, int]:
    return {row: match for row, (match, _) in find_repeats(texts, n, threshold, kept=kept)[0].items()}


def find_contaminated(texts: list[str], benchmark: Path) -> dict[int, str]:
    return find_repeats(texts, 2, benchmark=benchmark)[1]


def similarity(one: str, other: str, n: int) -> float:
    """Jaccard similarity of plain lower-case words, worked out without the module."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or ({tuple(words)} if words else set())

    return len(grams(one) & grams(other)) / (len(grams(one) | grams(other)) or 1)


SAME = ["A dog sleeps on the red rug.", "a DOG sleeps, on the red rug!", " A  dog\tsleeps\non the red rug. "]
SAME += ["A dog sleeps—on the “red” rug…", "A dog sleeps on the ｒｅｄ rug.", "A dog sle\u00adeps\0on the red rug."]
OTHER = ["A dog chases a man across the yard.", "A man chases a dog across the yard.", "2 + 2", "2 = 2", "dog", "dogs"]
OTHER += ["A photo of an osprey in a busy street.", "A photo of a hen in a busy street.", "हिन्दी", "हेन्दा", "", "a"]


def test_case_punctuation_and_compatibility_forms_make_no_difference_and_other_words_do() -> None:
    assert find_repeats(SAME, 2, 0.8)[0] == dict.fromkeys(range(1, len(SAME)), (0, 1.0))
    assert find(OTHER) == find([]) == find(["", ""]) == {}
    assert find([*HOSTILE, *HOSTILE]) == {row + len(HOSTILE): row for row in range(len(WORDLESS), len(HOSTILE))}


@pytest.mark.parametrize(("words", "n"), [(12, 2), (130, 3)])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_pairs_well_above_the_threshold_are_found_and_none_below_it(threshold: float, words: int, n: int) -> None:
    def pairs(changed: int) -> Iterator[str]:
        for number in range(200):
            text = [f"w{number}x{place}" for place in range(words)]
            yield " ".join(text)
            yield " ".join(text[: words - changed] + [f"{word}y" for word in text[words - changed :]])

    for changed in range(1, words, 1 if words < 100 else 12):
        texts = list(pairs(changed))
        true = similarity(texts[0], texts[1], n)
        found = find_repeats(texts, n, threshold)[0]
        assert all(match == (row - 1, true) for row, match in found.items())
        assert len(found) >= (198 if true >= threshold + 0.1 else 0)
        assert not found or true >= threshold


def test_the_first_in_run_order_is_kept_and_every_match_is_a_kept_row() -> None:
    base = [f"w{place}" for place in range(40)]
    near, nearer = " ".join(base[:-3]), " ".join(base[:-6])
    texts = [near, "other", " ".join(base), near.upper(), nearer, " ".join(base) + "!", nearer]
    assert find(texts) == {2: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # rows 2 and 4, of the same words, are not kept themselves
    assert find(["A dog.", "A dog.", "a dog", "A cat."], kept=2) == {2: 0}
    chain = [" ".join(base[: 40 - cut]) for cut in (0, 5, 10)]
    assert find(chain, kept=2) == {2: 1}


LIKE = st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), max_size=30)


@given(LIKE, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 4), st.integers(0, 5), st.randoms())
@examples(deadline=None, max_examples=60)
def test_what_is_found_is_similar_and_what_is_kept_is_apart(
    texts: list[str], threshold: float, n: int, kept: int, shuffle: random.Random
) -> None:
    found = find_repeats(texts, n, threshold, kept=kept)[0]
    for row, (match, value) in found.items():
        assert match < row >= kept and match not in found
        assert value == similarity(texts[row], texts[match], n) >= threshold
    rest = [text for row, text in enumerate(texts) if row not in found and row >= kept and text]
    assert len(set(rest)) == len(rest)
    if threshold == 1:  # found for certain: all their MinHash values agree
        assert not any(similarity(one, other, n) == 1 for one, other in combinations(rest, 2))
    other = shuffle.sample(texts, len(texts))
    left = [[text for row, text in enumerate(t) if text and row not in find(t, 1, 99)] for t in (texts, other)]
    assert sorted(left[0]) == sorted(left[1]) == sorted(set(texts) - {""})


def test_eight_words_in_a_row_or_a_whole_short_text_are_a_hit(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("\n".join(QUESTIONS) + "\n")
    hits = {
        "It says: how many RED boats are tied to the old pier": QUESTIONS[0],
        "of the scarf that the tall woman by the window: a colour": QUESTIONS[2],
        "is it raining": QUESTIONS[1],
        "The scarf that the tall woman by the window. How many red boats are tied to the": QUESTIONS[0],
    }
    others = ["how many red boats are tied to an old wooden pier", "Is it raining on the old wooden pier today?"]
    texts = [*hits, *others, "It is raining.", *HOSTILE]
    assert find_contaminated(texts, tmp_path / "q.txt") == dict(enumerate(hits.values()))


def test_a_benchmark_file_has_one_question_a_line_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("Is it\u2028raining?\r\nOr not?\n", encoding="utf-8")
    assert find_contaminated(["Is it?", "Or not", "is it raining"], tmp_path / "q.txt").keys() == {1, 2}
    os.mkfifo(tmp_path / "pipe.txt")
    for name, content in {"a.txt": b"", "b.txt": b"A?\n\nB?", "c.txt": b"\xff"}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("none.txt", "pipe.txt", "a.txt", "b.txt", "c.txt"):
        with pytest.raises(SeedError, match=rf"benchmark questions .*{name}"):
            find_contaminated(["A dog."], tmp_path / name)


BASE = " ".join(f"word{place}" for place in range(60))
SIGN = " ".join(f"sign{place}" for place in range(60))
TEXTS = [
    [BASE, "A grey heron by a pond.", f"{SIGN} how many red boats are tied to the old pier."],
    [BASE.upper(), f"{BASE} more", "A grey heron by a lake.", "A red kite over a hill."],
    ["A red kite over a hill!", "Two cats.", SIGN],  # SIGN repeats only the contaminated one
]


def caption_run(tmp_path: Path, **captions: Any) -> Run:
    recipe = Recipe(name="own", directory=tmp_path, captions=Captions(**captions))
    (tmp_path / "q.txt").write_text("\n".join(QUESTIONS) + "\n")
    run = Run(tmp_path / "run", recipe, create=True)
    for shard, texts in enumerate(TEXTS):
        rows = [{"id": row_id(shard, row), "seed": "s", "caption": text} for row, text in enumerate(texts)]
        run.commit(SEEDS, shard, len(rows), parquet(pa.Table.from_pylist(rows, SEED_SCHEMA)))
        rejected = pa.Table.from_pylist([{"id": row_id(shard, 9), "reason": "too_short"}], REJECTED_SCHEMA)
        table = pa.Table.from_pylist([row | {"input_hash": 7, "attempts": 2} for row in rows], CAPTION_SCHEMA)
        counts = {"rejected": {"too_short": 1}, "requests": 5}
        run.commit(CAPTIONS, shard, len(rows), parquet(table), rejected, {"prompt": "x"}, counts)
    run.begin(CAPTIONS)
    return run


def captions(run: Run) -> list[str]:
    return [text for shard in run.shards(CAPTIONS) for text in run.table(CAPTIONS, shard)["caption"].to_pylist()]


def test_captions_that_repeat_or_hold_a_question_are_rejected_once(tmp_path: Path) -> None:
    run = caption_run(tmp_path, drop_duplicates=0.8, drop_contaminated="q.txt")
    drop_caption_duplicates(run)
    assert captions(run) == [*TEXTS[0][:2], *TEXTS[1][2:], "Two cats.", SIGN]
    rejected = run.rejected(CAPTIONS, 1).to_pylist()
    found = [[row[key] for key in ("id", "reason", "input_hash", "attempts")] for row in rejected]
    duplicates = [["0000100000", "duplicate", 7, 2], ["0000100001", "duplicate", 7, 2]]
    assert found == [*duplicates, ["0000100009", "too_short", None, None]]
    assert rejected[0]["raw"] == f"{BASE.upper()}\n\n[duplicate: 0000000000]"
    assert run.records(CAPTIONS)[0].counts == {"rejected": {"contaminated": 1, "too_short": 1}, "requests": 5}
    assert not run.due(CAPTIONS, {"prompt": "x"})
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    drop_caption_duplicates(Run(run.path))
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    (tmp_path / "run" / "captions" / "stage.json").unlink()
    drop_caption_duplicates(run)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*.parquet")}.items() <= before.items()


@pytest.mark.parametrize("stop", range(6))
def test_a_kill_between_any_two_files_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    run, written = caption_run(tmp_path, drop_duplicates=0.8), 0

    def killed(*arguments: Any) -> Any:
        nonlocal written
        written += 1
        if written > stop:
            raise KeyboardInterrupt
        return write_atomically(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("generation.store.write_atomically", killed)
        patch.setattr("generation.files.write_atomically", killed)
        drop_caption_duplicates(run)
    for shard, texts in enumerate(TEXTS):
        files = [run.file(CAPTIONS, shard), run.file(CAPTIONS, shard, ".rejected.parquet")]
        ids = {id for file in files for id in read_table(file)["id"].to_pylist()}
        assert ids == {row_id(shard, row) for row in (*range(len(texts)), 9)}
        if Run(run.path).record(CAPTIONS, shard):
            assert len(run.table(CAPTIONS, shard)) == run.records(CAPTIONS)[shard].rows


def test_groups_and_report_name_the_first_of_each_and_nothing_changes(tmp_path: Path) -> None:
    run = caption_run(tmp_path)
    drop_caption_duplicates(run)
    assert captions(run) == [text for texts in TEXTS for text in texts]
    groups = [["0000000000", "0000100000", "0000100001"], ["0000100003", "0000200000"], ["0000000002", "0000200002"]]
    assert duplicate_groups(run) == {id: group[0] for group in groups for id in group}
    table = report(run, "captions", 0.8, tmp_path / "q.txt")
    assert "captions: 10 rows; near: similarity >= 0.8 of word 3-grams" in table
    assert "| duplicate, exact | 2 | 20.00% |\n| duplicate, near | 1 | 10.00% |\n| contaminated | 1 | 10" in table
    assert f"similarity 0.98:\n  {BASE}\n  {BASE} more" in table
    assert f"holds the benchmark question {QUESTIONS[0]!r}:\n  {TEXTS[0][2]}" in table
    for stage in ("instructions/multiple_choice", "nonsense"):
        with pytest.raises(RunError, match="name a finished stage, seeds or captions"):
            report(run, stage)

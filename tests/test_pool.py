"""Draws out of a stream: the same sample however the rows come, and one of each image."""

import tempfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation import pool as pool_module
from generation.pool import Pool, Texts

Row = tuple[str, str | None]


def sample(rows: Iterable[Row], limit: int | None = None, name: str = "own", seed: int = 0) -> tuple[set[str], Pool]:
    with tempfile.TemporaryFile() as file:
        texts = Texts(file)
        pool = Pool(texts, name, 0, seed, limit)
        for text, group in rows:
            pool.add(text, group)
        drawn = pool.drawn()
        texts.flush()
        found = [texts.of(row) for row in drawn]
        assert len(found) == len(set(found))
        return set(found), pool


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_LEAST_BLOCK", 5)


texts = st.lists(st.text(max_size=3), max_size=40)


@given(texts, st.integers(1, 12), st.randoms())
def test_a_sample_does_not_depend_on_the_order_of_the_rows(rows: list[str], limit: int, random: object) -> None:
    shuffled = rows[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    drawn, pool = sample([(text, None) for text in rows], limit)
    assert drawn == sample([(text, None) for text in shuffled], limit)[0]
    assert len(drawn) == min(limit, len(set(rows)))
    assert len(drawn) + pool.dropped.total() == len(rows)


@given(texts, st.integers(1, 11))
def test_a_higher_limit_adds_to_a_lower_one(rows: list[str], limit: int) -> None:
    grouped = [(text, None) for text in rows]
    assert sample(grouped, limit)[0] <= sample(grouped, limit + 1)[0] <= sample(grouped)[0] == set(rows)


@given(st.lists(st.tuples(st.integers(0, 500).map(str), st.sampled_from("abcdef")), max_size=40), st.integers(1, 6))
def test_one_caption_is_drawn_of_an_image(rows: list[tuple[str, str]], limit: int) -> None:
    unique = [(f"{text} of {image}", image) for text, image in rows]
    drawn, pool = sample(unique, limit)
    assert sorted(text[-1] for text in drawn) == sorted({text[-1] for text in drawn})
    assert len(drawn) == min(limit, len({image for _, image in rows}))
    assert len(drawn) + pool.dropped.total() == len(rows)
    assert drawn == sample(reversed(unique), limit)[0]


def test_an_image_of_many_captions_is_drawn_no_sooner_than_one_of_few() -> None:
    rows = [(f"few {image}", f"f{image}") for image in range(2000)]
    rows += [(f"many {image} {number}", f"m{image}") for image in range(2000) for number in range(9)]
    drawn, _ = sample(rows, 1000)
    assert 400 < sum(text.startswith("many") for text in drawn) < 600


def test_a_caption_of_two_images_is_one_seed_and_reasons_are_counted() -> None:
    rows = [("x", "1"), ("x", "1"), ("y", "1"), ("x", "2"), ("y", "2"), ("z", None)]
    drawn, pool = sample(rows)
    assert "z" in drawn
    assert set(pool.dropped) == {"repeated", "same_image"}
    assert len(drawn) + pool.dropped.total() == len(rows)


def test_texts_that_can_no_longer_be_drawn_are_not_written() -> None:
    with tempfile.TemporaryFile() as file:
        store = Texts(file)
        pool = Pool(store, "own", 0, 0, limit=10)
        for number in range(20_000):
            pool.add(f"{number:08d}")
        assert store.end < 8 * 500  # 10 (1 + ln 2000) are due, and what waits in a block

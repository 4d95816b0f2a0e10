"""Filters of open-domain captions: what each drops, by its code, and that sound captions pass them all."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from generation.config import Filters
from generation.errors import SeedError
from generation.recipe import CONFIGS
from generation.seeds import plain_words, reject
from tests.test_seeds import CASES, lines, make, source

GOOD = "A brown dog sleeps on a striped rug."
SEED_DATA = CONFIGS.parent / "seed_data"
BUNDLED = [line.strip() for name in ("captions", "captions_more") for line in (SEED_DATA / f"{name}.txt").open()]


def test_no_bundled_caption_is_dropped() -> None:
    assert {caption: reject(caption, Filters()) for caption in BUNDLED if reject(caption, Filters())} == {}


@pytest.mark.parametrize("reason", CASES["filters"])
def test_a_caption_is_dropped_for_one_reason(reason: str) -> None:
    texts = CASES["filters"][reason] + [" ".join(["a dog and"] * 21)] * (reason == "too_long")
    assert {text: reject(text, Filters()) or "none" for text in texts} == dict.fromkeys(texts, reason)


def test_bounds_language_and_blocked_words_are_the_recipe_s() -> None:
    found = [reject(GOOD, Filters(words=words)) for words in ((8, 8), (9, 60), (1, 7))]
    assert found == [None, "too_short", "too_long"]
    assert reject("Ein brauner Hund schläft auf dem Teppich", Filters(language="any")) is None
    entries = {"DOG": True, "do": False, "Striped  Rug": True, "rug striped": False}
    for entry, hit in entries.items():
        assert (reject(GOOD, Filters(), [plain_words(entry)]) == "blocked_word") is hit


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"# no\n", "no word"), (b"a\n\nb\n", "line 2 is blank")],
)
def test_a_list_of_words_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SeedError, match=words) as caught:
        make(tmp_path, [source(lines(tmp_path / "own.txt", GOOD), filters={"blocked_words": "words.txt"})])
    assert str(path) in str(caught.value)


@given(st.text())
@example("@")
@example("\ud800 ( 1-1-1-1-1-1-1-1-1")
def test_any_text_gets_a_known_reason_or_none(text: str) -> None:
    plain = " ".join(text.split())
    assert (reject(plain, Filters()) or "link").replace("_", "").isalpha()


@given(st.sampled_from(BUNDLED), st.sampled_from(["https://a.example", "x@y.example", "<br>", "+1 (212) 555 01 23"]))
def test_one_piece_of_dirt_anywhere_drops_a_caption(caption: str, dirt: str) -> None:
    for place in (0, caption.index(" ") + 1, len(caption)):
        assert reject(f"{caption[:place]} {dirt} {caption[place:]}".strip(), Filters())


@given(st.integers(1900, 2099), st.integers(1, 12), st.integers(1, 28))
def test_a_date_is_not_a_telephone_number(year: int, month: int, day: int) -> None:
    for date in (f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}", f"{day:02}/{month:02}/{year}"):
        assert reject(f"The yearly summer fair of {date} in the little village", Filters()) is None

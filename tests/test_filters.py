"""Filters of open-domain captions: what each drops, by its code, and that sound captions pass them all."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from generation.config import CONFIGS, Filters
from generation.errors import SeedError
from generation.filters import REASONS, BlockedWords, latin_share, likeness, personal, read_blocked_words, reject

SEED_DATA = CONFIGS.parent / "seed_data"
GOOD = "A brown dog sleeps on a striped rug."


def bundled() -> list[str]:
    files = (SEED_DATA / "captions.txt", SEED_DATA / "captions_more.txt")
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_bundled_caption_is_dropped_and_they_are_a_thousand_and_distinct() -> None:
    captions = bundled()
    assert len(captions) == len({caption.casefold() for caption in captions}) >= 1000
    assert {caption: reject(caption, Filters()) for caption in captions if reject(caption, Filters())} == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("red sports car outside a villa", None),
        ("Sunset Over The Lake", None),
        ("Cafés line a street in São Paulo near the Praça da Sé.", None),
        ("Boats in the bay at Rio de Janeiro", None),
        ("Summer fair in the village, 12 May 2010", None),
        ("A man reads news on a www page", None),
        ("Fruit for sale under a banner with the logo of a bank", None),
        ("A chair stands against striped wallpaper by a picture by the window", None),
        ("A sign posted on a wall beside a brass tap on a sink", None),
        ("", "empty"),
        ("Brown dog asleep", "too_short"),
        (" ".join(["a dog and"] * 21), "too_long"),
        ("Pictures of a dog at www.example.com", "link"),
        ("Pictures of a dog from https://example.org/a", "link"),
        ("Dogs of the world, see dogs-and-cats.net", "link"),
        ("A dog on a <b>striped</b> rug", "markup"),
        ("Dogs &amp; cats on a striped rug", "markup"),
        ("A dog on a [url=x]striped[/url] rug", "markup"),
        ("Write to me@example.org about the dog", "personal"),
        ("A brown dog by @dogphotos on a rug", "personal"),
        ("Call +44 20 7946 0958 for a brown dog", "personal"),
        ("Call 555-0199 for a brown dog", "personal"),
        ("A brown dog on a rug - stock photo", "boilerplate"),
        ("A brown dog on a rug, royalty-free", "boilerplate"),
        ("Click here to see a brown dog", "boilerplate"),
        ("Image may contain a brown dog and a rug", "boilerplate"),
        ("A brown dog on a rug IMG_2041", "boilerplate"),
        ("A brown dog on a rug 1920x1080", "boilerplate"),
        ("A brown dog on a rug | The Dog Blog", "boilerplate"),
        ("Коричневая собака спит на полосатом коврике", "alphabet"),
        ("棕色的狗 睡在 条纹 地毯 上面", "alphabet"),
        ("12 34 a 56 78 b", "alphabet"),
        ("Ein brauner Hund schläft auf dem Teppich", "language"),
        ("Un chien brun dort sur le tapis", "language"),
        ("El perro duerme en la alfombra", "language"),
        ("Il cane dorme sul tappeto della nonna", "language"),
        ("O cachorro dorme com uma bola no tapete", "language"),
        ("Een bruine hond slaapt op het tapijt", "language"),
        ("dog, rug, brown, sleep, stripes, home", "unlike_caption"),
        ("BROWN DOG DOG DOG SLEEP DOG", "unlike_caption"),
        ("Canon Camera Mark III Lens 18-55mm Kit", "unlike_caption"),
    ],
)
def test_a_caption_is_dropped_for_one_reason(text: str, reason: str | None) -> None:
    assert reject(text, Filters()) == reason


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        (Filters(min_words=8), GOOD, None),
        (Filters(min_words=9), GOOD, "too_short"),
        (Filters(max_words=7), GOOD, "too_long"),
        (Filters(min_likeness=0.9), "a red sports car outside", None),
        (Filters(min_likeness=0.9), "red sports car, villa", "unlike_caption"),
        (Filters(language="any"), "Ein brauner Hund schläft auf dem Teppich", None),
        (Filters(min_letters=0.0, min_likeness=0.0), "собака спит на коврике", None),
    ],
)
def test_bounds_are_the_recipe_s(settings: Filters, text: str, reason: str | None) -> None:
    assert reject(text, settings) == reason


@pytest.mark.parametrize(
    ("entry", "hit"), [("DOG", True), ("do", False), ("striped rug", True), ("rug striped", False), ("# dog", False)]
)
def test_blocked_words_and_phrases_are_whole_words(entry: str, hit: bool) -> None:
    assert (reject(GOOD, Filters(), BlockedWords([entry, ""])) == "blocked_word") is hit


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"# no\n", "no word")]
)
def test_a_list_of_words_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SeedError, match=words) as caught:
        read_blocked_words(path)
    assert str(path) in str(caught.value)


@given(st.text())
@example("@")
@example("\ud800 ( 1-1-1-1-1-1-1-1-1")
def test_any_text_gets_a_known_reason_or_none(text: str) -> None:
    plain = " ".join(text.split())
    assert reject(plain, Filters()) in (None, *REASONS)
    assert 0 <= likeness(plain) <= 1
    assert 0 <= latin_share(plain) <= 1


@given(st.sampled_from(bundled()), st.sampled_from(["https://a.example", "x@y.example", "<br>", "+1 (212) 555 01 23"]))
def test_one_piece_of_dirt_anywhere_drops_a_caption(caption: str, dirt: str) -> None:
    for place in (0, caption.index(" ") + 1, len(caption)):
        assert reject(f"{caption[:place]} {dirt} {caption[place:]}".strip(), Filters())


@given(st.integers(1900, 2099), st.integers(1, 12), st.integers(1, 28))
def test_a_date_is_no_telephone_number(year: int, month: int, day: int) -> None:
    for date in (f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}", f"{day:02}/{month:02}/{year}"):
        assert not personal(f"The fair of {date} in the village")

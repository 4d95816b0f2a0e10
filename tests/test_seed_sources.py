"""Open-domain sources: filters, one caption an image, and the account of what became of every caption."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generation.config import CONFIGS
from generation.errors import RecipeError, SeedError
from generation.recipe import load_recipe
from generation.rundir import RunDir
from generation.seeds import make_seeds
from tests.test_seeds import lines, make, rows, source, texts

SCENES = ("dog sleeps on a rug", "cat looks out of a window", "boy waits for the bus", "horse stands in the rain")


def account(run: RunDir, name: str = "own") -> dict[str, Any]:
    found: dict[str, Any] = run.stage("seeds")["sources"][name]
    return found


def images(path: Path, count: int) -> Path:
    """A table of ``count`` images with four captions each."""
    captions = [f"In picture {image}, a {scene}." for image in range(count) for scene in SCENES]
    table = {"caption": captions, "image": [image for image in range(count) for _ in SCENES]}
    pq.write_table(pa.table(table), path)
    return path


def test_filters_drop_by_reason_and_every_caption_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    captions = [
        "A brown dog sleeps on a rug.",
        "A brown dog sleeps on  a rug.",
        "A dog",
        None,
        "  ",
        "A cat on www.x.com",
    ]
    captions += [
        "A brown dog sleeps on a rug today.",
        "A grey cat looks out of the window.",
        "A slur on a wall of bricks",
    ]
    lines(path, *(json.dumps({"text": caption}) for caption in captions))
    (tmp_path / "words.txt").write_text("slur\n")
    own = source(path, filters={"blocked_words": "words.txt"})
    run = make(tmp_path, [own], duplicates={"action": "drop", "near_threshold": 0.7})
    dropped = {"too_short": 1, "empty": 2, "link": 1, "blocked_word": 1, "repeated": 1, "duplicate_near": 1}
    assert account(run)["dropped"] == dropped
    assert (account(run)["read"], account(run)["seeds"]) == (9, 2)
    assert account(run)["seeds"] + sum(dropped.values()) == len(captions)
    assert "own: 2 seeds of 9 captions; dropped: 1 blocked_word, 1 duplicate_near, 2 empty" in capsys.readouterr().out


def test_a_list_of_blocked_words_is_part_of_what_a_run_was_begun_with(tmp_path: Path) -> None:
    own = source(lines(tmp_path / "own.txt", "A brown dog sleeps on a rug."), filters={"blocked_words": "words.txt"})
    with pytest.raises(SeedError, match=r"words\.txt does not exist"):
        make(tmp_path, [own])
    (tmp_path / "words.txt").write_text("slur\n")
    make(tmp_path, [own])
    (tmp_path / "words.txt").write_text("dog\n")
    with pytest.raises(Exception, match=r"sha256\.own\.blocked_words"):
        make(tmp_path, [own])


def test_one_caption_of_each_image_is_drawn_whether_grouped_or_listed(tmp_path: Path) -> None:
    grouped = source(images(tmp_path / "images.parquet", 30), column="caption", group_column="image")
    made = texts(make(tmp_path / "a", [grouped]))
    assert sorted(text.split(",")[0] for text in made) == sorted(f"In picture {image}" for image in range(30))
    assert len({text.split(", ")[1] for text in made}) == len(SCENES)  # any of the four
    table = pa.table({"set": [[f"In picture {image}, a {scene}." for scene in SCENES] for image in range(30)]})
    pq.write_table(table, tmp_path / "lists.parquet")
    run = make(tmp_path / "b", [source(tmp_path / "lists.parquet", column="set", limit=20)])
    assert len({text.split(",")[0] for text in texts(run)}) == len(texts(run)) == 20
    assert (account(run)["read"], sum(account(run)["dropped"].values())) == (120, 100)


def test_another_source_moves_no_draw_of_a_grouped_and_filtered_one(tmp_path: Path) -> None:
    grouped = source(
        images(tmp_path / "images.parquet", 40), column="caption", group_column="image", limit=15, filters={}
    )
    other = source(lines(tmp_path / "other.txt", "A cat."), "other")
    assert texts(make(tmp_path / "a", [grouped])) == texts(make(tmp_path / "b", [other, grouped]))


def test_an_extension_counts_what_the_run_held(tmp_path: Path) -> None:
    own = source(lines(tmp_path / "own.txt", "A dog.", "A cat."))
    make(tmp_path, [own])
    lines(tmp_path / "own.txt", "A dog.", "A cat.", "A hen.")
    run = make(tmp_path, [own], extend=True)
    assert (account(run)["seeds"], account(run)["dropped"]) == (1, {"held": 2})
    assert sorted(texts(run)) == ["A cat.", "A dog.", "A hen."]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_column": "picture"}, "has no column 'picture'; its columns: caption, image"),
        ({"column": "alt", "filters": {}}, "has no column 'alt'; its columns: caption, image"),
        ({"column": "image"}, "row 0: column 'image' holds 0, no caption; mend it, or give the source filters"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = images(tmp_path / "images.parquet", 3)
    with pytest.raises(SeedError) as caught:
        make(tmp_path, [source(path, **({"column": "caption"} | options))])
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filters": {"min_words": 9, "max_words": 8}}, "the filters of 'own' have min_words 9 > max_words 8"),
        ({"filters": {"min_word": 9}}, "nearest known: 'seeds.captions.0.filters.min_words'"),
        ({"filters": {"language": "de"}}, "'seeds.captions.0.filters.language' = 'de'"),
        ({"license": ""}, "'seeds.captions.0.license' = ''"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make(tmp_path, [source(lines(tmp_path / "own.txt", "A dog."), **options)])
    assert words in str(caught.value)


def test_the_full_recipe_says_what_to_do_about_its_placeholders_before_anything_is_made(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", create=True)
    with pytest.raises(SeedError) as caught:
        make_seeds(run, load_recipe(CONFIGS / "unicorn_1_2m.yaml"))
    assert "seed source 'coco': revision 'COMMIT' is no commit" in str(caught.value)
    assert "embedding-data/coco_captions_quintets" in str(caught.value)
    assert list(run.path.iterdir()) == []


def test_the_caps_of_the_full_recipe_reach_the_paper_s_count() -> None:
    seeds = load_recipe(CONFIGS / "unicorn_1_2m.yaml").seeds
    assert 1_130_000 <= sum(hub.limit or 0 for hub in seeds.hub) <= 1_145_000
    assert all(hub.license and hub.filters for hub in seeds.hub)


def test_ids_are_still_in_a_drawn_order_over_all_sources(tmp_path: Path) -> None:
    one = source(images(tmp_path / "images.parquet", 30), column="caption")
    other = source(lines(tmp_path / "other.txt", *(f"A hen numbered {number}." for number in range(100))), "other")
    found = [row["source"] for row in rows(make(tmp_path, [one, other]))]
    assert found.count("own") == 120
    assert 30 < found[:110].count("own") < 90

"""Seeds: every choice is a hash of its own text, a run is extended without moving a row, and a kill loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from generation.errors import RecipeError, RunError, SeedError, StageFailed
from generation.recipe import CONFIGS, load_recipe
from generation.seeds import Sample, make_seeds
from generation.seeds.sources import read_domain
from generation.stages import SEEDS, row_id
from generation.store import Run

SEED_DATA = CONFIGS.parent / "seed_data"
CASES = yaml.safe_load(Path(__file__).with_name("seed_cases.yaml").read_text(encoding="utf-8"))


def source(path: Path | str, name: str = "own", **options: Any) -> dict[str, Any]:
    return {"name": name, "path": str(path), "license": "MIT", **options}


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def numbered(path: Path, noun: str, count: int) -> Path:
    return lines(path, *(f"A {noun} numbered {number}." for number in range(count)))


def domain(path: Path, **changes: Any) -> Path:
    data = {"domain": "birds", "license": "MIT", "source": "made up", "labels": ["osprey", "unicorn finch", "hen"]}
    data |= {"templates": ["A photo of {a_label}.", "Two {labels} sit.", "One {label} sits."]}
    return lines(path, yaml.safe_dump(data | changes))


def recipe_file(folder: Path, captions: Any = (), random_seed: int = 0, **seeds: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data = {"name": "small", "random_seed": random_seed, "seeds": seeds | {"captions": list(captions)}}
    return lines(folder / "recipe.yaml", yaml.safe_dump(data))


def make(folder: Path, captions: Any = (), extend: bool = False, **options: Any) -> Run:
    """Make the seeds of a recipe in ``folder/run``, opened anew."""
    recipe = load_recipe(recipe_file(folder, captions, **options))
    run = Run(folder / "run", recipe, create=True, extend=extend)
    make_seeds(run, extend)
    return run


def rows(run: Run) -> list[dict[str, str]]:
    return [row for shard in run.shards(SEEDS) for row in run.table(SEEDS, shard).to_pylist()]


def texts(run: Run, name: str = "own") -> list[str]:
    return [row["seed"] for row in rows(run) if row["source"] == name]


def shards(run: Run, pattern: str = "0*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.path / "seeds").glob(pattern))}


def account(run: Run, name: str = "own") -> Any:
    return run.facts(SEEDS)["sources"][name]


def test_ids_are_shard_and_row_and_the_stage_says_what_it_read(tmp_path: Path, capsys: Any) -> None:
    own = [source(numbered(tmp_path / "own.txt", "dog", 10))]
    run = make(tmp_path, own, shard_rows=4)
    assert [record.rows for record in run.records(SEEDS).values()] == [4, 4, 2]
    assert [row["id"] for row in rows(run)] == [row_id(number // 4, number % 4) for number in range(10)]
    assert {(row["source"], row["license"]) for row in rows(run)} == {("own", "MIT")}
    assert account(run) == {"license": "MIT", "read": 10, "seeds": 10, "dropped": {}}
    assert capsys.readouterr().out.split() == ["source", "captions", "seeds", "dropped", "own", "10", "10", "none"]
    same, other = make(tmp_path / "b", own, shard_rows=4), make(tmp_path / "c", own, random_seed=2)
    assert shards(same) == shards(run)
    assert texts(other) != texts(run) != sorted(texts(run))
    assert set(texts(other)) == set(texts(run))


def test_another_source_or_a_higher_limit_moves_no_draw(tmp_path: Path) -> None:
    dogs = source(numbered(tmp_path / "dogs.txt", "dog", 40), "dogs", limit=9)
    cats = source(numbered(tmp_path / "cats.txt", "cat", 15), "cats")
    birds = {"files": [str(domain(tmp_path / "birds.yaml"))], "templates_per_label": 2}
    alone = make(tmp_path / "a", [dogs])
    both = make(tmp_path / "b", [cats, dogs], domains=birds, shard_rows=5)
    higher = make(tmp_path / "c", [dogs | {"limit": 10}])
    numbers = [int(text.split()[-1].rstrip(".")) for text in texts(alone, "dogs")]
    assert len(numbers) == 9 and max(numbers) > 9  # drawn, and not the first ones
    assert texts(both, "dogs") == texts(alone, "dogs")
    assert set(texts(alone, "dogs")) < set(texts(higher, "dogs"))
    assert account(alone, "dogs")["dropped"] == account(both, "dogs")["dropped"] == {"over_limit": 31}
    assert len({row["source"] for row in rows(both)[:10]}) > 1


def test_no_more_than_twice_the_limit_is_held_whatever_the_order(tmp_path: Path) -> None:
    rows = [(f"Picture {number % 300} shows scene {number % 7}.", str(number % 300)) for number in range(2000)]
    drawn = []
    for order, limit in ((rows, None), (rows, 20), (rows[::-1], 20), (sorted(rows), 20)):
        sample, held = Sample("own", 0, [], limit), 0
        for row in order:
            sample.add(*row)
            held = max(held, len(sample._found))
        drawn.append(sample.texts())
        assert held <= 2 * (limit or 150) and sample.dropped.total() == len(rows) - len(drawn[-1])
    assert drawn[1:] == [drawn[0][:20]] * 3


def test_one_caption_an_image_is_drawn_and_repeats_do_not_count(tmp_path: Path) -> None:
    table = [f"Picture {image} shows scene {scene}.,{image}" for image in range(20) for scene in "abcd"]
    path = lines(tmp_path / "a.csv", "caption,image", *table)
    run = make(tmp_path / "a", [source(path, column="caption", group_column="image")])
    assert sorted(text.split()[1] for text in texts(run)) == sorted(map(str, range(20)))
    assert len({text.split()[-1] for text in texts(run)}) == 4  # any of the four
    assert account(run)["dropped"] == {"same_image": 60}
    path = lines(tmp_path / "b.txt", "X ray.", " X  ray. ", "X ray.", "Y fork.", "Z bend.")
    run = make(tmp_path / "b", [source(path, limit=2), source(lines(tmp_path / "c.txt", "X ray."), "other")])
    assert (len(texts(run)), texts(run, "other")) == (2, ["X ray."])


def test_captions_are_dropped_by_reason_and_all_are_accounted_for(tmp_path: Path) -> None:
    captions = ["A brown dog sleeps on a rug.", "A brown dog sleeps on  a rug.", "A dog", "", "A cat on www.x.com"]
    captions += ["A brown dog sleeps on a rug today.", "A grey cat looks out of the window.", "A slur on a red wall"]
    held = "A sign at the harbour wall of the little town asks how many red boats are tied to the old pier"
    captions += [held, held.replace(" to the old", " at the old"), "A bell \x07 in a wooden tower"]
    lines(tmp_path / "words.txt", "# words", "slur")
    lines(tmp_path / "questions.txt", "Say: how many red boats are tied to the old pier today?")
    own = source(lines(tmp_path / "own.txt", *captions), filters={"blocked_words": "words.txt"})
    run = make(tmp_path, [own], drop_duplicates=0.7, drop_contaminated="questions.txt")
    reasons = "blocked_word contaminated control_character duplicate empty link repeated too_short"
    assert account(run)["dropped"] == dict.fromkeys(reasons.split(), 1)
    assert (account(run)["read"], account(run)["seeds"]) == (11, 3)
    lines(tmp_path / "words.txt", "# words", "brown")
    with pytest.raises(RunError, match=r"sha256\.words\.txt"):
        make_seeds(Run(tmp_path / "run"))


def test_no_seed_at_all_is_a_failure_that_names_the_reasons_and_leaves_the_recipe_free(tmp_path: Path) -> None:
    own = source(lines(tmp_path / "own.txt", "Red dog", "Blue cat"), filters={})
    with pytest.raises(StageFailed, match="own: 2 too_short"):
        make(tmp_path, [own])
    assert texts(make(tmp_path, [own | {"filters": {"words": [1, 9]}}]))
    with pytest.raises(StageFailed, match="there is no source"):
        make(tmp_path / "none")


def test_labels_get_their_articles_and_plurals_and_patterns_match_in_any_directory(tmp_path: Path) -> None:
    folder = tmp_path / "recipes [v2]*"
    folder.mkdir()
    domain(folder / "birds.yaml")
    made = texts(make(folder, domains={"files": ["*birds.yaml"]}), "domain_birds")
    forms = [("an osprey", "ospreys"), ("a unicorn finch", "unicorn finches"), ("a hen", "hens")]
    expected = {text for one, many in forms for text in (f"A photo of {one}.", f"Two {many} sit.")}
    assert set(made) == expected | {f"One {one.partition(' ')[2]} sits." for one, _ in forms}
    wanted = {"files": ["../birds.yaml"], "labels_per_domain": 2, "templates_per_label": 1}
    assert len(texts(make(folder / "a", domains=wanted), "domain_birds")) == 2
    with pytest.raises(SeedError, match="nothing matches"):
        make(folder / "b", domains={"files": ["none-*.yaml"]})
    with pytest.raises(SeedError, match="several sources of seeds are named domain_birds"):
        make(folder / "c", domains={"files": ["../b*.yaml", "../birds.yaml"]})


@pytest.mark.parametrize(("changes", "words"), CASES["domains"])
def test_a_domain_file_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = domain(tmp_path / "birds.yaml", **changes)
    with pytest.raises((RecipeError, SeedError)) as caught:
        make(tmp_path, domains={"files": [path.name]})
    assert f"domain file {path}" in str(caught.value)
    assert words in str(caught.value)


def test_the_bundled_seeds_are_distinct() -> None:
    captions = [line for name in ("captions.txt", "captions_more.txt") for line in (SEED_DATA / name).open()]
    assert len(captions) == len({caption.casefold() for caption in captions}) >= 1000
    found = [read_domain(path) for path in SEED_DATA.glob("domains*/*.yaml")]
    assert len(found) >= 40
    assert all(len(set(read.templates)) == len(read.templates) >= 10 for read in found)
    assert all(len(set(read.labels or ())) == len(read.labels or ()) for read in found)


def test_a_finished_stage_is_left_alone_even_if_its_files_are_gone(tmp_path: Path) -> None:
    kept = source(numbered(tmp_path / "kept.txt", "cat", 3), "kept")
    own = source(numbered(tmp_path / "own.txt", "dog", 3))
    run = make(tmp_path, [kept, own], shard_rows=4)
    before = shards(run, "*")
    make(tmp_path, [kept, own], shard_rows=4)
    (tmp_path / "kept.txt").unlink()
    make(tmp_path, [kept, own], shard_rows=4)
    assert shards(run, "*") == before
    numbered(tmp_path / "own.txt", "dog", 4)
    with pytest.raises(RunError, match=r"own\.txt: '\w{64}' -> '\w{64}'\. Restore them"):
        make(tmp_path, [kept, own], shard_rows=4)
    with run.claim(SEEDS), pytest.raises(RunError, match="another process"):
        make(tmp_path, [kept, own], shard_rows=4)


def test_an_extension_appends_only_new_seeds_in_new_shards(tmp_path: Path) -> None:
    own = source(numbered(tmp_path / "own.txt", "dog", 5))
    old = make(tmp_path, [own], shard_rows=4)
    kept, held = shards(old), texts(old)
    numbered(tmp_path / "own.txt", "dog", 8)
    more = source(lines(tmp_path / "more.txt", "A cat.", "A hen."), "more")
    new = make(tmp_path, [own, more], shard_rows=4, extend=True)
    assert kept.items() <= shards(new).items()
    assert (new.shards(SEEDS), texts(new)[:5]) == ([0, 1, 2, 3], held)
    assert sorted(texts(new)) == [f"A dog numbered {number}." for number in range(8)]
    assert [row["id"] for row in rows(new)[5:]] == [row_id(2 + number // 4, number % 4) for number in range(5)]
    assert (account(new)["read"], account(new)["seeds"]) == (8, 8)
    same = make(tmp_path, [more], shard_rows=4, extend=True)
    assert shards(same) == shards(new)
    assert set(same.facts(SEEDS)["sources"]) == {"own", "more"}


def test_an_extension_repeats_nothing_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    good = source(lines(tmp_path / "good.txt", "A brown dog sleeps on a rug.", "A brown dog sleeps on a rug today."))
    run = make(tmp_path, [good])
    before = shards(run, "*")
    with pytest.raises(SeedError):
        make(tmp_path, [good, source(lines(tmp_path / "bad.txt", ""), "bad")], drop_duplicates=0.7, extend=True)
    assert shards(run, "*") == before
    more = source(lines(tmp_path / "more.txt", "A brown dog sleeps on a rug now.", "Two boats."), "more")
    run = make(tmp_path, [good, more], drop_duplicates=0.7, extend=True)
    assert (texts(run, "more"), account(run, "more")["dropped"]) == (["Two boats."], {"duplicate": 1})
    assert len(texts(run)) == 2  # the run's own seeds stay, though one repeats the other


def interrupted(shard: int, folder: Path, *arguments: Any, **options: Any) -> None:
    """Make seeds, and fail at a shard."""
    in_the_way = folder / "run" / "seeds" / f"{shard:05d}.parquet"
    in_the_way.mkdir(parents=True)
    with pytest.raises(RunError, match="cannot write"):
        make(folder, *arguments, **options)
    in_the_way.rmdir()


@pytest.mark.parametrize("again", [False, True])
def test_what_was_interrupted_ends_like_what_was_not(tmp_path: Path, again: bool) -> None:
    own = source(numbered(tmp_path / "own.txt", "dog", 7))
    more = source(numbered(tmp_path / "more.txt", "cat", 6), "more")
    whole = make(tmp_path / "whole", [own], shard_rows=4)
    interrupted(1, tmp_path / "stopped", [own], shard_rows=4)
    assert shards(make(tmp_path / "stopped", [own], shard_rows=4)).keys() == shards(whole).keys()
    make(tmp_path / "whole", [own, more], shard_rows=4, extend=True)
    interrupted(3, tmp_path / "stopped", [own, more], shard_rows=4, extend=True)
    resumed = make(tmp_path / "stopped", [own, more], shard_rows=4, extend=again)
    assert shards(resumed) == shards(whole)
    assert resumed.facts(SEEDS)["finished"] is True


def test_shards_of_an_interrupted_extension_do_not_outlive_it(tmp_path: Path) -> None:
    first, many = (
        source(numbered(tmp_path / "a.txt", "dog", 2)),
        source(numbered(tmp_path / "b.txt", "cat", 6), "more"),
    )
    make(tmp_path, [first], shard_rows=2)
    interrupted(3, tmp_path, [first, many], shard_rows=2, extend=True)
    few = source(numbered(tmp_path / "few.txt", "owl", 2), "more")
    run = make(tmp_path, [first, few], extend=True, shard_rows=2)
    assert run.shards(SEEDS) == [0, 1]
    assert all("owl" in text for text in texts(run, "more"))


def test_a_kill_at_any_time_is_resumed(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, [source(numbered(tmp_path / "own.txt", "dog", 240))], shard_rows=4)
    place = ["--config", str(path), "--run-dir", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "generation", "seeds", *place]
    for shard in (2, 30):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (tmp_path / "killed" / "seeds" / f"{shard:05d}.json").exists() and child.poll() is None:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with pytest.raises(RunError, match="'seeds' is not complete"):
        Run(tmp_path / "killed").require(SEEDS)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = make(tmp_path, [source(tmp_path / "own.txt")], shard_rows=4)
    assert shards(Run(tmp_path / "killed")) == shards(whole)


def test_a_lost_shard_is_made_again_unless_the_run_was_extended_since(tmp_path: Path) -> None:
    own = source(numbered(tmp_path / "own.txt", "dog", 7))
    run = make(tmp_path, [own], shard_rows=3)
    before = shards(run)
    for file in ("00001.json", "00001.parquet", "00002.json"):
        (run.path / "seeds" / file).unlink()
    assert shards(make(tmp_path, [own], shard_rows=3)) == before
    more = source(lines(tmp_path / "more.txt", "A cat."), "more")
    make(tmp_path, [own, more], shard_rows=3, extend=True)
    (run.path / "seeds" / "00003.json").unlink()
    assert shards(make(tmp_path, [own, more], shard_rows=3)).keys() > before.keys()
    (run.path / "seeds" / "00001.json").unlink()
    with pytest.raises(RunError, match=r"00001\.parquet is missing, and cannot be made again"):
        make(tmp_path, [own, more], shard_rows=3)


def test_the_full_recipe_names_its_placeholders_and_reaches_the_paper_s_count(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"seeds\.hub\.0\.revision = \"COMMIT\": give the commit"):
        load_recipe(CONFIGS / "unicorn_1_2m.yaml")
    text = (CONFIGS / "unicorn_1_2m.yaml").read_text().replace("revision: COMMIT", f"revision: {'a' * 40}")
    (tmp_path / "full.yaml").write_text(text)
    hub = load_recipe(tmp_path / "full.yaml").seeds.hub
    assert 1_130_000 <= sum(source.limit or 0 for source in hub) <= 1_145_000
    assert all(source.license and source.filters for source in hub)


def test_a_data_set_of_the_hub_is_streamed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` reads a Parquet file here as it would read those of the Hub."""
    import datasets

    load = datasets.load_dataset
    images = [[f"Picture {image} shows scene {scene}." for scene in "abc"] for image in range(30)]
    pq.write_table(pa.table({"set": images, "n": list(range(30))}), tmp_path / "data.parquet")
    asked = []

    def from_disk(name: str, config: str | None, split: str, revision: str, streaming: bool) -> Any:
        asked.append((name, config, split, revision, streaming))
        if split != "train":
            raise ConnectionError("no such split")
        return load("parquet", data_files=str(tmp_path / "data.parquet"), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    hub = source("", "coco", dataset="user/coco", revision="a" * 40, column="set", limit=20)
    del hub["path"]
    run = make(tmp_path / "a", hub=[hub])
    assert asked == [("user/coco", None, "train", "a" * 40, True)]
    assert len({text.split()[1] for text in texts(run, "coco")}) == len(texts(run, "coco")) == 20
    found = account(run, "coco")
    assert (found["read"], found["dropped"]) == (90, {"over_limit": 10, "same_image": 60})
    assert (found["dataset"], found["config"], found["split"], found["revision"]) == asked[0][:4]
    for changes, words in (({"split": "test"}, "no such split"), ({"column": "text"}, "its columns: set, n")):
        with pytest.raises(SeedError) as caught:
            make(tmp_path / "b", hub=[hub | changes])
        assert "seed source 'coco': data set user/coco (config None, split" in str(caught.value)
        assert words in str(caught.value)

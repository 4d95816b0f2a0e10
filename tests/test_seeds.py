"""Seeds: every source is read, every choice is a draw of its own, and a run is extended without moving a byte."""

import csv
import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from generation.config import CONFIGS, TASKS
from generation.domains import read_domain
from generation.errors import RecipeError, RunError, SeedError
from generation.recipe import load_recipe
from generation.records import row_id
from generation.rundir import RunDir
from generation.seeds import make_seeds

SEED_DATA = CONFIGS.parent / "seed_data"
TEXTS = ["A dog, asleep on a rug.", 'A "café" at dusk.', "Two\tred boats."]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise socket.gaierror("these tests need no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def source(path: Path, name: str = "own", **options: Any) -> dict[str, Any]:
    return {"name": name, "path": str(path), "license": "MIT", **options}


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def numbered(path: Path, noun: str, count: int) -> Path:
    return lines(path, *(f"A {noun} numbered {number}." for number in range(count)))


def domain(path: Path, **changes: Any) -> Path:
    data = {"domain": "birds", "license": "MIT", "source": "made up", "labels": ["osprey", "unicorn finch", "hen"]}
    data |= {"templates": ["A photo of {a_label}.", "Two {labels} sit.", "One {label} sits."]}
    path.write_text(yaml.safe_dump(data | changes), encoding="utf-8")
    return path


def make(
    folder: Path, captions: Any = (), domains: Any = None, extend: bool = False, random_seed: int = 0, **seeds: Any
) -> RunDir:
    """Makes the seeds of a recipe in ``folder/run``, opened anew."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    seeds |= {"captions": list(captions), "domains": domains}
    data = {"name": "small", "random_seed": random_seed, "seeds": seeds}
    data |= {"instructions": {task: {"prompt": task, "fraction": 0.5} for task in TASKS}}
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    run = RunDir(folder / "run", create=True)
    make_seeds(run, load_recipe(recipe), extend)
    return run


def rows(run: RunDir) -> list[dict[str, str]]:
    return [row for shard in run.sealed("seeds") for row in run.table("seeds", shard).to_pylist()]


def texts(run: RunDir, name: str = "own") -> list[str]:
    return [row["seed"] for row in rows(run) if row["source"] == name]


def shards(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.path / "seeds").iterdir())}


def test_the_bundled_seeds_are_many_and_distinct() -> None:
    captions = (SEED_DATA / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert len(captions) == len({caption.casefold() for caption in captions}) >= 200
    found = [read_domain(path) for path in (SEED_DATA / "domains").glob("*.yaml")]
    assert len(found) == len({read.domain for read in found}) >= 6
    assert all(len(set(read.templates)) == len(read.templates) >= 12 for read in found)
    assert all(len(set(read.labels or ())) == len(read.labels or ()) for read in found)


def write_table(path: Path) -> None:
    table = pa.table({"n": [1, 2, 3], "text": TEXTS})
    if path.suffix == ".txt":
        lines(path, *TEXTS)
    elif path.suffix == ".jsonl":
        lines(path, *map(json.dumps, table.to_pylist()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(table.to_pylist()), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([table.column_names, *(row.values() for row in table.to_pylist())])


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_is_read_with_its_license(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"own{suffix}")
    run = make(tmp_path, [source(tmp_path / f"own{suffix}")])
    assert sorted(texts(run)) == sorted(" ".join(text.split()) for text in TEXTS)
    assert {(row["source"], row["license"]) for row in rows(run)} == {("own", "MIT")}
    assert run.stage("seeds")["sources"] == {"own": {"license": "MIT", "read": 3, "seeds": 3, "dropped": {}}}


def test_a_path_is_relative_to_the_recipe_and_a_column_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "own.csv", "text,alt", "no,A dog.", "no,A cat.")
    assert set(texts(make(tmp_path, [source(Path("data/own.csv"), column="alt")]))) == {"A dog.", "A cat."}


def test_an_id_is_shard_and_row(tmp_path: Path) -> None:
    run = make(tmp_path, [source(numbered(tmp_path / "own.txt", "dog", 10))], shard_rows=4)
    assert [run.record("seeds", shard)["rows"] for shard in run.sealed("seeds")] == [4, 4, 2]
    assert [row["id"] for row in rows(run)] == [row_id(number // 4, number % 4) for number in range(10)]
    assert run.stage("seeds")["complete"] is True


def test_the_same_recipe_gives_the_same_bytes_and_another_random_seed_another_order(tmp_path: Path) -> None:
    own = [source(numbered(tmp_path / "own.txt", "dog", 12))]
    first, second = (make(tmp_path / name, own, random_seed=1) for name in "ab")
    other = make(tmp_path / "c", own, random_seed=2)
    assert shards(first) == shards(second)
    assert texts(other) != texts(first)
    assert set(texts(other)) == set(texts(first))
    assert texts(first) != sorted(texts(first))


def test_another_source_changes_neither_what_is_drawn_nor_its_order(tmp_path: Path) -> None:
    dogs = source(numbered(tmp_path / "dogs.txt", "dog", 40), "dogs", limit=9)
    cats = source(numbered(tmp_path / "cats.txt", "cat", 15), "cats")
    birds = {"files": [str(domain(tmp_path / "birds.yaml"))], "templates_per_label": 2}
    alone = make(tmp_path / "a", [dogs])
    both = make(tmp_path / "b", [cats, dogs], birds, shard_rows=5)
    assert len(texts(alone, "dogs")) == 9
    assert texts(both, "dogs") == texts(alone, "dogs")
    assert texts(both, "cats") == texts(make(tmp_path / "c", [cats]), "cats")
    assert len({row["source"] for row in rows(both)[:10]}) > 1


def test_a_higher_limit_adds_to_what_a_lower_one_draws(tmp_path: Path) -> None:
    path = numbered(tmp_path / "own.txt", "dog", 40)
    low, high = (make(tmp_path / str(limit), [source(path, limit=limit)]) for limit in (6, 7))
    assert len(texts(low)) == 6
    assert set(texts(low)) < set(texts(high))


def test_labels_get_their_articles_and_plurals(tmp_path: Path) -> None:
    made = texts(make(tmp_path, domains={"files": [str(domain(tmp_path / "birds.yaml"))]}), "domain_birds")
    assert set(made) == {
        *("A photo of an osprey.", "Two ospreys sit.", "One osprey sits."),
        *("A photo of a unicorn finch.", "Two unicorn finches sit.", "One unicorn finch sits."),
        *("A photo of a hen.", "Two hens sit.", "One hen sits."),
    }


@pytest.mark.parametrize(("labels", "templates", "count"), [(None, 2, 6), (2, 3, 6), (1, 1, 1), (9, 9, 9)])
def test_a_domain_gives_so_many_labels_and_templates(tmp_path: Path, labels: Any, templates: int, count: int) -> None:
    path = domain(tmp_path / "birds.yaml")
    wanted = {"files": [str(path)], "labels_per_domain": labels, "templates_per_label": templates}
    made = texts(make(tmp_path, domains=wanted), "domain_birds")
    assert len(made) == len(set(made)) == count


def test_duplicates_are_dropped_within_a_source_but_not_between_sources(tmp_path: Path) -> None:
    own = source(lines(tmp_path / "own.txt", "A dog.", " A  dog. ", "A cat.", "A dog."))
    other = source(lines(tmp_path / "other.txt", "A dog."), "other")
    run = make(tmp_path, [own, other])
    assert sorted(texts(run)) == ["A cat.", "A dog."]
    assert texts(run, "other") == ["A dog."]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "does not exist"),
        ("own.xlsx", "x", "must end with one of .txt, .jsonl, .json, .csv, .tsv, .parquet"),
        ("own.csv", "title,alt\nx,A dog.\n", "has no column 'text'; its columns: title, alt"),
        ("own.jsonl", '{"text": 7}\n', "row 0: column 'text' holds 7"),
        ("own.txt", "A dog.\n\nA cat.\n", "row 1: column 'text' holds ''"),
        ("own.txt", "A dog.\nA cat.\n \n", "row 2: column 'text' holds ' '"),
        ("own.jsonl", '{"text": "A dog."}\n{"text": null}\n', "row 1: column 'text' holds None"),
        ("own.txt", "", "holds no caption"),
        ("own.csv", "text\n", "holds no caption"),
        ("own.csv", "", "cannot be read"),
        ("own.json", "[{", "cannot be read"),
        ("own.parquet", "PAR1", "cannot be read"),
    ],
)
def test_a_caption_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: Any, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SeedError) as caught:
        make(tmp_path, [source(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"templates": ["A bird."]}, "template 'A bird.' must hold one of {label}, {a_label}, {labels}, once"),
        ({"templates": ["{label} and {labels}"]}, "once"),
        ({"templates": ["{label} and {label}"]}, "once"),
        ({"templates": []}, "should have at least 1 item"),
        ({"labels": []}, "should have at least 1 item"),
        ({"labels": [True]}, "'labels.0' = True"),
        ({"lables": ["hen"]}, "unknown key 'lables'; nearest known: 'labels'"),
        ({"domain": "Big birds"}, "'domain' = 'Big birds'"),
    ],
)
def test_a_domain_file_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = domain(tmp_path / "birds.yaml", **changes)
    with pytest.raises(RecipeError) as caught:
        make(tmp_path, domains={"files": [path.name]})
    assert f"domain file {path}" in str(caught.value)
    assert words in str(caught.value)


def test_a_domain_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    domain(tmp_path / "birds.yaml")
    with pytest.raises(SeedError, match=r"nothing matches .*/none-\*\.yaml"):
        make(tmp_path, domains={"files": ["*.yaml", "none-*.yaml"]})


def test_a_second_call_writes_no_shard(tmp_path: Path) -> None:
    own = [source(numbered(tmp_path / "own.txt", "dog", 6))]
    first = make(tmp_path, own, shard_rows=4)
    before = {path: path.stat().st_mtime_ns for path in (first.path / "seeds").iterdir()}
    again = make(tmp_path, own, shard_rows=4)
    assert {path: path.stat().st_mtime_ns for path in (again.path / "seeds").iterdir()} == before
    assert rows(again) == rows(first)


def test_a_changed_seed_file_is_refused_by_name(tmp_path: Path) -> None:
    kept = source(numbered(tmp_path / "kept.txt", "cat", 3), "kept")
    own = source(numbered(tmp_path / "own.txt", "dog", 3))
    before = shards(make(tmp_path, [kept, own]))
    numbered(tmp_path / "own.txt", "dog", 4)
    with pytest.raises(RunError, match=r"settings: sha256\.own: '\w{64}' -> '\w{64}'\. Restore them"):
        make(tmp_path, [kept, own])
    assert shards(RunDir(tmp_path / "run")) == before


def test_an_extension_appends_only_new_seeds_in_new_shards(tmp_path: Path) -> None:
    own = source(numbered(tmp_path / "own.txt", "dog", 5))
    old = make(tmp_path, [own], shard_rows=4)
    kept, held = shards(old), texts(old)
    numbered(tmp_path / "own.txt", "dog", 8)
    more = source(lines(tmp_path / "more.txt", "A cat.", "A hen."), "more")
    new = make(tmp_path, [own, more], shard_rows=4, extend=True)
    assert kept.items() <= shards(new).items()
    assert new.sealed("seeds") == [0, 1, 2, 3]
    assert texts(new)[:5] == held
    assert sorted(texts(new)) == [f"A dog numbered {number}." for number in range(8)]
    assert sorted(texts(new, "more")) == ["A cat.", "A hen."]
    assert [row["id"] for row in rows(new)[5:]] == [row_id(2 + number // 4, number % 4) for number in range(5)]
    same = make(tmp_path, [more], shard_rows=4, extend=True)
    assert shards(same) == shards(new)
    assert set(same.stage("seeds")["sources"]) == {"own", "more"}


def test_an_extension_needs_seeds_to_extend(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stage 'seeds' has not been run"):
        make(tmp_path, [source(numbered(tmp_path / "own.txt", "dog", 1))], extend=True)


@pytest.mark.parametrize("extend_again", [False, True])
@pytest.mark.parametrize("shard", [0, 1, 2, 3])
def test_what_was_interrupted_ends_like_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, extend_again: bool
) -> None:
    own = source(numbered(tmp_path / "own.txt", "dog", 7))
    more = source(numbered(tmp_path / "more.txt", "cat", 6), "more")
    seal = RunDir.seal_tables

    def killed(run: RunDir, stage: str, number: int, *tables: Any) -> None:
        if number == shard:
            raise KeyboardInterrupt
        seal(run, stage, number, *tables)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for sources, extend in (([own], False), ([own, more], True)):
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(RunDir, "seal_tables", killed)
            make(stopped, sources, shard_rows=4, extend=extend)
        resumed = make(stopped, sources, shard_rows=4, extend=extend and extend_again)
        assert shards(resumed) == shards(make(whole, sources, shard_rows=4, extend=extend))
        assert resumed.stage("seeds")["complete"] is True
    assert resumed.sealed("seeds") == [0, 1, 2, 3]


def test_two_domain_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        domain(tmp_path / folder / "birds.yaml")
    with pytest.raises(SeedError, match="birds named more than once"):
        make(tmp_path, domains={"files": ["a/*.yaml", "b/*.yaml"]})


def test_a_limit_counts_captions_and_not_their_repeats(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.txt", "X ray.", "X ray.", "X ray.", "Y fork.", "Z bend.")
    assert len(texts(make(tmp_path, [source(path, limit=2)]))) == 2


def test_an_extension_with_a_bad_source_leaves_the_finished_run_as_it_was(tmp_path: Path) -> None:
    good, bad = numbered(tmp_path / "good.txt", "dog", 3), tmp_path / "bad.jsonl"
    run = make(tmp_path, [source(good)])
    bad.write_text('{"text": ""}\n')
    with pytest.raises(SeedError):
        make(tmp_path, [source(good), source(bad, "bad")], extend=True)
    assert shards(make(tmp_path, [source(good)])) == shards(run)


def test_shards_of_an_interrupted_extension_do_not_outlive_it(tmp_path: Path) -> None:
    first, many = numbered(tmp_path / "first.txt", "dog", 2), numbered(tmp_path / "many.txt", "cat", 4)
    run = make(tmp_path, [source(first)], shard_rows=2)
    run = make(tmp_path, [source(first), source(many, "more")], extend=True, shard_rows=2)
    run.note("seeds", complete=False, kept=1)  # as if it had been killed before its end
    few = numbered(tmp_path / "few.txt", "owl", 2)
    run = make(tmp_path, [source(first), source(few, "more")], extend=True, shard_rows=2)
    assert run.sealed("seeds") == [0, 1]
    assert all("owl" in text for text in texts(run, "more"))


def test_a_local_file_asks_nothing_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    make(tmp_path, [source(numbered(tmp_path / "own.txt", "dog", 3))])
    assert asked == []


def test_names_with_brackets_byte_order_marks_and_the_word_null_are_read_as_they_are(tmp_path: Path) -> None:
    text, table = tmp_path / "c [v2].txt", tmp_path / "null.csv"
    text.write_text("A dog.\n", encoding="utf-8-sig")
    table.write_text("text\nnull\n", encoding="utf-8-sig")
    run = make(tmp_path, [source(text), source(table, "table")])
    assert (texts(run), texts(run, "table")) == (["A dog."], ["null"])


@pytest.mark.parametrize("content", [b"domain: caf\xe9", b"domain: 2024-13-45", b"[" * 3000, b"labels: ['  ']"])
def test_a_domain_file_that_yaml_cannot_take_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "birds.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"birds\.yaml"):
        make(tmp_path, domains={"files": ["birds.yaml"]})

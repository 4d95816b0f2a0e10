"""Recipes: what is read, what is refused, and in which words."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from generation.config import CONFIGS, TASKS, Recipe, instruction_tasks, settings
from generation.errors import RecipeError
from generation.prompts import load_prompt
from generation.recipe import load_recipe

BUNDLED = sorted(CONFIGS.glob("*.yaml"))
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "aiohttp", "pydantic", "yaml")
GOOD: dict[str, Any] = {
    "name": "small",
    "seeds": {
        "captions": [{"name": "own", "path": "own.txt", "license": "MIT"}],
        "domains": {"files": ["domains/*.yaml"]},
    },
    "server": {"embedded": {}},
    "captions": {},
    "instructions": {task: {"prompt": task, "fraction": 0.5} for task in TASKS},
    "embed": {},
    "transfer": {},
}


def changed(values: dict[str, Any]) -> dict[str, Any]:
    """``GOOD`` with the values of some dotted paths put in."""
    data = copy.deepcopy(GOOD)
    for path, value in values.items():
        *parents, key = [int(step) if step.isdigit() else step for step in path.split(".")]
        place: Any = data
        for step in parents:
            place = place[step]
        place[key] = value
    return data


def load(folder: Path, data: Any, server: dict[str, Any] | None = None) -> Recipe:
    path = folder / "recipe.yaml"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return load_recipe(path, server)


def refusal(folder: Path, data: Any, server: dict[str, Any] | None = None) -> str:
    """The message with which a recipe is refused; it always names the file."""
    with pytest.raises(RecipeError) as caught:
        load(folder, data, server)
    assert str(folder / "recipe.yaml") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_recipe_names_prompts_and_seed_files_that_are_there(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.directory == path.parent
    load_prompt(recipe.captions.prompt)
    for task in instruction_tasks(recipe).values():
        load_prompt(task.prompt).answer_schema(task.min_items, task.max_items)
    assert all((recipe.directory / source.path).is_file() for source in recipe.seeds.captions)
    assert recipe.seeds.domains is not None
    assert all(list(recipe.directory.glob(pattern)) for pattern in recipe.seeds.domains.files)


def test_the_two_recipes_of_the_project_are_bundled() -> None:
    assert [path.stem for path in BUNDLED] == ["demo", "unicorn_1_2m"]


def test_what_a_recipe_leaves_out_has_the_paper_s_values(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert (recipe.captions.min_words, recipe.captions.max_words) == (51, 483)
    assert recipe.instructions.multiple_choice.min_items == 6
    assert recipe.instructions.multiple_choice.max_items == 8
    assert recipe.seeds.domains is not None
    assert recipe.seeds.domains.templates_per_label == 10
    assert recipe.transfer.method == "unicorn"
    assert recipe.random_seed == 0


def test_a_recipe_lies_in_an_absolute_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipe.yaml")).directory == tmp_path.resolve()


def test_the_tasks_come_in_the_paper_s_order(tmp_path: Path) -> None:
    backwards = {task: GOOD["instructions"][task] for task in reversed(TASKS)}
    assert tuple(instruction_tasks(load(tmp_path, changed({"instructions": backwards})))) == TASKS


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("", "sed", "seeds"),
        ("", "servers", "server"),
        ("seeds", "shard_row", "shard_rows"),
        ("seeds.captions.0", "colum", "column"),
        ("seeds.domains", "labels_per_domains", "labels_per_domain"),
        ("server", "endpoint", "endpoints"),
        ("server.embedded", "slot_token", "slot_tokens"),
        ("captions", "min_word", "min_words"),
        ("instructions", "attempt", "attempts"),
        ("instructions.multiple_choice", "fractions", "fraction"),
        ("instructions.question_answering", "min_item", "min_items"),
        ("instructions.complex_reasoning", "promt", "prompt"),
        ("embed", "encoders", "encoder"),
        ("transfer", "methods", "method"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, section: str, key: str, nearest: str) -> None:
    unknown, known = (f"{section}.{name}".lstrip(".") for name in (key, nearest))
    message = refusal(tmp_path, changed({unknown: 1}))
    assert f"unknown key '{unknown}'; nearest known: '{known}'" in message


def test_an_unknown_key_like_no_other_still_names_a_known_one_of_its_section(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed({"server.embedded.zzz": 1}))
    assert re.search(r"nearest known: 'server\.embedded\.(slots|slot_tokens|threads)'", message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "Two words"),
        ("name", 7),
        ("random_seed", None),
        ("random_seed", "many"),
        ("seeds", []),
        ("seeds.captions", "own.txt"),
        ("seeds.captions.0", "own.txt"),
        ("seeds.captions.0.name", ""),
        ("seeds.captions.0.license", ""),
        ("seeds.captions.0.limit", 0),
        ("seeds.domains.files", "domains/*.yaml"),
        ("seeds.domains.templates_per_label", 0),
        ("seeds.shard_rows", 0),
        ("seeds.shard_rows", 100_001),
        ("server.endpoints", "http://localhost"),
        ("server.api", "grpc"),
        ("server.max_in_flight", -1),
        ("server.timeout_s", 0),
        ("server.timeout_s", float("inf")),
        ("server.timeout_s", float("nan")),
        ("server.embedded.slots", 1.5),
        ("server.embedded.threads", 0),
        ("captions", 3),
        ("captions.min_words", "fifty"),
        ("captions.attempts", 0),
        ("instructions.multiple_choice.fraction", 0),
        ("instructions.question_answering.fraction", 1.01),
        ("instructions.complex_reasoning.min_items", 0),
        ("instructions.multiple_choice.prompt", "../secret"),
        ("embed.batch_tokens", 0),
        ("embed.encoder", 1),
        ("transfer.method", "mean"),
    ],
)
def test_a_value_of_wrong_type_or_range_is_refused_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    assert f"'{key}' = {value!r}: " in refusal(tmp_path, changed({key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds.shard_rows", 1),
        ("seeds.shard_rows", 100_000),
        ("instructions.multiple_choice.fraction", 1),
        ("server.timeout_s", 0.5),
        ("seeds.captions.0.limit", 1),
        ("server.embedded.threads", None),
        ("captions.min_words", 483),
        ("transfer.method", "none"),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(tmp_path: Path, key: str, value: Any) -> None:
    load(tmp_path, changed({key: value}))


@pytest.mark.parametrize(
    ("section", "key"),
    [("", "name"), ("", "seeds"), ("instructions.question_answering", "fraction")],
)
def test_a_missing_key_is_named(tmp_path: Path, section: str, key: str) -> None:
    data = copy.deepcopy(GOOD)
    part = data
    for name in filter(None, section.split(".")):
        part = part[name]
    del part[key]
    assert f"missing key '{f'{section}.{key}'.lstrip('.')}'" in refusal(tmp_path, data)


def test_several_faults_are_all_named_at_once(tmp_path: Path) -> None:
    faults = {
        "naem": "x",
        "captions.attempts": 0,
        "server.embedded.slot": 1,
        "seeds.captions.0": {"name": "own", "path": "own.txt"},
        "instructions.multiple_choice.fraction": 2,
    }
    message = refusal(tmp_path, changed(faults))
    for fault in (
        "unknown key 'naem'",
        "'captions.attempts' = 0",
        "unknown key 'server.embedded.slot'",
        "missing key 'seeds.captions.0.license'",
        "'instructions.multiple_choice.fraction' = 2",
    ):
        assert fault in message


def test_a_missing_file_names_the_bundled_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert all(str(path) in str(caught.value) for path in [tmp_path / "none.yaml", *BUNDLED])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: b: c", "cannot be read"),
        (b"seeds: [", "cannot be read"),
        (b"name: \xff", "cannot be read"),
        (b"name: \x00", "cannot be read"),
        (b"name: !!python/object:os.system x", "cannot be read"),
        (b"", "must be a mapping, but holds NoneType"),
        (b"- seeds", "must be a mapping, but holds list"),
        (b"seeds", "must be a mapping, but holds str"),
        (b"{1: x}", "unknown key '1'"),
        (b"directory: /", "'directory' is set by the program"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(tmp_path, content)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("section", ["captions", *(f"instructions.{task}" for task in TASKS)])
def test_a_minimum_above_its_maximum_is_refused_with_both_values(tmp_path: Path, section: str) -> None:
    unit = "words" if section == "captions" else "items"
    load(tmp_path, changed({f"{section}.min_{unit}": 70, f"{section}.max_{unit}": 70}))
    message = refusal(tmp_path, changed({f"{section}.min_{unit}": 71, f"{section}.max_{unit}": 70}))
    assert f"{section}.min_{unit} 71 > max_{unit} 70" in message


def test_seeds_without_a_source_are_refused(tmp_path: Path) -> None:
    assert "seeds names no source" in refusal(tmp_path, changed({"seeds": {"shard_rows": 5}}))


def test_server_values_of_the_command_line_win_and_leave_the_others(tmp_path: Path) -> None:
    data = changed({"server": {"endpoints": ["http://file"], "api": "chat", "retries": 3}})
    server = load(tmp_path, data, {"endpoints": ["http://line"], "api": "generate"}).server
    assert (server.endpoints, server.api, server.retries) == (("http://line",), "generate", 3)
    data.pop("server")
    assert load(tmp_path, data, {"api": "generate"}).server.api == "generate"
    assert load(tmp_path, changed({"server": None}), {"api": "generate"}).server.api == "generate"


def test_server_values_of_the_command_line_are_checked_like_the_file_s(tmp_path: Path) -> None:
    assert "'server.api' = 'grpc'" in refusal(tmp_path, GOOD, {"api": "grpc"})
    assert "server must be a mapping" in refusal(tmp_path, changed({"server": ["http://file"]}), {"api": "chat"})


def test_settings_are_json_values(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    plain = settings(recipe)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["directory"] == str(tmp_path.resolve())
    assert settings(recipe.seeds)["captions"] == [
        {"name": "own", "path": "own.txt", "license": "MIT", "column": "text", "limit": None}
        | {"group_column": None, "filters": None}
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["serve", "--help"]], ids=" ".join)
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from generation.__main__ import main\n"
        f"try: main({arguments})\n"
        f"except SystemExit as end: print('status', end.code, sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CONFIGS.parents[1], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("usage: ")
    assert done.stdout.endswith("status 0 []\n")


def test_every_contradiction_is_named_at_once(tmp_path: Path) -> None:
    data = changed({"captions.min_words": 500, "instructions.multiple_choice.min_items": 9})
    said = refusal(tmp_path, data)
    assert "captions.min_words 500 > max_words 483" in said
    assert "instructions.multiple_choice.min_items 9 > max_items" in said


@pytest.mark.parametrize("names", [("own", "own"), ("own", "domain_birds")])
def test_names_of_caption_files_are_their_own(tmp_path: Path, names: tuple[str, str]) -> None:
    files = [{"name": name, "path": "x.txt", "license": "MIT"} for name in names]
    assert names[1] in refusal(tmp_path, changed({"seeds.captions": files}))


@pytest.mark.parametrize("value", ["true", "'5'", "2024-13-45", "0x_", "1.5"])
def test_a_number_is_a_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: small\nrandom_seed: {value}\n")
    with pytest.raises(RecipeError, match=r"random_seed|cannot be read"):
        load_recipe(path)

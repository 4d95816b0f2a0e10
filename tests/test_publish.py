"""Pushing, tagging, loading and streaming both data sets: real libraries against the fake Hub. Two builds with other
bytes never share an entry of the cache of ``datasets``: real loads, one cache."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import config, load_dataset
from huggingface_hub import constants

from generation.builders.build import build
from generation.builders.command import main
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from tests.fake_hub import FakeHub, Repo
from tests.runs import make_recipe, make_run
from tests.test_builders import cache as cache
from tests.test_builders import files, rows
from unicorn_1_2m import Unicorn12M

ROOT = Path(__file__).parents[1]
Push = Callable[..., tuple[int, str]]
SCRIPTS = {"unicorn-1.2m": "unicorn_1_2m.py", "unicorn-471k-instruction": "unicorn_471k_instruction.py"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run").path


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Push:
    """Build and push within this process: ``push(hub, run, *options)`` returns the exit status and what was said."""

    def call(hub: FakeHub, run: Path, *options: str, token: str = "hf_write") -> tuple[int, str]:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        settings = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}
        for name, value in (settings | {"HF_HUB_CACHE": str(tmp_path / "hub")}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", token)
        arguments = ["--run-dir", run, "--output", tmp_path / "unicorn-1.2m", "--push-to-hub", "user/unicorn-1.2m"]
        monkeypatch.setattr(sys, "argv", ["unicorn_1_2m.py", *map(str, arguments), *options])
        capfd.readouterr()
        status = main(Unicorn12M)
        said = capfd.readouterr()
        return status, said.err + said.out

    return call


def stored(hub: FakeHub, revision: str, name: str = "unicorn-1.2m") -> dict[str, bytes]:
    _, files = hub.repos[f"user/{name}"].at(revision)
    return {path: data for path, data in files.items() if path != ".gitattributes"}


@pytest.fixture(scope="module")
def pushed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, Path]]:
    """A Hub with both data sets at v1.0.0, and the folder they were built in."""
    folder = tmp_path_factory.mktemp("pushed")
    with FakeHub() as hub:
        for name in SCRIPTS:
            options = ["--run-dir", run, "--output", folder / name, "--push-to-hub", f"user/{name}", "--private"]
            done = hub.run([ROOT / SCRIPTS[name], *options], folder / "home")
            assert done.returncode == 0, done.stderr
            assert f'load_dataset("user/{name}", revision="v1.0.0")' in done.stdout
        yield hub, folder


def test_what_arrives_is_what_was_built_and_is_read_at_the_tag(pushed: tuple[FakeHub, Path], tmp_path: Path) -> None:
    hub, folder = pushed
    for name in SCRIPTS:
        assert stored(hub, "v1.0.0", name) == files(folder / name)
        assert hub.repos[f"user/{name}"].private
        assert b"hf_write" not in b"".join(files(folder / name).values())
    card = stored(hub, "v1.0.0")["README.md"].decode()
    assert 'load_dataset("user/unicorn-1.2m", split="train", revision="v1.0.0")' in card
    assert "datasets/user/unicorn-471k-instruction" in card
    script = """
import json
from datasets import load_dataset
from generation.errors import DatasetError
from unicorn_471k_instruction import Unicorn471KInstruction
read, rows = {}, {}
for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
    for config in ("default", "with_embeddings"):
        data = load_dataset(f"user/{name}", config, revision="v1.0.0", split="train")
        rows = list(load_dataset(f"user/{name}", config, revision="v1.0.0", split="train", streaming=True))
        assert rows == data.to_list()
        read[f"{name} {config}"] = [len(data), str(data.info.version)]
url = "hf://datasets/user/unicorn-471k-instruction"
builder = Unicorn471KInstruction(config_name="with_embeddings", data_dir=url + "@v1.0.0")
assert list(builder.as_streaming_dataset(split="train")) == rows
try:
    Unicorn471KInstruction(data_dir=url)
except DatasetError as error:
    read["refused"] = str(error)
print(json.dumps(read))
"""
    done = hub.run(["-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert "pinned revision" in read.pop("refused")
    assert list(read.values()) == [[18, "1.0.0"], [18, "1.0.0"], [27, "1.0.0"], [27, "1.0.0"]]


def test_a_refusal_comes_before_the_build(pushed: tuple[FakeHub, Path], run: Path, tmp_path: Path, push: Push) -> None:
    hub = pushed[0]
    hub.repos["user/public"] = public = Repo("user/public", private=False)
    public.commit({})
    refusals = [  # repository, private, token, message
        ("unicorn-1.2m", False, "hf_write", "give USER/NAME"),
        ("user/bad name", False, "hf_write", "give USER/NAME"),
        ("stranger/name", False, "hf_write", "may write for user, group only"),
        ("user/unicorn-1.2m", False, "", "set $HF_TOKEN"),
        ("user/unicorn-1.2m", False, "hf_read", "may only read"),
        ("user/unicorn-1.2m", False, "hf_secret_of_mine", "401"),
        ("user/unicorn-1.2m", False, "hf_write", "already has a tag v1.0.0"),
        ("user/public", True, "hf_write", "exists and is public"),
    ]
    for repo, private, token, message in refusals:
        options = ["--push-to-hub", repo, *(["--private"] if private else [])]
        status, said = push(hub, run, *options, token=token)
        assert (status, message in said, "Traceback" in said) == (1, True, False), said
        assert "hf_secret_of_mine" not in said
    status, said = push(hub, run, "--version", "v1")
    assert (status, "not a semantic version" in said) == (2, True)
    assert not (tmp_path / "unicorn-1.2m").exists()


def test_the_second_version_says_what_moved_and_leaves_the_first_alone(
    pushed: tuple[FakeHub, Path], run: Path, tmp_path: Path, push: Push
) -> None:
    hub, more = pushed[0], "+3 rows from source alpha; +3 rows from source beta"
    first, repo = stored(hub, "v1.0.0"), hub.repos["user/unicorn-1.2m"]
    repo.commit({**repo.at("main")[1], "notes.md": b"mine"})
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run / "transfer" / "unicorn.safetensors", tmp_path / "means.safetensors")
    kept = {"transfer": {"method": "unicorn", "statistics": "means.safetensors"}}
    for version, recipe, change in [("1.1.0", kept, more), ("1.2.0", None, "all vectors moved, smallest cosine 0.9")]:
        make_run(tmp_path / "run", shards=4, recipe=recipe)
        status, said = push(hub, tmp_path / "run", "--version", version)
        assert (status, "notes.md" in said) == (0, True), said  # named and kept
        assert stored(hub, f"v{version}") == files(tmp_path / "unicorn-1.2m") | {"notes.md": b"mine"}
        newest, *others = json.loads(stored(hub, f"v{version}")["manifest.json"])["changelog"]
        assert newest[0] == version and newest[1].startswith(change) and others[-1] == ["1.0.0", "first version"]
    shards = {name: data for name, data in first.items() if name.endswith(".safetensors")}
    assert stored(hub, "v1.0.0") == first and stored(hub, "v1.1.0").items() >= shards.items()  # kept means: kept files
    script = """
import sys
from datasets import load_dataset
for place in ("user/unicorn-1.2m@v1.0.0", "user/unicorn-1.2m@v1.2.0", "user/unicorn-1.2m@v1.0.0", sys.argv[1]):
    name, revision = (*place.split("@"), None)[:2]
    print(load_dataset(name, "with_embeddings", split="train", revision=revision)["image_embedding"][:])
"""
    done = hub.run(["-c", script, tmp_path / "unicorn-1.2m"], tmp_path / "home")  # one cache
    old, new = (str(vectors_of(folder / "unicorn-1.2m")) for folder in (pushed[1], tmp_path))
    assert done.stdout.splitlines() == [old, new, old, new], done.stderr


def test_what_somebody_wrote_on_the_hub_is_refused_until_it_is_to_be_replaced(run: Path, push: Push) -> None:
    with FakeHub() as hub:
        table = "data/train-00000-of-00001.parquet"
        hub.repos["user/unicorn-1.2m"] = repo = Repo("user/unicorn-1.2m", private=False)
        repo.commit({table: b"theirs"})
        assert "somebody added data/train-00000-of-00001.parquet" in push(hub, run)[1]
        assert repo.at("main")[1] == {table: b"theirs"}
        assert push(hub, run, "--discard-edits")[0] == 0
        edited = repo.at("main")[1]["README.md"] + b"\nMy own words.\n"
        repo.commit({**repo.at("main")[1], "README.md": edited})
        status, said = push(hub, run, "--version", "1.0.1")
        assert (status, "edited README.md" in said, repo.at("main")[1]["README.md"]) == (1, True, edited)
        assert push(hub, run, "--version", "1.0.1", "--discard-edits")[0] == 0
        assert repo.at("main")[1]["README.md"] != edited


def test_an_interrupted_push_goes_on_and_takes_no_other_contents(run: Path, tmp_path: Path, push: Push) -> None:
    with FakeHub(fail=lambda route, number: 403 if route == "lfs_upload" and number >= 2 else None) as hub:
        status, said = push(hub, run)
        assert (status, "goes on where it stopped" in said, "Traceback" in said) == (1, True, False)
        hub.fail = lambda route, number: 403 if route == "tag" else None
        arrived, before = len(hub.repos["user/unicorn-1.2m"].objects), hub.seen["lfs_upload"]
        assert push(hub, run)[0] == 1  # everything arrives, but for the tag
        large = sum(name.endswith((".parquet", ".safetensors")) for name in files(tmp_path / "unicorn-1.2m"))
        assert 0 < arrived < large
        assert hub.seen["lfs_upload"] - before == large - arrived
        hub.fail = lambda route, number: None
        status, said = push(hub, make_run(tmp_path / "other", salt="other").path)
        assert (status, "holds version 1.0.0 with other contents" in said) == (1, True)
        assert push(hub, run)[0] == 0
        assert stored(hub, "v1.0.0") == files(tmp_path / "unicorn-1.2m")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of the same texts and sizes, by two methods, and the data set built from each."""
    folder = tmp_path_factory.mktemp("builds")
    make_run(folder / "run_one")
    shutil.copytree(folder / "run_one", folder / "run_two")
    make_image_embeddings(Run(folder / "run_two", make_recipe(folder / "run_two", "mean_shift")))
    for name in ("one", "two"):
        build(Unicorn12M, folder / f"run_{name}", folder / name)
    return folder


def vectors_of(path: Path) -> list[list[float]]:
    return [row["image_embedding"] for row in rows(path / "with_embeddings")]


def test_no_way_to_read_a_build_reads_another_one_in_its_place(builds: Path, tmp_path: Path) -> None:
    assert vectors_of(builds / "one") != vectors_of(builds / "two")
    sizes = [[path.stat().st_size for path in sorted((builds / name).glob("*/*.parquet"))] for name in ("one", "two")]
    assert sizes[0] == sizes[1]  # so that nothing but the contents tells them apart
    for name in ("one", "two", "one"):
        wanted, places = vectors_of(builds / name), [tmp_path / "unicorn-1.2m", tmp_path / name / "unicorn-1.2m"]
        for source, place in ((f"run_{name}", tmp_path / "run"), *((name, place) for place in places)):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(builds / source, place)
        for place in places:
            assert load_dataset(str(place), "with_embeddings", split="train")["image_embedding"][:] == wanted
        for options in ({"run_dir": str(tmp_path / "run")}, {"data_dir": str(places[0])}):
            builder = Unicorn12M(config_name="with_embeddings", hash="mine", **options)
            builder.download_and_prepare()
            assert builder.as_dataset(split="train")["image_embedding"][:] == wanted


def test_fill_cache_serves_what_was_filled_last(builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "one"):
        options = ["--run-dir", builds / f"run_{name}", "--output", tmp_path / name, "--fill-cache", "with_embeddings"]
        monkeypatch.setattr(sys, "argv", ["unicorn_1_2m.py", *map(str, options)])
        assert main(Unicorn12M) == 0
        assert load_dataset("unicorn-1.2m", split="train")["image_embedding"][:] == vectors_of(builds / name)

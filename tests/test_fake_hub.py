"""The test hub, asked by the real `huggingface_hub` and `datasets`, each time in a process of its own."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from tests.fake_hub import FakeHub, Fault
from tests.fake_hub_store import Repo

ROWS, WIDTH, LARGE = 400, 128, 5  # rows of a shard; large files in the folder
CARD = """---
license: other
configs:
- config_name: default
  default: true
  data_files: [{split: train, path: default/*.parquet}]
- config_name: with_embeddings
  data_files: [{split: train, path: with_embeddings/*.parquet}]
---
Two configs.
"""
HEAD = """
import json, sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
api, dataset = HfApi(), {"repo_id": "user/x", "repo_type": "dataset"}
def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]
"""
PUSH = HEAD + "\napi.create_repo(**dataset, exist_ok=True)\napi.upload_folder(**dataset, folder_path=sys.argv[1])\n"


def told(hub: FakeHub, home: Path, script: str, *arguments: object, token: str | None = "hf_test") -> Any:
    """What a script prints as JSON; it must end well."""
    done = hub.run(script, home, *arguments, token=token)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


def files_of(repo: Repo, revision: str = "main") -> dict[str, bytes]:
    files = repo.at(revision).files
    return {path: repo.content[blob.key] for path, blob in files.items() if path != ".gitattributes"}


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two configs: five large files and two regular ones."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    vectors = np.random.default_rng(0).random(ROWS * WIDTH, dtype=np.float32).astype(np.float16)
    save_file({"image_embedding": vectors.reshape(ROWS, WIDTH)}, folder / "0.safetensors")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), WIDTH)
    ids = [f"{row:010d}" for row in range(ROWS)]
    for name, columns in {"default": {"caption": ids}, "with_embeddings": {"image_embedding": column}}.items():
        (folder / name).mkdir()
        for shard in "01":
            table = pa.table({"id": [shard + one for one in ids], **columns})
            pq.write_table(table, folder / name / f"{shard}.parquet", row_group_size=ROWS // 4)
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A hub where the folder is pushed and tagged, and main has moved on by a card without configs."""
    with FakeHub() as server:
        script = """
api.create_tag(**dataset, tag="v1.0.0", tag_message="first")
api.upload_file(**dataset, path_or_fileobj=b"Moved on.", path_in_repo="README.md")
"""
        told(server, tmp_path_factory.mktemp("home"), PUSH + script, folder)
        yield server


# -- push


def test_a_push_arrives_whole_and_the_tag_stays_where_it_was(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    repo = hub.repo("user/x")
    assert files_of(repo, "v1.0.0") == files_in(folder) and files_of(repo)["README.md"] == b"Moved on."
    large = {path for path, blob in repo.at("main").files.items() if blob.sha256}
    assert large == {path for path in files_in(folder) if not path.endswith((".md", ".json"))}
    script = HEAD + "print(json.dumps([open(api.hf_hub_download(**dataset, filename='README.md', revision=r)).read()"
    cards = told(hub, tmp_path, script + " for r in sys.argv[1:]]))", "v1.0.0", "main", repo.tags["v1.0.0"])
    assert cards == [CARD, "Moved on.", CARD]
    assert hub.token not in repr(hub.seen())


def test_bytes_that_are_there_are_not_sent_again(folder: Path, tmp_path: Path) -> None:
    again = "\napi.upload_folder(**dataset, folder_path=sys.argv[1])"
    more = "\napi.upload_file(**dataset, path_or_fileobj=b'PAR1', path_in_repo='more.parquet')"
    with FakeHub() as server:
        told(server, tmp_path, PUSH + again + more + again, folder)
        assert len(server.seen("lfs_upload")) == LARGE + 1 and [one.status for one in server.seen("commit")] == [
            200,
            200,
        ]
        assert len(server.repo("user/x").commits) == 3  # the initial one, the push, one file more


def test_a_large_object_goes_in_parts(folder: Path, tmp_path: Path) -> None:
    with FakeHub(part_bytes=50_000) as server:
        told(server, tmp_path, PUSH, folder)
        assert files_of(server.repo("user/x")) == files_in(folder)
        large = [data for path, data in files_in(folder).items() if not path.endswith((".md", ".json"))]
        parts = [one.received for one in server.seen("lfs_upload")]
        assert max(parts) == 50_000 and sum(parts) == sum(map(len, large)) and len(server.seen("lfs_complete")) == 3


def test_a_push_killed_amid_its_uploads_is_resumed(folder: Path, tmp_path: Path) -> None:
    with FakeHub(faults=[Fault("lfs_upload", {2}, "hang")]) as server:
        environment = server.environment(tmp_path, server.token)
        command = [sys.executable, "-c", PUSH, str(folder)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            while sum(one.status == 200 for one in server.seen("lfs_upload")) != LARGE - 1:
                assert process.poll() is None, "the push ended by itself"
                time.sleep(0.01)
            process.kill()
        assert files_of(server.repo("user/x")) == {}
        server.script()
        told(server, tmp_path, PUSH, folder)
        assert len(server.seen("lfs_upload")) == LARGE + 1 and files_of(server.repo("user/x")) == files_in(folder)


def test_the_client_itself_asks_again_after_a_reset_or_a_500(folder: Path, tmp_path: Path) -> None:
    faults = [Fault("lfs_upload", {0}, "reset"), Fault("lfs_upload", {1}, 500)]
    with FakeHub(faults=faults) as server:
        told(server, tmp_path, PUSH, folder)
        assert sorted(str(one.status) for one in server.seen("lfs_upload")) == ["200"] * LARGE + ["500", "None"]
        assert files_of(server.repo("user/x")) == files_in(folder)


def test_a_commit_whose_answer_is_lost_was_made(folder: Path, tmp_path: Path) -> None:
    with FakeHub(faults=[Fault("commit", {0}, "lost")]) as server:
        done = server.run(PUSH, tmp_path, folder, token=server.token)
        assert done.returncode == 1 and re.search("disconnected|reset", done.stderr)
        assert files_of(server.repo("user/x")) == files_in(folder)
        told(server, tmp_path, PUSH, folder)
        assert len(server.seen("commit")) == 1 and len(server.seen("lfs_upload")) == LARGE


def test_commits_delete_and_are_refused_on_a_stale_parent(folder: Path, tmp_path: Path) -> None:
    script = """
first = api.create_commit(**dataset, operations=[CommitOperationAdd("a/b.txt", b"b")], commit_message="one").oid
def second(*operations):
    return failure(api.create_commit, **dataset, operations=operations, commit_message="two", parent_commit=first)
print(json.dumps([second(CommitOperationDelete("nothing")), second(CommitOperationDelete("default/")),
    second(CommitOperationDelete("a/b.txt")), [one.title for one in api.list_repo_commits(**dataset)]]))
"""
    with FakeHub() as server:
        missing, first, stale, titles = told(server, tmp_path, PUSH + script, folder)
        assert missing == ["RemoteEntryNotFoundError", 404] and first is None and stale == ["HfHubHTTPError", 412]
        assert titles == ["two", "one", "Upload folder using huggingface_hub", "initial commit"]
        expected = {path for path in files_in(folder) if not path.startswith("default/")}
        assert set(files_of(server.repo("user/x"))) == expected | {"a/b.txt"}


# -- tags, branches, trees


def test_tags_and_branches(folder: Path, tmp_path: Path) -> None:
    script = """
tag = {**dataset, "tag": "v1"}
api.create_tag(**tag)
api.create_branch(**dataset, branch="next", revision="v1")
moved = api.upload_file(**dataset, path_or_fileobj=b"b", path_in_repo="b.txt", revision="next").oid
found = [failure(api.create_tag, **tag), failure(api.create_tag, **tag, revision="next", exist_ok=True),
    failure(api.create_tag, **dataset, tag="v2", revision="nowhere"),
    failure(api.create_branch, **dataset, branch="next"), failure(api.delete_branch, **dataset, branch="main")]
refs = api.list_repo_refs(**dataset)
found.append([[one.name for one in refs.branches], [one.target_commit == moved for one in refs.branches + refs.tags]])
found += [failure(api.delete_tag, **tag), failure(api.delete_tag, **tag)]
print(json.dumps(found + [failure(api.delete_branch, **dataset, branch="next")]))
"""
    with FakeHub() as server:
        again, allowed, nowhere, branch, protected, refs, gone, twice, cut = told(
            server, tmp_path, PUSH + script, folder
        )
        assert again == branch == ["HfHubHTTPError", 409] and protected == ["HfHubHTTPError", 403]
        assert nowhere == twice == ["RevisionNotFoundError", 404] and allowed is gone is cut is None
        assert refs == [["main", "next"], [False, True, False]]  # exist_ok left the tag where it was


def test_trees_come_in_pages(tmp_path: Path) -> None:
    script = """
api.create_repo(**dataset)
names = [f"d{n % 2}/{n:02d}" for n in range(60)]
add = [CommitOperationAdd(name, name.encode()) for name in names]
api.create_commit(**dataset, operations=add, commit_message="many")
trees = [api.list_repo_tree(**dataset, recursive=r, expand=e, path_in_repo=p) for r, e, p in
    [(True, True, None), (False, False, None), (False, False, "d1"), (True, False, "d2")]]
paths = [sorted(one.path for one in tree) for tree in trees[:3]] + [failure(list, trees[3])]
asked = api.get_paths_info("user/x", ["d0", "d0/00", "d9"], expand=True, repo_type="dataset")
info = api.dataset_info("user/x", files_metadata=True)
print(json.dumps([names, paths, [type(one).__name__ for one in asked], len(info.siblings)]))
"""
    with FakeHub() as server:
        names, (everything, top, below, nowhere), kinds, siblings = told(server, tmp_path, HEAD + script)
        assert everything == sorted([".gitattributes", "d0", "d1", *names]) and top == [".gitattributes", "d0", "d1"]
        assert below == [name for name in names if name.startswith("d1/")] and siblings == 61
        assert nowhere == ["RemoteEntryNotFoundError", 404] and kinds == ["RepoFolder", "RepoFile"]
        assert [one.status for one in server.seen("tree")] == [200, 200, 200, 200, 404]


# -- who may do what


def test_a_private_repository_is_not_seen_without_its_token(tmp_path: Path) -> None:
    script = """
if len(sys.argv) > 1:
    api.create_repo(**dataset, private=True)
other = HfApi(token="hf_wrong")
found = [failure(api.dataset_info, "user/x"), failure(api.create_repo, "user/y"), failure(api.create_repo, "other/y")]
print(json.dumps([*found, failure(other.dataset_info, "user/x"), failure(other.whoami)]))
"""
    with FakeHub() as server:
        seen, made, foreign, *wrong = told(server, tmp_path, HEAD + script, "create")
        assert seen is made is None and foreign == ["HfHubHTTPError", 403] and wrong == [["HfHubHTTPError", 401]] * 2
        unseen, *refused = told(server, tmp_path, HEAD + script, token=None)
        assert unseen == ["RepositoryNotFoundError", 401] and refused[0] == refused[1] == ["HfHubHTTPError", 401]
        assert server.repo("user/x").private and "hf_wrong" not in repr(server.seen())


# -- load, without a token


def test_a_config_is_loaded_at_a_revision(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    script = """
import json
from datasets import load_dataset
print(json.dumps([[found.column_names, len(found), found[ROWS]["id"]] for name in (None, "with_embeddings")
    for found in [load_dataset("user/x", name, split="train", revision="v1.0.0")]]))
""".replace("ROWS", str(ROWS))
    text, vectors = told(hub, tmp_path, script, token=None)
    assert text == [["id", "caption"], 2 * ROWS, "10000000000"]
    assert vectors == [["id", "image_embedding"], 2 * ROWS, "10000000000"]


def test_a_stream_starts_with_a_part_of_the_first_shard(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    script = """
import json, os
from datasets import load_dataset
found = load_dataset("user/x", "with_embeddings", split="train", revision="v1.0.0", streaming=True)
print(json.dumps(next(iter(found))["id"]), flush=True)
os._exit(0)  # apache/arrow#45214
"""
    before = len(hub.seen())
    assert told(hub, tmp_path, script, token=None) == "00000000000"
    asked = [one for one in hub.seen()[before:] if one.path.endswith(".parquet")]
    assert {(one.path.rpartition("/")[2], one.method, one.status) for one in asked} == {("0.parquet", "GET", 206)}
    size = (folder / "with_embeddings" / "0.parquet").stat().st_size
    assert asked[0].range == f"bytes={size - 65536}-{size - 1}"  # the footer


def test_a_snapshot_is_the_folder_and_is_fetched_once(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    script = HEAD + "print(json.dumps([api.snapshot_download(**dataset, revision='v1.0.0') for _ in range(2)]))"
    before = len(hub.seen())
    first, second = told(hub, tmp_path, script, token=None)
    found = files_in(Path(first))
    assert found.pop(".gitattributes") and found == files_in(folder) and first == second
    fetched = [one.path for one in hub.seen()[before:] if one.route == "resolve" and one.method == "GET"]
    assert len(fetched) == len(set(fetched)) == len(found) + 1


def test_the_file_system_reads_ranges(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    script = """
import json
from huggingface_hub import HfFileSystem
fs = HfFileSystem()
[path] = fs.glob("datasets/user/x@v1.0.0/**/*.safetensors")
with fs.open("hf://" + path, cache_type="none") as file:
    file.seek(8)
    print(json.dumps([path, fs.size(path), file.read(20).hex()]))
"""
    before = len(hub.seen())
    path, size, read = told(hub, tmp_path, script, token=None)
    whole = (folder / "0.safetensors").read_bytes()
    assert path == "datasets/user/x@v1.0.0/0.safetensors" and size == len(whole)
    assert bytes.fromhex(read) == whole[8:28]
    assert [(one.range, one.sent) for one in hub.seen()[before:] if one.route == "resolve"] == [("bytes=8-27", 20)]

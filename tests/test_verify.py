"""``verify`` finds every kind of damage by file, and ``--fix`` makes exactly the bad shards due."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from generation.errors import DatasetError, RunError
from generation.files import write_atomically, write_json
from generation.stages import CAPTIONS, INSTRUCTIONS, SEEDS, STAGES, TEXT_EMBEDDINGS, Stage, image_embeddings
from generation.store import Run, parquet
from generation.vectors import VectorShard, write_vectors
from generation.verify import verify_path
from tests.runs import make_run

IMAGES = image_embeddings("unicorn")
CHOICE = INSTRUCTIONS["multiple_choice"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run", judged=True).path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(finished, tmp_path / "run")))


def faults(run: Run) -> str:
    with pytest.raises(RunError) as caught:
        verify_path(run.path)
    return str(caught.value)


@pytest.mark.parametrize("stage", [SEEDS, CAPTIONS, CHOICE, TEXT_EMBEDDINGS, IMAGES], ids=lambda stage: stage.name)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_files_are_named_and_fix_makes_them_due(run: Run, stage: Stage, damage: str) -> None:
    path = run.file(stage, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-7])
    if damage == "delete":
        path.unlink()
    assert f"{path}: " in faults(run)
    fixed = verify_path(run.path, fix=True)
    assert "Removed 1 shards" in fixed and not run.record(stage, 1) and not path.exists() and run.record(stage, 0)
    assert "no fault found" in verify_path(run.path)


def test_rows_that_do_not_belong_together_are_found(run: Run) -> None:
    turns = [{"from": "gpt", "value": "x"}]
    for stage, number, change in ((CAPTIONS, 0, {"input_hash": 7}), (CHOICE, 1, {"conversations": turns})):
        rows = [row | change for row in run.table(stage, number).to_pylist()]
        table = pa.Table.from_pylist(rows, stage.schema)
        run.commit(stage, number, len(rows), parquet(table), run.rejected(stage, number))
    shard = VectorShard(run.file(TEXT_EMBEDDINGS, 2))
    hashes, vectors = shard.input_hashes[::-1], shard.vectors.flip(0)
    run.commit(TEXT_EMBEDDINGS, 2, len(shard), lambda path: write_vectors(path, vectors, shard.ids, hashes, {}))
    found = faults(run)
    assert f"{run.file(CAPTIONS, 0)}: 6 rows were made from other rows than seeds holds" in found
    assert f"{run.file(CHOICE, 1)}: id " in found and "turns are not human and gpt in turn" in found
    assert f"{run.file(TEXT_EMBEDDINGS, 2)}: its rows are not, in order, those of" in found


def test_a_seed_without_an_end_is_found_and_a_stage_under_way_is_not_a_fault(run: Run) -> None:
    summary = verify_path(run.path)
    assert "no fault found" in summary and all(stage.name in summary for stage in (*STAGES, IMAGES))
    run.reopen(CAPTIONS, 1)
    run.file(CAPTIONS, 1, ".jsonl").write_text("")
    run.log_session(CAPTIONS, {})
    assert "1 shards due" in verify_path(run.path)
    table = run.table(CAPTIONS, 0)
    run.commit(CAPTIONS, 0, len(table) - 1, parquet(table.slice(1)), run.rejected(CAPTIONS, 0))
    assert "1 seeds are neither captions nor rejected" in faults(run)


def test_fix_removes_bad_records_and_statistics_and_leaves_unknown_files_to_the_user(run: Run) -> None:
    record, statistics, left = run.file(SEEDS, 0, ".json"), run.path / "transfer/unicorn.safetensors", "Left to you: "
    record.write_text("{")
    statistics.write_bytes(statistics.read_bytes()[:-1] + b"x")
    (run.path / "transfer/photos.safetensors").touch()
    assert f"{record}: " in (found := faults(run)) and "unicorn.safetensors is not a sound statistics file" in found
    with pytest.raises(RunError, match=rf"photos\.safetensors: unknown[^#]*Removed 2 shards or [^#]*\n{left}move 1"):
        verify_path(run.path, fix=True)
    assert not record.exists() and not statistics.exists()
    with pytest.raises(RunError, match=rf"photos\.safetensors: unknown file\n{left}"):
        verify_path(run.path, fix=True)


def test_a_built_data_set_is_compared_with_its_manifest(tmp_path: Path) -> None:
    built = tmp_path / "set"
    facts = write_atomically(built / "a.parquet", parquet(pa.table({"id": ["0000000000"]})))
    write_json(built / "manifest.json", {"files": {"a.parquet": facts}})
    (built / ".gitattributes").touch()
    assert "no fault found in 1 files, 1 rows in all configs" in verify_path(built)
    (built / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"a\.parquet: \d+ bytes, recorded"):
        verify_path(built)
    write_json(built / "manifest.json", {"files": {"a.parquet": {}}})
    with pytest.raises(DatasetError, match=r"manifest\.json is not a manifest of files"):
        verify_path(built)
    with pytest.raises(DatasetError, match="neither a run .* nor a built data set"):
        verify_path(tmp_path)

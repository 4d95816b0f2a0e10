"""``verify`` finds every kind of damage by file, and ``--fix`` makes exactly the bad shards due."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generation.errors import DatasetError, RunError
from generation.files import parquet, sha256, write_json
from generation.stages import CAPTIONS, INSTRUCTIONS, SEEDS, STAGES, TEXT_EMBEDDINGS, image_embeddings
from generation.store import Run
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
    shutil.copytree(finished, tmp_path / "run")
    return Run(tmp_path / "run")


def faults(run: Run) -> str:
    with pytest.raises(RunError) as caught:
        verify_path(run.path)
    return str(caught.value)


def test_a_sound_run_has_no_fault_and_its_rows_are_counted(run: Run) -> None:
    summary = verify_path(run.path)
    assert "no fault found" in summary
    assert all(stage.name in summary for stage in (*STAGES, IMAGES))


@pytest.mark.parametrize("stage", [SEEDS, CAPTIONS, CHOICE, TEXT_EMBEDDINGS, IMAGES], ids=lambda stage: stage.name)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_files_are_named_and_fix_makes_them_due(run: Run, stage: object, damage: str) -> None:
    path = run.file(stage, 1)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-7])
    assert f"{path}: " in faults(run)
    fixed = verify_path(run.path, fix=True)
    assert "Removed 1 shards" in fixed and run.record(stage, 1) is None and not path.exists()  # type: ignore[arg-type]
    assert run.record(stage, 0) is not None  # type: ignore[arg-type]
    assert "no fault found" in verify_path(run.path)


def replaced(table: pa.Table, column: str, values: list[object]) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def test_rows_that_do_not_belong_together_are_found(run: Run) -> None:
    captions, choices = run.table(CAPTIONS, 0), run.table(CHOICE, 1)
    other = replaced(captions, "input_hash", [7] * len(captions))
    run.commit(CAPTIONS, 0, len(other), parquet(other), run.rejected(CAPTIONS, 0))
    turns = [[{"from": "gpt", "value": "x"}]] * len(choices)
    run.commit(CHOICE, 1, len(choices), parquet(replaced(choices, "conversations", turns)))
    shard = VectorShard(run.file(TEXT_EMBEDDINGS, 2))
    hashes, vectors = shard.input_hashes[::-1], shard.vectors.flip(0)
    run.commit(TEXT_EMBEDDINGS, 2, len(shard), lambda path: write_vectors(path, vectors, shard.ids, hashes, {}))
    found = faults(run)
    assert f"{run.file(CAPTIONS, 0)}: {len(captions)} rows were made from other rows than seeds holds" in found
    assert f"{run.file(CHOICE, 1)}: id " in found and "turns are not human and gpt in turn" in found
    assert f"{run.file(TEXT_EMBEDDINGS, 2)}: its rows are not, in order, those of" in found


def test_a_seed_without_an_end_is_found_and_a_stage_under_way_is_not_a_fault(run: Run) -> None:
    run.reopen(CAPTIONS, 1)
    run.file(CAPTIONS, 1, ".jsonl").write_text("")
    run.log_session(CAPTIONS, {})
    assert "1 shards due" in verify_path(run.path)
    table = run.table(CAPTIONS, 0)
    run.commit(CAPTIONS, 0, len(table) - 1, parquet(table.slice(1)), run.rejected(CAPTIONS, 0))
    assert "1 seeds are neither captions nor rejected" in faults(run)


def test_records_that_cannot_be_read_and_unknown_files_are_found(run: Run) -> None:
    run.file(SEEDS, 0, ".json").write_text("{")
    (run.path / "notes.txt").touch()
    found = faults(run)
    assert "00000.json" in found and "notes.txt: unknown file" in found
    with pytest.raises(RunError, match=r"notes\.txt"):
        verify_path(run.path, fix=True)
    assert not run.file(SEEDS, 0, ".json").exists()


def test_a_built_data_set_is_compared_with_its_manifest(tmp_path: Path) -> None:
    built = tmp_path / "set"
    built.mkdir()
    pq.write_table(pa.table({"id": ["0000000000"]}), built / "a.parquet")
    content = (built / "a.parquet").read_bytes()
    facts = {"bytes": len(content), "sha256": sha256(built / "a.parquet")}
    write_json(built / "manifest.json", {"files": {"a.parquet": facts}})
    (built / ".gitattributes").touch()
    (built / ".cache").mkdir()
    (built / ".cache" / "x.lock").touch()  # as snapshot_download leaves it
    assert "no fault found in 1 files, 1 rows in all configs" in verify_path(built)
    (built / "a.parquet").write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"a\.parquet: \d+ bytes, recorded"):
        verify_path(built)
    write_json(built / "manifest.json", {"files": {"a.parquet": {}}})
    with pytest.raises(DatasetError, match=r"manifest\.json is not a manifest of files"):
        verify_path(built)
    with pytest.raises(DatasetError, match="neither a run .* nor a built data set"):
        verify_path(tmp_path)

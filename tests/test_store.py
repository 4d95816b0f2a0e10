"""The run directory: records, what is due, refusals, and files that are there completely or not at all."""

import errno
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from generation.errors import RunError
from generation.files import write_atomically, write_json
from generation.recipe import CONFIGS, load_recipe, parse_recipe
from generation.stages import CAPTION_SCHEMA, CAPTIONS, REJECTED_SCHEMA, SEED_SCHEMA, SEEDS, row_id, select
from generation.store import Run, parquet

DEMO = load_recipe(CONFIGS / "demo.yaml")


def seeds(shard: int, rows: int = 2) -> pa.Table:
    return pa.Table.from_pylist([{"id": row_id(shard, n), "seed": f"s{n}"} for n in range(rows)], SEED_SCHEMA)


def captions(shard: int) -> pa.Table:
    return pa.Table.from_pylist([{"id": row_id(shard, 0), "caption": "c"}], CAPTION_SCHEMA)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run", DEMO, create=True)
    for shard in range(3):
        run.commit(SEEDS, shard, 2, parquet(seeds(shard)))
    return run


def test_files_of_another_shape_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Not a run directory: .*no run\.json"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match="format 1; this version of the code reads 2"):
        Run(tmp_path)
    path = run.file(SEEDS, 1, ".json")
    whole = json.loads(path.read_text())
    for change in ({"rows": "many"}, {"files": []}, {"files": {}}, {"files": {"00001.parquet": {}}}):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(RunError, match=r"00001\.json is not a record; `python -m generation verify .* --fix`"):
            run.records(SEEDS)
    write_json(run.path / "captions" / "stage.json", {"settings": {}})
    with pytest.raises(RunError, match=r"captions/stage\.json holds no settings or identity"):
        run.begin(CAPTIONS)
    (run.path / "captions" / "sessions.jsonl").write_text('[]\n{"rows": 1}\n{"ro')
    assert run.sessions(CAPTIONS) == [{"rows": 1}]


def test_a_shard_has_one_holder_and_a_file_system_without_locks_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run.claim(CAPTIONS, 0) as mine, run.claim(CAPTIONS, 0) as again, run.claim(CAPTIONS, 1) as other:
        assert (mine, again, other) == (True, False, True)

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(RunError, match=r"\.00000\.lock: No locks available"), run.claim(CAPTIONS, 0, wait_s=-1):
        pass


def test_a_shard_is_due_until_its_record_names_the_inputs_of_now(run: Run) -> None:
    assert run.due(CAPTIONS) == [0, 1, 2]
    for shard in range(3):
        run.commit(CAPTIONS, shard, 1, parquet(captions(shard)))
    assert run.due(CAPTIONS) == []
    run.commit(SEEDS, 1, 3, parquet(seeds(1, 3)))  # changed upstream
    assert run.due(CAPTIONS) == [1]
    run.reopen(CAPTIONS, 2)
    assert run.due(CAPTIONS) == [1, 2]
    assert run.due(CAPTIONS, {"fraction": "0.2"}) == [0, 1, 2]
    said = r"'captions' is not complete \(1 of 3 shards\). Run `python -m generation captions --run-dir"
    with pytest.raises(RunError, match=said):
        run.require(CAPTIONS)


def test_rejected_rows_come_and_go_with_their_record_and_all_may_read_them(run: Run) -> None:
    rejected = pa.Table.from_pylist([{"id": row_id(0, 1), "reason": "too_short"}], REJECTED_SCHEMA)
    run.commit(CAPTIONS, 0, 1, parquet(captions(0)), rejected, counts={"rejected": {"too_short": 1}})
    assert Run(run.path).rejected(CAPTIONS, 0)["reason"].to_pylist() == ["too_short"]
    assert all(path.stat().st_mode & stat.S_IRGRP for path in run.path.rglob("*") if path.is_file())
    run.commit(CAPTIONS, 0, 1, parquet(captions(0)))
    assert not run.rejected(CAPTIONS, 0) and not run.file(CAPTIONS, 0, ".rejected.parquet").exists()


def test_changed_and_missing_files_are_named(run: Run) -> None:
    path = run.file(SEEDS, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=rf"{path}: sha256 \w+, recorded"):
        Run(run.path).table(SEEDS, 0)
    path.unlink()
    with pytest.raises(RunError, match=rf"{path}: missing; `python -m generation verify"):
        Run(run.path).table(SEEDS, 0)
    with pytest.raises(RunError, match="has no record; finish stage 'captions' first"):
        run.table(CAPTIONS, 0)


def test_other_settings_are_refused_by_name(run: Run) -> None:
    run.begin(CAPTIONS, {"model": "a"})
    run.begin(CAPTIONS, {"model": "a"})
    with pytest.raises(RunError, match="model: 'a' -> 'b'"):
        run.begin(CAPTIONS, {"model": "b"})
    changed = parse_recipe(DEMO.model_dump(mode="json") | {"captions": {"words": [60, 483]}}, "r")
    with pytest.raises(RunError, match=r"captions\.words: \[51, 483\] -> \[60, 483\]"):
        Run(run.path, changed)
    other = parse_recipe(DEMO.model_dump(mode="json") | {"server": {"endpoints": ["http://a"]}, "attempts": 2}, "r")
    assert Run(run.path, other).recipe.attempts == Run(run.path).recipe.attempts == 2  # may change at any time


def _begin(path: Path, model: str) -> str:
    try:
        Run(path).begin(CAPTIONS, {"model": model})
        return model
    except RunError as error:
        return str(error)


def test_of_processes_that_begin_a_stage_one_wins(run: Run) -> None:
    with multiprocessing.Pool(4) as pool:
        results = pool.starmap(_begin, [(run.path, model) for model in "abab"], chunksize=1)
    winner = run.facts(CAPTIONS)["identity"]["model"]
    assert results.count(winner) == 2 and sum("begun with other settings" in text for text in results) == 2


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="No space left on device. Nothing already made is lost"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_raising_a_fraction_only_adds() -> None:
    ids = [row_id(0, n) for n in range(997)]
    chosen = [select("multiple_choice", ids, fraction) for fraction in (0.0, 0.1, 0.13755, 0.5, 1.0)]
    assert [len(part) for part in chosen] == [0, 100, 137, 498, 997]
    assert all(small < large for small, large in zip(chosen, chosen[1:], strict=False))
    assert select("question_answering", ids, 0.1) != chosen[1]

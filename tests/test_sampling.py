"""Which captions a task asks about: the right number, from every source, the same whatever comes later."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.records import CAPTION_SCHEMA, REJECTED_SCHEMA, row_id
from generation.rundir import RunDir
from generation.sampling import TaskSample, pool, proportional
from generation.sealing import open_again

STAGE = "instructions/question_answering"
SOURCES = ["common"] * 12 + ["seldom"] * 3 + ["rare"]  # by row


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 1000), max_size=12), st.integers(0, 5000))
def test_shares_add_up_stay_within_sizes_and_leave_no_source_out(sizes: dict[str, int], total: int) -> None:
    shares = proportional(sizes, total)
    assert shares.keys() == sizes.keys()
    assert sum(shares.values()) == min(total, sum(sizes.values()))
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    filled = [name for name, size in sizes.items() if size]
    if total >= len(filled):
        assert all(shares[name] for name in filled)
    for name, size in sizes.items():
        exact = min(total, sum(sizes.values())) * size / max(1, sum(sizes.values()))
        assert shares[name] <= exact + 1


def captions(run: RunDir, shard: int, rows: int, recovered: int = 0) -> None:
    """A caption shard of ``rows`` rows, of which ``recovered`` came later."""
    numbers = [*range(rows - recovered), *range(500, 500 + recovered)]
    columns: dict[str, list[Any]] = {
        "id": [row_id(shard, number) for number in numbers],
        "caption": [f"Scene {shard} {number}." for number in numbers],
        "source": [SOURCES[number % len(SOURCES)] for number in numbers],
    }
    data = {name: columns.get(name, [None] * rows) for name in CAPTION_SCHEMA.names}
    run.seal_tables("captions", shard, pa.table(data, CAPTION_SCHEMA), None)


def answered(run: RunDir, sample: TaskSample, shard: int, rejected: int = 0) -> None:
    """Seals a shard of the task, the first rows asked about rejected."""
    ids = [row_id(shard, row) for row in sample.rows(shard)]
    data: dict[str, list[Any]] = {name: [None] * rejected for name in REJECTED_SCHEMA.names}
    data |= {"id": ids[:rejected], "reason": ["loop"] * rejected}
    data |= {name: [1] * rejected for name in ("attempts", "prompt_tokens", "completion_tokens", "sampling_seed")}
    table = pa.table({"id": ids[rejected:]})
    counts: dict[str, Any] = {
        "requests": 1,
        "retries": {},
        "rejected_by_reason": {"loop": rejected} if rejected else {},
    }
    run.seal_tables(STAGE, shard, table, pa.table(data, REJECTED_SCHEMA), **counts)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run", create=True)
    run.begin("captions", {})
    run.begin(STAGE, {})
    for shard in range(3):
        captions(run, shard, 64)
    return run


def chosen(run: RunDir, fraction: float, **more: Any) -> TaskSample:
    sample = TaskSample(run, STAGE, "0 question_answering", **more)
    sample.choose(fraction)
    return sample


def ids(sample: TaskSample, shards: range = range(3)) -> set[str]:
    return {row_id(shard, row) for shard in shards for row in sample.rows(shard)}


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 1.0])
def test_the_fraction_is_met_to_a_row_and_every_source_has_its_part(run: RunDir, fraction: float) -> None:
    sample = chosen(run, fraction)
    assert len(ids(sample)) == sum(map(sample.count, range(3))) == int(192 * fraction + 0.5)
    sources = Counter(SOURCES[int(id[5:]) % 16] for id in ids(sample))
    assert sources.keys() == {"common", "seldom", "rare"}
    assert abs(sources["common"] - 0.75 * 192 * fraction) <= 2


def test_the_selection_is_kept_and_depends_on_the_key_alone(run: RunDir) -> None:
    first = ids(chosen(run, 0.25))
    assert ids(TaskSample(RunDir(run.path), STAGE, "0 question_answering")) == first
    other = TaskSample(run, "instructions/multiple_choice", "0 multiple_choice")
    other.choose(0.25)
    assert len(ids(other)) == len(first)
    assert ids(other) != first


def test_shards_that_are_added_and_captions_that_are_recovered_leave_earlier_choices_as_they_are(run: RunDir) -> None:
    first = ids(chosen(run, 0.25))
    captions(run, 1, 70, recovered=6)
    captions(run, 3, 64)
    later = chosen(run, 0.25)
    assert ids(later) == first
    assert later.count(3) == 16
    assert not [row for row in later.rows(1) if row >= 64]


def test_a_task_that_is_short_is_topped_up_from_the_same_source_and_asks_no_caption_twice(run: RunDir) -> None:
    sample = chosen(run, 0.25)
    for shard in range(3):
        answered(run, sample, shard, rejected=2 if shard == 1 else 0)
    before, counts = ids(sample), [sample.count(shard) for shard in range(3)]
    lost = [SOURCES[row % 16] for row in sample.rows(1)[:2]]
    opened: list[int] = []

    def open_shard(shard: int) -> None:
        opened.append(shard)
        open_again(run, STAGE, shard)

    assert sample.top_up(open_shard) == 2
    assert before < ids(sample)
    assert Counter(SOURCES[int(id[5:]) % 16] for id in ids(sample) - before) == Counter(lost)
    assert sorted(opened) == [shard for shard in range(3) if sample.count(shard) > counts[shard]]
    assert ids(TaskSample(RunDir(run.path), STAGE, "0 question_answering")) == ids(sample)
    for shard in opened:
        answered(run, sample, shard, rejected=2 if shard == 1 else 0)
    assert sample.top_up(open_shard) == 0


def test_a_task_with_nothing_left_to_draw_stays_short(run: RunDir) -> None:
    sample = chosen(run, 1.0)
    for shard in range(3):
        answered(run, sample, shard, rejected=3)
    assert sample.top_up(lambda shard: None) == 0


def test_tasks_that_share_no_caption_draw_from_pools_of_their_own(run: RunDir) -> None:
    shares = {"a": 0.3, "b": 0.3, "c": 0.2}
    picked = {}
    for name in shares:
        sample = TaskSample(run, f"instructions/{name}", name, lambda id, name=name: pool("0", id, shares) == name)  # type: ignore[misc]
        sample.choose(0.2)
        picked[name] = ids(sample)
    assert all(len(rows) in (37, 38) for rows in picked.values())
    assert len(set.union(*picked.values())) == sum(map(len, picked.values()))

"""The arithmetic of batches: every row once, whatever the ranks, workers, sizes and positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from generation.loader.order import EpochBatches, batch_count, batch_rows, epoch_order

ROWS, FEW = st.integers(1, 80), st.integers(1, 5)


@given(rows=ROWS, begin=st.integers(0, 80), size=FEW, ranks=FEW, workers=FEW)
def test_ranks_and_workers_part_what_is_left_of_an_epoch(
    rows: int, begin: int, size: int, ranks: int, workers: int
) -> None:
    begin = min(begin, rows)
    order = epoch_order(rows, 1, 2)
    seen: list[int] = []
    for rank in range(ranks):
        count = batch_count(rows, begin, size, rank, ranks, drop_last=False)
        for worker in range(workers):
            parts = [batch_rows(order, begin, batch, size, rank, ranks) for batch in range(worker, count, workers)]
            assert all(0 < len(part) <= size for part in parts)
            seen += [row for part in parts for row in part.tolist()]
        assert not len(batch_rows(order, begin, count, size, rank, ranks))
    assert sorted(seen) == sorted(order[begin:].tolist())
    counts = [batch_count(rows, begin, size, rank, ranks, drop_last=True) for rank in range(ranks)]
    assert counts == [(rows - begin) // (size * ranks)] * ranks


@given(rows=ROWS, size=FEW, ranks=FEW, taken=st.integers(0, 30), other_size=FEW, other_ranks=FEW)
def test_a_position_leaves_the_same_rows_to_any_other_ranks_and_sizes(
    rows: int, size: int, ranks: int, taken: int, other_size: int, other_ranks: int
) -> None:
    def run(size: int, ranks: int, state: dict[str, int | bool] | None = None) -> list[list[list[int]]]:
        made = [EpochBatches(rows, size, rank=rank, world_size=ranks) for rank in range(ranks)]
        for one in made:
            one.load_state_dict(state) if state else one.set_epoch(6)
        return [list(one) for one in made]

    before = EpochBatches(rows, size, rank=0, world_size=ranks)
    before.set_epoch(6)
    state = before.state_after(taken)
    had = [row for batches in run(size, ranks) for batch in batches[:taken] for row in batch]
    left = [row for batches in run(other_size, other_ranks, state) for batch in batches for row in batch]
    assert sorted(had + left) == list(range(rows))
    assert run(size, ranks, state) == [batches[taken:] for batches in run(size, ranks)]


@given(rows=ROWS, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_an_epochs_order_is_a_permutation_of_its_own(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert sorted(order.tolist()) == list(range(rows))
    assert np.array_equal(order, epoch_order(rows, seed, epoch))
    if rows > 40:
        assert not np.array_equal(order, epoch_order(rows, seed, epoch + 1))
        assert not np.array_equal(order, epoch_order(rows, seed ^ 1, epoch))


def test_the_order_never_changes_between_versions() -> None:
    assert epoch_order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_order(8, 0, 1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]

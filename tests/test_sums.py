"""Sums of rows: exact, the same to the bit however the rows are cut, and never of too few or too many shards."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.errors import EmbeddingError
from generation.transfer.rows import Part, Rows, pieces
from generation.transfer.sums import CHUNK_ROWS, UNITS, Buffers, Sums, add_exactly


def unit_rows(rows: int, dimension: int, seed: int) -> torch.Tensor:
    raw = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed)) + 0.3
    return torch.nn.functional.normalize(raw, dim=1).half()


def exact(rows: torch.Tensor) -> list[Fraction]:
    """Sums of columns in rational numbers."""
    return [sum((Fraction(value) for value in column), Fraction(0)) for column in rows.double().T.tolist()]


def total(rows: torch.Tensor) -> torch.Tensor:
    return Rows([Part("rows", lambda: [rows])]).sums().total.double() / UNITS


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3 * CHUNK_ROWS), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_sum_of_stored_rows_has_no_rounding(rows: int, dimension: int, seed: int) -> None:
    embeddings = unit_rows(rows, dimension, seed)
    assert [Fraction(value) for value in total(embeddings).tolist()] == exact(embeddings)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=16, exclude_max=True), min_size=1, max_size=CHUNK_ROWS))
def test_any_float16_below_4_is_summed_exactly(values: list[float]) -> None:
    column = torch.tensor(values, dtype=torch.float16).unsqueeze(1)
    found = torch.zeros(1, dtype=torch.int64)
    add_exactly(found, column.float(), Buffers(1), on_grid=True)
    assert Fraction(found.item(), 2**24) == exact(column)[0]


@pytest.mark.parametrize("value", [3.998, -4.0])
def test_the_largest_elements_do_not_overflow(value: float) -> None:
    rows = torch.full((CHUNK_ROWS, 2), value, dtype=torch.float16)
    found = torch.zeros(2, dtype=torch.int64)
    add_exactly(found, rows.float(), Buffers(2), on_grid=True)
    assert found.tolist() == [round(float(rows[0, 0]) * 2**24) * CHUNK_ROWS] * 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 900), st.integers(1, 24), st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 4))
def test_order_sharding_and_threads_do_not_move_a_bit(
    rows: int, dimension: int, seed: int, cut: int, threads: int
) -> None:
    embeddings = unit_rows(rows, dimension, seed)
    ops, mean = ["sub:mean", "l2norm"], {"mean": embeddings.double().mean(0) + 0.01}
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    parts = [Part(str(number), lambda part=part: [part]) for number, part in enumerate(embeddings[order].split(cut))]
    whole, cut_up = Rows([Part("rows", lambda: [embeddings])]), Rows(parts, threads)
    assert torch.equal(whole.sums().total, cut_up.sums().total)
    assert torch.equal(whole.sums(ops, mean).total, cut_up.sums(ops, mean).total)  # rounded to the grid, then exact


def test_sums_of_float32_rows_are_off_by_less_than_the_grid() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    difference = (total(rows) - rows.double().sum(0)).abs() / len(rows)
    assert difference.max() < 2.0**-25


def test_a_mean_of_1_2_million_rows_is_within_1e_4_of_float64_where_float16_is_lost() -> None:
    rows = unit_rows(1_200_000, 4, 9)
    mean = Rows([Part("rows", lambda: [rows])], 2).sums().mean()
    reference = rows.numpy().astype(np.float64).mean(0)
    assert np.abs(mean.numpy() / reference - 1).max() < 1e-12  # the bound asked for is 1e-4
    with np.errstate(over="ignore"):
        running = np.add.accumulate(rows[:, 0].numpy(), dtype=np.float16)[-1]
    assert abs(float(running) / (reference[0] * len(rows)) - 1) > 0.5


def test_sums_made_elsewhere_add_up_to_the_sum_of_all() -> None:
    rows = unit_rows(700, 8, 3)
    first, second = (
        Rows([Part(name, lambda part=part: [part], {name: name * 4})]).sums()
        for name, part in (("0", rows[:300]), ("1", rows[300:]))
    )
    both = second + first
    assert torch.equal(both.mean({"0": "0000", "1": "1111"}), rows.double().sum(0) / 700)
    with pytest.raises(EmbeddingError, match="source 0 is in both sums"):
        both + first
    with pytest.raises(EmbeddingError, match="8 and of 3 dimensions"):
        both + Sums(torch.zeros(3, dtype=torch.int64), 1, {})


@pytest.mark.parametrize(
    "wanted", [{"0": "0000", "1": "1111"}, {}, {"0": "9999"}], ids=["missing", "foreign", "changed"]
)
def test_a_mean_of_other_shards_than_asked_for_is_refused(wanted: dict[str, str]) -> None:
    sums = Rows([Part("0", lambda: [unit_rows(5, 4, 0)], {"0": "0000"})]).sums()
    with pytest.raises(EmbeddingError, match="missing, foreign or changed"):
        sums.mean(wanted)


def test_no_row_has_no_mean() -> None:
    with pytest.raises(EmbeddingError, match="no row"):
        Rows([Part("empty", lambda: [torch.zeros(0, 4, dtype=torch.float16)])]).sums()


def test_parts_of_different_dimensions_do_not_add_up() -> None:
    with pytest.raises(EmbeddingError, match="8 and of 4 dimensions"):
        Rows([Part(str(d), lambda d=d: [unit_rows(5, d, 0)]) for d in (8, 4)]).sums()


def test_a_second_moment_and_a_sample_are_those_of_the_rows() -> None:
    embeddings = unit_rows(1500, 6, 4)
    rows = Rows([Part(str(n), lambda part=part: [part]) for n, part in enumerate(embeddings.split(400))], 2)
    wide = embeddings.double()
    torch.testing.assert_close(rows.second_moment((), {}), wide.T @ wide / 1500)
    drawn = rows.sample(100, 1500, seed=1)
    assert drawn.shape == (100, 6)
    places = [(embeddings.float() == row).all(1).nonzero()[0].item() for row in drawn]
    assert places == sorted(set(places))


@given(st.lists(st.integers(0, 3 * CHUNK_ROWS), max_size=4))
def test_pieces_fit_the_buffers_and_lose_nothing(sizes: list[int]) -> None:
    chunks = [torch.full((size, 1), number) for number, size in enumerate(sizes)]
    found = list(pieces(chunks))
    assert all(len(piece) <= CHUNK_ROWS for piece in found)
    assert sum(map(len, found)) == sum(sizes)

"""Embedding shards as files: equal bytes for equal rows, and errors that name the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from generation.errors import EmbeddingError
from generation.vectors import VectorShard, check_unit, write_vectors


def parts(rows: int, dimension: int) -> tuple[torch.Tensor, list[str], list[int]]:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(rows, dimension, generator=draw), dim=1).half()
    return vectors, [f"{row:010d}" for row in range(rows)], [2**63 - 1 - row for row in range(rows)]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0, 1, 7, 40, 5000]), st.integers(2, 48), st.text(max_size=20))
def test_a_shard_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dimension: int, fact: str
) -> None:
    path = tmp_path_factory.mktemp("shard") / "0.safetensors"
    vectors, ids, hashes = parts(rows, dimension)
    before, written = torch.get_num_threads(), set[bytes]()
    for threads, metadata in ((2, {"a": [1], "b": fact}), (1, {"b": fact, "a": [1]})):  # give equal bytes
        torch.set_num_threads(threads)
        write_vectors(path, vectors, ids, hashes, metadata)
        written.add(path.read_bytes())
    torch.set_num_threads(before)
    assert len(written) == 1
    shard = VectorShard(path)
    assert torch.equal(shard.vectors, vectors) and (len(shard), shard.dimension) == (rows, dimension)
    assert (shard.ids, shard.input_hashes, shard.metadata) == (ids, hashes, {"a": [1], "b": fact})
    wanted = np.zeros(dimension)
    for row in vectors.numpy().astype(np.float64):
        wanted += row
    assert np.array_equal(shard.sum.numpy(), wanted)


def test_a_shard_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    write_vectors(path, *parts(6, 4), {})
    whole = path.read_bytes()
    for content in (*(whole[:keep] for keep in (0, 7, 40, 400, -1)), whole[:9] + b"?" + whole[10:], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(EmbeddingError, match=r"torn\.safetensors is not a complete embedding shard"):
            VectorShard(path)


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    write_vectors(path, *parts(6, 4), {})
    right = load_file(path)
    for name, tensor, said in (
        ("vectors", torch.zeros(6, 4), "float32, 6, 4"),
        ("vectors", torch.zeros(24).half(), "float16, 24"),
        ("ids", torch.zeros(6, 9, dtype=torch.uint8), "uint8, 6, 9"),
        ("input_hashes", torch.zeros(6), "float32, 6"),
        ("sum", torch.zeros(3, dtype=torch.float64), "float64, 3"),
        ("sum", torch.full((4,), torch.nan, dtype=torch.float64), "holds NaN or Inf"),
        ("sum", None, "holds no sum of its rows"),
    ):
        changed = {key: value for key, value in (right | {name: tensor}).items() if value is not None}
        save_file(changed, path, {"unicorn": "{}"})
        with pytest.raises(EmbeddingError, match=rf"odd\.safetensors.*{said}"):
            _ = VectorShard(path).sum


def test_what_cannot_be_a_shard_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    vectors, ids, hashes = parts(4, 3)
    unfit = ((vectors.float(), ids, hashes), (vectors[:3], ids, hashes), (vectors, [*ids[:3], "123"], hashes))
    for arguments in (*unfit, (vectors, ids, hashes[:3])):
        with pytest.raises(EmbeddingError, match=r"0\.safetensors: cannot store"):
            write_vectors(path, *arguments, {})
    vectors[2, 1] = torch.inf
    with pytest.raises(EmbeddingError, match=r"row 2 \(id 0000000002\) holds NaN or Inf"):
        write_vectors(path, vectors, ids, hashes, {})
    assert not path.exists()
    with pytest.raises(OSError):
        write_vectors(tmp_path / "none" / "x", *parts(1, 2), {})


@pytest.mark.parametrize(("value", "said"), [(0.0, "0 and"), (torch.nan, "nan"), (torch.inf, "inf"), (2.0, "[12]")])
def test_the_first_row_that_is_not_of_norm_1_is_named(value: float, said: str) -> None:
    vectors = parts(5000, 64)[0]
    check_unit(vectors, "a.safetensors")
    vectors[4500] *= value
    with pytest.raises(EmbeddingError, match=rf"a\.safetensors, row 4500: its norm is {said}"):
        check_unit(vectors, "a.safetensors")

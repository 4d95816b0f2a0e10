"""Embedding shards as files: read by safetensors itself, and refused by name when torn, bent or misshapen."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.errors import EmbeddingError
from generation.tensors import open_shard, write_shard


def companions(rows: int) -> dict[str, torch.Tensor]:
    ids = "".join(f"{row:010d}" for row in range(rows))
    return {
        "ids": torch.frombuffer(bytearray(ids or "0" * 10, "ascii"), dtype=torch.uint8).view(-1, 10)[:rows],
        "text_sha256": torch.full((rows, 32), 7, dtype=torch.uint8),
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 40), st.text(max_size=20))
def test_a_streamed_shard_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dimension: int, fact: str
) -> None:
    path = tmp_path_factory.mktemp("shard") / "0.safetensors"
    chunks = [torch.randn(size, dimension).half() for size in sizes]
    write_shard(path, chunks, (sum(sizes), dimension), companions(sum(sizes)), {"fact": fact})
    read = load_file(path)
    assert torch.equal(read["embeddings"], torch.cat([torch.zeros(0, dimension).half(), *chunks]))
    assert torch.equal(read["ids"], companions(sum(sizes))["ids"])
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["unicorn"]) == {"fact": fact}
    opened = open_shard(path)
    assert torch.equal(opened.embeddings, read["embeddings"])
    assert opened.numbers().tolist() == list(range(sum(sizes)))


def test_equal_shards_are_equal_bytes(tmp_path: Path) -> None:
    rows = torch.randn(9, 5).half()
    for name, cut in (("a", 2), ("b", 9)):
        write_shard(tmp_path / name, rows.split(cut), (9, 5), companions(9), {"b": 1, "a": [1]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def whole(path: Path) -> bytes:
    write_shard(path, [torch.randn(6, 4).half()], (6, 4), companions(6), {})
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0, 7, 40, 300, -1])
def test_a_torn_shard_is_refused_by_name(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(whole(path)[:keep])
    with pytest.raises(EmbeddingError, match=r"torn\.safetensors is no whole shard"):
        open_shard(path)


def test_a_bent_header_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bent.safetensors"
    content = bytearray(whole(path))
    content[9] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"bent\.safetensors is no whole shard"):
        open_shard(path)


@pytest.mark.parametrize(
    "change",
    [
        {"embeddings": torch.zeros(6, 4)},
        {"embeddings": torch.zeros(24).half()},
        {"ids": torch.zeros(5, 10, dtype=torch.uint8)},
        {"text_sha256": torch.zeros(6, 31, dtype=torch.uint8)},
    ],
    ids=["float32", "flat", "rows", "width"],
)
def test_a_misshapen_shard_is_refused_with_what_it_holds(change: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({"embeddings": torch.zeros(6, 4).half(), **companions(6), **change}, tmp_path / "odd.safetensors")
    with pytest.raises(EmbeddingError, match=r"odd\.safetensors: embeddings .* wanted float16"):
        open_shard(tmp_path / "odd.safetensors")


def test_a_shard_without_ids_is_refused(tmp_path: Path) -> None:
    save_file({"embeddings": torch.zeros(6, 4).half()}, tmp_path / "bare.safetensors")
    with pytest.raises(EmbeddingError, match=r"bare\.safetensors is no whole shard .*ids"):
        open_shard(tmp_path / "bare.safetensors")


def test_an_id_that_is_no_number_is_named(tmp_path: Path) -> None:
    odd = companions(6)
    odd["ids"][3, 2] = ord("x")
    write_shard(tmp_path / "odd", [torch.zeros(6, 4).half()], (6, 4), odd, {})
    with pytest.raises(EmbeddingError, match="odd, row 3: the id b'00x0000003' is no ten digits"):
        open_shard(tmp_path / "odd").numbers()


@pytest.mark.parametrize("rows", [5, 7])
def test_more_or_fewer_rows_than_announced_are_refused(rows: int, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=f"{rows} rows were given for a shard of 6"):
        write_shard(tmp_path / "x", [torch.zeros(rows, 4).half()], (6, 4), companions(6), {})

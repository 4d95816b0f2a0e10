"""Trainer access: what a trainer sees of the two built data sets, through real DataLoader workers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer

from generation.encoders.mean_pooling import embedded_model
from generation.errors import UnicornError
from generation.loader import Batch, Collate, EpochBatches, UnicornDataset, UnicornStream

BIG, SMALL = "unicorn-1.2m", "unicorn-471k-instruction"
SHARD = "image_embeddings/unicorn/{:05d}.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def big(built: Path) -> UnicornDataset:
    return UnicornDataset(built / BIG)


def batches(loader: Any) -> list[list[str]]:
    return [batch.ids() for batch in loader]


def loader(stream: UnicornStream, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(stream, batch_size=None, num_workers=workers, **options)


# -- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_rows_are_those_of_the_parquet_files_and_vectors_the_stored_ones(name: str, built: Path) -> None:
    dataset = UnicornDataset(built / name, built / BIG)
    wanted = [row for path in sorted((built / name).glob("data/*")) for row in pq.read_table(path).to_pylist()]
    vectors = [
        row["image_embedding"]
        for path in sorted((built / name).glob("with_embeddings/*"))
        for row in pq.read_table(path, columns=["image_embedding"]).to_pylist()
    ]
    assert len(dataset) == len(wanted) == {BIG: 18, SMALL: 27}[name]
    assert dataset.dimension == 384
    for number, (row, vector) in enumerate(zip(wanted, vectors, strict=True)):
        found = dataset[number]
        assert {key: found[key] for key in ("id", "caption", "conversations")} == {
            key: row[key] for key in ("id", "caption", "conversations")
        }
        stored = load_file(built / BIG / SHARD.format(row["embedding_shard"]))["embeddings"][row["embedding_row"]]
        assert found["embeds"].dtype == torch.float16
        assert np.array_equal(found["embeds"].numpy(), stored)
        assert np.array_equal(np.float16(vector), stored)
    dataset.verify()


def test_a_batch_is_its_rows_in_the_order_asked_for(big: UnicornDataset) -> None:
    batch = big.__getitems__([17, 0, 9, 9, 17])
    rows = [big[row] for row in (17, 0, 9, 9, 17)]
    assert batch.ids() == [row["id"] for row in rows]
    assert batch.captions().to_pylist() == [row["caption"] for row in rows]
    assert batch.conversations() == [row["conversations"] for row in rows]
    assert torch.equal(batch.embeds, torch.stack([row["embeds"] for row in rows]))
    for row in (18, -1):
        with pytest.raises(IndexError, match=f"{row}.* which has 0..17"):
            big[row]


# -- batches over ranks and workers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "workers", "size"), [(1, 0, 4), (1, 2, 5), (2, 2, 4), (3, 2, 7)])
def test_every_row_comes_once_an_epoch_over_ranks_and_workers(
    ranks: int, workers: int, size: int, big: UnicornDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    epochs = []
    for epoch in (0, 1, 1):
        seen = []
        for rank in range(ranks):
            monkeypatch.setenv("RANK", str(rank))
            stream = UnicornStream(big, size, seed=3)
            stream.set_epoch(epoch)
            got = batches(loader(stream, workers))
            assert len(got) == len(stream)
            assert all(len(batch) == size for batch in got[:-1])
            seen += [id for batch in got for id in batch]
        assert sorted(seen) == sorted(big[row]["id"] for row in range(18))
        epochs.append(seen)
    assert epochs[0] != epochs[1] == epochs[2]


def test_batches_are_the_same_by_any_number_of_workers_and_by_the_batch_sampler(big: UnicornDataset) -> None:
    wanted = batches(loader(UnicornStream(big, 4, seed=5), 0))
    for workers, context in ((1, None), (2, "spawn")):
        assert batches(loader(UnicornStream(big, 4, seed=5), workers, multiprocessing_context=context)) == wanted
    sampler = EpochBatches(18, 4, seed=5)
    assert batches(DataLoader(big, batch_sampler=sampler, num_workers=2, collate_fn=same)) == wanted
    assert [len(batch) for batch in wanted] == [4, 4, 4, 4, 2]
    assert batches(loader(UnicornStream(big, 4, seed=5, drop_last=True), 2)) == wanted[:4]
    plain = [id for batch in batches(loader(UnicornStream(big, 4, shuffle=False), 2)) for id in batch]
    assert plain == sorted(plain)


def test_persistent_workers_go_on_to_the_epoch_that_is_set(big: UnicornDataset) -> None:
    stream, fresh = UnicornStream(big, 4), UnicornStream(big, 4)
    persistent = loader(stream, 2, persistent_workers=True)
    for epoch in (0, 1, 2):
        stream.set_epoch(epoch)
        fresh.set_epoch(epoch)
        assert batches(persistent) == batches(loader(fresh, 0))


# -- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
def test_a_position_resumes_to_exactly_what_was_left(before: int, after: int, big: UnicornDataset) -> None:
    stream = UnicornStream(big, 2)
    stream.set_epoch(4)
    whole = batches(loader(stream, before))
    for taken in (0, 1, 5, 9):
        stream = UnicornStream(big, 2)
        stream.set_epoch(4)
        next(iter(stream))
        state = json.loads(json.dumps(stream.state_after(taken)))
        again = UnicornStream(big, 2)
        again.load_state_dict(state)
        again.set_epoch(4)  # as a trainer's loop does
        assert len(again) == len(whole) - taken
        assert batches(loader(again, after)) == whole[taken:]
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        twice = UnicornStream(big, 2)
        twice.load_state_dict(again.state_after(2))
        assert batches(loader(twice, after)) == whole[taken + 2 :]
        again.set_epoch(5)
        assert len(batches(loader(again, after))) == len(whole)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_torchdatas_loader_resumes_in_mid_epoch_and_goes_on_to_the_next(workers: int, big: UnicornDataset) -> None:
    def make() -> tuple[UnicornStream, StatefulDataLoader[Any]]:
        stream = UnicornStream(big, 2, seed=1)
        return stream, StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    stream, first = make()
    stream.set_epoch(2)
    states, whole = [], []
    for batch in first:
        whole.append(batch.ids())
        states.append(first.state_dict())
    stream.set_epoch(3)
    next_epoch = batches(first)
    for taken in (1, 4, 8):
        other, second = make()
        second.load_state_dict(states[taken - 1])
        assert batches(second) == whole[taken:]
        other.set_epoch(3)
        assert batches(second) == next_epoch


def test_a_foreign_position_is_refused(big: UnicornDataset) -> None:
    state = UnicornStream(big, 2).state_after(3)
    with pytest.raises(UnicornError, match="of seed 0; these batches have 1"):
        UnicornStream(big, 2, seed=1).load_state_dict(state)
    with pytest.raises(UnicornError, match="of length 18; these batches have 27"):
        EpochBatches(27, 2).load_state_dict(state)
    with pytest.raises(UnicornError, match="one of 3 workers .* save state_after"):
        UnicornStream(big, 2).load_state_dict(state | {"taken": 1, "workers": 3, "step": 2})
    with pytest.raises(UnicornError, match="rank 2 of 2"):
        UnicornStream(big, 2, rank=2, world_size=2)


# -- collate ------------------------------------------------------------------------------------------------------


def same(batch: Batch) -> Batch:
    return batch


def test_collate_gives_what_the_users_tokenizer_makes_and_a_vector_each(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())

    def tokenize(conversations: list[list[dict[str, str]]]) -> dict[str, torch.Tensor]:
        chats = ["\n".join(turn["value"] for turn in turns) for turns in conversations]
        tokens = tokenizer(chats, padding=True, truncation=True, max_length=64, return_tensors="pt")
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
        return {"input_ids": tokens["input_ids"], "labels": labels}

    dataset = UnicornDataset(built / SMALL, built / BIG)
    sampler = EpochBatches(len(dataset), 10, shuffle=False)
    made: Iterator[dict[str, torch.Tensor]] = iter(
        DataLoader(dataset, batch_sampler=sampler, num_workers=1, collate_fn=Collate(tokenize, torch.bfloat16))
    )
    first = next(made)
    assert first["input_ids"].shape == first["labels"].shape
    assert first["embeds"].shape == (10, 384)
    assert first["embeds"].dtype == torch.bfloat16
    assert torch.equal(first["embeds"][3], dataset[3]["embeds"].to(torch.bfloat16))
    words = tokenizer.decode(first["input_ids"][3], skip_special_tokens=True).split()
    assert words[-1] in dataset[3]["conversations"][0]["value"].lower()
    with pytest.raises(UnicornError, match="tokenize gave 1 rows of 'x' for 2 conversations"):
        Collate(lambda chats: {"x": torch.zeros(1)})(dataset.__getitems__([0, 1]))

"""Trainer access to the two built data sets: rows, ranks, workers, resume, noise, another transfer, and refusals."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from generation.builders.build import build
from generation.errors import EmbeddingError, UnicornError
from generation.files import sha256
from generation.loader import Collate, UnicornDataset, UnicornStream, apply_to_images, image_mean
from generation.recipe import parse_recipe
from generation.stages import stable_hash
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from generation.vectors import VectorShard, write_vectors
from tests.runs import make_run
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

BIG, SMALL = "unicorn-1.2m", "unicorn-471k-instruction"
ROWS = {BIG: 18, SMALL: 27}
SHARD = "image_embeddings/unicorn/{:05d}.safetensors"
SHAPE = st.tuples(st.integers(1, 7), st.integers(1, 4))  # batch size, ranks


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run and both data sets of it."""
    folder = tmp_path_factory.mktemp("built")
    run = make_run(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, builder in ((BIG, Unicorn12M), (SMALL, Unicorn471KInstruction)):
            build(builder, run.path, folder / name)
        yield folder


@pytest.fixture(scope="module")
def big(built: Path) -> UnicornDataset:
    return UnicornDataset(built / BIG)


@pytest.mark.parametrize("name", [BIG, SMALL])
def test_rows_are_those_of_the_parquet_files_and_vectors_the_stored_ones(name: str, built: Path) -> None:
    dataset = UnicornDataset(built / name, built / BIG)
    wanted = pq.ParquetDataset(built / name / "with_embeddings").read().to_pylist()
    assert len(dataset) == len(wanted) == ROWS[name]
    for rows in (range(len(wanted)), [17, 0, 9, 9], [5]):
        batch = dataset.__getitems__(rows)
        assert batch["embeds"].dtype == torch.float16
        for number, row in enumerate(rows):
            assert all(batch[key][number] == wanted[row][key] for key in ("id", "caption", "conversations"))
            assert np.array_equal(batch["embeds"][number].numpy(), np.float16(wanted[row]["image_embedding"]))
    assert all(np.array_equal(dataset[5][key], batch[key][0]) for key in batch)
    for row in (ROWS[name], -1):
        with pytest.raises(IndexError, match=f"{row}.* has {ROWS[name]} rows"):
            dataset[row]


@settings(max_examples=25, deadline=None)
@given(shape=SHAPE, other=SHAPE, taken=st.integers(0, 8), epoch=st.integers(0, 2**40))
def test_a_position_leaves_exactly_what_was_not_taken(
    big: UnicornDataset, shape: tuple[int, int], other: tuple[int, int], taken: int, epoch: int
) -> None:
    def run(size: int, ranks: int, state: Any = None) -> list[list[list[str]]]:
        streams = [UnicornStream(big, size, seed=3, rank=rank, world_size=ranks) for rank in range(ranks)]
        for stream in streams:
            stream.load_state_dict(state) if state else stream.set_epoch(epoch)
            stream.set_epoch(epoch)  # as the loop of a trainer does
        found = [[batch["id"] for batch in stream] for stream in streams]
        assert [len(stream) for stream in streams] == list(map(len, found))
        return found

    size, ranks = shape
    whole = run(size, ranks)
    ids = sorted(f"{shard:05d}{row:05d}" for shard in range(3) for row in range(6))
    assert sorted(id for rank in whole for batch in rank for id in batch) == ids
    state = json.loads(json.dumps(UnicornStream(big, size, seed=3, world_size=ranks, rank=0).state_after(taken)))
    assert run(size, ranks, state) == [rank[taken:] for rank in whole]
    had = [id for rank in whole for batch in rank[:taken] for id in batch]
    left = [id for rank in run(*other, state) for batch in rank for id in batch]
    assert sorted(had + left) == ids
    dropping = [UnicornStream(big, size, drop_last=True, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert {len(stream) for stream in dropping} == {18 // (size * ranks)}


def test_any_number_of_workers_gives_the_same_batches_and_resumes_at_any_step(big: UnicornDataset) -> None:
    def batches(stream: Any, workers: int = 0, **options: Any) -> list[list[str]]:
        return [batch["id"] for batch in DataLoader(stream, batch_size=None, num_workers=workers, **options)]

    big.set_epoch(4)
    whole = batches(UnicornStream(big, 4))
    for workers, context in ((2, None), (1, "spawn")):
        assert batches(UnicornStream(big, 4), workers, multiprocessing_context=context) == whole
    for taken in range(5):
        again = UnicornStream(big, 4)
        again.load_state_dict(UnicornStream(big, 4).state_after(taken))
        assert batches(again, 2 if taken == 3 else 0) == whole[taken:]
    plain = [batch["id"] for batch in DataLoader(big, batch_size=4, collate_fn=dict)]
    assert plain == batches(UnicornStream(big, 4, shuffle=False))
    persistent = DataLoader(UnicornStream(big, 4), batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        big.set_epoch(epoch)
        assert [batch["id"] for batch in persistent] == batches(UnicornStream(big, 4)) != whole
    big.set_epoch(0)  # the order never changes between versions
    ids = [id for batch in batches(UnicornStream(big, 6)) for id in batch]
    assert [int(id[:5]) * 6 + int(id[5:]) for id in ids[:8]] == [0, 2, 11, 17, 9, 1, 8, 13]


def test_a_position_of_another_stream_is_refused(big: UnicornDataset, built: Path) -> None:
    state = UnicornStream(big, 2).state_after(3)
    with pytest.raises(UnicornError, match="of seed 0, and this stream has 1"):
        UnicornStream(big, 2, seed=1).load_state_dict(state)
    with pytest.raises(UnicornError, match="of rows 18, and this stream has 27"):
        UnicornStream(UnicornDataset(built / SMALL, built / BIG), 2).load_state_dict(state)
    with pytest.raises(UnicornError, match="rank 2 of 2"):
        UnicornStream(big, 2, rank=2, world_size=2)


def test_collate_gives_what_tokenize_makes_and_a_vector_each(big: UnicornDataset) -> None:
    def tokenize(conversations: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([len(turns[1]["value"]) for turns in conversations])}

    made = next(iter(DataLoader(big, batch_size=5, collate_fn=Collate(tokenize, torch.bfloat16))))
    assert made["input_ids"].tolist() == [len(big[row]["caption"]) for row in range(5)]
    assert made["embeds"].dtype == torch.bfloat16 and made["embeds"].shape == (5, big.dimension)
    with pytest.raises(UnicornError, match="tokenize must return 2 rows of 'x', not 1"):
        Collate(lambda chats: {"x": torch.zeros(1)})(big.__getitems__([0, 1]))


def transferred(built: Path, folder: Path, **section: Any) -> UnicornDataset:
    """Build the run again with another transfer, made directly."""
    run = Run(Path(shutil.copytree(built / "run", folder / "run")))
    recipe = run.recipe.model_dump(mode="json") | {"transfer": section}
    make_image_embeddings(Run(run.path, parse_recipe(recipe, "test")))
    build(Unicorn12M, folder / "run", folder / "built", method=section["method"])
    return UnicornDataset(folder / "built")


@pytest.mark.parametrize("method", ["none", "mean_shift", "anchor", "realign", "capdec", "decap"])
def test_another_transfer_at_load_time_is_the_one_made_directly(method: str, built: Path, tmp_path: Path) -> None:
    rows, path = torch.randn(200, 16, generator=torch.Generator().manual_seed(3)) - 0.2, str(tmp_path / "images.npy")
    np.save(path, rows.numpy())
    extra: dict[str, Any] = {"noise_ratio": 0.5} if method == "capdec" else {}
    given_images = {"images": path} if method in ("anchor", "realign") else {}
    direct = transferred(built, tmp_path, method=method, **extra, **given_images)
    moved = UnicornDataset(built / SMALL, built / BIG, transfer={"method": method} | extra, **given_images)
    wanted = {row["id"]: row["embeds"].float() for row in map(direct.__getitem__, range(18))}
    batch = moved.__getitems__(range(27))
    made = torch.stack([wanted[id] for id in batch["id"]])
    assert float(torch.cosine_similarity(batch["embeds"], made, dim=1).min()) >= 0.9999
    treated = [apply_to_images(rows, each.statistics, image_mean(rows)[0]) for each in (direct, moved)]
    torch.testing.assert_close(treated[0], treated[1], atol=1e-2, rtol=0)
    back = UnicornDataset(direct._rows.url, transfer="unicorn").__getitems__(range(18))["embeds"]
    stored = UnicornDataset(built / BIG).__getitems__(range(18))["embeds"].float()
    if method != "capdec":  # its own noise is not a part of what is stored
        assert float(torch.cosine_similarity(back, stored, dim=1).min()) >= 0.9999


def test_noise_is_drawn_anew_each_epoch_by_seed_and_id_or_baked(built: Path, tmp_path: Path) -> None:
    noisy, seen = transferred(built, tmp_path, method="c3", noise_ratio=0.4), set()
    for epoch in (0, 1):
        noisy.set_epoch(epoch)
        rows = noisy.__getitems__([9, 2])
        clean = torch.cat([VectorShard(path).vectors for path in noisy._paths.values()])[[9, 2]]
        numbers = [int(id) for id in rows["id"]]
        wanted = noisy.statistics.move(noisy._stored.invert(clean), numbers, stable_hash("noise", 0, epoch))
        assert torch.equal(rows["embeds"], wanted)
        in_worker = next(iter(DataLoader(noisy, batch_size=3, num_workers=1, collate_fn=dict)))
        assert torch.equal(in_worker["embeds"][2], rows["embeds"][1])
        seen.add(rows["embeds"].numpy().tobytes())
    assert len(seen) == 2
    baked = transferred(built, tmp_path / "baked", method="close", bake_noise=True)
    assert baked[3]["embeds"].dtype == torch.float16
    with pytest.raises(EmbeddingError, match="close: noise is baked into these vectors"):
        UnicornDataset(baked._rows.url, transfer="unicorn")


def _manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _replace(folder: Path, number: int, ids: list[str]) -> None:
    """Write a shard again with other ids, in both manifests as if it had been built so."""
    path = folder / BIG / SHARD.format(number)
    shard = VectorShard(path)
    write_vectors(path, shard.vectors.clone(), ids, shard.input_hashes, shard.metadata)
    facts = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    _manifest(folder / BIG, lambda m: m["files"].update({SHARD.format(number): facts}))
    for name in (BIG, SMALL):
        _manifest(folder / name, lambda m: m["vectors"].update({SHARD.format(number): facts["sha256"]}))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: _cut(f / BIG / SHARD.format(1)), "00001.safetensors is not a complete embedding"),
    "missing": (lambda f: (f / BIG / SHARD.format(2)).unlink(), "has no .*00002.safetensors"),
    "ids": (lambda f: _replace(f, 1, ids=[f"00001{row:05d}" for row in range(5, -1, -1)]), "00001.* its ids are not"),
    "run": (
        lambda f: _manifest(f / SMALL, lambda m: m["vectors"].update({SHARD.format(1): "0" * 64})),
        "00001.safetensors: sha256 .* the rows were built with 0000",
    ),
    "no vectors": (lambda f: _manifest(f / BIG, lambda m: m.update(files={})), "holds no vectors .* give embeddings="),
    "no directory": (lambda f: shutil.rmtree(f / SMALL), r'of the Hub first: huggingface_hub\.snapshot_download\("'),
    "a run": (lambda f: (f / SMALL / "run.json").touch(), "is a run; build a data set from it"),
    "Parquet": (lambda f: _cut(next((f / SMALL / "data").glob("*"))), "cannot read the rows of .*train-00000-"),
    "statistics": (lambda f: shutil.rmtree(f / BIG / "transfer"), "has no transfer/unicorn.safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_vectors_that_do_not_belong_to_the_rows_are_refused_by_name(case: str, built: Path, tmp_path: Path) -> None:
    for name in (BIG, SMALL):
        shutil.copytree(built / name, tmp_path / name)
    UnicornDataset(tmp_path / SMALL, tmp_path / BIG)
    damage, message = REFUSED[case]
    damage(tmp_path)
    with pytest.raises(UnicornError, match=message):
        UnicornDataset(tmp_path / SMALL, tmp_path / BIG)


def test_texts_are_decoded_once_and_a_damaged_cache_is_named(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built / BIG, tmp_path / BIG))
    UnicornDataset(folder, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.arrow")
    made = file.stat().st_mtime_ns
    UnicornDataset(folder, cache=tmp_path / "cache")
    assert file.stat().st_mtime_ns == made
    os.utime(next((folder / "data").glob("*")), ns=(0, 0))  # as an edit would leave it that keeps the size
    UnicornDataset(folder, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
    for arrow in (tmp_path / "cache").glob("*.arrow"):
        arrow.write_bytes(arrow.read_bytes()[:50])
    with pytest.raises(UnicornError, match=r"the cache .*\.arrow is damaged: .* remove it"):
        UnicornDataset(folder, cache=tmp_path / "cache")
    with pytest.raises(UnicornError, match="cannot write /proc/"):
        UnicornDataset(folder, cache="/proc/texts")

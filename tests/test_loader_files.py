"""Trainer access: files that are missing, damaged or foreign; the cache of the text; noise that is not baked in."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from generation.errors import UnicornError
from generation.loader import UnicornDataset, UnicornStream, texts
from generation.records import draw
from generation.tensors import open_shard, write_shard
from generation.transfer.noise import add_noise
from tests.test_loader import BIG, SHARD, SMALL, loader


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def recorded(path: Path) -> None:
    """Has the manifest take a built Parquet file as it is now."""
    manifest = json.loads((path.parents[1] / "manifest.json").read_text())
    manifest["built"]["files"][f"data/{path.name}"]["bytes"] = path.stat().st_size
    (path.parents[1] / "manifest.json").write_text(json.dumps(manifest))


def rewrite(directory: Path, number: int, **changes: Any) -> None:
    """Makes a shard anew with another tensor or fact, as if the manifest had known it so."""
    path = directory / SHARD.format(number)
    shard = open_shard(path)
    rows = changes.pop("embeddings", shard.embeddings).clone()
    companions = {name: changes.pop(name, tensor).clone() for name, tensor in shard.companions.items()}
    write_shard(path, [rows], tuple(rows.shape), companions, shard.facts | changes)
    manifest = json.loads((directory / "manifest.json").read_text())
    record = manifest["stages"]["image_embeddings/unicorn"]["files"][SHARD.format(number)]
    record["bytes"] = path.stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest))


# -- what is refused ----------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / BIG / SHARD.format(1)
    path.write_bytes(path.read_bytes()[:-5])


def swap(folder: Path) -> None:
    first, second = (folder / BIG / SHARD.format(number) for number in (0, 1))
    second.write_bytes(first.read_bytes())


def other_run(folder: Path) -> None:
    manifest = json.loads((folder / SMALL / "manifest.json").read_text())
    manifest["stages"]["image_embeddings/unicorn"]["files"][SHARD.format(1)]["sha256"] = "0" * 64
    (folder / SMALL / "manifest.json").write_text(json.dumps(manifest))


def shorten(folder: Path) -> None:
    path = next((folder / SMALL / "data").glob("train-00001*"))
    path.write_bytes(path.read_bytes()[:99])


def other_ids(folder: Path) -> None:
    ids = open_shard(folder / BIG / SHARD.format(1)).ids
    rewrite(folder / BIG, 1, ids=ids.flip(0))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"00001.safetensors has \d+ bytes; the manifest has"),
    "missing": (lambda folder: (folder / BIG / SHARD.format(2)).unlink(), "00002.safetensors is missing"),
    "another's": (swap, r"00001.safetensors (holds .*'shard': 0|has \d+ bytes)"),
    "dimension": (lambda f: rewrite(f / BIG, 1, embeddings=torch.ones(8, 6).half()), "00001.*'dimension': 6.*384"),
    "few rows": (
        lambda f: rewrite(f / BIG, 1, **{k: v[:1] for k, v in vars(open_shard(f / BIG / SHARD.format(1))).items()
                                         if k in ("embeddings", "ids", "text_sha256")}),
        "00001.safetensors has 1 rows; the data set points to row",
    ),
    "ids": (other_ids, r"00001.safetensors, row \d: the id is 00001000\d\d, that of row"),
    "text embeddings": (lambda f: rewrite(f / BIG, 1, source_sha256="0"), "00001.*'source_sha256': '0'"),
    "statistics": (lambda f: rewrite(f / BIG, 1, statistics_sha256="0"), "00001.*: statistics_sha256 differs"),
    "another run": (other_run, "00001.safetensors is not the shard that the rows were built with"),
    "no vectors": (lambda f: shutil.rmtree(f / BIG / "image_embeddings"), "holds no vectors .* embeddings="),
    "no directory": (lambda folder: shutil.rmtree(folder / SMALL), f"{SMALL} is no built data set"),
    "no Parquet": (lambda f: next((f / SMALL / "data").glob("train-00001*")).unlink(), "train-00001-.* is missing"),
    "a short Parquet": (shorten, "train-00001-.* has 99 bytes; the manifest has"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_vectors_that_do_not_belong_to_the_texts_are_refused_by_name(case: str, copy: Path) -> None:
    UnicornDataset(copy / SMALL, copy / BIG)
    damage, message = REFUSED[case]
    damage(copy)
    with pytest.raises(UnicornError, match=message):
        UnicornDataset(copy / SMALL, copy / BIG)


def test_verify_finds_what_kept_its_size(copy: Path) -> None:
    content = bytearray((copy / BIG / SHARD.format(0)).read_bytes())
    content[5000] ^= 1
    (copy / BIG / SHARD.format(0)).write_bytes(content)
    with pytest.raises(UnicornError, match="00000.safetensors was changed after it was sealed"):
        UnicornDataset(copy / BIG).verify()


def test_verify_finds_another_text(copy: Path) -> None:
    path = next((copy / BIG / "data").glob("train-00001*"))
    table = pq.read_table(path)
    captions = table["caption"].to_pylist()
    captions[3] = "Another text."
    pq.write_table(table.set_column(1, "caption", [captions]), path)
    recorded(path)
    with pytest.raises(UnicornError, match=r"00001.safetensors, row 3: .* caption of row 11 \(id 0000100003\)"):
        UnicornDataset(copy / BIG).verify()


# -- the cache of the text ----------------------------------------------------------------------------------------


def test_text_is_decoded_once_and_again_when_a_file_was_touched(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    UnicornDataset(copy / BIG, cache=tmp_path / "texts")
    decoded: list[object] = []
    monkeypatch.setattr(texts, "_decode", lambda *arguments: decoded.append(arguments))
    UnicornDataset(copy / BIG, cache=tmp_path / "texts")
    assert not decoded
    path = copy / BIG / "data/train-00000-of-00003.parquet"
    os.utime(path, ns=(0, 0))  # as an edit would leave it that keeps the size
    with pytest.raises(UnicornError, match="the cache .* is damaged"):  # nothing was decoded into it
        UnicornDataset(copy / BIG, cache=tmp_path / "texts")
    assert len(decoded) == 1


def test_a_cache_cut_short_or_in_a_place_that_cannot_be_written_is_named(copy: Path, tmp_path: Path) -> None:
    folder = UnicornDataset(copy / BIG, cache=tmp_path / "texts").texts.folder
    (folder / "caption.utf8").write_bytes((folder / "caption.utf8").read_bytes()[:-1])
    with pytest.raises(UnicornError, match=f"{folder} is damaged: caption has 19 offsets .* remove it"):
        UnicornDataset(copy / BIG, cache=tmp_path / "texts")
    with pytest.raises(UnicornError, match="cannot write /proc/"):
        UnicornDataset(copy / BIG, cache="/proc/texts")


# -- noise --------------------------------------------------------------------------------------------------------


@pytest.fixture
def noisy(copy: Path) -> UnicornDataset:
    for number in range(3):
        rewrite(copy / BIG, number, noise={"eta": 0.4, "eta_of_rows": 0.5, "baked": False})
    return UnicornDataset(copy / BIG, seed=7)


def test_noise_is_drawn_anew_each_epoch_by_seed_epoch_and_id(noisy: UnicornDataset, built: Path) -> None:
    clean = UnicornDataset(built / BIG).__getitems__([9, 2]).embeds
    noisy.set_epoch(1)
    found = noisy.__getitems__([9, 2]).embeds
    numbers = torch.tensor([int(noisy[row]["id"]) for row in (9, 2)])
    assert torch.equal(found, add_noise(clean, numbers, 0.5, draw("noise", 7, 1)))
    assert torch.equal(found[1], noisy[2]["embeds"])
    noisy.set_epoch(2)
    assert not torch.allclose(found[1], noisy[2]["embeds"])


def test_noise_is_the_same_in_workers_and_after_a_resume(noisy: UnicornDataset) -> None:
    stream = UnicornStream(noisy, 4)
    stream.set_epoch(3)
    whole = [batch.embeds for batch in loader(stream, 2)]
    state = stream.state_after(2)
    again = UnicornStream(noisy, 4)
    again.set_epoch(0)
    again.load_state_dict(state)
    rest = [batch.embeds for batch in loader(again, 0)]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))

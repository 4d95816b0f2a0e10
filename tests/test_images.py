"""Unpaired image embeddings out of folders and files: what is read, and what is refused in which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from generation import images
from generation.config import Embed
from generation.encoders import load_encoder
from generation.errors import EmbeddingError
from generation.images import image_embeddings, picture_files
from tests.tiny_models import tiny_clip


def load_image_embeddings(*arguments: Any) -> torch.Tensor:
    return torch.cat(list(image_embeddings(*arguments)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_encoder(Embed(encoder=str(tiny_clip(tmp_path_factory.mktemp("models") / "tiny-clip"))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, of several formats and modes, in sub-folders, and a file that is none."""
    top = tmp_path / "pictures"
    (top / "b").mkdir(parents=True)
    noise = Image.effect_noise((40, 30), 90)
    noise.convert("RGB").save(top / "c.jpg")
    noise.rotate(90).convert("L").save(top / "a.png")
    noise.convert("RGBA").rotate(45).save(top / "b" / "2.webp")
    noise.convert("P").save(top / "b" / "10.PNG")
    noise.convert("CMYK").rotate(20).save(top / "d.JPEG")
    (top / "notes.txt").write_text("no picture")
    return top


def rows(count: int, dimension: int = 12, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(count, dimension, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)


def test_pictures_are_taken_from_all_folders_in_the_order_of_their_names(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in picture_files(folder)]
    assert names == ["a.png", "b/10.PNG", "b/2.webp", "c.jpg", "d.JPEG"]


def test_a_folder_is_encoded_into_float32_unit_rows_in_that_order(
    folder: Path, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK_ROWS", 2)
    chunks = list(image_embeddings(folder, clip))
    assert [chunk.shape for chunk in chunks] == [(2, 12), (2, 12), (1, 12)]
    alone = torch.cat([clip.encode_images([path]) for path in picture_files(folder)])
    made = load_image_embeddings(folder, clip)
    assert made.dtype == torch.float32
    assert (made - alone).abs().max() < 1e-5
    assert (made.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("damage", ["torn", "text", "empty"])
def test_a_file_that_cannot_be_decoded_is_refused_by_name(damage: str, folder: Path, clip: Any) -> None:
    whole = (folder / "c.jpg").read_bytes()
    content = {"torn": whole[: len(whole) // 2], "text": b"no picture", "empty": b""}[damage]
    (folder / "c.jpg").write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"image .*c\.jpg cannot be decoded"):
        load_image_embeddings(folder, clip)


def test_a_text_only_encoder_is_refused_for_a_folder_with_those_that_can(folder: Path) -> None:
    for encoder in (None, load_encoder(Embed())):
        with pytest.raises(EmbeddingError, match=r"pictures: the encoder has no image tower.*CLIP, SigLIP.*LLM2CLIP"):
            load_image_embeddings(folder, encoder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path, clip: Any) -> None:
    with pytest.raises(EmbeddingError, match=f"{tmp_path} holds no picture"):
        load_image_embeddings(tmp_path, clip)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("safetensors", dtype) for dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16)),
        *(("npy", dtype) for dtype in (torch.float16, torch.float32, torch.float64)),  # numpy has no bfloat16
    ],
)
def test_files_of_vectors_become_unit_rows_of_a_half_or_a_float(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK_ROWS", 4)
    wanted = rows(10, dtype=dtype)
    if kind == "safetensors":
        save_file(
            {"embeddings": wanted, "other": torch.zeros(2, 3), "ids": torch.zeros(10)}, tmp_path / "v.safetensors"
        )
    elif dtype == torch.bfloat16:
        pytest.skip("numpy has no bfloat16")
    else:
        np.save(tmp_path / "v.npy", wanted.numpy())
    chunks = list(image_embeddings(tmp_path / f"v.{kind}", dimension=12))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    made = torch.cat(chunks)
    assert made.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    torch.testing.assert_close(made.float(), torch.nn.functional.normalize(wanted.float(), dim=1), atol=1e-3, rtol=0)


def test_the_only_matrix_of_a_file_is_taken_under_any_name_but_not_one_of_several(tmp_path: Path) -> None:
    save_file({"image_features": rows(3), "scale": torch.ones(1)}, tmp_path / "one.safetensors")
    assert load_image_embeddings(tmp_path / "one.safetensors").shape == (3, 12)
    save_file({"a": rows(3), "b": rows(3)}, tmp_path / "two.safetensors")
    with pytest.raises(EmbeddingError, match=r"two\.safetensors: it holds no tensor .embeddings.*\['a', 'b'\]"):
        load_image_embeddings(tmp_path / "two.safetensors")


def test_a_big_endian_array_is_read_as_it_is_meant(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", rows(3).numpy().astype(">f4"))
    torch.testing.assert_close(
        load_image_embeddings(tmp_path / "v.npy"), torch.nn.functional.normalize(rows(3), dim=1)
    )


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "is zero"), (float("nan"), "NaN or Inf"), (float("inf"), "NaN or Inf")]
)
@pytest.mark.parametrize("row", [0, 7])
def test_a_bad_row_is_refused_with_file_and_number(
    value: float, said: str, row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK_ROWS", 4)
    bad = rows(10)
    bad[row] = value
    save_file({"embeddings": bad}, tmp_path / "v.safetensors")
    with pytest.raises(EmbeddingError, match=rf"v\.safetensors, row {row}: the embedding .*{said}"):
        load_image_embeddings(tmp_path / "v.safetensors")


def test_another_dimension_than_the_encoder_s_is_refused(tmp_path: Path, clip: Any) -> None:
    np.save(tmp_path / "v.npy", rows(3, 13).numpy())
    with pytest.raises(EmbeddingError, match="have 13 dimensions, but the encoder's have 12"):
        load_image_embeddings(tmp_path / "v.npy", clip)
    with pytest.raises(EmbeddingError, match="have 13 dimensions, but the encoder's have 384"):
        load_image_embeddings(tmp_path / "v.npy", load_encoder(Embed()))


def test_what_is_no_array_of_embeddings_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.save(tmp_path / "integers.npy", np.ones((4, 4), dtype=np.int64))
    np.save(tmp_path / "none.npy", np.ones((0, 4)))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "pickle.pkl").write_bytes(b"\x80\x04.")
    save_file({"embeddings": torch.ones(2, 3, dtype=torch.int64)}, tmp_path / "integers.safetensors")
    for name, said in {
        "objects.npy": "cannot be read as a .npy",
        "flat.npy": r"array \[m, d\] of floats is needed, but it is float64 \[4\]",
        "integers.npy": "of floats is needed, but it is int64",
        "none.npy": "holds no row",
        "torn.npy": "cannot be read as a .npy",
        "torn.safetensors": "cannot be read as safetensors",
        "pickle.pkl": r"give a folder of pictures .* a \.safetensors or \.npy file",
        "integers.safetensors": "must be floats, but are torch.int64",
        "absent.npy": "there is no such file or folder",
    }.items():
        with pytest.raises(EmbeddingError, match=rf"{name}.*{said}"):
            load_image_embeddings(tmp_path / name)

"""The vectors of a data set, mapped from their safetensors shards, and the proof that they belong to its texts.

What is checked when a data set is opened costs no read of the vectors: that each shard is whole and of the size that
the manifest has; its method, number, dimension and statistics; that it was made from the very text embeddings, and
they from the very captions, that both manifests name by sha256; and the id of every row. What is left is a file that
was altered and kept its size: ``verify`` hashes every file and every caption, which reads all of it (3 GB for 1.2M).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..embeddings import caption_hashes
from ..errors import DatasetError
from ..manifest import read_manifest
from ..rundir import RunDir
from ..tensors import EmbeddingShard, open_shard
from .texts import Texts

CHUNK_ROWS = 4096  # of texts, hashed at once
_COMMON = ("method", "version", "encoder", "noise", "statistics_sha256")  # of all shards of a data set


class Vectors:
    """The embedding shards that a data set points into.

    Args:
        shards: by number, open and checked (``open_vectors``).

    Attributes:
        dimension: d.
        noise: what the transfer method says of its noise, or None (``Fitted.facts``).
    """

    def __init__(self, shards: dict[int, EmbeddingShard]) -> None:
        self.shards = shards
        first = next(iter(shards.values()))
        self.dimension: int = first.embeddings.shape[1]
        self.noise: dict[str, Any] | None = first.facts.get("noise")
        self._width = 2 * self.dimension  # bytes of a row
        self._bytes = {number: _bytes(shard.embeddings) for number, shard in shards.items()}

    def __reduce__(self) -> tuple[Any, tuple[dict[int, Path]]]:
        return _mapped, ({number: shard.path for number, shard in self.shards.items()},)

    def take(self, places: np.ndarray) -> torch.Tensor:
        """The vectors at ``places``, int32 [k, 2] of shard and row: float16 [k, d].

        Bytes are joined row by row, since random batches over many shards leave one or two rows a shard: with 100
        shards that is twice as fast as gathering from each.
        """
        width, shards = self._width, self._bytes
        firsts = (places[:, 1].astype(np.int64) * width).tolist()
        rows = bytearray().join(
            [shards[shard][first : first + width] for shard, first in zip(places[:, 0].tolist(), firsts, strict=True)]
        )
        return torch.frombuffer(rows, dtype=torch.float16).view(-1, self.dimension)


def open_vectors(directory: Path, embeddings: Path, texts: Texts, method: str | None = None) -> Vectors:
    """Maps the shards that ``texts`` point into.

    Args:
        directory: the data set of the texts.
        embeddings: the data set that the shards lie in: the same one, or the Unicorn-1.2M of the same run.
        texts: of ``directory``.
        method: of the transfer; needed where there are several.

    Raises:
        DatasetError: a shard is missing, was made from other texts or by another transfer, or an id differs.
        EmbeddingError: a file is no whole shard of embeddings.
        RunError: a manifest cannot be read.
    """
    run = _vectors_run(embeddings)
    stage = f"image_embeddings/{_method(embeddings, method)}"
    own = read_manifest(directory / "manifest.json")
    shards: dict[int, EmbeddingShard] = {}
    for number in np.unique(texts.places[:, 0]).tolist():
        shard = _open(run, stage, number)
        first = next(iter(shards.values()), shard)
        _same_captions(run, own, number, shard, directory)
        for key in _COMMON:
            if shard.facts.get(key) != first.facts.get(key):
                raise DatasetError(f"{shard.path}: {key} differs from that of {first.path}; build the data set again")
        shards[number] = shard
    _same_ids(texts, shards)
    return Vectors(shards)


def verify(embeddings: Path, texts: Texts, vectors: Vectors) -> None:
    """Reads everything: the sha256 of every shard, in the manifest, and of every caption, in the shards.

    Raises:
        RunError: a shard was changed after it was built.
        DatasetError: a vector was made from another text than the caption's.
    """
    run = RunDir(embeddings)
    for shard in vectors.shards.values():
        run.verified(str(shard.path.relative_to(embeddings).parent), shard.path)
    for first in range(0, len(texts), CHUNK_ROWS):
        rows = np.arange(first, min(first + CHUNK_ROWS, len(texts)))
        hashes = caption_hashes(texts.take("caption", rows).to_pylist())
        for row, digest, (number, place) in zip(rows.tolist(), hashes, texts.places[rows].tolist(), strict=True):
            if not torch.equal(digest, vectors.shards[number].text_sha256[place]):
                raise DatasetError(
                    f"{vectors.shards[number].path}, row {place}: the vector was made from another text than the "
                    f"caption of row {row} (id {int(texts.numbers[row]):010d})"
                )


def _vectors_run(embeddings: Path) -> RunDir:
    if not (embeddings / "image_embeddings").is_dir() or not (embeddings / "manifest.json").is_file():
        raise DatasetError(
            f"{embeddings} holds no vectors (image_embeddings/ and manifest.json); give embeddings=, the directory "
            "that unicorn_1_2m.py made from the same run"
        )
    return RunDir(embeddings)  # a built data set keeps the layout of its run


def _method(embeddings: Path, method: str | None) -> str:
    found = sorted(path.name for path in (embeddings / "image_embeddings").iterdir() if path.is_dir())
    if method is None and len(found) == 1:
        return found[0]
    if method not in found:
        raise DatasetError(f"{embeddings} holds vectors of {found}; method={method!r} names none of them")
    return str(method)


def _open(run: RunDir, stage: str, number: int) -> EmbeddingShard:
    path = run.shard_path(stage, number)
    record = run.manifest["stages"].get(stage, {"files": {}})["files"].get(str(path.relative_to(run.path)))
    if record is None or not path.is_file():
        raise DatasetError(
            f"{path} is {'not in the manifest' if path.is_file() else 'missing'}, and rows point into it; fetch it, "
            "or build the data set again"
        )
    if (size := path.stat().st_size) != record["bytes"]:
        raise DatasetError(f"{path} has {size} bytes; the manifest has {record['bytes']}; fetch or build it again")
    shard = open_shard(path)
    dimension = run.stage("text_embeddings")["fingerprint"]["dimension"]
    wanted = {"method": stage.split("/")[1], "shard": number, "dimension": dimension}
    found = {key: shard.facts.get(key) for key in ("method", "shard")} | {"dimension": shard.embeddings.shape[1]}
    if found != wanted:
        raise DatasetError(f"{path} holds {found}; its name and the manifest say {wanted}")
    return shard


def _same_captions(run: RunDir, own: dict[str, Any], number: int, shard: EmbeddingShard, directory: Path) -> None:
    """The chain from the shard to the captions of the data set, by the hashes of files that need not be there."""
    text_shard, caption_shard = f"text_embeddings/{number:05d}.safetensors", f"captions/{number:05d}.parquet"

    def recorded(manifest: dict[str, Any], name: str) -> str | None:
        files = manifest["stages"].get(name.split("/")[0], {"files": {}})["files"]
        return str(files[name]["sha256"]) if name in files else None

    if shard.facts.get("source_sha256") != recorded(run.manifest, text_shard):
        raise DatasetError(f"{shard.path} was made from other text embeddings than those of {run.path}/manifest.json")
    if recorded(run.manifest, caption_shard) != recorded(own, caption_shard):
        raise DatasetError(
            f"{shard.path} is of other captions than {directory}: their manifests differ in {caption_shard}; build "
            "both data sets from the same run"
        )


def _same_ids(texts: Texts, shards: dict[int, EmbeddingShard]) -> None:
    for number, shard in shards.items():
        rows = np.flatnonzero(texts.places[:, 0] == number)
        places = texts.places[rows, 1]
        if places.min() < 0 or places.max() >= len(shard.ids):
            raise DatasetError(f"{shard.path} has {len(shard.ids)} rows; the data set points to row {places.max()}")
        if (differ := shard.numbers().numpy()[places] != texts.numbers[rows]).any():
            row, place = int(rows[differ.argmax()]), int(places[differ.argmax()])
            raise DatasetError(
                f"{shard.path}, row {place}: the id is {bytes(shard.ids[place].tolist()).decode()}, that of row {row} "
                f"of the data set {int(texts.numbers[row]):010d}"
            )


def _mapped(paths: dict[int, Path]) -> Vectors:
    return Vectors({number: open_shard(path) for number, path in paths.items()})


def _bytes(embeddings: torch.Tensor) -> memoryview:
    return memoryview(embeddings.view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]

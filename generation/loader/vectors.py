"""The vectors of a data set, mapped from their safetensors shards, and the proof that they belong to its texts.

What is checked when a data set is opened costs no read of the vectors: that each shard is whole and of the size that
the manifest has; its method, number, dimension and statistics; that both manifests name it by the same sha256, and
its header the text embeddings that the manifest names; and the id of every row. What is left is a file that was
altered and kept its size: ``verify`` hashes every shard and every caption, which reads all of it (3 GB for 1.2M).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..builders.places import transfer_method
from ..errors import DatasetError
from ..manifest import read_manifest
from ..progress import counted
from ..rundir import RunDir
from ..tensors import EmbeddingShard, open_shard, text_hashes
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
        return _mapped, ({number: Path(shard.path) for number, shard in self.shards.items()},)

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


def open_vectors(directory: Path, embeddings: Path, texts: Texts) -> Vectors:
    """Maps the shards that ``texts`` point into.

    Args:
        directory: the data set of the texts.
        embeddings: the data set that the shards lie in: the same one, or the Unicorn-1.2M of the same run.
        texts: of ``directory``.

    Raises:
        DatasetError: a shard is missing, was made from other texts or by another transfer, or an id differs.
        EmbeddingError: a file is no whole shard of embeddings.
        RunError: a manifest cannot be read, or names no transfer method.
    """
    run = _vectors_run(embeddings)
    own = read_manifest(directory / "manifest.json")
    stage = f"image_embeddings/{transfer_method(own, directory)}"
    shards: dict[int, EmbeddingShard] = {}
    for number in np.unique(texts.places[:, 0]).tolist():
        shard = _open(run, own, stage, number)
        first = next(iter(shards.values()), shard)
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
    paths = [Path(shard.path) for shard in vectors.shards.values()]
    run.all_verified(str(paths[0].relative_to(embeddings).parent), paths)  # all of one transfer method
    for first in counted(range(0, len(texts), CHUNK_ROWS), "captions, sha256", "chunk"):
        rows = np.arange(first, min(first + CHUNK_ROWS, len(texts)))
        hashes = text_hashes(texts.take("caption", rows).to_pylist())
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


def _open(run: RunDir, own: dict[str, Any], stage: str, number: int) -> EmbeddingShard:
    """A shard, held against the manifest beside it and against the rows' own."""
    path = run.shard_path(stage, number)
    record, wanted = (_record(manifest, stage, path.name) for manifest in (run.manifest, own))
    if not record or record["sha256"] != wanted.get("sha256"):
        raise DatasetError(
            f"{path} is not the shard that the rows were built with (sha256 {record.get('sha256')}, theirs "
            f"{wanted.get('sha256')}); build both data sets from the same run"
        )
    if not path.is_file():
        raise DatasetError(f"{path} is missing, and rows point into it; fetch it, or build the data set again")
    if (size := path.stat().st_size) != record["bytes"]:
        raise DatasetError(f"{path} has {size} bytes; the manifest has {record['bytes']}; fetch or build it again")
    shard = open_shard(path)
    dimension = run.stage("text_embeddings")["fingerprint"]["dimension"]
    source = _record(run.manifest, "text_embeddings", path.name).get("sha256")
    due = {"method": stage.split("/")[1], "shard": number, "source_sha256": source, "dimension": dimension}
    found = {key: shard.facts.get(key) for key in due} | {"dimension": shard.embeddings.shape[1]}
    if found != due:
        raise DatasetError(f"{path} holds {found}; its name and the manifest say {due}; fetch or build it again")
    return shard


def _record(manifest: dict[str, Any], stage: str, name: str) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = manifest["stages"].get(stage, {"files": {}})["files"]
    return files.get(f"{stage}/{name}", {})


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

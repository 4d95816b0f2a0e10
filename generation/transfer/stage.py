"""The transfer of a run: statistics from the sums of its text-embedding shards, then each shard in one pass."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import ImageTransfer
from ..encoders import load_encoder
from ..errors import EmbeddingError, RunError
from ..files import sha256, write_atomically
from ..logs import Progress
from ..records import changes
from ..stages import CAPTIONS, SEEDS, TEXT_EMBEDDINGS, image_embeddings
from ..store import Run
from ..vectors import UNIT_TOLERANCE, VectorShard
from .fitting import fit, in_threads
from .image_vectors import image_mean, images_sha256
from .methods import Statistics

CHUNK_ROWS = 256  # small buffers, used again and again, are what makes the transfer as fast as the disk


def make_image_embeddings(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the due shards of synthetic image embeddings, and first the statistics if what they depend on has changed.

    Shards added to a run move the mean, so that all shards are due again, unless the recipe's ``transfer.statistics``
    names the earlier statistics.

    Raises:
        RunError: an earlier stage is not complete, or one of its files was changed.
        EmbeddingError: the images or the statistics cannot be used, or a row has no direction.
    """
    method = run.recipe.transfer.method
    stage = image_embeddings(method)
    sources = run.require(TEXT_EMBEDDINGS)
    if missing := set(run.shards(SEEDS)) - sources.keys():
        raise RunError(
            f"{run.path}: the mean is over all captions, and {len(missing)} shards have no text embeddings yet. Run "
            f"`python -m generation {CAPTIONS.command} --run-dir {run.path}`, then `{TEXT_EMBEDDINGS.command}`"
        )
    run.begin(stage)
    with run.claim(stage, wait_s=-1):  # one process makes the statistics, the others wait
        statistics = _statistics(run)
    extra = statistics_input(run, method)
    due = [shard for shard in run.due(stage, extra) if shard % world_size == rank]
    with Progress(stage.name, sum(sources[shard].rows for shard in due)) as bar:
        for rows in in_threads(lambda shard: _make_shard(run, shard, statistics, extra), due):
            bar.update(rows)


def statistics_file(run: Run, method: str) -> Path:
    """Return the path of a method's statistics."""
    return run.path / "transfer" / f"{method}.safetensors"


def statistics_input(run: Run, method: str) -> dict[str, str]:
    """Return what ``image_embeddings(method)`` depends on besides its source: the ``extra`` of ``Run.require``."""
    path = statistics_file(run, method)
    return {path.relative_to(run.path).as_posix(): sha256(path)} if path.is_file() else {}


def unit_chunks(shard: VectorShard) -> Iterator[torch.Tensor]:
    """Yield the rows of a shard as float32 [at most 256, d], in one buffer that is written over.

    Raises:
        EmbeddingError: a row is not finite or its norm is not 1; names file and row.
    """
    buffer = torch.empty(CHUNK_ROWS, shard.dimension)
    for first in range(0, len(shard), CHUNK_ROWS):
        chunk = shard.vectors[first : first + CHUNK_ROWS]
        rows = buffer[: len(chunk)].copy_(chunk)
        low, high = torch.linalg.vector_norm(rows, dim=1).aminmax()
        if not (float(low) >= 1 - UNIT_TOLERANCE and float(high) <= 1 + UNIT_TOLERANCE):  # true for NaN
            row = int((~((rows.norm(dim=1) - 1).abs() <= UNIT_TOLERANCE)).nonzero()[0])
            raise EmbeddingError(f"{shard.path}, row {first + row}: its norm is {rows[row].norm():.4g} and must be 1")
        yield rows


def write_moved(path: Path, source: VectorShard, statistics: Statistics, facts: dict[str, Any]) -> None:
    """Write a text-embedding shard again with moved vectors, their sum, and ``facts`` as its metadata.

    The layout is that of the source file's header, so that rows go to their places as they are made; collecting and
    then saving whole tensors takes twice as long.

    Raises:
        EmbeddingError: a row is not a finite unit vector, or equals the mean; names file and row.
        OSError: the file cannot be written.
    """
    with open(source.path, "rb") as original, path.open("wb") as file:
        layout = json.loads(original.read(int.from_bytes(original.read(8), "little")))
        begin = original.tell()
        spans = {name: entry["data_offsets"] for name, entry in layout.items() if name != "__metadata__"}
        layout["__metadata__"] = {"unicorn": json.dumps(facts, sort_keys=True)}
        header = json.dumps(layout).encode()
        header += b" " * (-len(header) % 8)
        if hasattr(os, "posix_fallocate"):  # finds a full disk at once, and halves what writing costs
            os.posix_fallocate(file.fileno(), 0, 8 + len(header) + max(span[1] for span in spans.values()))
        file.write(len(header).to_bytes(8, "little") + header)
        total, row = torch.zeros_like(source.sum), 0
        half, wide = (torch.empty(CHUNK_ROWS, source.dimension, dtype=kind) for kind in (torch.half, torch.double))
        file.seek(8 + len(header) + spans["vectors"][0])
        for chunk in unit_chunks(source):
            moved = _moved(chunk, source, row, statistics)
            stored = half[: len(chunk)].copy_(moved)
            total += wide[: len(chunk)].copy_(moved.copy_(stored)).sum(0)
            file.write(stored.numpy().data)
            row += len(chunk)
        for name, span in spans.items():
            if name != "vectors":
                original.seek(begin + span[0])
                file.seek(8 + len(header) + span[0])
                file.write(total.numpy().tobytes() if name == "sum" else original.read(span[1] - span[0]))


def _moved(chunk: torch.Tensor, source: VectorShard, row: int, statistics: Statistics) -> torch.Tensor:
    """Return the rows of a shard from ``row`` on, moved, with their noise if it is baked."""
    noise = statistics.facts["noise"]
    ids = source.ids[row : row + len(chunk)] if noise and noise["baked"] else []
    try:
        return statistics.move(chunk, list(map(int, ids)), noise["seed"] if ids else 0)
    except EmbeddingError as error:
        raise EmbeddingError(f"{source.path}, from row {row}: {error}") from None


def _make_shard(run: Run, shard: int, statistics: Statistics, extra: dict[str, str]) -> int:
    """Make a shard unless another process is making it; return its rows."""
    stage = image_embeddings(statistics.facts["method"])
    with run.claim(stage, shard) as claimed:
        if not claimed or not run.is_due(stage, shard, extra):
            return 0
        source = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
        facts = {"stage": stage.name, "shard": shard, **extra}
        run.commit(stage, shard, len(source), lambda path: write_moved(path, source, statistics, facts), extra=extra)
        return len(source)


def _statistics(run: Run) -> Statistics:
    """Return the statistics of the run, made again if what they depend on has changed."""
    section, path = run.recipe.transfer, statistics_file(run, run.recipe.transfer.method)
    facts = {
        "settings": section.model_dump(mode="json", exclude={"images", "statistics"}),
        "encoder": run.facts(TEXT_EMBEDDINGS).get("identity", {}),
    }
    if section.statistics:
        return _earlier(run.recipe.path(section.statistics), path, facts)
    images = run.recipe.path(section.images) if isinstance(section, ImageTransfer) else None
    facts["inputs"] = {
        name: file["sha256"] for record in run.records(TEXT_EMBEDDINGS).values() for name, file in record.files.items()
    } | {"random_seed": run.recipe.random_seed, "images": images and images_sha256(images)}
    try:
        known = Statistics.load(path)
        if facts.items() <= known.facts.items():
            return known
    except EmbeddingError:  # not made yet, or damaged
        pass
    shards = [VectorShard(run.verified(TEXT_EMBEDDINGS, shard)) for shard in run.shards(TEXT_EMBEDDINGS)]
    rows, dimensions = sum(map(len, shards)), {shard.dimension for shard in shards}
    if not rows or len(dimensions) > 1:
        raise EmbeddingError(f"{run.path}: text embeddings of {rows} rows and dimensions {sorted(dimensions)}")
    mean, found = torch.stack([shard.sum for shard in shards]).sum(0) / rows, None
    if images:
        encode = load_encoder(run.recipe.embed, run.recipe.directory).encode_images if images.is_dir() else None
        found = image_mean(images, encode)
    fitted = fit(section, mean, rows, [partial(unit_chunks, shard) for shard in shards], found, run.recipe.random_seed)
    statistics = Statistics(fitted.tensors, fitted.facts | facts)
    write_atomically(path, statistics.save)
    return statistics


def _earlier(source: Path, path: Path, wanted: dict[str, object]) -> Statistics:
    """Take over the statistics of an earlier transfer, byte for byte, so that the shards made with them stay."""
    statistics = Statistics.load(source)
    if moved := changes({key: statistics.facts.get(key) for key in wanted}, wanted):
        raise EmbeddingError(
            f"transfer.statistics: {source} was made with other settings: {'; '.join(moved)}. Restore them, or remove "
            "transfer.statistics"
        )
    if not path.is_file() or sha256(path) != sha256(source):
        write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))
    return statistics

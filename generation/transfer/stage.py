"""The transfer of a run: statistics from the sums of its text-embedding shards, then each shard in one pass."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..config import ImageTransfer
from ..encoders import load_encoder
from ..errors import EmbeddingError, RunError
from ..files import sha256, write_atomically
from ..limits import TRANSFER_ROWS
from ..logs import Progress
from ..stages import SEEDS, TEXT_EMBEDDINGS, image_embeddings
from ..store import Run, changes
from ..vectors import VectorShard, check_unit
from .fitting import fit, image_mean, picture_files
from .methods import Statistics

log = logging.getLogger(__name__)
STORED = {"input_hashes": "I64", "vectors": "F16", "ids": "U8"}  # tensors of a shard and their safetensors types


def make_image_embeddings(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the due shards of synthetic image embeddings, and first the statistics if what they depend on has changed:
    added shards move the mean, so that all are due again, unless ``transfer.statistics`` names earlier statistics. A
    RunError says that an earlier stage is not complete; an EmbeddingError, that images, statistics or a row are unfit.
    """
    stage, sources = image_embeddings(run.recipe.transfer.method), run.require(TEXT_EMBEDDINGS)
    if missing := set(run.shards(SEEDS)) - sources.keys():
        fault = f"the mean is over all captions, and {len(missing)} shards have no text embeddings yet"
        raise RunError(f"{run.path}: {fault}. Run `python -m generation captions --run-dir {run.path}`, then `embed`")
    run.begin(stage)
    with run.claim(stage, wait_s=-1):  # one process makes the statistics, the others wait
        statistics = _statistics(run)
    extra = statistics_input(run, run.recipe.transfer.method)
    due = [shard for shard in run.due(stage, extra) if shard % world_size == rank]

    def make_shard(shard: int) -> int:
        with run.claim(stage, shard) as claimed:
            if not claimed or not run.is_due(stage, shard, extra):  # another process makes it
                return 0
            source = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
            facts = {"stage": stage.name, "shard": shard, **extra}
            write = partial(write_moved, source=source, statistics=statistics, facts=facts)
            return run.commit(stage, shard, len(source), write, extra=extra).rows

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,))
    with Progress(stage.name, sum(sources[shard].rows for shard in due)) as bar, pool:  # a shard for each core
        for rows in pool.map(make_shard, due):
            bar.update(rows)


def statistics_file(run: Run, method: str) -> Path:
    """Return the path of a method's statistics."""
    return run.path / "transfer" / f"{method}.safetensors"


def statistics_input(run: Run, method: str) -> dict[str, str]:
    """Return what ``image_embeddings(method)`` depends on besides its source: the ``extra`` of ``Run.require``."""
    path = statistics_file(run, method)
    return {path.relative_to(run.path).as_posix(): sha256(path)} if path.is_file() else {}


def unit_chunks(shard: VectorShard) -> Iterator[torch.Tensor]:
    """Yield the rows of a shard, checked as by ``check_unit``: float32 [at most 256, d], in one buffer."""
    buffer = torch.empty(TRANSFER_ROWS, shard.dimension)
    for first in range(0, len(shard), TRANSFER_ROWS):
        chunk = shard.vectors[first : first + TRANSFER_ROWS]
        rows = buffer[: len(chunk)].copy_(chunk)
        check_unit(rows, shard.path, first)
        yield rows


def write_moved(path: Path, source: VectorShard, statistics: Statistics, facts: dict[str, Any]) -> None:
    """Write a text-embedding shard with moved vectors, without their sum, and ``facts`` as metadata; an EmbeddingError
    names the file, and the row that is no unit vector or equals the mean. Rows are written as they are made (length of
    the header, header, tensors), since saving whole tensors by safetensors takes 1.2 times the CPU time."""
    layout, end = dict[str, Any](__metadata__={"unicorn": json.dumps(facts, sort_keys=True)}), 0
    for name, kind in STORED.items():
        shape, size = list(source.tensors[name].shape), source.tensors[name].nbytes
        layout[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end := end + size]}
    header = json.dumps(layout).encode()
    header += b" " * (-len(header) % 8)
    noise, half = statistics.facts["noise"], torch.empty(TRANSFER_ROWS, source.dimension, dtype=torch.half)
    numbers = [int(id) for id in source.ids] if noise and noise["baked"] else []
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # finds a full disk at once, and halves what writing costs
            os.posix_fallocate(file.fileno(), 0, 8 + len(header) + end)
        file.write(len(header).to_bytes(8, "little") + header + source.tensors["input_hashes"].numpy().tobytes())
        for first, chunk in zip(range(0, len(source), TRANSFER_ROWS), unit_chunks(source), strict=True):
            try:
                moved = statistics.move(chunk, numbers[first : first + TRANSFER_ROWS])
            except EmbeddingError as error:
                raise EmbeddingError(f"{source.path}, from row {first}: {error}") from None
            file.write(half[: len(chunk)].copy_(moved).numpy().data)
        file.write(source.tensors["ids"].numpy().tobytes())


def _statistics(run: Run) -> Statistics:
    """Return the statistics of the run, made again if what they depend on has changed."""
    section, path = run.recipe.transfer, statistics_file(run, run.recipe.transfer.method)
    settings = section.model_dump(mode="json", exclude={"images", "statistics"})
    facts = {"settings": settings, "encoder": run.facts(TEXT_EMBEDDINGS).get("identity", {})}
    if section.statistics:  # of an earlier transfer, taken over byte for byte, so that the shards made with them stay
        source = run.recipe.path(section.statistics)
        statistics = Statistics.load(source)
        if changed := changes({key: statistics.facts.get(key) for key in facts}, facts):
            fault = f"transfer.statistics: {source} was made with other settings: {'; '.join(changed)}"
            raise EmbeddingError(f"{fault}. Restore them, or remove transfer.statistics")
        if not path.is_file() or sha256(path) != sha256(source):
            write_atomically(path, partial(shutil.copyfile, source))
        return statistics
    images = run.recipe.path(section.images) if isinstance(section, ImageTransfer) else None
    files = (record.files.items() for record in run.records(TEXT_EMBEDDINGS).values())
    facts["inputs"] = {name: file["sha256"] for name, file in chain.from_iterable(files)}
    facts["inputs"] |= {"random_seed": run.recipe.random_seed, "images": None}
    if images and not images.exists():
        raise EmbeddingError(f"images {images}: there is no such file or folder")
    if images:
        pictures = picture_files(images) if images.is_dir() else [images]
        named = "".join(f"{file.relative_to(images)} {sha256(file)}\n" for file in pictures)
        facts["inputs"]["images"] = hashlib.sha256(named.encode()).hexdigest()
    try:
        if path.is_file() and facts.items() <= (known := Statistics.load(path)).facts.items():
            return known
    except EmbeddingError as error:
        log.warning("%s: they are fitted again", error)
    shards = [VectorShard(run.verified(TEXT_EMBEDDINGS, shard)) for shard in run.shards(TEXT_EMBEDDINGS)]
    rows, dimensions = sum(map(len, shards)), {shard.dimension for shard in shards}
    if not rows or len(dimensions) > 1:
        raise EmbeddingError(f"{run.path}: text embeddings of {rows} rows and dimensions {sorted(dimensions)}")
    mean, found = torch.stack([shard.sum for shard in shards]).sum(0) / rows, None
    if images:
        encode = load_encoder(run.recipe.embed, run.recipe.directory).encode_images if images.is_dir() else None
        found = image_mean(images, encode)
    fitted = fit(section, mean, rows, chain.from_iterable(map(unit_chunks, shards)), found, run.recipe.random_seed)
    statistics = Statistics(fitted.tensors, fitted.facts | facts)
    write_atomically(path, statistics.save)
    return statistics

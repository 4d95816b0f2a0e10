"""The transfer of a run: statistics over all its text-embedding shards, then each shard."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..config import Recipe, settings
from ..errors import EmbeddingError, RunError
from ..files import file_sha256, seal
from ..progress import progress
from ..rundir import RunDir
from ..tensors import EmbeddingShard, open_shard, write_shard
from .fitted import Fitted, used_tensors
from .fitting import baked_noise, fit_rows
from .given import Images, image_basis, unpaired_images
from .methods import VERSION, text_passes
from .ops import apply_ops
from .rows import Part, Rows, cores, one_part, one_thread_an_operation
from .sums import CHUNK_ROWS, Buffers

SOURCE = "text_embeddings"
WEAK_COSINE = 0.5  # noise that leaves less of the clean direction is warned of
UNSURE_MEAN = 0.02  # a standard error of the image mean that is warned of: a twentieth of the gap of the paper

log = logging.getLogger(__name__)


def transfer(run: RunDir, recipe: Recipe) -> None:
    """Fits the recipe's method to all text embeddings of the run, then transfers each shard.

    When shards were added since (an extended run), all are made again, since the mean has moved.

    Raises:
        RunError: the embeddings are not complete, or a shard is missing, changed, or of other captions or encoder.
        EmbeddingError: a shard cannot be read, a row is no finite unit vector, an id is there twice, or the images
            that the method needs are missing or of another dimension.
    """
    asked = recipe.transfer
    stage = f"image_embeddings/{asked.method}"
    shards = run.finished(SOURCE, "captions")
    inputs = run.hashes(SOURCE)
    dimension = run.stage(SOURCE)["fingerprint"]["dimension"]
    images = unpaired_images(run, recipe, recipe.directory / asked.images) if asked.images else None
    basis = image_basis(recipe.directory / asked.image_basis, dimension) if asked.image_basis else None
    run.begin(stage, _fingerprint(recipe, inputs, images), changed="discard")
    due = run.due(stage, SOURCE)
    path = run.path / "transfer" / f"{asked.method}.safetensors"
    if not due and str(path.relative_to(run.path)) in run.stage(stage)["files"]:
        return
    opened = _open(run, shards)
    rows = {shard: len(opened[shard].embeddings) for shard in shards}
    total = text_passes(asked) * sum(rows.values()) + sum(rows[shard] for shard in due)
    with progress(stage, total, 0, "row") as bar:
        texts = Rows([shard_part(opened[s], {str(s): inputs[str(s)]}) for s in shards], cores(), bar.update)
        pictures = one_part(str(images.path), images.chunks) if images else None
        fitted = fit_rows(asked, texts, pictures, basis, recipe.random_seed)
        fitted.facts.update(encoder=run.stage(SOURCE)["fingerprint"], inputs=inputs)
        _warn(fitted.facts)
        run.seal_tensors(stage, path, used_tensors(fitted), fitted.facts, rows=fitted.facts["rows"])
        facts = _facts(run, stage, path, fitted)
        with ThreadPoolExecutor(cores()) as pool, one_thread_an_operation():
            jobs = pool.map(lambda shard: _seal(run, stage, opened[shard], shard, fitted, facts), due)
            for shard, made in zip(due, jobs, strict=True):
                run.sealed_elsewhere(stage, run.shard_path(stage, shard), made)
                bar.update(rows[shard])


def transferred(shard: EmbeddingShard, fitted: Fitted) -> Iterator[torch.Tensor]:
    """The rows of a shard, transferred: float16 [at most CHUNK_ROWS, d], in one buffer that is written over.

    Raises:
        EmbeddingError: a row has no direction, as when all rows are equal; names the file and the row.
    """
    buffers = Buffers(shard.embeddings.shape[1])
    ops = fitted.facts["text_ops"][1:]  # stored rows are unit rows
    numbers = shard.numbers() if fitted.facts["noise"] and fitted.facts["noise"]["baked"] else None
    for first in range(0, len(shard.embeddings), CHUNK_ROWS):
        chunk = shard.embeddings[first : first + CHUNK_ROWS]
        noise = None if numbers is None else baked_noise(fitted.facts, numbers[first : first + CHUNK_ROWS])
        try:
            moved = apply_ops(buffers.rows[: len(chunk)].copy_(chunk), ops, fitted.tensors, noise)
        except EmbeddingError as error:
            raise EmbeddingError(f"{shard.path}, chunk from row {first}: {error}") from None
        yield buffers.half[: len(chunk)].copy_(moved)


def _seal(
    run: RunDir, stage: str, source: EmbeddingShard, shard: int, fitted: Fitted, facts: dict[str, Any]
) -> dict[str, Any]:
    own = facts | {"shard": shard, "source_sha256": run.record(SOURCE, shard)["sha256"]}
    shape = (source.embeddings.shape[0], source.embeddings.shape[1])

    def write(target: Path) -> None:
        write_shard(target, transferred(source, fitted), shape, source.companions, own)

    return seal(run.shard_path(stage, shard), write) | {"rows": shape[0]}


def _facts(run: RunDir, stage: str, path: Path, fitted: Fitted) -> dict[str, Any]:
    """What every shard says of itself: enough to find the statistics, and to know a foreign shard."""
    kept = ("method", "version", "text_ops", "image_ops", "noise", "encoder")
    statistics = run.stage(stage)["files"][str(path.relative_to(run.path))]["sha256"]
    return {key: fitted.facts[key] for key in kept} | {"statistics_sha256": statistics}


def _open(run: RunDir, shards: list[int]) -> dict[int, EmbeddingShard]:
    """All source shards, their hashes, origin and ids checked."""
    paths = [run.shard_path(SOURCE, shard) for shard in shards]
    opened = dict(zip(shards, map(open_shard, run.all_verified(SOURCE, paths)), strict=True))
    encoder, dimension = run.stage(SOURCE)["fingerprint"], opened[shards[0]].embeddings.shape[1]
    for shard, found in opened.items():
        if found.facts.get("captions_sha256") != run.record("captions", shard)["sha256"]:
            raise RunError(f"{found.path} was made from other captions than {run.shard_path('captions', shard)}")
        if found.facts.get("encoder") != encoder:
            raise RunError(f"{found.path} was made by another encoder than the run's: {found.facts.get('encoder')}")
        if found.embeddings.shape[1] != dimension:
            raise EmbeddingError(f"{found.path}: {found.embeddings.shape[1]} dimensions; the first has {dimension}")
    _refuse_twice(list(opened.values()))
    return opened


def _refuse_twice(shards: list[EmbeddingShard]) -> None:
    numbers = torch.cat([shard.numbers() for shard in shards])
    ordered, places = numbers.sort(stable=True)
    if bool((again := ordered[1:] == ordered[:-1]).any()):
        place = int(places[1:][again].min())
        number = int(numbers[place])
        for shard in shards:
            if place < len(shard.ids):
                raise EmbeddingError(f"{shard.path}, row {place}: the id {number:010d} is there for the second time")
            place -= len(shard.ids)


def shard_part(shard: EmbeddingShard, sources: dict[str, str] | None = None) -> Part:
    """A shard as a part of all rows."""
    return Part(str(shard.path), lambda: [shard.embeddings], sources)


def _fingerprint(recipe: Recipe, inputs: dict[str, str], images: Images | None) -> dict[str, Any]:
    """All that moves the output; files by their content."""
    asked = recipe.transfer
    facts = {key: value for key, value in settings(asked).items() if key not in ("images", "image_basis")}
    facts |= {"version": VERSION, "inputs": inputs}
    if images:
        facts["images"] = images.provenance
    if asked.image_basis:
        facts["image_basis"] = file_sha256(recipe.directory / asked.image_basis)
    if asked.bake_noise or asked.method in ("decap", "experimental_aniso_init"):
        facts["random_seed"] = recipe.random_seed
    return facts


def _warn(facts: dict[str, Any]) -> None:
    """Says what is legal and yet seldom meant."""
    if (noise := facts["noise"]) and noise["kappa"] < WEAK_COSINE:
        log.warning(
            "transfer %s: noise of eta %.2f (sigma %.4f) leaves a cosine of %.2f to the clean row; a sigma copied "
            "from a smaller dimension? transfer.noise_ratio sets eta",
            facts["method"], noise["eta"], noise["sigma"], noise["kappa"],
        )  # fmt: skip
    if (images := facts.get("images")) and images["error_of_mean"] > UNSURE_MEAN:
        log.warning(
            "transfer %s: the mean of %d images is known to %.3f alone, against a modality gap of about 0.4; "
            "10,000 images bring that under 0.01",
            facts["method"], images["rows"], images["error_of_mean"],
        )  # fmt: skip

"""The modality gap of a run before and after the transfer: the ten figures that a user needs, and a cloud to look at.

Figures follow the papers (``docs/transfer.md``): distance of the means, paired cosine, R@1, neighbours kept, effective
rank and norms. They are computed on a sample of at most ``ROWS`` rows, the same for the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EmbeddingError
from ..stages import CAPTIONS, TEXT_EMBEDDINGS, image_embeddings
from ..store import Run
from ..transfer.image_vectors import image_rows
from ..transfer.methods import Statistics, apply_to_images
from ..vectors import VectorShard

ROWS = 4_000
NEIGHBOURS = 20
POINTS = 400  # of the cloud
Array = NDArray[np.float32]


@dataclass(frozen=True)
class GapSample:
    """Rows of a run, spread evenly over its shards.

    Attributes:
        ids, sources: of the rows.
        text: text embeddings, float32 [n, d].
        moved: the same rows after the transfer, float32 [n, d]; empty if there is no transfer yet.
    """

    ids: list[str]
    sources: list[str]
    text: Array
    moved: Array

    @classmethod
    def of_run(cls, run: Run, method: str) -> "GapSample":
        """Return the sample of a run."""
        stage, shards = image_embeddings(method), run.shards(TEXT_EMBEDDINGS)
        ids, sources, text, moved = list[str](), list[str](), list[Array](), list[Array]()
        for shard in shards:
            opened = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
            rows = np.linspace(0, len(opened) - 1, min(len(opened), -(-ROWS // len(shards)))).astype(int)
            ids += [opened.ids[row] for row in rows]
            text.append(opened.vectors[rows].float().numpy())
            if run.record(stage, shard) and not run.is_stale(stage, shard):
                moved.append(VectorShard(run.verified(stage, shard)).vectors[rows].float().numpy())
            table = run.table(CAPTIONS, shard, ["id", "source"])
            known = dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))
            sources += [known.get(opened.ids[row], "") for row in rows]
        empty = np.zeros((0, text[0].shape[1] if text else 1), np.float32)
        complete = moved if len(moved) == len(shards) else []
        return cls(ids, sources, np.concatenate([empty, *text]), np.concatenate([empty, *complete]))


def measure_gap(run: Run, sample: GapSample, images: Path | None, pairs: tuple[Path, Path] | None) -> dict[str, Any]:
    """Return the figures as rows of ``figure``, ``before``, ``after``, and a note on what they compare.

    Without images only those of the texts themselves can be computed.

    Raises:
        EmbeddingError: ``images`` or ``pairs`` cannot be read or have another dimension.
    """
    if len(sample.text) < 2:
        return {"rows": [], "note": "There are no text embeddings yet."}
    rows = _of_texts(sample)
    joint = run.facts(TEXT_EMBEDDINGS).get("identity", {}).get("joint_with_images", False)
    note = "Give --images or --pairs to measure the gap to real images."
    if not joint:
        note = "The encoder embeds no images: there is no image space, and no gap can be measured."
    if images:
        rows += _of_images(sample, _read(images))
        note = f"{len(sample.text):,} texts against the images of {images}, unpaired."
    if pairs:
        text, image = map(_read, pairs)
        if text.shape != image.shape or text.shape[1] != sample.text.shape[1]:
            raise EmbeddingError(
                f"--pairs: {pairs[0]} holds {text.shape}, {pairs[1]} {image.shape}; both need the same rows and "
                f"d = {sample.text.shape[1]}"
            )
        rows += _of_pairs(run, text, image)
        note += f" Pairs: {len(text):,}."
    return {"rows": rows, "note": note}


def _read(path: Path) -> Array:
    """Return the first unit rows of a file of vectors, float32 [n, d]."""
    rows: list[Array] = [chunk.numpy() for chunk in islice(image_rows(path), ROWS // 1024 + 1)]
    return np.concatenate([np.zeros((0, rows[0].shape[1] if rows else 1), np.float32), *rows])[:ROWS]


def _of_texts(sample: GapSample) -> list[dict[str, Any]]:
    text, moved = sample.text, sample.moved
    measures: dict[str, Callable[[Array], float]] = {
        "norm of the mean": lambda rows: _norm(rows.mean(0)),
        "mean norm of a row": lambda rows: float(np.linalg.norm(rows, axis=1).mean()),
        "effective rank": effective_rank,
        "neighbours kept": lambda rows: neighbours_kept(text, rows),
    }
    return [_row(name, act(text), act(moved) if len(moved) else None) for name, act in measures.items()]


def _of_images(sample: GapSample, image: Array) -> list[dict[str, Any]]:
    found = []
    for name, rows in {"raw": image, "centred": _unit(image - image.mean(0))}.items():
        before, *after = (_norm(part.mean(0) - rows.mean(0)) for part in (sample.text, sample.moved) if len(part))
        found.append(_row(f"distance of the means (images {name})", before, after[0] if after else None))
    return [*found, _row("effective rank of the images", effective_rank(image), None)]


def _of_pairs(run: Run, text: Array, image: Array) -> list[dict[str, Any]]:
    path, cosine = run.path / "transfer" / f"{run.recipe.transfer.method}.safetensors", paired_cosine(text, image)
    if not path.is_file():
        return [_row("paired cosine", cosine, None), _row("R@1 of an image's text", recall(text, image), None)]
    statistics, rows = Statistics.load(path), torch.from_numpy(image)
    moved = statistics.move(torch.from_numpy(text.copy())).numpy()
    treated = apply_to_images(rows, statistics, image_mean=rows.double().mean(0)).numpy()
    return [
        _row("paired cosine", cosine, paired_cosine(moved, treated)),
        _row("paired cosine, images not treated", cosine, paired_cosine(moved, image)),
        _row("R@1 of an image's text", recall(text, image), recall(moved, treated)),
    ]


def _row(figure: str, before: float, after: float | None) -> dict[str, Any]:
    return {"figure": figure, "before": round(before, 4), "after": None if after is None else round(after, 4)}


def _norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def effective_rank(rows: Array) -> float:
    """Return the participation ratio of the covariance's eigenvalues, (sum l)^2 / sum l^2, of rows [n, d]."""
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    return float(values.sum() ** 2 / max(float((values**2).sum()), 1e-30))


def neighbours_kept(before: Array, after: Array) -> float:
    """Return the share of each row's nearest neighbours by cosine that are the same in both spaces, rows [n, d]."""
    count, nearest = min(NEIGHBOURS, len(before) - 1), []
    for rows in (before, after):
        similarity = _unit(rows) @ _unit(rows).T
        np.fill_diagonal(similarity, -2)
        nearest.append(np.argpartition(-similarity, count - 1, axis=1)[:, :count])
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(*nearest, strict=True)]))


def paired_cosine(text: Array, image: Array) -> float:
    """Return the mean cosine of paired rows [n, d]."""
    return float((_unit(text) * _unit(image)).sum(1).mean())


def recall(text: Array, image: Array) -> float:
    """Return the share of images [n, d] whose own text is the nearest of all texts [n, d]."""
    return float((np.argmax(_unit(image) @ _unit(text).T, axis=1) == np.arange(len(text))).mean())


def cloud(sample: GapSample, browsable: dict[str, int]) -> list[dict[str, Any]]:
    """Return points of the transferred vectors in the plane of their two main directions.

    Args:
        sample: the rows; text embeddings stand in where there is no transfer.
        browsable: the places of rows that can be browsed, by id; these come first.

    Returns:
        ``x`` and ``y`` in 0..1, ``source``, ``id``, and ``row``, the place of its row or None.
    """
    rows = sample.moved if len(sample.moved) else sample.text
    if len(rows) < 3:
        return []
    _, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    plane = (rows - rows.mean(0)) @ directions[:2].T
    plane = (plane - plane.min(0)) / np.maximum(np.ptp(plane, axis=0), 1e-9)
    order = sorted(range(len(rows)), key=lambda row: (sample.ids[row] not in browsable, sample.ids[row]))[:POINTS]
    points = ((sample.ids[row], sample.sources[row], *plane[row].round(3).tolist()) for row in order)
    return [{"id": id, "source": source, "x": x, "y": y, "row": browsable.get(id)} for id, source, x, y in points]

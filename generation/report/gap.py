"""The modality gap of a run before and after the transfer, in the papers' figures (``docs/transfer.md``), and a cloud
to look at. Both are of at most ``ROWS`` rows, the same for the same run."""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..encoders import load_encoder
from ..errors import EmbeddingError
from ..limits import IMAGE_ROWS
from ..stages import CAPTIONS, TEXT_EMBEDDINGS, image_embeddings
from ..store import Run
from ..transfer.fitting import image_rows
from ..transfer.methods import Statistics, apply_to_images
from ..transfer.stage import statistics_file
from ..vectors import VectorShard

ROWS = 4_000
NEIGHBOURS = 20
POINTS = 400  # of the cloud


class GapSample(NamedTuple):
    """Rows spread evenly over a run's shards: vectors float32 [n, d]; ``moved`` is None before the transfer."""

    ids: list[str]
    sources: list[str]
    text: Tensor
    moved: Tensor | None

    @classmethod
    def of_run(cls, run: Run) -> "GapSample":
        """Return the sample of a run; its ``text`` is [0, 1] before any text is embedded."""
        stage, shards = image_embeddings(run.recipe.transfer.method), run.shards(TEXT_EMBEDDINGS)
        ids, sources, text, moved = list[str](), list[str](), list[Tensor](), list[Tensor]()
        for shard in shards:
            opened = VectorShard(run.verified(TEXT_EMBEDDINGS, shard))
            rows = torch.linspace(0, len(opened) - 1, min(len(opened), -(-ROWS // len(shards)))).long()
            own = [opened.ids[row] for row in rows.tolist()]
            text.append(opened.vectors[rows].float())
            if not run.is_due(stage, shard):
                moved.append(VectorShard(run.verified(stage, shard)).vectors[rows].float())
            table = run.table(CAPTIONS, shard, ["id", "source"])
            known = dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))
            ids, sources = ids + own, sources + [known.get(id, "") for id in own]
        complete = bool(moved) and len(moved) == len(shards)
        return cls(ids, sources, torch.cat(text or [torch.zeros(0, 1)]), torch.cat(moved) if complete else None)


def measure_gap(run: Run, sample: GapSample, images: Path | None, pairs: tuple[Path, Path] | None) -> dict[str, Any]:
    """Return the figures as rows of ``figure``, ``before``, ``after``, and a note on what they compare. An
    EmbeddingError says that ``images`` or ``pairs`` cannot be read or have another dimension."""
    text, both = sample.text, [sample.text] if sample.moved is None else [sample.text, sample.moved]
    if len(text) < 2:
        return {"rows": [], "note": "There are no text embeddings yet."}
    note = "Give --images or --pairs to measure the gap to real images."
    if not run.facts(TEXT_EMBEDDINGS).get("identity", {}).get("joint_with_images", False):
        note = "The encoder embeds no images: there is no image space, and no gap can be measured."
    found: dict[str, list[Any]] = {
        "norm of the mean": [rows.mean(0).norm() for rows in both],
        "mean norm of a row": [rows.norm(dim=1).mean() for rows in both],
        "effective rank": [effective_rank(rows) for rows in both],
        "neighbours kept": [neighbours_kept(text, rows) for rows in both],
    }
    if images:
        image = _read(run, images, text.shape[1])
        for name, unit in {"raw": image, "centred": normalize(image - image.mean(0))}.items():
            found[f"distance of the means (images {name})"] = [(part.mean(0) - unit.mean(0)).norm() for part in both]
        found["effective rank of the images"] = [effective_rank(image)]
        note = f"{len(text):,} texts against the images of {images}, unpaired."
    if pairs:
        said, seen = (_read(run, path, text.shape[1]) for path in pairs)
        if len(said) != len(seen):
            raise EmbeddingError(f"--pairs: {pairs[0]} has {len(said)} rows, {pairs[1]} {len(seen)}; give pairs")
        found |= _of_pairs(statistics_file(run, run.recipe.transfer.method), said, seen)
        note += f" Pairs: {len(said):,}."
    rounded = {name: [round(float(value), 4) for value in values] + [None] for name, values in found.items()}
    table = [{"figure": name, "before": before, "after": after} for name, (before, after, *_) in rounded.items()]
    return {"rows": table, "note": note}


def _read(run: Run, path: Path, dimension: int) -> Tensor:
    """Return the first unit rows of a file of vectors, or of a folder of pictures, float32 [n, d]."""
    encode = load_encoder(run.recipe.embed, run.recipe.directory).encode_images if path.is_dir() else None
    chunks = list(islice(image_rows(path, encode), ROWS // IMAGE_ROWS + 1))
    if not chunks or chunks[0].shape[1] != dimension:
        held = f"vectors of d = {chunks[0].shape[1]}" if chunks else "no vectors"
        raise EmbeddingError(f"{path} holds {held}; the run's vectors have d = {dimension}")
    return torch.cat(chunks)[:ROWS]


def _of_pairs(path: Path, text: Tensor, image: Tensor) -> dict[str, list[float]]:
    """Return the figures of pairs, rows [n, d]; with the statistics of ``path`` also after the transfer."""
    cosine, found = float(cosine_similarity(text, image).mean()), recall(text, image)
    if not path.is_file():
        return {"paired cosine": [cosine], "R@1 of an image's text": [found]}
    statistics = Statistics.load(path)
    moved, treated = statistics.move(text.clone()), apply_to_images(image, statistics, image.double().mean(0))
    after, untreated = (float(cosine_similarity(moved, rows).mean()) for rows in (treated, image))
    figures = {"paired cosine": [cosine, after], "paired cosine, images not treated": [cosine, untreated]}
    return figures | {"R@1 of an image's text": [found, recall(moved, treated)]}


def effective_rank(rows: Tensor) -> float:
    """Return the participation ratio of the covariance's eigenvalues, (sum l)^2 / sum l^2, of rows [n, d]."""
    values = torch.linalg.svdvals(rows - rows.mean(0)) ** 2
    return float(values.sum() ** 2 / values.square().sum().clamp(min=1e-30))


def neighbours_kept(before: Tensor, after: Tensor) -> float:
    """Return the share of each row's nearest neighbours by cosine that are the same in both spaces, rows [n, d]."""
    count, nearest = min(NEIGHBOURS, len(before) - 1), torch.zeros(len(before), len(before))
    for rows in (before, after):
        similarity = (normalize(rows) @ normalize(rows).T).fill_diagonal_(-2)
        nearest.scatter_add_(1, similarity.topk(count).indices, torch.ones(len(before), count))
    return float((nearest == 2).sum() / (count * len(before)))


def recall(text: Tensor, image: Tensor) -> float:
    """Return the share of images [n, d] whose own text is the nearest of all texts [n, d]."""
    return float(((normalize(image) @ normalize(text).T).argmax(1) == torch.arange(len(text))).float().mean())


def cloud(sample: GapSample, browsable: dict[str, int]) -> list[dict[str, Any]]:
    """Return points of the vectors (transferred, if they are) in the plane of their two main directions. ``x`` and
    ``y`` are in 0..1; ``row`` is the place among the ``browsable`` rows, or None."""
    rows = sample.text if sample.moved is None else sample.moved
    if len(rows) < 3:
        return []
    plane = (rows - rows.mean(0)) @ torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2].T
    plane = (plane - plane.amin(0)) / (plane.amax(0) - plane.amin(0)).clamp(min=1e-9)
    order = sorted(range(len(rows)), key=lambda row: (sample.ids[row] not in browsable, sample.ids[row]))[:POINTS]
    points = ((sample.ids[row], sample.sources[row], *(round(x, 3) for x in plane[row].tolist())) for row in order)
    return [{"id": id, "source": source, "x": x, "y": y, "row": browsable.get(id)} for id, source, x, y in points]

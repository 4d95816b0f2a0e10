"""The command ``diagnose`` on a run: its texts, what the transfer made of them and, where given, real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import EmbeddingError
from ..files import file_sha256
from ..progress import progress
from ..rundir import RunDir
from ..transfer import Fitted
from .cloud import Cloud, survey
from .inference import Pairs, image_name, takes_raw_images, treated
from .metrics import cloud_figures, gap_figures, paired_figures, transfer_figures, unpaired_figures
from .pictures import method_pictures
from .report import Report, Section
from .vectors import Vectors, from_files, same_dimension

TEXTS, MOVED = "text_embeddings", "image_embeddings"
RAW = "raw images"
_NEEDS_IMAGES = "unpaired image embeddings of the same encoder: --images PATH"
_NEEDS_PAIRS = "embeddings of texts and of their images: --pairs TEXT.safetensors IMAGE.safetensors"
_NEEDS_ENCODER = "an encoder that embeds images too; this run's does not"


@dataclass(frozen=True)
class _Look:
    """What is looked at, and how.

    Attributes:
        rows: of a sample, at most.
        seed: of samples, clusters and permutations.
        done: told rows that were read.
        now: told what is measured next.
    """

    rows: int
    seed: int
    done: Callable[[int], object]
    now: Callable[[str], object]

    def survey(self, vectors: Vectors) -> Cloud:
        self.now(vectors.name)
        return survey(vectors, self.rows, self.seed, self.done)


def diagnose_run(
    run: RunDir,
    images: Path | None = None,
    pairs: tuple[Path, Path] | None = None,
    rows: int = 10_000,
    seed: int = 0,
    most: int | None = None,
) -> Report:
    """Measures a run. Means and covariances are of all rows, all else of a sample.

    Args:
        run: its stage ``embed`` has ended.
        images: unpaired images or their embeddings, of the run's encoder; see ``image_vectors``.
        pairs: embeddings of texts and of the images that belong to them, row for row.
        rows: of a sample, at most; neighbours and pairwise cosines take time and memory that grow with its square.
        seed: of samples, clusters and permutations.
        most: of the run's rows, for means and covariances, about so many are looked at, spread evenly; None for all.

    Raises:
        RunError: a stage is not complete, or a file was changed.
        EmbeddingError: a file cannot be read, or holds a row that cannot be used, or rows of another encoder.
    """
    joint = bool(run.stage(TEXTS)["fingerprint"].get("joint_with_images"))
    step = max(1, -(-_rows(run) // most)) if most else 1
    remarks = [_about_sample(rows, seed, step)]
    if not joint:
        remarks.append(_about_encoder(run, bool(images or pairs)))
        images = pairs = None
    texts = _stage(run, TEXTS, "texts", "captions", "unit").thinned(step)
    methods = sorted(name.partition("/")[2] for name in run.manifest["stages"] if name.startswith(f"{MOVED}/"))
    moved = {
        method: _stage(run, f"{MOVED}/{method}", f"texts by {method}", TEXTS, "any").thinned(step)
        for method in methods
    }
    pictured = image_vectors(images) if images else None
    for other in (*moved.values(), *([pictured] if pictured else [])):
        same_dimension(texts, other)
    total = sum(vectors.rows for vectors in (texts, *moved.values(), *([pictured] if pictured else [])))
    with progress("diagnose", total, 0, "row", delay_s=2.0) as bar:
        look = _Look(rows, seed, bar.update, bar.set_postfix_str)
        before, after = look.survey(texts), {method: look.survey(vectors) for method, vectors in moved.items()}
        fitted = {method: _fitted(run, method) for method in methods}
        sections = _of_texts(look, before, after)
        sections += _of_images(look, before, after, fitted, pictured, _NEEDS_IMAGES if joint else _NEEDS_ENCODER)
        paired = _read_pairs(texts, *pairs, look) if pairs else None
        sections += _of_pairs(look, fitted, paired, _NEEDS_PAIRS if joint else _NEEDS_ENCODER)
        shown = look.survey(pictured) if pictured else None
        drawn: dict[str, Any] = {}
        for method in methods:
            look.now("pictures")
            drawn |= method_pictures(method, fitted[method], before, after[method], shown, paired)
        look.now("sha256 of the files given")
        given = {str(path): file_sha256(path) for path in (images, *(pairs or ())) if path and path.is_file()}
    facts = {"run": str(run.path), "rows": rows, "seed": seed, "encoder": run.stage(TEXTS)["fingerprint"]}
    return Report(f"Diagnostics of {run.path}", remarks, sections, pictures=drawn, facts=facts | {"sha256": given})


def image_vectors(path: Path) -> Vectors:
    """Unpaired images' embeddings out of a ``.safetensors`` or ``.npy`` file; each is divided by its norm.

    Raises:
        EmbeddingError: it is no such file.
    """
    return from_files(RAW, [path], "normalise")


def _of_texts(look: _Look, before: Cloud, after: dict[str, Cloud]) -> list[Section]:
    sections = [Section("Texts", "cloud", cloud_figures(before))]
    for method, cloud in after.items():
        look.now(f"{method} against its source")
        sections.append(Section(f"Texts by {method}", "cloud", cloud_figures(cloud)))
        found = transfer_figures(before.sample, cloud.sample)
        sections.append(Section(f"{method}: texts against the same texts transferred", "transfer", found))
    return sections


def _of_images(
    look: _Look,
    before: Cloud,
    after: dict[str, Cloud],
    fitted: dict[str, Fitted],
    images: Vectors | None,
    missing: str,
) -> list[Section]:
    if not images:
        return [Section(f"Texts against {RAW}", "unpaired", {}, missing)]
    raw = look.survey(images)
    sections = [Section("Raw images", "cloud", cloud_figures(raw))]
    for name, cloud in {"Texts": before, **{f"Texts by {method}": cloud for method, cloud in after.items()}}.items():
        look.now(f"{name} against {RAW}")
        sections.append(Section(f"{name} against {RAW}", "unpaired", unpaired_figures(cloud, raw, look.seed)))
    for method, method_fitted in fitted.items():
        if takes_raw_images(method_fitted):
            continue
        name = f"images as {method} wants them ({image_name(method_fitted)})"
        wanted = images.mapped(name, partial(treated, method_fitted, mean=raw.mean))
        found = unpaired_figures(after[method], look.survey(wanted), look.seed)
        sections.append(Section(f"Texts by {method} against {name}", "unpaired", found))
    return sections


def _of_pairs(look: _Look, fitted: dict[str, Fitted], pairs: Pairs | None, missing: str) -> list[Section]:
    if not pairs:
        return [Section("Pairs of texts and raw images", "gap", {}, missing)]
    look.now("pairs")
    texts, images = pairs
    sections = [Section("Pairs of texts and raw images", "gap", gap_figures(texts, images, look.seed))]
    for method, method_fitted in fitted.items():
        moved = method_fitted.to_text(texts)
        sections.append(Section(f"Pairs of texts by {method} and {RAW}", "paired", paired_figures(moved, images)))
        if not takes_raw_images(method_fitted):
            name = f"Pairs of texts by {method} and images as it wants them ({image_name(method_fitted)})"
            sections.append(Section(name, "paired", paired_figures(moved, treated(method_fitted, images))))
    return sections


def _stage(run: RunDir, stage: str, name: str, source: str, norm: str) -> Vectors:
    shards = run.finished(stage, source)
    return from_files(name, run.all_verified(stage, [run.shard_path(stage, shard) for shard in shards]), norm)


def _rows(run: RunDir) -> int:
    return sum(run.record(TEXTS, shard)["rows"] for shard in run.sealed(TEXTS))


def _fitted(run: RunDir, method: str) -> Fitted:
    return Fitted.load(run.verified(f"{MOVED}/{method}", run.path / "transfer" / f"{method}.safetensors"))


def _read_pairs(run_texts: Vectors, text_path: Path, image_path: Path, look: _Look) -> Pairs:
    look.now("reading pairs")
    texts = from_files(f"texts of {text_path}", [text_path], "normalise")
    images = from_files(f"images of {image_path}", [image_path], "normalise")
    same_dimension(run_texts, texts)
    same_dimension(texts, images)
    if texts.rows != images.rows:
        raise EmbeddingError(
            f"{text_path} has {texts.rows} rows, but {image_path} {images.rows}: row i of one must belong to row i of "
            "the other"
        )
    return texts.sample(look.rows, look.seed), images.sample(look.rows, look.seed)


def _about_sample(rows: int, seed: int, step: int) -> str:
    looked_at = "all rows" if step == 1 else f"one row in {step}"
    return (
        f"Means, norms, spectra and duplicates are of {looked_at}; neighbours, pairwise cosines, percentiles and "
        f"pairs are of at most {rows} of them, drawn with seed {seed}."
    )


def _about_encoder(run: RunDir, given: bool) -> str:
    name = run.stage(TEXTS)["fingerprint"].get("model", "this run's encoder")
    ignored = " The images and pairs that were given are left aside." if given else ""
    return (
        f"No figure of a modality gap is computed: {name} embeds texts alone (its provenance says joint_with_images: "
        f"false). No image's vector lies in the same space, so a distance to one would mean nothing.{ignored}"
    )

"""Stage 0: seeds, open-domain captions and domain labels put into templates (paper, section on Unicorn-1.2M-Seed).

Every choice is a draw from (random seed, source, text), so adding a source neither reshuffles nor redraws the others.
"""

import glob
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from .config import STRICT, CaptionFile, Domains, Recipe, Seeds, settings
from .errors import RecipeError, SeedError
from .files import file_sha256, seal
from .progress import progress
from .records import MAX_SHARDS, SEED_SCHEMA, draw, row_id
from .rundir import RunDir
from .texts import read_texts
from .validation import read_yaml, validate

if TYPE_CHECKING:
    from .contamination import Benchmark
    from .duplicates import Finding

STAGE = "seeds"
_PLACES = ("{label}", "{a_label}", "{labels}")


@dataclass(frozen=True)
class Seed:
    """One short caption, before it has an id."""

    text: str
    source: str
    license: str


@checked_dataclass(frozen=True, config=STRICT)
class DomainFile:
    """Labels of one domain and the templates they are put into: ``{label}``, ``{a_label}`` (with its indefinite
    article) or ``{labels}`` (plural)."""

    domain: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    license: str
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]


def make_seeds(run: RunDir, recipe: Recipe, extend: bool = False) -> None:
    """Reads all sources of the recipe and seals them as seed shards, in an order drawn at random.

    Args:
        run: the run directory.
        recipe: ``seeds`` is used.
        extend: add to a finished stage, as new shards, the seeds that it does not hold yet.

    Raises:
        SeedError: a source is missing, unreadable or empty, or has an empty row.
        RunError: the stage was begun with other settings or other files and ``extend`` is off.
    """
    paths = {source.name: (recipe.directory / source.path).resolve() for source in recipe.seeds.captions}
    domain_paths = _domain_paths(recipe)
    files = paths | {f"domain_{path.stem}": path for path in domain_paths}
    fingerprint = settings(recipe.seeds) | {
        "random_seed": recipe.random_seed,
        "sha256": {name: _hash(path) for name, path in files.items()},
    }
    if recipe.seeds.decontaminate:
        fingerprint["benchmark_sha256"] = _hash(recipe.directory / recipe.seeds.decontaminate.file)
    if not extend and run.begin(STAGE, fingerprint).get("complete"):
        return
    seeds = [seed for source in recipe.seeds.captions for seed in _captions(paths[source.name], source, recipe)]
    if recipe.seeds.domains:
        for path in domain_paths:
            seeds += _domain_seeds(read_domain(path), recipe.seeds.domains, recipe.random_seed)
    benchmark = _benchmark(recipe)
    # From here on the run changes: everything that can be wrong with the sources has been seen.
    if extend and run.stage(STAGE).get("complete"):
        run.note(STAGE, complete=False, kept=len(run.sealed(STAGE)))
    record = run.begin(STAGE, fingerprint, changed="keep")
    kept = record.get("kept", 0)  # shards of the run before it was extended
    run.note(STAGE, files={name: file for name, file in record["files"].items() if int(Path(name).stem) < kept})
    held = _held(run, kept)  # in run order
    run.note(STAGE, sources=record.get("sources", {}) | {seed.source: {"license": seed.license} for seed in seeds})
    seeds = [seed for seed in dict.fromkeys(seeds) if (seed.source, seed.text) not in held]
    seeds.sort(key=lambda seed: draw(recipe.random_seed, "order", seed.source, seed.text))
    seeds = _sift(run, recipe.seeds, benchmark, [text for _, text in held], seeds)
    _seal(run, seeds, recipe.seeds.shard_rows, first=kept)
    run.note(STAGE, complete=True)


def read_domain(path: Path) -> DomainFile:
    """Reads and checks one domain file.

    Raises:
        RecipeError: it is no YAML mapping of the right keys, or a template does not hold exactly one place.
    """
    domain: DomainFile = validate(DomainFile, read_yaml(path, "domain file"), f"domain file {path}")
    for template in domain.templates:
        if sum(template.count(place) for place in _PLACES) != 1:
            raise RecipeError(f"domain file {path}: template {template!r} must hold one of {', '.join(_PLACES)}, once")
    return domain


def _captions(path: Path, source: CaptionFile, recipe: Recipe) -> list[Seed]:
    """The captions of one file; with a limit, those with the lowest draws."""
    texts = read_texts(path, source.column, f"seed source '{source.name}'", "caption")
    seeds = [Seed(text, source.name, source.license) for text in dict.fromkeys(texts)]
    if not seeds:
        raise SeedError(f"seed source '{source.name}': {path} holds no caption")
    seeds.sort(key=lambda seed: draw(recipe.random_seed, source.name, seed.text))
    return seeds[: source.limit]


def _domain_seeds(domain: DomainFile, wanted: Domains, random_seed: int) -> Iterator[Seed]:
    """Labels x templates, the templates drawn for each label (paper: 10 a label)."""
    import inflect

    english = inflect.engine()
    source = f"domain_{domain.domain}"
    labels = sorted(set(domain.labels), key=lambda label: draw(random_seed, source, label))[: wanted.labels_per_domain]
    for label in labels:
        templates = sorted(set(domain.templates), key=lambda template: draw(random_seed, source, label, template))
        for template in templates[: wanted.templates_per_label]:
            forms = {"{label}": label, "{a_label}": english.a(label), "{labels}": english.plural(label)}
            place = next(place for place in _PLACES if place in template)
            yield Seed(template.replace(place, forms[place]), source, domain.license)


def _domain_paths(recipe: Recipe) -> list[Path]:
    if recipe.seeds.domains is None:
        return []
    paths = []
    for pattern in recipe.seeds.domains.files:
        found = sorted(Path(name).resolve() for name in glob.glob(str(recipe.directory / pattern)))
        if not found:
            raise SeedError(f"domain files: nothing matches {recipe.directory / pattern}")
        paths += found
    stems = [path.stem for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise SeedError(
            f"domain files: {', '.join(twice)} named more than once; each domain needs one file of its name"
        )
    return paths


def _hash(path: Path) -> str:
    if not path.is_file():
        raise SeedError(f"seed file {path} does not exist (paths in a recipe are relative to the recipe)")
    return file_sha256(path)


def _held(run: RunDir, shards: int) -> dict[tuple[str, str], None]:
    tables = [run.table(STAGE, shard) for shard in range(shards)]
    return {(row["source"], row["seed"]): None for table in tables for row in table.to_pylist()}


def _benchmark(recipe: Recipe) -> "Benchmark | None":
    if (wanted := recipe.seeds.decontaminate) is None:
        return None
    from .contamination import read_benchmark

    return read_benchmark(recipe.directory / wanted.file, wanted.column, wanted.ngram)


def _sift(run: RunDir, recipe: Seeds, benchmark: "Benchmark | None", held: list[str], seeds: list[Seed]) -> list[Seed]:
    """The seeds, in their order, without those that the recipe drops; these go to ``report/dropped_seeds.jsonl``.

    Contaminated ones go first, so that none is dropped for repeating a seed that is not there. The stage's record
    gets the counts, by reason, of what was found and dropped among the seeds of this reading; ``held`` seeds are not
    judged again.
    """
    if not (recipe.duplicates or recipe.decontaminate):
        return seeds
    from .contamination import find_contaminated
    from .duplicates import NGRAMS, find_duplicates

    texts = {str(number): text for number, text in enumerate([*held, *(seed.text for seed in seeds)])}
    found: dict[str, Finding] = {}
    dropped: dict[str, Finding] = {}
    if benchmark and recipe.decontaminate:
        new = ((number, text) for number, text in texts.items() if int(number) >= len(held))
        found |= dict(find_contaminated(new, benchmark))
        dropped |= found if recipe.decontaminate.action == "drop" else {}
    if near := recipe.duplicates:
        rows = ((number, text) for number, text in texts.items() if number not in dropped)
        again = find_duplicates(rows, near.near_threshold, near.ngram or NGRAMS[STAGE], run.path, kept=len(held))
        found = again | found
        dropped |= {number: again[number] for number in again.keys() - dropped.keys() if near.action == "drop"}
    lines = [
        {
            "seed": texts[number],
            "source": seeds[int(number) - len(held)].source,
            "reason": finding.reason,
            "match": finding.match if finding.reason == "contaminated" else texts[finding.match],
        }
        for number, finding in sorted(dropped.items(), key=lambda item: int(item[0]))
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    seal(run.path / "report" / "dropped_seeds.jsonl", lambda target: target.write_text(text, encoding="utf-8"))
    for key, findings in (("found_by_reason", found), ("dropped_by_reason", dropped)):
        run.note(STAGE, **{key: dict(sorted(Counter(finding.reason for finding in findings.values()).items()))})
    return [seed for number, seed in enumerate(seeds, len(held)) if str(number) not in dropped]


def _seal(run: RunDir, seeds: list[Seed], shard_rows: int, first: int) -> None:
    shards = range(first, first + -(-len(seeds) // shard_rows))
    if shards.stop > MAX_SHARDS:
        raise SeedError(f"{len(seeds)} seeds make {shards.stop} shards of {shard_rows}; raise seeds.shard_rows")
    with progress(STAGE, len(seeds), 0, "seed") as bar:
        for shard in shards:
            part = seeds[(shard - first) * shard_rows :][:shard_rows]
            columns = [
                [row_id(shard, row) for row in range(len(part))],
                [seed.text for seed in part],
                [seed.source for seed in part],
                [seed.license for seed in part],
            ]
            run.seal_tables(STAGE, shard, pa.table(columns, SEED_SCHEMA), None)
            bar.update(len(part))

"""Stage 0: seeds, open-domain captions and domain labels put into templates (paper, section on Unicorn-1.2M-Seed).

Every choice is a draw from (random seed, source, text), so adding a source neither reshuffles nor redraws the others.
The texts lie in a temporary file in the run directory; of each seed 30 bytes are in memory, and what the search for
duplicates takes.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .config import Domains, HubCaptions, Recipe, caption_sources, settings
from .domains import domain_paths, domain_seeds, labels_path, read_domain
from .errors import SeedError
from .files import file_sha256, guarded, seal
from .open_domain import check_revision, draw_captions
from .pool import ROW, Pool, Rows, Texts
from .progress import progress
from .records import MAX_SHARDS, SEED_SCHEMA, draw, row_id
from .rundir import RunDir

if TYPE_CHECKING:
    from .contamination import Benchmark
    from .duplicates import Finding

STAGE = "seeds"


class Sources:
    """The sources of a reading, by number: their names, licences, and the account of each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.facts: list[dict[str, Any]] = []
        self.dropped: list[Counter[str]] = []

    def add(self, name: str, **facts: Any) -> int:
        """A source with what is known of it; returns its number."""
        self.names.append(name)
        self.facts.append(facts)
        self.dropped.append(Counter())
        return len(self.names) - 1

    def account(self, rows: Rows) -> dict[str, dict[str, Any]]:
        """What the manifest says of each: facts, seeds made, and captions dropped by reason."""
        seeds = np.bincount(rows["source"], minlength=len(self.names))
        return {
            name: facts | {"seeds": int(count), "dropped": {key: dropped[key] for key in sorted(+dropped)}}
            for name, facts, count, dropped in zip(self.names, self.facts, seeds, self.dropped, strict=True)
        }


def make_seeds(run: RunDir, recipe: Recipe, extend: bool = False) -> None:
    """Reads all sources of the recipe and seals them as seed shards, in an order drawn at random.

    Args:
        run: the run directory.
        recipe: ``seeds`` is used.
        extend: add to a finished stage, as new shards, the seeds that it does not hold yet.

    Raises:
        SeedError: a source is missing, unreadable or empty, has an empty row and no filters, or is a data set of the
            Hub without a commit.
        RunError: the stage was begun with other settings or other files and ``extend`` is off.
    """
    for source in recipe.seeds.hub:
        check_revision(source)
    fingerprint = settings(recipe.seeds) | {"random_seed": recipe.random_seed, "sha256": _hashes(recipe)}
    if recipe.seeds.decontaminate:
        fingerprint["benchmark_sha256"] = _hash(recipe.directory / recipe.seeds.decontaminate.file)
    if not extend and run.begin(STAGE, fingerprint).get("complete"):
        return
    with guarded(run.path, lambda: tempfile.TemporaryFile(dir=run.path)) as file:
        texts, sources = Texts(file), Sources()
        rows = guarded(run.path, lambda: _read(recipe, texts, sources))
        benchmark = _benchmark(recipe)
        # From here on the run changes: everything that can be wrong with the sources has been seen.
        if extend and run.stage(STAGE).get("complete"):
            run.note(STAGE, complete=False, kept=len(run.sealed(STAGE)))
        record = run.begin(STAGE, fingerprint, changed="keep")
        kept = record.get("kept", 0)  # shards of the run before it was extended
        run.note(STAGE, files={name: file for name, file in record["files"].items() if int(Path(name).stem) < kept})
        held = guarded(run.path, lambda: _held(run, kept, recipe.random_seed, texts))
        rows = _without(rows, held, sources)
        rows = _sift(run, recipe, benchmark, texts, held, rows, sources)
        account = sources.account(rows)
        run.note(STAGE, sources=record.get("sources", {}) | account)
        _seal(run, texts, sources, rows, recipe.seeds.shard_rows, first=kept)
    run.note(STAGE, complete=True)
    _tell(account)


def _read(recipe: Recipe, texts: Texts, sources: Sources) -> Rows:
    """The seeds of all sources, in the order in which they come."""
    found = [np.empty(0, ROW)]
    for source in caption_sources(recipe.seeds):
        facts: dict[str, Any] = {"license": source.license}
        if isinstance(source, HubCaptions):
            facts |= {key: getattr(source, key) for key in ("dataset", "config", "split", "revision")}
        number = sources.add(source.name, **facts)
        rows, sources.dropped[number], sources.facts[number]["read"] = draw_captions(source, number, recipe, texts)
        found.append(rows)
    for path in domain_paths(recipe):
        domain = read_domain(path)
        name = f"domain_{domain.domain}"
        number = sources.add(name, license=domain.license, labels=domain.source)
        pool = Pool(texts, name, number, recipe.random_seed)
        for text in domain_seeds(domain, recipe.seeds.domains or Domains(files=()), recipe.random_seed):
            pool.add(text)
        found.append(pool.drawn())
        sources.facts[number]["read"] = len(found[-1]) + pool.dropped.total()
        sources.dropped[number] = pool.dropped
    texts.flush()
    rows = np.concatenate(found)
    return rows[np.argsort(rows["order"], kind="stable")]


def _hashes(recipe: Recipe) -> dict[str, str]:
    """The sha256 of every file that the seeds come from or are judged by, by the name of its source."""
    hashes = {source.name: _hash((recipe.directory / source.path).resolve()) for source in recipe.seeds.captions}
    for source in caption_sources(recipe.seeds):
        if source.filters and source.filters.blocked_words:
            hashes[f"{source.name}.blocked_words"] = _hash(recipe.directory / source.filters.blocked_words)
    for path in domain_paths(recipe):
        hashes[f"domain_{path.stem}"] = _hash(path)
        if labels := labels_path(path):
            hashes[f"domain_{path.stem}.labels"] = _hash(labels)
    return hashes


def _hash(path: Path) -> str:
    if not path.is_file():
        raise SeedError(f"seed file {path} does not exist (paths in a recipe are relative to the recipe)")
    return file_sha256(path)


def _held(run: RunDir, shards: int, random_seed: int, texts: Texts) -> Rows:
    """The seeds of the first shards, in run order; their ``source`` means nothing."""
    parts = [np.empty(0, ROW)]
    for shard in range(shards):
        table = run.table(STAGE, shard)
        part = np.zeros(len(table), ROW)
        for row, (source, text) in enumerate(zip(table["source"].to_pylist(), table["seed"].to_pylist(), strict=True)):
            part[row] = (0, draw(random_seed, "order", source, text), *texts.add(text), 0)
        parts.append(part)
    texts.flush()
    return np.concatenate(parts)


def _without(rows: Rows, held: Rows, sources: Sources) -> Rows:
    """The rows that the run does not hold yet."""
    again = np.isin(rows["order"], held["order"])
    for number, count in enumerate(np.bincount(rows["source"][again], minlength=len(sources.names))):
        sources.dropped[number]["held"] += int(count)
    return rows[~again]


def _benchmark(recipe: Recipe) -> "Benchmark | None":
    if (wanted := recipe.seeds.decontaminate) is None:
        return None
    from .contamination import read_benchmark

    return read_benchmark(recipe.directory / wanted.file, wanted.column, wanted.ngram)


def _sift(
    run: RunDir, recipe: Recipe, benchmark: "Benchmark | None", texts: Texts, held: Rows, rows: Rows, sources: Sources
) -> Rows:
    """The rows, in their order, without those that the recipe drops; these go to ``report/dropped_seeds.jsonl``.

    Contaminated ones go first, so that none is dropped for repeating a seed that is not there. The stage's record
    gets the counts, by reason, of what was found and dropped among the seeds of this reading; ``held`` seeds are not
    judged again.
    """
    near, contaminated = recipe.seeds.duplicates, recipe.seeds.decontaminate
    if not (near or contaminated):
        return rows
    from .contamination import find_contaminated
    from .duplicates import NGRAMS, find_duplicates

    every = np.concatenate([held, rows])
    found: dict[str, Finding] = {}
    dropped: dict[str, Finding] = {}

    def numbered(start: int) -> Iterator[tuple[str, str]]:
        return ((str(row), texts.of(every[row])) for row in range(start, len(every)))

    if benchmark and contaminated:
        found |= dict(find_contaminated(numbered(len(held)), benchmark))
        dropped |= found if contaminated.action == "drop" else {}
    if near:
        left = ((number, text) for number, text in numbered(0) if number not in dropped)
        again = find_duplicates(left, near.near_threshold, near.ngram or NGRAMS[STAGE], run.path, kept=len(held))
        found = again | found
        dropped |= {number: again[number] for number in again.keys() - dropped.keys() if near.action == "drop"}
    gone = sorted(map(int, dropped))
    _write_dropped(run, ((every[row], dropped[str(row)]) for row in gone), texts, every, sources)
    for row in gone:
        sources.dropped[every[row]["source"]][dropped[str(row)].reason] += 1
    for key, findings in (("found_by_reason", found), ("dropped_by_reason", dropped)):
        run.note(STAGE, **{key: dict(sorted(Counter(finding.reason for finding in findings.values()).items()))})
    return np.delete(rows, [row - len(held) for row in gone])


def _write_dropped(
    run: RunDir, dropped: "Iterator[tuple[Any, Finding]]", texts: Texts, every: Rows, sources: Sources
) -> None:
    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            for row, finding in dropped:
                match = finding.match if finding.reason == "contaminated" else texts.of(every[int(finding.match)])
                line = {"seed": texts.of(row), "source": sources.names[row["source"]], "reason": finding.reason}
                file.write(json.dumps(line | {"match": match}, ensure_ascii=False) + "\n")

    seal(run.path / "report" / "dropped_seeds.jsonl", write)


def _seal(run: RunDir, texts: Texts, sources: Sources, rows: Rows, shard_rows: int, first: int) -> None:
    shards = range(first, first + -(-len(rows) // shard_rows))
    if shards.stop > MAX_SHARDS:
        raise SeedError(f"{len(rows)} seeds make {shards.stop} shards of {shard_rows}; raise seeds.shard_rows")
    with progress(STAGE, len(rows), 0, "seed") as bar:
        for shard in shards:
            part = rows[(shard - first) * shard_rows :][:shard_rows]
            columns = [
                [row_id(shard, row) for row in range(len(part))],
                [texts.of(row) for row in part],
                [sources.names[number] for number in part["source"]],
                [sources.facts[number]["license"] for number in part["source"]],
            ]
            run.seal_tables(STAGE, shard, pa.table(columns, SEED_SCHEMA), None)
            bar.update(len(part))


def _tell(account: dict[str, dict[str, Any]]) -> None:
    """Prints one line a source; those of the domains together."""
    domains = {name: facts for name, facts in account.items() if name.startswith("domain_")}
    for name, facts in account.items():
        if name not in domains:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts["dropped"].items())
            print(f"{name}: {facts['seeds']:,} seeds of {facts['read']:,} captions; dropped: {reasons or 'none'}")
    if domains:
        print(f"{len(domains)} domains: {sum(facts['seeds'] for facts in domains.values()):,} seeds")

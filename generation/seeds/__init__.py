"""Stage 0: seeds, open-domain captions and domain labels put into templates (paper, section on Unicorn-1.2M-Seed).

Every choice is a stable hash of (random seed, source, text), so that another source or a higher limit moves no draw.
"""

from collections import Counter
from collections.abc import Collection
from contextlib import suppress

import pyarrow as pa

from ..config import Domains, Recipe
from ..dedup import NGRAM, find_contaminated, find_duplicates
from ..errors import RunError, SeedError, StageFailed
from ..files import parquet, sha256, write_json
from ..logs import counted, say
from ..rows import MAX_SHARDS, SEED_SCHEMA, row_id, stable_hash
from ..stages import SEEDS
from ..store import Run
from .domains import domain_paths, domain_seeds, read_domain
from .sources import Sample, read_source, reasons

Seed = tuple[Sample, str]


def make_seeds(run: Run, extend: bool = False) -> None:
    """Read all sources of the recipe and write them as shards of seeds, in an order drawn at random.

    A finished stage is left as it is, and an unfinished one is made again. ``stage.json`` then says of every source
    how many rows and captions were read, how many became seeds, and how many were dropped, by reason.

    Args:
        run: the run directory.
        extend: add the seeds that a finished run does not have yet, as new shards.

    Raises:
        SeedError: a source cannot be used.
        StageFailed: no caption became a seed.
        RunError: the stage was begun with other settings or files and ``extend`` is off, or another process makes it.
    """
    with run.claim(SEEDS) as held:
        if not held:
            raise RunError(f"{run.path}: another process is making the seeds; wait for its end")
        facts = run.facts(SEEDS)
        present = run.shards(SEEDS)
        finished = bool(facts.get("finished")) and present == list(range(facts["shards"]))
        identity = {"sha256": _hashes(run.recipe, facts["identity"]["sha256"] if finished and not extend else {})}
        if facts and not extend:
            run.begin(SEEDS, identity)
            if finished:
                return
        kept = len(present) if finished else facts.get("kept", 0)  # shards of the run before its extension
        if gone := sorted(set(range(kept)) - set(present)):
            lost = run.file(SEEDS, gone[0])
            raise RunError(f"{lost} is missing, and cannot be made again: the run was extended since. Restore it")
        rows = [row for shard in range(kept) for row in run.table(SEEDS, shard, ["source", "seed"]).to_pylist()]
        old = [(row["source"], row["seed"]) for row in rows]
        samples = _read(run.recipe)
        seeds = _choose(run.recipe, samples, old)
        made = Counter(name for name, _ in old) + Counter(sample.name for sample, _ in seeds)
        # Nothing was written until here, so that whatever is wrong with the sources leaves the run as it was.
        if not facts:
            run.begin(SEEDS, identity)
        facts = run.facts(SEEDS) | {"settings": run.recipe.settings(SEEDS.name), "identity": identity, "kept": kept}
        facts["shards"] = kept - (-len(seeds) // run.recipe.seeds.shard_rows)
        facts["sources"] = facts.get("sources", {}) | {sample.name: sample.account(made) for sample in samples}
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": False})
        _commit(run, seeds, kept)
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": True})
        _print_table(samples, made)


def _hashes(recipe: Recipe, known: dict[str, str]) -> dict[str, str]:
    """Return the sha256 of every file that the seeds depend on, by its name in the recipe.

    Args:
        recipe: names the files.
        known: those of a finished stage, whose files may be gone.
    """
    names: list[str | None] = [*known]
    if not known:
        names += [*(source.path for source in recipe.seeds.captions), recipe.seeds.drop_contaminated]
        sources = (*recipe.seeds.captions, *recipe.seeds.hub)
        names += [source.filters.blocked_words for source in sources if source.filters]
        for path in domain_paths(recipe):
            labels = read_domain(path).labels_file
            names += [str(path), str(path.parent / labels) if labels else None]
    found = {}
    for name in filter(None, names):
        found[name] = known.get(name, "")  # without the file; where it is needed, its reader says what is wrong
        with suppress(OSError, ValueError):
            if (recipe.directory / name).is_file():  # not a device or pipe, which would not end
                found[name] = sha256(recipe.directory / name)
    return found


def _read(recipe: Recipe) -> list[Sample]:
    """Return what every source gives, files first, domains last."""
    samples = [read_source(source, recipe) for source in recipe.seeds.captions]
    samples += [read_source(source, recipe) for source in recipe.seeds.hub]
    for path in domain_paths(recipe):
        domain = read_domain(path)
        name = f"domain_{domain.domain}"
        sample = Sample(name, recipe.random_seed, license=domain.license, labels=domain.source)
        for text in domain_seeds(domain, recipe.seeds.domains or Domains(files=()), recipe.random_seed):
            sample.rows, sample.read = sample.rows + 1, sample.read + 1
            sample.add(text)
        samples.append(sample)
    names = Counter(sample.name for sample in samples)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SeedError(f"several sources of seeds are named {', '.join(twice)}; give each its own name")
    return samples


def _choose(recipe: Recipe, samples: list[Sample], old: list[tuple[str, str]]) -> list[Seed]:
    """Return the new seeds in their order, without those that the recipe drops (counted in their samples).

    Args:
        recipe: the recipe.
        samples: what the sources give.
        old: source and text of the seeds that the run has; they stay, and nothing may repeat them.

    Raises:
        SeedError: the benchmark's questions cannot be read, or there are more seeds than ids.
        StageFailed: no seed is left, and the run has none.
    """
    held = set(old)
    seeds = [(sample, text) for sample in samples for text in sample.texts() if (sample.name, text) not in held]
    seeds.sort(key=lambda seed: stable_hash(recipe.random_seed, "order", seed[0].name, seed[1]))
    if recipe.seeds.drop_contaminated:
        benchmark = recipe.directory / recipe.seeds.drop_contaminated
        seeds = _without(seeds, "contaminated", find_contaminated((text for _, text in seeds), benchmark))
    if recipe.seeds.drop_duplicates:
        texts = [text for _, text in (*old, *seeds)]
        found = find_duplicates(texts, recipe.seeds.drop_duplicates, NGRAM[SEEDS.name], kept=len(old))
        seeds = _without(seeds, "duplicate", {row - len(old) for row in found})
    if not seeds and not old:
        why = "; ".join(f"{sample.name}: {reasons(sample.dropped)}" for sample in samples) or "there is no source"
        raise StageFailed(f"no caption became a seed. Dropped: {why}. Change the filters or the sources")
    if len(seeds) > (MAX_SHARDS - 1) * recipe.seeds.shard_rows - len(old):
        raise SeedError(f"{len(seeds):,} seeds do not fit into {MAX_SHARDS:,} shards; raise seeds.shard_rows")
    return seeds


def _without(seeds: list[Seed], reason: str, dropped: Collection[int]) -> list[Seed]:
    for row in dropped:
        seeds[row][0].dropped[reason] += 1
    return [seed for row, seed in enumerate(seeds) if row not in dropped]


def _commit(run: Run, seeds: list[Seed], first: int) -> None:
    """Write shards from number ``first`` on, and remove those that an interrupted call left beyond them."""
    size = run.recipe.seeds.shard_rows
    shards = range(first, first + -(-len(seeds) // size))
    for shard in counted(shards, SEEDS.name, "shard"):
        part = seeds[(shard - first) * size :][:size]
        columns = [
            [row_id(shard, row) for row in range(len(part))],
            [text for _, text in part],
            [sample.name for sample, _ in part],
            [sample.facts["license"] for sample, _ in part],
        ]
        run.commit(SEEDS, shard, len(part), parquet(pa.table(columns, SEED_SCHEMA)))
    for shard in run.shards(SEEDS):
        if shard >= shards.stop:
            run.reopen(SEEDS, shard)
            run.file(SEEDS, shard).unlink(missing_ok=True)


def _print_table(samples: list[Sample], made: Counter[str]) -> None:
    """Print one line a source; the domains are one together."""
    say(f"{'source':<28} {'captions':>10} {'seeds':>10}  dropped")
    domains = [sample for sample in samples if sample.name.startswith("domain_")]
    groups = [(sample.name, [sample]) for sample in samples if sample not in domains]
    for name, group in [*groups, *([(f"{len(domains)} domains", domains)] if domains else [])]:
        read, seeds = sum(sample.read for sample in group), sum(made[sample.name] for sample in group)
        dropped = sum((sample.dropped for sample in group), Counter[str]())
        say(f"{name:<28} {read:>10,} {seeds:>10,}  {reasons(dropped)}")

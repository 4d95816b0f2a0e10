"""Stage 0: seeds, open-domain captions and domain labels put into templates (paper, section on Unicorn-1.2M-Seed).
Every choice is a stable hash of (random seed, source, text), so that another source or a higher limit moves none."""

from collections import Counter
from typing import Any

import pyarrow as pa

from ..config import Recipe
from ..dedup import NGRAM, find_repeats
from ..errors import RunError, SeedError, StageFailed
from ..files import parquet, sha256, write_json
from ..logs import counted, say
from ..rows import MAX_SHARDS, SEED_SCHEMA, row_id, stable_hash
from ..stages import SEEDS
from ..store import Run
from .sources import Sample, read_domains, read_source, reasons

Seed = tuple[Sample, str]


def make_seeds(run: Run, extend: bool = False) -> None:
    """Read all sources of the recipe and write them as shards of seeds, in an order drawn at random.

    A finished stage is left as it is, an unfinished one made again; ``extend`` adds the seeds that the run does not
    have yet, as new shards. Errors: SeedError, a source cannot be used; StageFailed, no caption became a seed;
    RunError, the stage was begun with other settings or files and ``extend`` is off, or another process makes it.
    """
    with run.claim(SEEDS) as held:
        if not held:
            raise RunError(f"{run.path}: another process is making the seeds; wait for its end")
        recipe, facts, present = run.recipe, run.facts(SEEDS), run.shards(SEEDS)
        finished = bool(facts.get("finished")) and present == list(range(facts["shards"]))
        if finished and not extend:
            run.begin(SEEDS, {"sha256": _hashes(recipe, facts["identity"]["sha256"])})
            return
        kept = len(present) if finished else facts.get("kept", 0)  # shards of the run before its extension
        if gone := [run.file(SEEDS, shard) for shard in range(kept) if shard not in present]:
            raise RunError(f"{gone[0]} is missing, and cannot be made again: the run was extended since. Restore it")
        tables = [run.table(SEEDS, shard, ["source", "seed"]) for shard in range(kept)]
        old = [(row["source"], row["seed"]) for table in tables for row in table.to_pylist()]
        sources: tuple[Any, ...] = (*recipe.seeds.captions, *recipe.seeds.hub)
        samples = [*(read_source(source, recipe) for source in sources), *read_domains(recipe)]
        seeds = _choose(recipe, samples, old)
        names = [*(name for sample in samples for name in sample.files), recipe.seeds.drop_contaminated]
        identity = {"sha256": _hashes(recipe, {name: "" for name in names if name})}
        # Nothing was written until here, so that whatever is wrong with the sources leaves the run as it was.
        if not (facts and extend):
            run.begin(SEEDS, identity)
        facts = run.facts(SEEDS) | {"settings": recipe.settings(SEEDS.name), "identity": identity, "kept": kept}
        size = recipe.seeds.shard_rows
        parts = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        facts["shards"] = kept + len(parts)
        made = Counter(name for name, _ in old) + Counter(sample.name for sample, _ in seeds)
        facts["sources"] = facts.get("sources", {}) | {
            one.name: one.facts | {"read": one.read, "seeds": made[one.name], "dropped": +one.dropped}
            for one in samples
        }
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": False})
        for shard, part in enumerate(counted(parts, SEEDS.name, "shard"), kept):
            ids = [row_id(shard, row) for row in range(len(part))]
            columns = zip(*((text, sample.name, sample.facts["license"]) for sample, text in part), strict=True)
            run.commit(SEEDS, shard, len(part), parquet(pa.table([ids, *columns], SEED_SCHEMA)))
        for shard in run.shards(SEEDS)[facts["shards"] :]:  # left by an interrupted call
            run.reopen(SEEDS, shard)
            run.file(SEEDS, shard).unlink(missing_ok=True)
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": True})
        say(f"{'source':<28} {'captions':>10} {'seeds':>10}  dropped")
        for sample in samples:
            say(f"{sample.name:<28} {sample.read:>10,} {made[sample.name]:>10,}  {reasons(sample.dropped)}")


def _hashes(recipe: Recipe, known: dict[str, str]) -> dict[str, str]:
    """Return the sha256 of files by their names in the recipe; of those that are gone, the known one."""
    paths = {name: recipe.directory / name for name in known}
    return {name: sha256(path) if path.is_file() else known[name] for name, path in paths.items()}


def _choose(recipe: Recipe, samples: list[Sample], old: list[tuple[str, str]]) -> list[Seed]:
    """Return the new seeds in their order; those that are dropped are counted in their samples. The seeds that the run
    has already (``old``, source and text) stay, and nothing may repeat them."""
    names = Counter(sample.name for sample in samples)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SeedError(f"several sources of seeds are named {', '.join(twice)}; give each its own name")
    held, settings = set(old), recipe.seeds
    seeds = [(sample, text) for sample in samples for text in sample.texts() if (sample.name, text) not in held]
    seeds.sort(key=lambda seed: stable_hash(recipe.random_seed, "order", seed[0].name, seed[1]))
    texts = [text for _, text in (*old, *seeds)]
    questions = recipe.path(settings.drop_contaminated) if settings.drop_contaminated else None
    duplicates, contaminated = find_repeats(texts, NGRAM[SEEDS.name], settings.drop_duplicates, questions, len(old))
    dropped = dict.fromkeys(duplicates, "duplicate") | dict.fromkeys(contaminated, "contaminated")
    for row, reason in dropped.items():
        seeds[row - len(old)][0].dropped[reason] += 1
    seeds = [seed for row, seed in enumerate(seeds, len(old)) if row not in dropped]
    if not seeds and not old:
        why = "; ".join(f"{sample.name}: {reasons(sample.dropped)}" for sample in samples) or "there is no source"
        raise StageFailed(f"no caption became a seed. Dropped: {why}. Change the filters or the sources")
    if len(seeds) > (MAX_SHARDS - 1) * settings.shard_rows - len(old):
        raise SeedError(f"{len(seeds):,} seeds do not fit into {MAX_SHARDS:,} shards; raise seeds.shard_rows")
    return seeds

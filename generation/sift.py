"""Captions that repeat an earlier one, or hold a benchmark's questions: counted and, by recipe, rejected after all.

It is done once all captions are there and before anything refers to them; captions that a later stage refers to stay.
"""

from collections import Counter

from .ask import Row
from .captions import STAGE, caption_task
from .config import Recipe
from .contamination import find_contaminated, read_benchmark
from .duplicates import Finding, duplicate_ids, stage_rows, stage_texts
from .files import file_sha256
from .progress import counted
from .rundir import RunDir
from .sealing import open_again, seal_again


def sift_captions(run: RunDir, recipe: Recipe) -> None:
    """Looks for what ``captions.duplicates`` and ``captions.decontaminate`` name, unless it has been done for these
    very captions, and notes the counts in the stage's record as ``sifted``. With the action ``drop``, what is found is
    rejected, with its reason and, as ``raw``, its text and what it repeats or holds.

    Raises:
        SeedError: the benchmark's file cannot be used.
        RunError: a shard was changed, or cannot be written.
    """
    near, benchmark = recipe.captions.duplicates, recipe.captions.decontaminate
    if not (near or benchmark) or run.stage(STAGE).get("sifted", {}).get("inputs") == run.hashes(STAGE):
        return
    dropped: dict[str, Finding] = {}
    counts: Counter[str] = Counter()
    if benchmark:
        path = recipe.directory / benchmark.file
        questions = read_benchmark(path, benchmark.column, benchmark.ngram)
        contaminated = dict(find_contaminated(stage_texts(run, STAGE), questions, stage_rows(run, STAGE)))
        counts.update(finding.reason for finding in contaminated.values())
        dropped |= contaminated if benchmark.action == "drop" else {}
    if near:
        repeated = duplicate_ids(run, STAGE, near)
        counts.update(finding.reason for finding in repeated.values())
        dropped |= {id: finding for id, finding in repeated.items() if id not in dropped and near.action == "drop"}
    shards = sorted({int(id[:5]) for id in dropped} - _referred_to(run))
    for shard in counted(shards, "captions, dropping", "shard"):
        open_again(run, STAGE, shard, reject=lambda row: _rejection(row, dropped))
    seal_again(run, caption_task(run, recipe.captions, recipe.random_seed), shards)
    run.note(
        STAGE,
        sifted={
            "inputs": run.hashes(STAGE),
            "found": dict(sorted(counts.items())),
            "dropped": sum(int(id[:5]) in shards for id in dropped),
            "benchmark_sha256": file_sha256(recipe.directory / benchmark.file) if benchmark else None,
        },
    )


def _rejection(row: Row, dropped: dict[str, Finding]) -> Row | None:
    finding = dropped.get(row["id"])
    if finding is None:
        return None
    return {"reason": finding.reason, "raw": f"{row['caption']}\n\n[{finding.reason}: {finding.match}]"}


def _referred_to(run: RunDir) -> set[int]:
    """The caption shards whose rows a later stage refers to."""
    later = [stage for stage in run.manifest["stages"] if stage.split("/")[0] in ("instructions", "text_embeddings")]
    return {shard for stage in later for shard in run.sealed(stage)}

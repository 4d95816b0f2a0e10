"""What the page shows of a run, as one JSON object."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .. import stages
from ..logs import counted
from ..stages import CAPTIONS, INSTRUCTIONS, SEEDS, STAGES, TASKS, TEXT_EMBEDDINGS, Stage, stable_hash
from ..store import Run
from .gap import GapSample, cloud, measure_gap

_CUT = 4_000  # characters of a raw answer or request that are shown
Facts = dict[str, Any]


def collect(
    run: Run, rows: int, images: Path | None, pairs: tuple[Path, Path] | None, prices: tuple[float, float] | None
) -> Facts:
    """Return everything that the page shows; arguments as for ``write_report``."""
    texts, sources, sample = _texts(run, rows), run.facts(SEEDS).get("sources", {}), GapSample.of_run(run)
    by_source: dict[str, Counter[str]] = texts.pop("by_source")
    verdicts = {stage: Counter[str]() for stage in STAGES if stage.command == "judge"}
    for stage, counts in verdicts.items():
        counts.update(one for shard in run.shards(stage) for one in run.table(stage, shard)["verdict"].to_pylist())
    model, encoder = (run.facts(stage).get("identity", {}) for stage in (CAPTIONS, TEXT_EMBEDDINGS))
    return {
        "name": run.recipe.name,
        "path": str(run.path),
        "created": run.created,
        "models": [name for name in (model.get("model"), model.get("prompt"), encoder.get("model")) if name],
        "embedded": "smollm2-135m" in str(model.get("model")).lower(),
        "funnel": _funnel(run, sources),
        "stages": _stages(run, prices),
        "sources": [
            {"source": name}
            | {key: sources.get(name, {}).get(key) for key in ("license", "read", "seeds")}
            | {key: by_source[key][name] for key in ("captions", "conversations")}
            for name in dict.fromkeys([*sources, *sorted(by_source["captions"])])
        ],
        "verdicts": {stage.name: found for stage, found in verdicts.items()},
        "rejected": _rejected(run, rows),
        "gap": measure_gap(run, sample, images, pairs),
        "cloud": cloud(sample, {row["id"]: number for number, row in enumerate(texts["rows"])}),
        "method": run.recipe.transfer.method,
        **texts,
    }


def _counts(run: Run, stage: Stage, name: str) -> dict[str, int]:
    """Return one kind of counts of a stage, summed over its records, the most frequent first."""
    counts = sum((Counter(record.counts.get(name)) for record in run.records(stage).values()), Counter[str]())
    return dict(counts.most_common())


def _stages(run: Run, prices: tuple[float, float] | None) -> list[Facts]:
    """Return the figures of all stages that ask a server. Tasks that share a pool of requests have sessions of the
    same seconds: each counts by its share of the requests."""
    stages = [stage for stage in STAGES if stage.command in ("captions", "instructions", "judge")]
    sessions, pools, found = {stage: run.sessions(stage) for stage in stages}, Counter[float](), list[Facts]()
    for session in (session for own in sessions.values() for session in own):
        pools[session["seconds"]] += session["requests"]
    for stage, own in sessions.items():
        seconds = sum(one["seconds"] * one["requests"] / max(1, pools[one["seconds"]]) for one in own)
        sums: Counter[str] = Counter()
        for record in run.records(stage).values():
            sums.update({"rows": record.rows} | {key: n for key, n in record.counts.items() if isinstance(n, int)})
        tokens = sums["prompt_tokens"], sums["completion_tokens"] + sums["thinking_tokens"]
        facts = {"name": stage.name, "rows": sums["rows"], "requests": sums["requests"], "hours": seconds / 3600}
        facts |= {"prompt_tokens": tokens[0], "answer_tokens": tokens[1]}
        facts["rows_per_s"] = sum(one["rows"] for one in own) / seconds if seconds else None
        facts["usd"] = (tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6 if prices else None
        found += [facts | {kind: _counts(run, stage, kind) for kind in ("retries", "dropped")}] if sums else []
    return found


def _funnel(run: Run, sources: Facts) -> list[Facts]:
    """Return the rows from the sources to the vectors, and how many were lost at each step and why."""
    dropped = sum((Counter(source.get("dropped", {})) for source in sources.values()), Counter[str]())
    read, beyond = sum(source.get("read", 0) for source in sources.values()), dropped.pop("over_limit", 0)
    steps: list[Facts] = [{"step": "rows of the sources", "rows": read}]
    steps += [{"step": "within the recipe's limits", "rows": read - beyond}] if beyond else []
    vectors = stages.image_embeddings(run.recipe.transfer.method)
    for stage in (SEEDS, CAPTIONS, *INSTRUCTIONS.values(), TEXT_EMBEDDINGS, vectors):
        lost = dict(dropped.most_common()) if stage is SEEDS else _counts(run, stage, "rejected")
        made = sum(record.rows for record in run.records(stage).values())
        due = len(run.due(stage)) if stage is CAPTIONS else 0
        steps.append({"step": stage.name, "rows": made, "lost": lost, "due_shards": due})
    return steps


def _texts(run: Run, rows: int) -> Facts:
    """Return figures of all captions and conversations, and a sample of whole rows, those with conversations first."""
    words, letters, kept = Counter[int](), Counter[str](), list[tuple[bool, int, Facts]]()
    types, by_source = (defaultdict[str, Counter[str]](Counter) for _ in range(2))
    for shard in counted(run.shards(CAPTIONS), "report: texts", "shard"):
        table = run.table(CAPTIONS, shard, ["id", "seed", "source", "caption", "words"])
        sources = dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))
        words.update(table["words"].to_pylist())
        by_source["captions"].update(sources.values())
        found: defaultdict[str, list[Facts]] = defaultdict(list)
        for task in TASKS:
            made = run.table(INSTRUCTIONS[task], shard).to_pylist() if run.record(INSTRUCTIONS[task], shard) else []
            for row in (row for row in made if row["id"] in sources):
                by_source["conversations"][sources[row["id"]]] += 1
                types[task].update(row["question_types"] or ())
                if task == "multiple_choice":
                    letters.update(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
                found[row["id"]].append({"task": task, "turns": row["conversations"]})
        whole = (row | {"conversations": found[row["id"]]} for row in table.to_pylist())
        kept += [(not row["conversations"], stable_hash("report", row["id"]), row) for row in whole]
        kept = sorted(kept, key=lambda one: one[:2])[:rows]
    ordered = {task: dict(counts.most_common()) for task, counts in types.items()}
    figures = {"words": sorted(words.items()), "letters": dict(sorted(letters.items())), "types": ordered}
    return figures | {"rows": [row for *_, row in kept], "by_source": by_source}


def _rejected(run: Run, rows: int) -> list[Facts]:
    """Return rejected rows to browse, at most ``rows`` of all stages and every reason among them."""
    kept: list[tuple[int, Facts]] = []
    for stage in (CAPTIONS, *INSTRUCTIONS.values()):
        seen: Counter[str] = Counter()
        for shard in run.shards(stage):
            for row in run.rejected(stage, shard).select(["id", "reason", "raw", "request"]).to_pylist():
                seen[row["reason"]] += 1  # the first of each reason come first
                shown = {key: value and str(value)[:_CUT] for key, value in row.items()}
                kept.append((seen[row["reason"]], {"stage": stage.name, **shown}))
    return [row for _, row in sorted(kept, key=lambda one: (one[0], json.dumps(one[1])))[:rows]]

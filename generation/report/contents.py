"""What the page shows of a run, as one JSON object."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..logs import counted
from ..rows import stable_hash
from ..stages import CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS, Stage, image_embeddings
from ..store import Run
from .gap import GapSample, cloud, measure_gap

PAPER = {"words": "129 (51 to 483)", "captions": 1_243_195, "conversations": 471_000}
_CUT = 4_000  # characters of a raw answer or request that are shown
Facts = dict[str, Any]


def collect(
    run: Run,
    rows: int,
    images: Path | None = None,
    pairs: tuple[Path, Path] | None = None,
    usd_per_million: tuple[float, float] | None = None,
) -> Facts:
    """Return everything that the page shows; arguments as for ``write_report``."""
    stages = [
        _stage(run, stage, usd_per_million) for stage in (CAPTIONS, *INSTRUCTIONS.values(), *JUDGEMENTS.values())
    ]
    texts = _Texts(run, rows)
    method = run.recipe.transfer.method
    sample = GapSample.of_run(run, method)
    model = run.facts(CAPTIONS).get("identity", {})
    encoder = run.facts(TEXT_EMBEDDINGS).get("identity", {})
    sources = run.facts(SEEDS).get("sources", {})
    return {
        "name": run.recipe.name,
        "path": str(run.path),
        "created": run.created,
        "models": {"captions": model.get("model"), "prompt": model.get("prompt"), "encoder": encoder.get("model")},
        "embedded": not run.recipe.server.endpoints,
        "tiles": _tiles(run, stages),
        "funnel": _funnel(run, sources),
        "stages": [stage for stage in stages if stage["rows"] or stage["rejected"]],
        "sources": _sources(sources, texts.by_source),
        "words": _histogram(texts.words),
        "letters": dict(sorted(texts.letters.items())),
        "types": {task: dict(found.most_common(20)) for task, found in texts.types.items()},
        "dropped": dict(texts.dropped.most_common()),
        "verdicts": _verdicts(run),
        "rows": texts.rows,
        "rejected": _rejected(run, rows),
        "gap": measure_gap(run, sample, images, pairs),
        "cloud": cloud(sample, {row["id"]: number for number, row in enumerate(texts.rows)}),
        "method": method,
        "paper": PAPER,
    }


def _stage(run: Run, stage: Stage, prices: tuple[float, float] | None) -> Facts:
    """Return the figures of a stage that asks a server."""
    records, sessions = run.records(stage), run.sessions(stage)
    counts: Counter[str] = Counter()
    rejected, retries = Counter[str](), Counter[str]()
    for record in records.values():
        counts.update({key: value for key, value in record.counts.items() if isinstance(value, int)})
        rejected.update(record.counts.get("rejected", {}))
        retries.update(record.counts.get("retries", {}))
    seconds = sum(session.get("seconds", 0) for session in sessions)
    asked = sum(session.get("rows", 0) for session in sessions)
    tokens = (counts["prompt_tokens"], counts["completion_tokens"] + counts["thinking_tokens"])
    return {
        "name": stage.name,
        "rows": sum(record.rows for record in records.values()),
        "rejected": dict(rejected.most_common()),
        "requests": counts["requests"],
        "retries": dict(retries.most_common()),
        "prompt_tokens": tokens[0],
        "answer_tokens": tokens[1],
        "hours": round(seconds / 3600, 3),
        "rows_per_s": round(asked / seconds, 2) if seconds else None,
        "usd": round((tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6, 2) if prices else None,
    }


def _tiles(run: Run, stages: list[Facts]) -> list[list[Any]]:
    """Return the figures at the top of the page: label and value."""
    conversations = sum(stage["rows"] for stage in stages if stage["name"].startswith("instructions/"))
    tokens = sum(stage["prompt_tokens"] + stage["answer_tokens"] for stage in stages)
    tiles = [["captions", sum(stage["rows"] for stage in stages if stage["name"] == "captions")]]
    tiles += [["conversations", conversations], ["tokens", tokens], ["hours", sum(stage["hours"] for stage in stages)]]
    prices = [stage["usd"] for stage in stages if stage["usd"] is not None]
    return tiles + ([["USD", round(sum(prices), 2)]] if prices else [])


def _funnel(run: Run, sources: Facts) -> list[Facts]:
    """Return the rows from the sources to the conversations, and how many were lost at each step and why."""
    dropped: Counter[str] = Counter()
    for source in sources.values():
        dropped.update(source.get("dropped", {}))
    steps = [{"step": "rows of the sources", "rows": sum(source.get("read", 0) for source in sources.values())}]
    seeds = sum(record.rows for record in run.records(SEEDS).values())
    steps.append({"step": "seeds", "rows": seeds, "lost": dict(dropped.most_common())})
    for stage in (CAPTIONS, *INSTRUCTIONS.values(), TEXT_EMBEDDINGS, image_embeddings(run.recipe.transfer.method)):
        records = run.records(stage)
        lost: Counter[str] = Counter()
        for record in records.values():
            lost.update(record.counts.get("rejected", {}))
        rows = sum(record.rows for record in records.values())
        waiting = len(run.due(stage)) if stage is CAPTIONS else 0
        steps.append({"step": stage.name, "rows": rows, "lost": dict(lost.most_common()), "due_shards": waiting})
    return steps


class _Texts:
    """Figures of all captions and conversations, and a sample of whole rows to browse.

    Args:
        run: the run.
        rows: captions in the sample.
    """

    def __init__(self, run: Run, rows: int) -> None:
        self.words: list[int] = []
        self.letters, self.dropped = Counter[str](), Counter[str]()
        self.types: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
        kept: list[tuple[int, Facts]] = []
        for shard in counted(run.shards(CAPTIONS), "report: texts", "shard"):
            table = run.table(CAPTIONS, shard, ["id", "seed", "source", "caption", "words"])
            self.words += table["words"].to_pylist()
            ids = table["id"].to_pylist()
            conversations = self._conversations(run, shard, dict(zip(ids, table["source"].to_pylist(), strict=True)))
            order = sorted(range(len(ids)), key=lambda row: stable_hash("report", ids[row]))[:rows]
            for row in table.take(order).to_pylist() if order else ():
                kept.append((stable_hash("report", row["id"]), row | {"conversations": conversations[row["id"]]}))
            kept = sorted(kept, key=lambda one: (not one[1]["conversations"], one[0]))[:rows]
        self.rows = [row for _, row in kept]

    def _conversations(self, run: Run, shard: int, sources: dict[str, str]) -> dict[str, list[Facts]]:
        """Count the conversations of a shard; return them by id."""
        for source in sources.values():
            self.by_source[source]["captions"] += 1
        found: defaultdict[str, list[Facts]] = defaultdict(list)
        for task in TASKS:
            if run.record(INSTRUCTIONS[task], shard) is None:
                continue
            for row in run.table(INSTRUCTIONS[task], shard).to_pylist():
                if row["id"] not in sources:
                    continue
                turns = row["conversations"]
                self.by_source[sources[row["id"]]]["conversations"] += 1
                self.types[task].update(row["question_types"] or ())
                self.dropped.update(row["dropped"] or ())
                if task == "multiple_choice":
                    self.letters.update(turn["value"] for turn in turns if turn["from"] == "gpt")
                found[row["id"]].append({"task": task, "turns": turns})
        return found


def _sources(sources: Facts, counts: dict[str, Counter[str]]) -> list[Facts]:
    return [
        {"source": name, **{key: sources.get(name, {}).get(key) for key in ("license", "read", "seeds")}}
        | {what: counts.get(name, Counter())[what] for what in ("captions", "conversations")}
        for name in dict.fromkeys([*sources, *sorted(counts)])
    ]


def _histogram(values: list[int]) -> Facts:
    if not values:
        return {}
    array = np.array(values)
    counts, edges = np.histogram(array, bins=min(24, max(1, len(set(values)))))
    facts = {"counts": counts.tolist(), "edges": edges.round(1).tolist(), "mean": round(float(array.mean()), 1)}
    return facts | {"min": int(array.min()), "max": int(array.max())}


def _verdicts(run: Run) -> Facts:
    """Return the judge's verdicts by task."""
    found: Facts = {}
    for task, stage in JUDGEMENTS.items():
        counts: Counter[str] = Counter()
        for shard in run.shards(stage):
            counts.update(run.table(stage, shard, ["verdict"])["verdict"].to_pylist())
        found |= {task: dict(counts.most_common())} if counts else {}
    return found


def _rejected(run: Run, rows: int) -> list[Facts]:
    """Return rejected rows to browse, at most ``rows`` of all stages and every reason among them."""
    kept: list[tuple[int, Facts]] = []
    for stage in (CAPTIONS, *INSTRUCTIONS.values()):
        seen: Counter[str] = Counter()
        for shard in run.shards(stage):
            table = run.rejected(stage, shard)
            for row in table.select(["id", "reason", "raw", "request"]).to_pylist() if table is not None else ():
                seen[row["reason"]] += 1  # the first of each reason come first
                shown = {key: value and str(value)[:_CUT] for key, value in row.items()}
                kept.append((seen[row["reason"]], {"stage": stage.name, **shown}))
        kept = sorted(kept, key=lambda one: (one[0], json.dumps(one[1])))[:rows]
    return [row for _, row in kept]

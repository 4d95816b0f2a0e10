"""The command ``duplicates``: which seeds or captions of a run are there twice, or hold a benchmark's questions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .config import Decontaminate, Duplicates, settings
from .contamination import find_contaminated, read_benchmark
from .duplicates import NGRAMS, Finding, duplicate_ids, stage_rows, stage_texts
from .files import file_sha256, seal
from .progress import counted
from .rundir import RunDir

REASONS = ("duplicate_exact", "duplicate_near", "contaminated")
_EXAMPLES = 5  # of each reason


def report_duplicates(run: RunDir, stage: str, near: Duplicates, benchmark: Decontaminate | None) -> dict[str, Any]:
    """Looks through a stage and writes ``RUN/report/duplicates_<stage>.json``. A row counts once: as contaminated, if
    it is that too.

    Args:
        run: the run directory; nothing else in it changes.
        stage: ``seeds`` or ``captions``.
        near: the threshold and the n-grams; its action is not taken.
        benchmark: the questions to look for, ``file`` relative to the working directory; its action is not taken.

    Returns:
        The report without the single findings: settings, rows, counts by reason, examples.

    Raises:
        SeedError: the benchmark's file cannot be used.
        RunError: the stage has no sealed shard, a shard was changed, or the report cannot be written.
    """
    questions = read_benchmark(Path(benchmark.file), benchmark.column, benchmark.ngram) if benchmark else None
    findings = duplicate_ids(run, stage, near)
    rows = stage_rows(run, stage)
    if questions:
        findings |= dict(find_contaminated(stage_texts(run, stage), questions, rows))
    counts: Counter[str] = Counter(finding.reason for finding in findings.values())
    report: dict[str, Any] = {
        "stage": stage,
        "rows": rows,
        "near_threshold": near.near_threshold,
        "ngram": near.ngram or NGRAMS[stage],
        "benchmark": settings(benchmark) | {"sha256": file_sha256(Path(benchmark.file))} if benchmark else None,
        "counts": {reason: counts[reason] for reason in REASONS},
        "examples": _examples(run, stage, findings),
    }
    single = [{"id": row, **_plain(finding)} for row, finding in sorted(findings.items())]
    text = json.dumps(report | {"findings": single}, indent=1) + "\n"
    seal(run.path / "report" / f"duplicates_{stage}.json", lambda target: target.write_text(text, encoding="utf-8"))
    return report


def table(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    lines = [
        f"{report['stage']}: {report['rows']} rows; near means Jaccard >= {report['near_threshold']:g} of word "
        f"{report['ngram']}-grams",
        "| reason | rows | share |",
        "|---|---|---|",
    ]
    lines += [f"| {reason} | {n} | {n / max(1, report['rows']):.2%} |" for reason, n in report["counts"].items()]
    for example in report["examples"]:
        likeness = "" if example["jaccard"] is None else f" (Jaccard {example['jaccard']:.2f})"
        lines += ["", f"{example['reason']}: {example['id']}{likeness}", f"  {example['text']}"]
        lines += [f"  repeats {example['match']}: {example['match_text']}" if likeness else f"  {example['match']}"]
    return "\n".join(lines)


def _examples(run: RunDir, stage: str, findings: dict[str, Finding]) -> list[dict[str, Any]]:
    """The first findings of each reason, with the texts."""
    chosen: list[tuple[str, Finding]] = []
    for reason in REASONS:
        chosen += [item for item in sorted(findings.items()) if item[1].reason == reason][:_EXAMPLES]
    wanted = {row for row, finding in chosen} | {finding.match for _, finding in chosen}
    everything = counted(stage_texts(run, stage), "duplicates, examples", "row", stage_rows(run, stage))
    texts = {row: text for row, text in everything if row in wanted} if chosen else {}
    return [
        {"id": row, "text": texts[row], **_plain(finding), "match_text": texts.get(finding.match)}
        for row, finding in chosen
    ]


def _plain(finding: Finding) -> dict[str, Any]:
    return {"reason": finding.reason, "match": finding.match, "jaccard": finding.jaccard}

"""What an import found, for a person to read."""

from .shards import Report


def table(report: Report) -> str:
    """Rows, defects with the first rows that have them, and what the checks would refuse."""
    lines = []
    for kind, part in report.items():
        lines += [f"{kind}: {part['rows']} rows, {part['taken_in']} taken in, {part['rejected']} rejected", ""]
        lines += _counts("defect", part["defects"], part["rows"], part["examples"])
        if part["other_keys"]:
            lines += [f"keys left out: {', '.join(f'{key} ({n})' for key, n in part['other_keys'].items())}", ""]
        stages = part.get("stages", {kind: {"rows": part["taken_in"], "checks": part.get("checks", {})}})
        for stage, found in stages.items():
            refused = sum(found["checks"].values())
            lines += [f"{stage}: of {found['rows']} rows the checks of generated text would refuse {refused}", ""]
            lines += _counts("check", found["checks"], found["rows"], {})
        if part.get("open_answers_by_words"):
            lines += ["conversations without options, by mean words of an answer (from 20 on: complex_reasoning):"]
            lines += [f"  {words:<12} {count}" for words, count in part["open_answers_by_words"].items()]
    return "\n".join(lines).rstrip()


def _counts(what: str, counts: dict[str, int], rows: int, examples: Report) -> list[str]:
    if not counts:
        return []
    lines = [f"| {what} | rows | share | first |", "|---|---|---|---|"]
    for code, count in counts.items():
        first = ", ".join(f"{example['file']} row {example['row']}" for example in examples.get(code, ()))
        lines.append(f"| {code} | {count} | {count / max(1, rows):.2%} | {first} |")
    return [*lines, ""]

"""The checks of captions and of instruction answers, beside the bare cost of json.loads, in one process on one core.

    python -m benchmarks.checks [--rows 100000]

Half of the synthetic answers are clean, and those alone are timed: a clean answer goes through every check, a bad one
leaves at the first that it fails. The better of three rounds counts. Catch rates are the share of planted defects that
would not be sealed, and the share that is caught by the defect's own reason code. Ends with one line of JSON.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from generation.checks import LIMITS, caption_fault, instruction_items
from tests.synthetic_answers import Synthetic, answers, code, kept, verdict

ROUNDS = 3
TIMED = 5_000  # rows of a kind


def rate(rows: Sequence[Synthetic], work: Callable[[Synthetic], Any]) -> float:
    """Rows a second of the best round."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for row in rows:
            work(row)
        seconds.append(time.perf_counter() - start)
    return len(rows) / min(seconds)


def check(row: Synthetic) -> str | None:
    """As the stages check an answer, with the default limits."""
    if row.kind == "caption":
        return caption_fault(row.text, row.seed)
    return instruction_items(row.text, row.finish_reason, row.caption, row.kind, LIMITS[row.kind])[1]


def _rates(rows: Sequence[Synthetic]) -> dict[str, float]:
    print("| kind | words | rows/s | json.loads alone, rows/s |\n|---|---|---|---|")
    rates = {}
    for kind in ("caption", *LIMITS):
        clean = [row for row in rows if row.kind == kind and row.defect is None][:TIMED]
        words = sum(len(row.text.split()) for row in clean) / len(clean)
        whole = {row.text: json.dumps(row.text) if kind == "caption" else _object(row.text) for row in clean}
        bare = rate(clean, lambda row, whole=whole: json.loads(whole[row.text]))  # type: ignore[misc]
        rates[kind] = rate(clean, check)
        print(f"| {kind} | {words:.0f} | {rates[kind]:,.0f} | {bare:,.0f} |")
    return rates


def _object(text: str) -> str:
    return text[text.index("{") : text.rindex("}") + 1]


def _catches(rows: Sequence[Synthetic]) -> tuple[float, float]:
    """The worst share caught and the worst share named, over all kinds of defect."""
    planted, caught, named = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in rows:
        if row.defect:
            key = ("caption" if row.kind == "caption" else "instructions", row.defect)
            planted[key] += 1
            caught[key] += not kept(row)
            named[key] += verdict(row) == code(row)
    print("\n| of | defect | planted | caught | by its own code |\n|---|---|---|---|---|")
    for (kind, defect), count in planted.items():
        key = (kind, defect)
        print(f"| {kind} | {defect} | {count} | {caught[key] / count:.2%} | {named[key] / count:.2%} |")
    return min(caught[key] / planted[key] for key in planted), min(named[key] / planted[key] for key in planted)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic answers (default: %(default)s)")
    rows = list(answers(parser.parse_args().rows))
    rates = _rates(rows)
    caught, named = _catches(rows)
    clean = [row for row in rows if row.defect is None]
    figures = {
        "rows": len(rows),
        "rows_per_s": {kind: round(value) for kind, value in rates.items()},
        "worst_caught": round(caught, 4),
        "worst_named": round(named, 4),
        "clean_rejected": round(sum(check(row) is not None for row in clean) / len(clean), 5),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

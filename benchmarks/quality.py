"""How much of a run's text passes the checks, and how the answers that passed lie: read with pyarrow and json alone.

    python -m generation run --config benchmarks/quality.yaml --run-dir runs/quality   # an hour on two cores
    python -m benchmarks.quality runs/quality

Prints a table, the reasons of what was rejected and, last, one line of JSON.
"""

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TASKS = ("multiple_choice", "question_answering", "complex_reasoning")
LEAK = re.compile(r"\b(?:captions?|descriptions?)\b", re.IGNORECASE)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a stage."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def letters_p(letters: Counter[str]) -> float:
    """Chi-square p of the right answers' letters against equal ones (3 degrees of freedom; Abramowitz and Stegun,
    26.4.4)."""
    expected = letters.total() / 4
    x = sum((letters[letter] - expected) ** 2 for letter in "ABCD") / expected if expected else 0.0
    return math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)


def faults(row: dict[str, Any], task: str) -> list[str]:
    """What is wrong with the form of a conversation, by the paper's format."""
    turns = row["conversations"]
    found = []
    if [turn["from"] for turn in turns] != ["human", "gpt"] * (len(turns) // 2) or not turns:
        found.append("speakers")
    if [turn["value"].count("<image>") for turn in turns] != [1] + [0] * (len(turns) - 1):
        found.append("image")
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        lines = [line for line in human["value"].split("\n") if line != "<image>"]
        if task == "multiple_choice" and ([line[:3] for line in lines[1:]] != ["A: ", "B: ", "C: ", "D: "]):
            found.append("options")
        if task == "multiple_choice" and (gpt["value"] not in "ABCD" or len({line[3:] for line in lines[1:]}) != 4):
            found.append("answer")
        if not lines[0].strip() or not gpt["value"].strip():
            found.append("empty")
    return found


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run: Path = parser.parse_args().run_dir
    result: dict[str, Any] = {}
    texts: list[str] = []
    letters: Counter[str] = Counter()
    malformed: Counter[str] = Counter()
    print("| stage | accepted | rejected | accepted share | answers a row | reasons |\n|---|---|---|---|---|---|")
    for stage in ("captions", *(f"instructions/{task}" for task in TASKS)):
        accepted, rejected = rows(run / stage), rows(run / "rejected" / stage)
        share = len(accepted) / max(1, len(accepted) + len(rejected))
        attempts = sum(row["attempts"] for row in accepted + rejected) / max(1, len(accepted) + len(rejected))
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in Counter(r["reason"] for r in rejected).most_common()
        )
        print(f"| {stage} | {len(accepted)} | {len(rejected)} | {share:.1%} | {attempts:.1f} | {reasons} |")
        result[f"accepted_{stage.split('/')[-1]}"] = round(share, 3)
        if stage == "captions":
            texts = [row["caption"] for row in accepted]
            continue
        task = stage.split("/")[1]
        for row in accepted:
            malformed.update(faults(row, task))
            said = [turn["value"] for turn in row["conversations"]]
            result["leaks"] = result.get("leaks", 0) + sum(bool(LEAK.search(text)) for text in said)
            if task == "multiple_choice":
                letters.update(said[1::2])
    result |= {
        "malformed": malformed.total(),
        "letters": dict(sorted(letters.items())),
        "letters_p": round(letters_p(letters), 3),
        "duplicate_captions": len(texts) - len({" ".join(re.findall(r"\w+", text.lower())) for text in texts}),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

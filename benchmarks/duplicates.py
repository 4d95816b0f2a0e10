"""Duplicates: ours (exact and near, MinHash in bands) beside exact hashing with a set, in rows/s and bytes a row.

    python -m benchmarks.duplicates [--rounds 3]

Rows are random texts of 12 words (seeds) and of 130 (captions), every tenth an exact duplicate of the one before it
and every tenth a near-duplicate (its last word changed). Each measurement is a fresh process; the best round counts.
Bytes a row: growth of the peak resident set (Linux), fixed costs of about 10 MB included. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import in_fresh_process, peak_bytes
from generation.duplicates import NGRAMS, find_duplicates

SIZES = (20_000, 100_000)
WORDS = {"seeds": 12, "captions": 130}
VOCABULARY = [f"word{number}" for number in range(5000)]


def rows(count: int, words: int) -> Iterator[tuple[str, str]]:
    """Ids and texts, the same at every call."""
    generator = random.Random(0)
    text = [""] * words
    for number in range(count):
        if number % 10 == 5:
            text = [*text[:-1], "other"]
        elif number % 10 != 9:
            text = generator.choices(VOCABULARY, k=words)
        yield f"{number:010d}", " ".join(text)


def plain(count: int, words: int) -> int:
    """The baseline: a set of the texts' hashes."""
    seen: set[int] = set()
    found = 0
    for _, text in rows(count, words):
        key = hash(text)
        found += key in seen
        seen.add(key)
    return found


def ours(count: int, words: int) -> int:
    """What the project does, at its defaults."""
    ngram = NGRAMS["captions" if words > 50 else "seeds"]
    return len(find_duplicates(rows(count, words), 0.8, ngram, Path(tempfile.gettempdir())))


def _one(way: str, count: int, words: int) -> None:
    measure = {"plain": plain, "ours": ours}[way]
    measure(10, words)  # imports what it needs
    start = time.perf_counter()
    for _ in rows(count, words):
        pass
    generating, before = time.perf_counter() - start, peak_bytes()
    start = time.perf_counter()
    found = measure(count, words)
    seconds = time.perf_counter() - start - generating
    bytes_a_row = (peak_bytes() - before) / count
    print(json.dumps({"rows_per_s": count / seconds, "bytes_a_row": bytes_a_row, "found": found}), flush=True)


def _measure(way: str, count: int, words: int, rounds: int) -> dict[str, float]:
    options = ["--way", way, "--rows", count, "--words", words]
    results: list[dict[str, float]] = [in_fresh_process("benchmarks.duplicates", *options) for _ in range(rounds)]
    return max(results, key=lambda result: result["rows_per_s"])


def main() -> None:
    """Prints the table, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--words", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return _one(options.way, options.rows, options.words)
    result: dict[str, float] = {}
    print("| rows | way | rows/s | bytes a row | found |\n|---|---|---|---|---|")
    for stage, words in WORDS.items():
        for count in SIZES:
            for way in ("plain", "ours"):
                one = _measure(way, count, words, options.rounds)
                figures = f"{one['rows_per_s']:.0f} | {one['bytes_a_row']:.0f} | {one['found']}"
                print(f"| {count} {stage} | {way} | {figures} |", flush=True)
                result[f"{way}_{stage}_{count}_rows_per_s"] = round(one["rows_per_s"])
                result[f"{way}_{stage}_{count}_bytes_a_row"] = round(one["bytes_a_row"])
    print(f"cores: {os.cpu_count()}\n{json.dumps(result)}")


if __name__ == "__main__":
    main()

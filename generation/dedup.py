"""Texts that repeat an earlier one, and texts that hold a question of a benchmark.

Near-duplicates: the Jaccard similarity of the sets of word n-grams (Broder 1997) reaches a threshold. MinHash in bands
proposes the pairs (Leskovec et al., Mining of Massive Datasets, 3.4), their true similarity decides, and the first row
is kept. 2-grams for seeds: 1-grams do not see who chases whom, 3-grams miss one word changed of twelve. 3-grams for
captions, which take 2.7 kB of memory each (130 words, measured).
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .errors import RunError
from .files import read_lines, write_json
from .limits import LOCK_WAIT_S
from .logs import counted
from .stages import CAPTIONS, REJECTED_SCHEMA, SEEDS, Stage, stable_hash
from .store import Run, parquet

NGRAM = {SEEDS.name: 2, CAPTIONS.name: 3}  # words
THRESHOLD = 0.8  # of the report and of duplicate groups, where the recipe sets none
_BENCHMARK_NGRAM = 8  # words, as PaLM's contamination check (Chowdhery et al. 2022, section 8)
_SIGNATURE = 128  # MinHash values a row, in 1, 2, 4 ... or 128 bands
_RECALL = 0.9  # of pairs at the threshold; above 0.99 at 0.1 above it
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying modulo 2**64 loses nothing
_word_hash = lru_cache(maxsize=65_536)(stable_hash)


@cache
def _plain(character: str) -> str:
    """Return letters, marks, numbers and symbols as they are, nothing for a format character, else a blank."""
    category = unicodedata.category(character)
    return character if category[0] in "LMNS" else "" if category == "Cf" else " "


def ngrams(text: str, n: int) -> NDArray[np.uint64]:
    """Return the set of a text's word n-grams as ascending hashes; a text of fewer words is one n-gram. Compatibility
    forms (NFKC), case, punctuation and white space make no difference."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = text.translate({ord(character): _plain(character) for character in set(text)})
    words = unicodedata.normalize("NFKC", text).split()
    n = min(n, len(words))
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    grams = np.zeros(len(words) - n + 1 if words else 0, np.uint64)
    for offset in range(n):  # Horner's rule modulo 2**64
        grams = grams * _FACTOR + hashes[offset : offset + len(grams)]
    return np.unique(grams)


def find_repeats(
    texts: Iterable[str], n: int, threshold: float | None = None, benchmark: Path | None = None, kept: int = 0
) -> tuple[dict[int, tuple[int, float]], dict[int, str]]:
    """Return which texts repeat an earlier one that is in neither result (by position: the earlier one, and their
    similarity), and which hold a question of a file ``benchmark`` (the question). The first ``kept`` are in neither.

    ``threshold`` is the least Jaccard similarity of word ``n``-grams, 0.1 to 1 (None: not searched). To hold a
    question is to share 8 words in a row; texts and questions of fewer words count as a whole.
    """
    duplicates, contaminated = dict[int, tuple[int, float]](), dict[int, str]()
    from rensa import RMinHash, RMinHashLSH

    questions = read_lines(benchmark, "benchmark questions") if benchmark else []
    held = [(gram, row) for row, text in enumerate(questions) for gram in ngrams(text, _BENCHMARK_NGRAM).tolist()]
    known = dict(reversed(held))  # the first question that holds an n-gram
    # A pair of similarity s agrees in one of b bands of r values with probability 1 - (1 - s**r)**b.
    least = threshold or 1.0
    powers = (2**power for power in range(8))
    bands = next(b for b in powers if b == _SIGNATURE or 1 - (1 - least ** (_SIGNATURE // b)) ** b >= _RECALL)
    index, grams = RMinHashLSH(least, _SIGNATURE, bands), dict[int, NDArray[np.uint32]]()
    for row, text in enumerate(counted(texts, "duplicates", "row")):
        if known and row >= kept and (hits := known.keys() & ngrams(text, _BENCHMARK_NGRAM).tolist()):
            contaminated[row] = questions[min(known[gram] for gram in hits)]
            continue
        if not threshold or not len(hashes := ngrams(text, n)):
            continue
        signature = RMinHash(_SIGNATURE, seed=0)
        signature.update(hashes.view("S8").tolist())
        own = np.sort(hashes.astype(np.uint32))  # half the memory, and enough to compare two rows
        if row >= kept and (others := sorted(index.query(signature))):
            theirs, sizes = [grams[other] for other in others], np.array([len(grams[other]) for other in others])
            flat = np.concatenate(theirs)
            equal = own[np.minimum(np.searchsorted(own, flat), len(own) - 1)] == flat
            common = np.add.reduceat(equal.astype(np.int64), np.cumsum(sizes) - sizes)
            similarity = common / (len(own) + sizes - common)
            if len(reached := np.flatnonzero(similarity >= threshold)):
                duplicates[row] = (others[reached[0]], float(similarity[reached[0]]))
                continue
        index.insert(row, signature)
        grams[row] = own
    return duplicates, contaminated


def _texts(run: Run, stage: Stage, column: str) -> Iterator[str]:
    """Yield a column of all finished shards in run order, one shard in memory at a time."""
    for shard in run.shards(stage):
        yield from run.table(stage, shard, [column]).column(column).to_pylist()


def drop_caption_duplicates(run: Run) -> None:
    """Move captions that repeat an earlier one, or hold a benchmark's question, to the rejected rows, if asked for.
    Reasons are ``duplicate`` and ``contaminated``; ``raw`` is the caption with what it repeats or holds. Called again
    for the same captions it does nothing. A RunError says that a shard is held by another process or was changed."""
    threshold, benchmark = run.recipe.captions.drop_duplicates, run.recipe.captions.drop_contaminated
    if not (threshold or benchmark) or run.facts(CAPTIONS).get("deduplicated") == _searched(run):
        return
    ids, path = list(_texts(run, CAPTIONS, "id")), run.recipe.path(benchmark) if benchmark else None
    duplicates, contaminated = find_repeats(_texts(run, CAPTIONS, "caption"), NGRAM[CAPTIONS.name], threshold, path)
    dropped = {ids[row]: ("duplicate", ids[match]) for row, (match, _) in duplicates.items()}
    dropped |= {ids[row]: ("contaminated", question) for row, question in contaminated.items()}
    for shard in sorted({int(id[:5]) for id in dropped}):
        with run.claim(CAPTIONS, shard, LOCK_WAIT_S) as held:
            record = run.record(CAPTIONS, shard)
            if not held or record is None:
                raise RunError(f"{run.file(CAPTIONS, shard)} is held by another process; wait for its end")
            table, rejected, gone = run.table(CAPTIONS, shard), run.rejected(CAPTIONS, shard), []
            out = pa.array([id in dropped for id in table["id"].to_pylist()])
            for row in table.filter(out).to_pylist():
                reason, match = dropped[row["id"]]
                raw = f"{row['caption']}\n\n[{reason}: {match}]"
                gone.append(row | {"reason": reason, "raw": raw, "request": None})
            rejected = pa.concat_tables([rejected, pa.Table.from_pylist(gone, REJECTED_SCHEMA)]).sort_by("id")
            counts = record.counts | {"rejected": dict(Counter(rejected["reason"].to_pylist()))}
            kept = table.filter(pc.invert(out))
            run.commit(CAPTIONS, shard, len(kept), parquet(kept), rejected, record.inputs, counts)
    write_json(run.directory(CAPTIONS) / "stage.json", run.facts(CAPTIONS) | {"deduplicated": _searched(run)})


def _searched(run: Run) -> str:
    """Return a hash of the captions that there are, and of what they are searched for."""
    settings, files = run.recipe.captions, [record.files for record in run.records(CAPTIONS).values()]
    questions = settings.drop_contaminated and read_lines(run.recipe.path(settings.drop_contaminated), "benchmark")
    return f"{stable_hash(settings.drop_duplicates, questions, files):016x}"


def duplicate_groups(run: Run) -> dict[str, str]:
    """Return the id of the first row of its group by id, of the captions that have a near-duplicate."""
    ids, threshold = list(_texts(run, CAPTIONS, "id")), run.recipe.captions.drop_duplicates or THRESHOLD
    found, _ = find_repeats(_texts(run, CAPTIONS, "caption"), NGRAM[CAPTIONS.name], threshold)
    return {ids[member]: ids[match] for row, (match, _) in found.items() for member in (match, row)}


def report_duplicates(run: Run, stage_name: str, threshold: float = THRESHOLD, benchmark: Path | None = None) -> str:
    """Return a table of what would be dropped from ``seeds`` or ``captions``, with examples; nothing is changed."""
    stage, column = (SEEDS, "seed") if stage_name == "seeds" else (CAPTIONS, "caption")
    if stage_name != stage.name or not run.shards(stage):
        raise RunError(f"{run.path}: no finished shards of '{stage_name}'; name a finished stage, seeds or captions")
    texts, n = list(_texts(run, stage, column)), NGRAM[stage_name]
    found, hits = find_repeats(texts, n, threshold, benchmark)
    exact = sum(similarity == 1 for _, similarity in found.values())
    counts = {"duplicate, exact": exact, "duplicate, near": len(found) - exact, "contaminated": len(hits)}
    lines = [f"{stage_name}: {len(texts):,} rows; near: similarity >= {threshold:g} of word {n}-grams"]
    lines += ["| reason | rows | share |", "|---|---|---|"]
    lines += [f"| {reason} | {count:,} | {count / max(1, len(texts)):.2%} |" for reason, count in counts.items()]
    for row, (match, part) in islice(found.items(), 5):
        lines.append(f"\nsimilarity {part:.2f}:\n  {texts[match]}\n  {texts[row]}")
    for row, question in islice(hits.items(), 5):
        lines.append(f"\nholds the benchmark question {question!r}:\n  {texts[row]}")
    return "\n".join(lines)

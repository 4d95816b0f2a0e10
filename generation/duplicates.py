"""Exact duplicates and near-duplicates among texts; the first in run order is kept.

Exact means: the same words after normalisation (``ngrams.normalised``). Near means: the Jaccard similarity of the sets
of word n-grams (Broder 1997, On the resemblance and containment of documents) reaches a threshold. MinHash signatures
in bands propose the pairs (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4); the true Jaccard
of each proposed pair decides, so that no row is dropped for a likeness that was merely estimated.

Which n-grams, measured. Seeds (320 bundled captions of 12 words, 2,250 domain seeds of 11 words) at Jaccard 0.8:
1-grams drop 33 % of the domain seeds, which differ in their label alone, and take words in another order for the same;
2-grams drop 0.6 %, and find 23 % of captions with one word put in (at 0.7: 5.5 % and 95 %); 3-grams find but 3 %.
Captions of 130 words: four words replaced leave 3-grams above 0.8, and only two leave 5-grams there.

Memory: 260 to 300 bytes a row at the default threshold, measured at 1.2 million seeds and captions of which a fifth
are duplicates, whatever the length of the texts (``benchmarks/duplicates.py``); each band takes 8 (``banding``). The
n-grams, 8 bytes each, lie in an unnamed temporary file. rensa makes the signatures; its own index of bands holds
1.4 kB a row, so the bands are columns of one table here that are sorted one after the other.
"""

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from .config import Duplicates
from .errors import RunError
from .files import guarded
from .ngrams import FACTOR, Hashes, ngrams, normalised, text_hash
from .progress import counted
from .rundir import RunDir

NGRAMS = {"seeds": 2, "captions": 3}  # words; see above
_COLUMNS = {"seeds": "seed", "captions": "caption"}
_SIGNATURE = 128  # MinHash values a row
_RECALL = 0.9  # of pairs at the threshold itself; above 0.99 for those at 0.1 above it
_BATCH_ROWS = 1000
_BATCH_NGRAMS = 200_000
_COMPARED = 256  # rows compared with one at a time


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a row is one too many.

    Attributes:
        reason: its code.
        match: the id of the row that is kept in its stead, or the benchmark question that it holds.
        jaccard: of the two sets of n-grams; None for ``contaminated``.
    """

    reason: Literal["duplicate_exact", "duplicate_near", "contaminated"]
    match: str
    jaccard: float | None = None


def duplicate_ids(run: RunDir, stage: str, settings: Duplicates) -> dict[str, Finding]:
    """The duplicates among the sealed rows of a stage, by id, in run order.

    Args:
        run: the run directory.
        stage: ``seeds`` or ``captions``.
        settings: the threshold and the n-grams.

    Raises:
        RunError: the stage has no sealed shard, or a shard was changed.
    """
    ngram = settings.ngram or NGRAMS[stage]
    return find_duplicates(
        stage_texts(run, stage), settings.near_threshold, ngram, run.path, total=stage_rows(run, stage)
    )


def stage_rows(run: RunDir, stage: str) -> int:
    """How many sealed rows a stage has."""
    return sum(run.record(stage, shard)["rows"] for shard in run.sealed(stage))


def stage_texts(run: RunDir, stage: str) -> Iterator[tuple[str, str]]:
    """Id and text of every sealed row of ``seeds`` or ``captions``, in run order, one shard in memory at a time.

    Raises:
        RunError: the stage has no sealed shard, or a shard was changed; or the run was imported and has no seeds.
    """
    run.stage(stage)
    if stage == "seeds" and run.imported(stage):
        raise RunError(f"{run.path} was imported from the original's release, which holds no seeds; name captions")
    if not (shards := run.sealed(stage)):
        raise RunError(f"{run.path}: stage '{stage}' has no sealed shard yet; run it first")
    for shard in shards:
        for batch in run.table(stage, shard).select(["id", _COLUMNS[stage]]).to_batches(_BATCH_ROWS):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def find_duplicates(
    rows: Iterable[tuple[str, str]],
    near_threshold: float,
    ngram: int,
    folder: Path,
    kept: int = 0,
    total: int | None = None,
) -> dict[str, Finding]:
    """Which rows repeat an earlier row that is kept. The result depends on the rows and their order alone.

    Args:
        rows: pairs of id and text in run order; read once.
        near_threshold: the least Jaccard similarity of near-duplicates, 0.1 to 1.
        ngram: words in an n-gram.
        folder: where the temporary file lies.
        kept: so many rows at the start are kept, whatever they repeat.
        total: how many rows there are, for the bar.

    Returns:
        Findings by id, in run order; each matches the first kept row that it repeats.

    Raises:
        RunError: the temporary file cannot be written.
    """
    with guarded(folder, lambda: tempfile.TemporaryFile(dir=folder)) as file:
        index = _Index(file, near_threshold)
        for row, text in counted(rows, "duplicates, signatures", "row", total):
            plain = normalised(text)
            guarded(folder, lambda: index.add(row, text_hash(plain), ngrams(plain, ngram)))  # noqa: B023
        guarded(folder, index.flush)
        return index.findings(kept)


def banding(threshold: float) -> tuple[int, int]:
    """The widest bands that propose a pair at the threshold with a probability of at least 0.9.

    A pair of Jaccard s agrees in a whole band of width r with probability s**r, so that b bands propose it with
    probability 1 - (1 - s**r)**b. Wider bands propose fewer pairs below the threshold.

    Returns:
        How many bands, and how many MinHash values in each.

    >>> banding(0.8)
    (16, 8)
    """
    for width in range(_SIGNATURE, 1, -1):
        bands = _SIGNATURE // width
        if 1 - (1 - threshold**width) ** bands >= _RECALL:
            return bands, width
    return _SIGNATURE, 1


class _Index:
    """What is remembered of every row: a hash of its text and one of each band in memory, id and n-grams in a file."""

    def __init__(self, file: IO[bytes], threshold: float) -> None:
        self.file, self.threshold = file, threshold
        self.bands, self.width = banding(threshold)
        self.keys = bytearray()  # a table of 64-bit numbers: hash of the text, hashes of the bands
        self.starts = array("Q")  # of the rows' records in the file
        self.id_bytes = array("I")
        self.end = 0
        self.sizes = np.empty(0, np.intp)  # how many n-grams each row has, once all are there
        self.batch: list[tuple[int, Hashes]] = []
        self.batch_ngrams = 0

    def add(self, row: str, text: int, grams: Hashes) -> None:
        """Remembers a row by its id, the hash of its text and its n-grams."""
        encoded = row.encode("utf-8", "surrogatepass")
        self.file.write(encoded + grams.tobytes())
        self.starts.append(self.end)
        self.id_bytes.append(len(encoded))
        self.end += len(encoded) + grams.nbytes
        self.batch.append((text, grams))
        self.batch_ngrams += len(grams)
        if len(self.batch) == _BATCH_ROWS or self.batch_ngrams >= _BATCH_NGRAMS:
            self.flush()

    def flush(self) -> None:
        """Signs the rows that wait for it."""
        from rensa import RMinHash

        self.file.flush()
        if not self.batch:
            return
        flat = np.concatenate([grams for _, grams in self.batch])
        ends = np.cumsum([0, *(len(grams) for _, grams in self.batch)], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, _SIGNATURE, seed=0)
        signatures = np.array(matrix.to_rows(), np.uint64)[:, : self.bands * self.width]
        keys = np.zeros((len(self.batch), 1 + self.bands), np.uint64)
        keys[:, 0] = [text for text, _ in self.batch]
        for place in range(self.width):
            keys[:, 1:] = keys[:, 1:] * FACTOR + signatures[:, place :: self.width]
        self.keys += keys.tobytes()
        self.batch, self.batch_ngrams = [], 0

    def findings(self, kept: int) -> dict[str, Finding]:
        """The duplicates after the first ``kept`` rows."""
        bounds = np.array(self.starts + array("Q", [self.end]), np.intp)
        self.sizes = (np.diff(bounds) - np.array(self.id_bytes, np.intp)) // 8
        keys = np.frombuffer(self.keys, np.uint64).reshape(-1, 1 + self.bands)
        first = _first_of_its_kind(keys[:, 0])
        near = self._near(keys[:, 1:], np.flatnonzero(first == np.arange(len(first))), kept)
        found = {}
        for row in sorted(
            {*near, *(int(row) for row in np.flatnonzero(first < np.arange(len(first))) if row >= kept)}
        ):
            match, jaccard = near.get(row) or near.get(int(first[row])) or (int(first[row]), None)
            if jaccard is None:
                found[self._id(row)] = Finding("duplicate_exact", self._id(match), 1.0)
            else:
                found[self._id(row)] = Finding("duplicate_near", self._id(match), jaccard)
        return found

    def _near(self, bands: Hashes, rows: NDArray[np.intp], kept: int) -> dict[int, tuple[int, float]]:
        """The near-duplicates among ``rows``: the first kept row that each repeats, and their Jaccard."""
        near = {}
        members, starts = _shared_buckets(bands, rows)
        order = np.argsort(members, kind="stable")
        numbers, begins = np.unique(members[order], return_index=True)
        filled = np.zeros_like(starts)  # at a bucket's start: how many rows of it are kept; they move to its front
        proposed = zip(numbers.tolist(), begins, [*begins[1:], len(order)], strict=False)
        for row, begin, end in counted(proposed, "duplicates, comparison", "row", len(numbers)):
            buckets = starts[order[begin:end]]
            others = np.concatenate([members[bucket : bucket + filled[bucket]] for bucket in buckets])
            match = self._match(row, np.unique(others)) if row >= kept and len(others) else None
            if match:
                near[row] = match
            else:
                members[buckets + filled[buckets]] = row
                filled[buckets] += 1
        return near

    def _match(self, row: int, others: NDArray[np.int32]) -> tuple[int, float] | None:
        """The first of ``others`` (ascending) whose Jaccard similarity to ``row`` reaches the threshold."""
        grams = self._ngrams(row)
        sizes = self.sizes[others]
        others = others[np.minimum(sizes, len(grams)) >= self.threshold * np.maximum(sizes, len(grams))]
        for start in range(0, len(others), _COMPARED):
            part = others[start : start + _COMPARED]
            sizes = self.sizes[part]
            theirs = np.concatenate([self._ngrams(other) for other in part.tolist()])
            places = np.minimum(np.searchsorted(grams, theirs), len(grams) - 1)
            common = np.add.reduceat((grams[places] == theirs).astype(np.intp), np.cumsum(sizes) - sizes)
            jaccards = common / (len(grams) + sizes - common)
            if len(reached := np.flatnonzero(jaccards >= self.threshold)):
                return int(part[reached[0]]), float(jaccards[reached[0]])
        return None

    def _ngrams(self, row: int) -> Hashes:
        start = self.starts[row] + self.id_bytes[row]
        return np.frombuffer(os.pread(self.file.fileno(), self.sizes[row] * 8, start), np.uint64)

    def _id(self, row: int) -> str:
        return os.pread(self.file.fileno(), self.id_bytes[row], self.starts[row]).decode("utf-8", "surrogatepass")


def _first_of_its_kind(keys: Hashes) -> NDArray[np.intp]:
    """For every row the first row of the same key."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]][: len(keys)])
    first = np.empty(len(keys), np.intp)
    first[order] = np.repeat(order[starts], np.diff(np.r_[starts, len(keys)]))
    return first


def _shared_buckets(bands: Hashes, rows: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The buckets that hold more than one of ``rows``, one after the other: their rows, ascending in each bucket, and
    beside every row the place where its bucket starts."""
    members, starts = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    end = 0
    for band in range(bands.shape[1]):
        keys = bands[rows, band]
        order = np.argsort(keys, kind="stable")
        _, sizes = np.unique(keys[order], return_counts=True)
        shared = np.repeat(sizes, sizes) > 1
        sizes = sizes[sizes > 1]
        members.append(rows[order[shared]].astype(np.int32))
        starts.append(np.repeat(end + np.cumsum(sizes) - sizes, sizes).astype(np.int32))
        end += len(members[-1])
    return np.concatenate(members), np.concatenate(starts)

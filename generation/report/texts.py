"""One pass over the captions of a run, a batch in memory at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..metrics.caption_diversity.caption_diversity import measure
from ..rundir import RunDir

SAMPLE = 20_000  # captions whose tokens are counted, spread evenly over the run
BATCH_ROWS = 8_192


@dataclass
class Captions:
    """What the pass has found.

    Attributes:
        words: how many captions have so many white-space separated words.
        sources: captions by seed source.
        ratios: type-token ratio of each caption of the sample.
        entropies: token entropy of each, in bits.
    """

    words: Counter[int] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    ratios: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many captions there are."""
        return self.words.total()

    @property
    def mean_words(self) -> float:
        """Of all captions."""
        return sum(words * count for words, count in self.words.items()) / self.rows


def survey(
    run: RunDir, wanted: Mapping[int, Set[int]], on_rows: Callable[[int], object]
) -> tuple[Captions, dict[tuple[int, int], dict[str, Any]]]:
    """Passes over all sealed captions.

    Args:
        run: at least one shard of its captions is sealed.
        wanted: rows whose columns are to be kept, by shard.
        on_rows: told how many rows were read.

    Returns:
        The figures, and the wanted rows by shard and row.

    Raises:
        RunError: a shard was changed.
    """
    captions, kept = Captions(), dict[tuple[int, int], dict[str, Any]]()
    step = max(1, -(-sum(run.record("captions", shard)["rows"] for shard in run.sealed("captions")) // SAMPLE))
    columns = ["id", "caption", "seed", "source", "model", "prompt"]
    for shard in run.sealed("captions"):
        for first, batch in batches(run, "captions", shard, columns):
            _count(captions, batch, first, step)
            for row in sorted(wanted.get(shard, set()) & set(range(first, first + len(batch)))):
                kept[shard, row] = batch.slice(row - first, 1).to_pylist()[0]
            on_rows(len(batch))
    return captions, kept


def batches(run: RunDir, stage: str, shard: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Some columns of a sealed shard, a batch at a time, each with the number of its first row.

    Raises:
        RunError: the shard was changed.
    """
    first = 0
    with pq.ParquetFile(run.verified(stage, run.shard_path(stage, shard)), pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            yield first, batch
            first += len(batch)


def _count(captions: Captions, batch: pa.RecordBatch, first: int, step: int) -> None:
    texts = batch["caption"]
    _tally(captions.words, pc.list_value_length(pc.ascii_split_whitespace(texts)))
    _tally(captions.sources, batch["source"])
    for text in texts.take(pa.array(range(-first % step, len(texts), step), pa.int64())).to_pylist():
        found = measure([text])
        captions.ratios.append(found["type_token_ratio"])
        captions.entropies.append(found["entropy_bits"])


def _tally(counts: Counter[Any], values: pa.Array) -> None:
    for entry in pc.value_counts(values).to_pylist():
        counts[entry["values"]] += entry["counts"]

"""Rows that hold the questions of a benchmark: those that share a word n-gram with one.

8 words by default, the n-gram of PaLM's contamination check (Chowdhery et al. 2022, section 8). A text or question of
fewer words is one n-gram, so it is hit only by one of the very same words: a question such as "Is it raining?" would
otherwise take every caption about rain with it.

Memory: 16 bytes a distinct n-gram of the benchmark, and its questions.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .duplicates import Finding
from .errors import SeedError
from .ngrams import ngrams, normalised
from .progress import counted
from .texts import read_texts


class Benchmark:
    """The n-grams of a benchmark's questions.

    Args:
        questions: in the order of the file.
        ngram: words in an n-gram.
    """

    def __init__(self, questions: list[str], ngram: int) -> None:
        self.questions, self.ngram = questions, ngram
        grams = [ngrams(normalised(question), ngram) for question in questions]
        numbers = np.repeat(np.arange(len(questions)), [len(found) for found in grams])
        self._ngrams, first = np.unique(np.concatenate([np.empty(0, np.uint64), *grams]), return_index=True)
        self._numbers = numbers[first]

    def hit(self, text: str) -> str | None:
        """The first question that shares an n-gram with ``text``; None if there is none."""
        grams = ngrams(normalised(text), self.ngram)
        places = np.searchsorted(self._ngrams, grams)
        places = places[places < len(self._ngrams)]
        hits = places[self._ngrams[places] == grams[: len(places)]]  # grams ascend: only the last can lie beyond
        return self.questions[self._numbers[hits].min()] if len(hits) else None


def read_benchmark(path: Path, column: str, ngram: int) -> Benchmark:
    """Reads the questions of a benchmark.

    Args:
        path: a file as ``texts.read_texts`` takes it.
        column: where the questions stand; ignored for .txt.
        ngram: words in an n-gram.

    Raises:
        SeedError: the file does not exist, cannot be read, has a row without a question, or has no row.
    """
    if not path.is_file():
        raise SeedError(f"benchmark file {path} does not exist")
    questions = list(read_texts(path, column, "benchmark questions", "question"))
    if not questions:
        raise SeedError(f"benchmark questions: {path} holds no question")
    return Benchmark(questions, ngram)


def find_contaminated(
    rows: Iterable[tuple[str, str]], benchmark: Benchmark, total: int | None = None
) -> Iterator[tuple[str, Finding]]:
    """Ids of the rows that hold a question of the benchmark, each with its finding, in the order of ``rows``;
    ``total``, how many rows there are, is for the bar."""
    for row, text in counted(rows, "contamination", "row", total):
        if question := benchmark.hit(text):
            yield row, Finding("contaminated", question)

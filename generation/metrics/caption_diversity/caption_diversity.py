"""How long and how varied captions are: each by itself, as in the paper, and against each other."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import datasets
import evaluate

SAMPLE = 1000  # captions that are compared with each other, at most: those figures depend on their number
ORDERS = 4  # BLEU's n-grams
_TOKEN = re.compile(r"[\w']+")
QUANTILES = (5, 25, 50, 75, 95)  # percent, of the lengths

_DESCRIPTION = "Lengths, type-token ratio and token entropy of captions, each by itself; distinct-n and self-BLEU."
_CITATION = "Unicorn, arXiv 2503.22655; distinct-n: arXiv 1510.03055; self-BLEU: Texygen, arXiv 1802.01886."
_KWARGS = """
Args:
    data: list of captions.
    sample, seed: at most so many captions, drawn with this seed, are compared with each other.
Returns:
    captions: how many; mean_words, min_words, max_words, words_p05 ... words_p95: white-space separated words, and the
    quantiles of their number (nearest rank); type_token_ratio: distinct tokens / tokens, and entropy_bits: Shannon
    entropy of the tokens, of each caption, averaged; sampled: how many were compared; distinct_1, distinct_2,
    distinct_3: distinct n-grams / n-grams of them all; self_bleu: mean BLEU-4 of each against all others, 0 (nothing
    in common) to 1. A token is a lower-cased run of letters, digits and apostrophes.
Examples:
    >>> made = CaptionDiversity().compute(data=["a cat and a dog", "a red bus"])
    >>> made["mean_words"], made["words_p50"], made["type_token_ratio"], made["distinct_1"]
    (4.0, 3, 0.9, 0.75)
    >>> round(CaptionDiversity().compute(data=["a cat and a dog", "a cat and a bird"])["self_bleu"], 4)
    0.6687
"""


def measure(captions: Sequence[str]) -> dict[str, float]:
    """Return the figures of captions each by itself; all zero for no captions."""
    lengths, number = sorted(len(caption.split()) for caption in captions) or [0], max(1, len(captions))
    counts = [Counter(_TOKEN.findall(caption.lower())) for caption in captions]
    ratio = sum(len(count) / max(1, count.total()) for count in counts)
    entropy = sum(n / count.total() * math.log2(count.total() / n) for count in counts for n in count.values())
    figures = {"mean_words": sum(lengths) / number, "min_words": lengths[0], "max_words": lengths[-1]}
    figures |= {f"words_p{percent:02d}": lengths[-(-len(lengths) * percent // 100) - 1] for percent in QUANTILES}
    means = {"type_token_ratio": ratio / number, "entropy_bits": entropy / number}
    return {"captions": len(captions)} | figures | means


def compare(captions: Sequence[str], sample: int = SAMPLE, seed: int = 0) -> dict[str, float]:
    """Return the figures of captions against each other; a ValueError says that ``sample`` is below 1."""
    if sample < 1:
        raise ValueError(f"sample must be at least 1, but is {sample}")
    drawn = captions if len(captions) <= sample else random.Random(seed).sample(list(captions), sample)
    texts = [_TOKEN.findall(caption.lower()) for caption in drawn]
    figures: dict[str, float] = {"sampled": len(texts)}
    for n in (1, 2, 3):
        counts = sum((_ngrams(tokens, n) for tokens in texts), Counter[tuple[str, ...]]())
        figures[f"distinct_{n}"] = len(counts) / max(1, counts.total())
    return figures | {"self_bleu": _self_bleu(texts)}


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Return the mean BLEU of each text against all others; 0 if there is no other.

    An n-gram's largest count in the others is the largest of all, or the second largest if the text has that itself.
    If no n-gram of an order is shared, 0.1 counts as shared (as in Texygen); if not even a word is, BLEU is 0.
    """
    if len(texts) < 2:
        return 0.0
    logs = [0.0] * len(texts)
    for n in range(1, ORDERS + 1):
        grams = [_ngrams(tokens, n) for tokens in texts]
        largest: dict[tuple[str, ...], list[int]] = {}  # the two largest counts
        for gram, count in chain.from_iterable(counts.items() for counts in grams):
            largest[gram] = sorted([*largest.get(gram, (0, 0)), count], reverse=True)[:2]
        for place, counts in enumerate(grams):
            shared = sum(min(count, largest[gram][count == largest[gram][0]]) for gram, count in counts.items())
            share = (shared or 0.1) / max(1, counts.total())
            logs[place] += math.log(share) / ORDERS if shared or n > 1 else -math.inf
    lengths, score = Counter(map(len, texts)), 0.0
    for length, log in ((len(tokens), log) for tokens, log in zip(texts, logs, strict=True) if tokens):
        # Brevity penalty: against the other text of the nearest length, of two the shorter.
        others = [(abs(other - length), other) for other, count in lengths.items() if other != length or count > 1]
        score += min(1.0, math.exp(1 - min(others)[1] / length)) * math.exp(log)
    return score / len(texts)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class CaptionDiversity(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        texts = {"description": _DESCRIPTION, "citation": _CITATION, "inputs_description": _KWARGS}
        features = datasets.Features({"data": datasets.Value("string")})
        return evaluate.MeasurementInfo(module_type="measurement", features=features, **texts)

    def _compute(self, data: list[str], sample: int = SAMPLE, seed: int = 0) -> dict[str, float]:
        return measure(data) | compare(data, sample, seed)

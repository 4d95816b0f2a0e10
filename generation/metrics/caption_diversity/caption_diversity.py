"""How long and how varied captions are: each by itself, as in the paper, and against each other."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

SAMPLE = 1000  # captions that are compared with each other, at most: those figures depend on their number
_TOKEN = re.compile(r"[\w']+")
QUANTILES = (5, 25, 50, 75, 95)  # percent, of the lengths

_DESCRIPTION = "Lengths, type-token ratio and token entropy of captions, each by itself; distinct-n of them all."
_CITATION = "Unicorn, arXiv 2503.22655; distinct-n: arXiv 1510.03055."
_KWARGS = """
Args:
    data: list of captions.
    sample, seed: at most so many captions, drawn with this seed, are compared with each other.
Returns:
    captions: how many; mean_words, min_words, max_words, words_p05 ... words_p95: white-space separated words, and the
    quantiles of their number (nearest rank); type_token_ratio: distinct tokens / tokens, and entropy_bits: Shannon
    entropy of the tokens, of each caption, averaged; sampled: how many were compared; distinct_1, distinct_2,
    distinct_3: distinct n-grams / n-grams of them. A token is a lower-cased run of letters, digits and apostrophes.
Examples:
    >>> made = CaptionDiversity().compute(data=["a cat and a dog", "a red bus"])
    >>> made["mean_words"], made["words_p50"], made["type_token_ratio"], made["distinct_1"]
    (4.0, 3, 0.9, 0.75)
"""


def measure(data: Sequence[str], sample: int = SAMPLE, seed: int = 0) -> dict[str, float]:
    """Return the figures; all are zero for no captions. A ValueError says that ``sample`` is below 1."""
    if sample < 1:
        raise ValueError(f"sample must be at least 1, but is {sample}")
    lengths, number = sorted(len(caption.split()) for caption in data) or [0], max(1, len(data))
    texts = [_TOKEN.findall(caption.lower()) for caption in data]
    counts = list(map(Counter, texts))
    ratio = sum(len(count) / max(1, count.total()) for count in counts)
    entropy = sum(n / count.total() * math.log2(count.total() / n) for count in counts for n in count.values())
    figures = {"captions": len(data), "mean_words": sum(lengths) / number}
    figures |= {"min_words": lengths[0], "max_words": lengths[-1]}
    figures |= {f"words_p{percent:02d}": lengths[-(-len(lengths) * percent // 100) - 1] for percent in QUANTILES}
    figures |= {"type_token_ratio": ratio / number, "entropy_bits": entropy / number}
    drawn = texts if len(texts) <= sample else random.Random(seed).sample(texts, sample)
    for n in (1, 2, 3):
        grams = [gram for words in drawn for gram in zip(*(words[start:] for start in range(n)), strict=False)]
        figures[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    return figures | {"sampled": len(drawn)}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class CaptionDiversity(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        texts = {"description": _DESCRIPTION, "citation": _CITATION, "inputs_description": _KWARGS}
        features = datasets.Features({"data": datasets.Value("string")})
        return evaluate.MeasurementInfo(module_type="measurement", features=features, **texts)

    _compute = staticmethod(measure)

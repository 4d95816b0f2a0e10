"""How long and how varied captions are; each figure is computed per caption and averaged, as the paper's must be."""

import math
import re
from collections import Counter
from collections.abc import Iterable

import datasets
import evaluate

_DESCRIPTION = "Length, type-token ratio and token entropy of captions, per caption and averaged."
_CITATION = "Unicorn: Text-Only Data Synthesis for Vision Language Model Training, arXiv 2503.22655, appendix D."
_KWARGS = """
Args:
    data: list of captions.
Returns:
    captions: how many; mean_words, min_words, max_words: white-space separated words;
    type_token_ratio: distinct tokens / tokens; entropy_bits: Shannon entropy of the tokens. A token is a lower-cased
    run of letters, digits and apostrophes.
Examples:
    >>> measurement = CaptionDiversity()
    >>> measurement.compute(data=["a cat and a dog", "a red bus"])["type_token_ratio"]
    0.9
"""


def measure(captions: Iterable[str]) -> dict[str, float]:
    """The figures of an iterable of captions, in one pass; all zero for no captions.

    >>> measure(["one two one two"])
    {'captions': 1, 'mean_words': 4.0, 'min_words': 4, 'max_words': 4, 'type_token_ratio': 0.5, 'entropy_bits': 1.0}
    """
    lengths: Counter[int] = Counter()
    ratio = entropy = 0.0
    for caption in captions:
        lengths[len(caption.split())] += 1
        tokens = re.findall(r"[\w']+", caption.lower())
        counts, total = Counter(tokens), max(1, len(tokens))
        ratio += len(counts) / total
        entropy -= sum(n / total * math.log2(n / total) for n in counts.values())
    number = lengths.total()
    return {
        "captions": number,
        "mean_words": sum(words * n for words, n in lengths.items()) / max(1, number),
        "min_words": min(lengths, default=0),
        "max_words": max(lengths, default=0),
        "type_token_ratio": ratio / max(1, number),
        "entropy_bits": entropy / max(1, number) + 0.0,  # + 0.0: no negative zero
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class CaptionDiversity(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=datasets.Features({"data": datasets.Value("string")}),
        )

    def _compute(self, data: list[str]) -> dict[str, float]:
        return measure(data)

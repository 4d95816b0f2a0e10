"""Whether a set of questions and answers leans: what no single item shows, because each may be sound."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

LETTERS = "ABCD"
_OPTION = re.compile(r"^([A-D]): (.*)$", re.MULTILINE)
_LEAK = re.compile(
    r"(?i)\b(?:captions?|descriptions?|passages?|paragraphs?|excerpts?|mentioned|stated|specified|as described|"
    r"(?:according to|in|from|given|provided) (?:the )?text)\b"
)

_DESCRIPTION = "Letter balance, leaks, types of questions and groundedness of instruction data."
_CITATION = "Unicorn, arXiv 2503.22655, section 3.2."
_KWARGS = """
Args (lists with one value a question):
    question: the human turn; options are lines of its own that begin with A: to D:.
    answer: the gpt turn; of multiple choice, the letter alone.
    question_type, grounded: a value of the columns `question_types` (such as count) and `grounded` (0 to 1).
Returns:
    items: how many; multiple_choice: how many have options; letters: how often each is right; letters_chi_square
    (3 degrees of freedom), letters_p: against equal counts (p is small where they crowd, 1.0 for none); longest_right:
    the chance to be right by taking a longest option, 0.25 is chance; leak_rate: share that speaks of the text behind
    the scene; question_types: counts, the commonest first; grounded_mean; grounded_p05: one in twenty is not above it.
Examples:
    >>> made = InstructionQuality().compute(
    ...     question=["What is it?\\nA: a dog\\nB: a big cat\\nC: a fox\\nD: a bee", "Why does the caption say so?"],
    ...     answer=["B", "It rains."], question_type=["object", "reason"], grounded=[1.0, 0.5])
    >>> made["letters"], made["letters_chi_square"], round(made["letters_p"], 4)
    ({'A': 0, 'B': 1, 'C': 0, 'D': 0}, 3.0, 0.3916)
    >>> made["leak_rate"], made["longest_right"], made["grounded_mean"], made["question_types"]["object"]
    (0.5, 1.0, 0.75, 1)
"""


def measure(
    question: Sequence[str], answer: Sequence[str], question_type: Sequence[str], grounded: Sequence[float]
) -> dict[str, object]:
    """Return the figures; see ``compute``. All are zero (p is 1.0) for no items. A ValueError names a faulty row."""
    letters, longest = Counter[str](), 0.0
    for row, (asked, said, share) in enumerate(zip(question, answer, grounded, strict=True)):
        if not 0 <= share <= 1:
            raise ValueError(f"grounded of row {row}: {share} is not between 0 and 1")
        if options := dict(_OPTION.findall(asked)):
            if said not in options:
                raise ValueError(f"answer of row {row}: {said!r} is not one of {', '.join(options)}")
            letters[said] += 1
            lengths = list(map(len, options.values()))
            longest += (len(options[said]) == max(lengths)) / lengths.count(max(lengths))
    items, choices = len(question), letters.total()
    square = sum((letters[name] - choices / 4) ** 2 for name in LETTERS) / (choices / 4) if choices else 0.0
    # The chance of a chi-square at least as large, of 3 degrees of freedom (Abramowitz and Stegun, 26.4.4).
    p = math.erfc(math.sqrt(square / 2)) + math.sqrt(2 * square / math.pi) * math.exp(-square / 2)
    leaks = sum(bool(_LEAK.search(f"{asked}\n{said}")) for asked, said in zip(question, answer, strict=True))
    return {
        "items": items,
        "multiple_choice": choices,
        "letters": {name: letters[name] for name in LETTERS},
        "letters_chi_square": square,
        "letters_p": p,
        "longest_right": longest / max(1, choices),
        "leak_rate": leaks / max(1, items),
        "question_types": dict(Counter(question_type).most_common()),
        "grounded_mean": sum(grounded) / max(1, items),
        "grounded_p05": sorted(grounded)[max(0, -(-items // 20) - 1)] if items else 0.0,  # nearest rank
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class InstructionQuality(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        text = datasets.Value("string")
        columns = {"question": text, "answer": text, "question_type": text, "grounded": datasets.Value("float64")}
        texts = {"description": _DESCRIPTION, "citation": _CITATION, "inputs_description": _KWARGS}
        return evaluate.MeasurementInfo(module_type="measurement", features=datasets.Features(columns), **texts)

    _compute = staticmethod(measure)

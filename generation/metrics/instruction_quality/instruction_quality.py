"""Whether a set of questions and answers leans: what no single item shows, because each may be sound.

It counts; what an item is (its kind, whether it leaks, how grounded it is) is judged where the checks are,
``generation.checks.item_facts``, so that each rule stands in one place and this module by itself.
"""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
import torch

LETTERS = ("A", "B", "C", "D")

_DESCRIPTION = "Letter balance, leaks, kinds of questions and groundedness of instruction data."
_CITATION = "Unicorn: Text-Only Data Synthesis for Vision Language Model Training, arXiv 2503.22655, section 3.2."
_KWARGS = """
Args (lists with one value an item, as `generation.checks.item_facts` gives them):
    letter: the right option, A to D; empty for an open question.
    kind: of the question, such as what, where, how many, yes_no.
    leak: whether it speaks of the caption behind the scene.
    groundedness: the share of its answer's content words that come from the caption or the question, 0 to 1.
    longest_right: of multiple choice, the chance to be right by taking a longest option; 0 for an open question.
Returns:
    items: how many; multiple_choice: how many have a letter; letters: how often each is right; letters_chi_square
    (3 degrees of freedom) and letters_p: against equal counts (p is small where they crowd, 1.0 for none);
    longest_right: mean over multiple choice, 0.25 is chance; leak_rate; kinds: counts, the commonest first;
    groundedness_mean, groundedness_p05: mean, and the value that one item in twenty does not exceed.
Examples:
    >>> measurement = InstructionQuality()
    >>> made = measurement.compute(
    ...     letter=["A", "B", "B", "B", ""], kind=["what", "what", "where", "what", "why"],
    ...     leak=[False, False, False, False, True], groundedness=[1.0, 1.0, 0.5, 1.0, 0.0],
    ...     longest_right=[1.0, 0.0, 0.0, 0.0, 0.0])
    >>> made["letters"], made["letters_chi_square"], round(made["letters_p"], 4)
    ({'A': 1, 'B': 3, 'C': 0, 'D': 0}, 6.0, 0.1116)
    >>> made["leak_rate"], made["groundedness_mean"], made["kinds"]["what"], made["longest_right"]
    (0.2, 0.7, 3, 0.25)
"""


def measure(
    letter: Sequence[str],
    kind: Sequence[str],
    leak: Sequence[bool],
    groundedness: Sequence[float],
    longest_right: Sequence[float],
) -> dict[str, object]:
    """The figures; see the module's ``compute``. All are zero (p is 1.0) for no items.

    Raises:
        ValueError: a letter is none of A to D, or a share does not lie between 0 and 1; names the row.
    """
    _check(letter, groundedness, longest_right)
    found = Counter(filter(None, letter))
    choices, items = found.total(), len(letter)
    chi_square = sum((found[name] - choices / 4) ** 2 for name in LETTERS) / (choices / 4) if choices else 0.0
    return {
        "items": items,
        "multiple_choice": choices,
        "letters": {name: found[name] for name in LETTERS},
        "letters_chi_square": chi_square,
        "letters_p": _chi_square_p(chi_square, len(LETTERS) - 1),
        "longest_right": sum(share for name, share in zip(letter, longest_right, strict=True) if name)
        / max(1, choices),
        "leak_rate": sum(leak) / max(1, items),
        "kinds": dict(Counter(kind).most_common()),
        "groundedness_mean": sum(groundedness) / max(1, items),
        "groundedness_p05": sorted(groundedness)[max(0, -(-items // 20) - 1)] if items else 0.0,  # nearest rank
    }


def _chi_square_p(value: float, degrees: int) -> float:
    """The chance of a chi-square at least as large: the regularised upper incomplete gamma function."""
    half = torch.tensor([degrees / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _check(letter: Sequence[str], groundedness: Sequence[float], longest_right: Sequence[float]) -> None:
    for row, name in enumerate(letter):
        if name and name not in LETTERS:
            raise ValueError(f"letter of row {row}: {name!r} is none of {', '.join(LETTERS)}, nor empty")
    for what, shares in (("groundedness", groundedness), ("longest_right", longest_right)):
        for row, share in enumerate(shares):
            if not 0 <= share <= 1:
                raise ValueError(f"{what} of row {row}: {share} does not lie between 0 and 1")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class InstructionQuality(evaluate.Measurement):  # type: ignore[misc]
    """See the module."""

    def _info(self) -> evaluate.MeasurementInfo:
        text, share = datasets.Value("string"), datasets.Value("float64")
        features = {
            "letter": text,
            "kind": text,
            "leak": datasets.Value("bool"),
            "groundedness": share,
            "longest_right": share,
        }
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=datasets.Features(features),
        )

    def _compute(
        self,
        letter: list[str],
        kind: list[str],
        leak: list[bool],
        groundedness: list[float],
        longest_right: list[float],
    ) -> dict[str, object]:
        return measure(letter, kind, leak, groundedness, longest_right)

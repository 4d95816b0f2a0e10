"""The pictures of a card: PNG files beside it, the same bytes for the same figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "figures"
PAPER_WORDS = {"mean": 129, "min": 51, "max": 483}  # arXiv 2503.22655v2, appendix D
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, which colour-blind readers tell apart
_DPI = 100


def draw(
    directory: Path, lengths: Sequence[int], letters: Mapping[str, int], kinds: Mapping[str, int]
) -> dict[str, str]:
    """Draws what there is to draw.

    Args:
        directory: of the data set; the files go into its ``figures``.
        lengths: captions by their number of words, from 0 on.
        letters: right answers by letter; empty where there are none.
        kinds: questions by kind; empty where there are none.

    Returns:
        File names, relative to the directory, by ``lengths``, ``letters`` and ``kinds``.
    """
    drawn = {"lengths": _save(directory, "lengths", (7, 2.8), lambda axes: _lengths(axes, lengths))}
    if letters:
        drawn["letters"] = _save(directory, "letters", (3.6, 2.4), lambda axes: _bars(axes, letters, "right answers"))
    if kinds:
        drawn["kinds"] = _save(directory, "kinds", (7, 2.6), lambda axes: _bars(axes, kinds, "questions"))
    return drawn


def _lengths(axes: "Axes", lengths: Sequence[int]) -> None:
    longest = max(number for number, count in enumerate(lengths) if count)
    width = max(1, longest // 60)
    starts = range(0, longest + 1, width)
    axes.bar(starts, [sum(lengths[start : start + width]) for start in starts], width, align="edge", color=_BLUE)
    for name, words in PAPER_WORDS.items():
        axes.axvline(words, color=_ORANGE, linestyle="--" if name != "mean" else "-", linewidth=1)
        axes.annotate(
            f"paper's {name}: {words}", (words, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8, color=_ORANGE, rotation=90, va="top",
        )  # fmt: skip
    axes.set(xlabel="words of a caption", ylabel="captions")


def _bars(axes: "Axes", counts: Mapping[str, int], label: str) -> None:
    axes.bar(list(counts), list(counts.values()), color=_BLUE)
    axes.set(ylabel=label)
    axes.tick_params(axis="x", labelsize=9)


def _save(directory: Path, name: str, inches: tuple[float, float], paint: Any) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    paint(axes)
    (directory / FOLDER).mkdir(exist_ok=True)
    figure.savefig(directory / FOLDER / f"{name}.png", dpi=_DPI, metadata={"Software": None})
    return f"{FOLDER}/{name}.png"

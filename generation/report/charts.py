"""The figures of the report, drawn as the diagnostics' pictures are; black stands for the page's ink."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isqrt
from typing import TYPE_CHECKING, Any

from ..checks import LETTERS
from ..diagnostics.pictures import drawn
from .stages import MOVED, Stage
from .texts import Captions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, ORANGE, GREY, INK = "#0072b2", "#009e73", "#d55e00", "#8c959f", "#000000"
_SERIES = (BLUE, GREEN, ORANGE)
_BINS = 48


def label(stage: str) -> str:
    """A stage's name for people."""
    if stage.startswith(f"{MOVED}/"):
        return f"image embeddings by {stage.partition('/')[2]}"
    return stage.split("/")[-1].replace("_", " ")


def funnel(stages: Sequence[Stage]) -> "Figure":
    """What became of the rows that came into each stage, as shares."""

    def draw(axes: list["Axes"]) -> None:
        names = [label(stage.name) for stage in stages]
        left = [0.0] * len(stages)
        for kind, colour in (("accepted", GREEN), ("rejected", ORANGE), ("pending", GREY)):
            counts = [{"accepted": s.rows, "rejected": s.lost, "pending": s.pending}[kind] for s in stages]
            shares = [100 * count / max(1, stage.items) for count, stage in zip(counts, stages, strict=True)]
            axes[0].barh(names, shares, 0.6, left, color=colour, label=kind)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes[0].invert_yaxis()
        axes[0].grid(visible=False, axis="y")
        axes[0].set(xlabel="% of the rows that came in", xlim=(0, 100))
        axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)

    return drawn(1, draw, height=1.2 + 0.4 * len(stages))


def lengths(captions: Captions, paper: Mapping[str, float]) -> "Figure":
    """Captions by their words; ``paper`` holds the paper's ``min``, ``mean`` and ``max``."""

    def draw(axes: list["Axes"]) -> None:
        low, high = min(captions.words), max(captions.words)
        width = max(1, -(-(high - low + 1) // min(_BINS, 8 + isqrt(captions.rows))))
        bins: Counter[int] = Counter()
        for words, count in captions.words.items():
            bins[(words - low) // width] += count
        values = [100 * bins[number] / captions.rows for number in range((high - low) // width + 1)]
        edges = [low + width * number for number in range(len(values) + 1)]
        axes[0].stairs(values, edges, color=BLUE, alpha=0.35, fill=True)
        axes[0].stairs(values, edges, color=BLUE, lw=1.4)
        _marks(axes[0], {name: value for name, value in paper.items() if value < 1.5 * high})
        axes[0].set(xlabel="words", ylabel="% of the captions")

    return drawn(1, draw, height=3.2)


def variety(values: Sequence[float], name: str, paper: float) -> "Figure":
    """The distribution of a figure over captions, with the paper's mean."""

    def draw(axes: list["Axes"]) -> None:
        weights = [100 / len(values)] * len(values)
        axes[0].hist(values, bins=_BINS // 2, weights=weights, color=GREEN, alpha=0.35)
        axes[0].hist(values, bins=_BINS // 2, weights=weights, color=GREEN, histtype="step", lw=1.4)
        _marks(axes[0], {"": paper})
        axes[0].set(xlabel=name, ylabel="% of the captions")

    return drawn(1, draw, height=3.2)


def letters(counts: Mapping[str, int]) -> "Figure":
    """Right answers by their letter, with the even share."""

    def draw(axes: list["Axes"]) -> None:
        total = max(1, sum(counts.values()))
        axes[0].bar(LETTERS, [100 * counts[letter] / total for letter in LETTERS], 0.6, color=BLUE)
        axes[0].axhline(25, color=INK, lw=1.2, ls=(0, (4, 2)))
        axes[0].grid(visible=False, axis="x")
        axes[0].set(xlabel="right answer; dashed: chance", ylabel="% of the items")

    return drawn(1, draw, height=3.2)


def kinds(by_task: Mapping[str, Mapping[str, int]]) -> "Figure":
    """Items by the first question word, for each task."""
    totals: Counter[str] = Counter()
    for counts in by_task.values():
        totals.update(counts)
    names = [name for name, _ in totals.most_common()]

    def draw(axes: list["Axes"]) -> None:
        height = 0.8 / len(by_task)
        for number, (task, counts) in enumerate(by_task.items()):
            total = max(1, sum(counts.values()))
            places = [place + (number - (len(by_task) - 1) / 2) * height for place in range(len(names))]
            shares = [100 * counts.get(name, 0) / total for name in names]
            axes[0].barh(places, shares, height, color=_SERIES[number % 3], label=label(task))
        axes[0].set_yticks(range(len(names)), [name.replace("_", "/") for name in names])
        axes[0].invert_yaxis()
        axes[0].grid(visible=False, axis="y")
        axes[0].set(xlabel="% of the task's items")
        axes[0].legend(loc="lower right")

    return drawn(1, draw, height=1.4 + 0.36 * len(names))


def throughput(sessions: Sequence[Mapping[str, Any]]) -> "Figure":
    """Rows a second of each session over the time since the first began."""
    begun = [datetime.fromisoformat(session["begun"]).timestamp() for session in sessions]
    span = max(start + session["seconds"] for start, session in zip(begun, sessions, strict=True)) - begun[0]
    unit, seconds = next(
        (unit for unit in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)) if span > 2 * unit[1]),
        ("seconds", 1.0),
    )

    def draw(axes: list["Axes"]) -> None:
        seen: set[str] = set()
        for start, session in zip(begun, sessions, strict=True):
            stage = session["stage"]
            colour = GREEN if stage == "captions" else BLUE
            name = "captions" if stage == "captions" else "conversations"
            left, width = (start - begun[0]) / seconds, session["seconds"] / seconds
            rate = session["rows_per_s"]
            axes[0].bar(left, rate, width, align="edge", color=colour, alpha=0.35)
            axes[0].hlines(rate, left, left + width, color=colour, lw=2, label="" if name in seen else name)
            seen.add(name)
        axes[0].set(xlabel=f"{unit} since the first session began", ylabel="rows a second")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    return drawn(1, draw, height=3.4)


def tokens(stages: Sequence[Stage]) -> "Figure":
    """Tokens for each accepted row, those of rejected attempts included."""

    def draw(axes: list["Axes"]) -> None:
        names, left = [label(stage.name) for stage in stages], [0.0] * len(stages)
        for kind, colour in (("prompt", BLUE), ("answer", ORANGE)):
            sums = [s.prompt_tokens if kind == "prompt" else s.completion_tokens for s in stages]
            each = [count / max(1, stage.rows) for count, stage in zip(sums, stages, strict=True)]
            axes[0].barh(names, each, 0.6, left, color=colour, label=kind)
            left = [a + b for a, b in zip(left, each, strict=True)]
        axes[0].invert_yaxis()
        axes[0].grid(visible=False, axis="y")
        axes[0].set(xlabel="tokens for each accepted row")
        axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    return drawn(1, draw, height=1.4 + 0.4 * len(stages))


def _marks(panel: "Axes", paper: Mapping[str, float]) -> None:
    """Dashed lines at the paper's values."""
    for name, value in paper.items():
        panel.axvline(value, color=INK, lw=1.2, ls=(0, (4, 2)))
        panel.annotate(
            f"paper {name} {value:g}".replace("  ", " "),
            (value, 1),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=8,
        )

"""Pictures of clouds and of what a transfer does to them: functions that give matplotlib figures, and ``save``.

Colours are Okabe and Ito's, which colour-blind readers tell apart; each kind of rows also has its own line or marker.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import seal
from ..transfer import Fitted
from .cloud import Cloud
from .cosines import BINS, cosine_density, paired_cosines
from .inference import Pairs, labelled_pairs, takes_raw_images, treated
from .pairs import paired_gap
from .spectrum import top_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, TRANSFERRED, IMAGE = "text", "transferred text", "image"
_STYLES: dict[str, tuple[str, Any, str]] = {  # colour, line, marker
    TEXT: ("#0072B2", "-", "o"),
    TRANSFERRED: ("#009E73", (0, (5, 1.5)), "^"),
    IMAGE: ("#D55E00", (0, (1.5, 1)), "s"),
}
_PAIR_STYLES: tuple[tuple[str, Any], ...] = (
    ("#000000", "-"),
    (_STYLES[TRANSFERRED][0], (0, (5, 1.5))),
    ("#CC79A7", (0, (1.5, 1))),
)
_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_POINTS = 300  # of a cloud in a picture; more hide each other
_DPI = 100


def save(figure: "Figure", path: Path) -> dict[str, Any]:
    """Writes a figure as PNG that is there whole or not at all; returns its size in bytes and its sha256."""
    return seal(path, lambda target: figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None}))


def spectra(by_kind: Mapping[str, torch.Tensor]) -> "Figure":
    """The eigenvalues by rank on logarithmic axes.

    Args:
        by_kind: float64 [d] each, descending, by ``TEXT``, ``TRANSFERRED`` and ``IMAGE``.
    """

    def draw(axes: list["Axes"]) -> None:
        largest = max(float(spectrum[0]) for spectrum in by_kind.values())
        for kind, spectrum in by_kind.items():
            colour, line, _ = _STYLES[kind]
            shown = spectrum[spectrum > largest * 1e-8]  # what is below is rounding
            axes[0].loglog(range(1, len(shown) + 1), shown.numpy(), color=colour, linestyle=line, lw=2, label=kind)
        axes[0].set(title="Spectra", xlabel="rank of the axis", ylabel="eigenvalue of the covariance")
        axes[0].legend()

    return drawn(1, draw)


def clouds(
    texts: torch.Tensor,
    transferred: torch.Tensor,
    images: torch.Tensor | None = None,
    wanted: torch.Tensor | None = None,
) -> "Figure":
    """Texts and images before the transfer and after it: on the line through both means, where the gap lies, and on
    principal axes, which hardly see it. All panels of a line have the same axes, found before the transfer.

    Args:
        texts: [n, d].
        transferred: [n, d], the same texts.
        images: raw, [m, d]; None takes the transferred texts to find the axes, and draws texts alone.
        wanted: the images as the method wants them, [m, d], for one panel more; None where these are raw ones.
    """
    other = (transferred if images is None else images).double()
    gap = other.mean(0) - texts.double().mean(0)
    gap = gap / gap.norm().clamp(min=1e-12)
    rows = torch.cat([texts.double(), other])
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(centred)
    beside = torch.eye(len(gap), dtype=torch.float64) - torch.outer(gap, gap)
    planes = {
        ("along the gap", "first principal axis beside it"): torch.stack(
            [gap, _signed(top_axes(beside @ covariance @ beside, 1))[:, 0]], 1
        ),
        ("principal axis 1", "principal axis 2"): _signed(top_axes(covariance, 2)),
    }

    columns: dict[str, list[tuple[str, torch.Tensor | None]]] = {
        "Before": [(TEXT, texts), (IMAGE, images)],
        "After" + ("" if wanted is None else ", raw images"): [(TRANSFERRED, transferred), (IMAGE, images)],
    }
    if wanted is not None:
        columns["After, images as the method wants them"] = [(TRANSFERRED, transferred), (IMAGE, wanted)]

    def draw(axes: list["Axes"]) -> None:
        panels = iter(axes)
        for names, plane in planes.items():
            for (title, shown), panel in zip(columns.items(), panels, strict=False):
                for kind, cloud in shown:
                    if cloud is not None:
                        _scatter(panel, kind, cloud, rows.mean(0), plane)
                panel.set(title=title, xlabel=names[0], ylabel=names[1], aspect="equal")
                panel.set(xlim=(-0.9, 0.9), ylim=(-0.9, 0.9))
                panel.legend(loc="upper right", markerscale=2.5)

    return drawn(len(columns), draw, lines=2)


def norms(by_kind: Mapping[str, torch.Tensor], residuals: torch.Tensor | None = None) -> "Figure":
    """Histograms of distances to the mean, and of what a shift leaves between pairs.

    Args:
        by_kind: |x - mean|, [n] each, by ``TEXT``, ``TRANSFERRED`` and ``IMAGE``.
        residuals: |Delta - Dbar| of pairs, [n]; None draws no second panel.
    """

    def draw(axes: list["Axes"]) -> None:
        low = min(float(lengths.min()) for lengths in by_kind.values()) - 0.01
        high = max(float(lengths.max()) for lengths in by_kind.values()) + 0.01
        for kind, lengths in by_kind.items():
            counts = torch.histc(lengths.double(), 60, low, high)
            _histogram(axes[0], _STYLES[kind][:2], counts, low, high, kind)
        axes[0].set(title="Distance to the mean", xlabel="|x - mean|", ylabel="density")
        axes[0].legend()
        if residuals is not None:
            low, high = float(residuals.min()), float(residuals.max()) + 1e-6
            counts = torch.histc(residuals.double(), 60, low, high)
            _histogram(axes[1], _PAIR_STYLES[0], counts, low, high, "pairs")
            axes[1].set(title="What a shift leaves between pairs", xlabel="|v - u - mean difference|")

    return drawn(1 if residuals is None else 2, draw)


def cosines(
    by_kind: Mapping[str, torch.Tensor], pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None
) -> "Figure":
    """Densities of the cosines within a cloud and, in a second panel, of those of pairs.

    Args:
        by_kind: rows [n, d] each, by ``TEXT``, ``TRANSFERRED`` and ``IMAGE``.
        pairs: two clouds [n, d] whose rows belong together, by a label that says which image is meant.
    """

    def draw(axes: list["Axes"]) -> None:
        for kind, rows in by_kind.items():
            _histogram(axes[0], _STYLES[kind][:2], cosine_density(rows), -1, 1, kind)
        axes[0].set(title="Any two rows of a kind", xlabel="cosine", ylabel="density", xlim=(-0.5, 1))
        axes[0].legend()
        if pairs:
            for style, (label, (one, other)) in zip(_PAIR_STYLES, pairs.items(), strict=False):
                counts = torch.histc(paired_cosines(one, other), BINS // 4, -1, 1)
                _histogram(axes[1], style, counts, -1, 1, label)
            axes[1].set(title="Pairs of text and image", xlabel="cosine", xlim=(-0.5, 1))
            axes[1].legend()

    return drawn(2 if pairs else 1, draw)


def method_pictures(
    method: str, fitted: Fitted, before: Cloud, after: Cloud, images: Cloud | None, pairs: Pairs | None
) -> dict[str, tuple["Figure", str]]:
    """All pictures of one method with their captions, by file name.

    Args:
        method: its name.
        fitted: the method.
        before: texts.
        after: the same, transferred; the samples belong together.
        images: raw images, where there are any.
        pairs: texts and raw images that belong together, where there are any.
    """
    kinds = {TEXT: before, TRANSFERRED: after} | ({IMAGE: images} if images else {})
    lengths = {kind: (cloud.sample.double() - cloud.mean).norm(dim=1) for kind, cloud in kinds.items()}
    samples = {kind: cloud.sample for kind, cloud in kinds.items()}
    labelled = labelled_pairs(method, fitted, pairs) if pairs else None
    raw = images.sample if images else None
    wanted = treated(fitted, images.sample, images.mean) if images and not takes_raw_images(fitted) else None
    made = {
        "spectra": spectra({kind: cloud.spectrum for kind, cloud in kinds.items()}),
        "clouds": clouds(before.sample, after.sample, raw, wanted),
        "norms": norms(lengths, paired_gap(*pairs).residuals if pairs else None),
        "cosines": cosines(samples, labelled),
    }
    captions = {
        "spectra": "Eigenvalues of the covariances",
        "clouds": "Rows along the gap, and on principal axes",
        "norms": "Distances to the mean" + (" and, for pairs, to the mean difference" if pairs else ""),
        "cosines": "Cosines of any two rows of a kind" + (", and of pairs" if pairs else ""),
    }
    return {f"{method}_{name}.png": (made[name], f"{captions[name]}; before and after {method}.") for name in made}


def drawn(panels: int, draw: Callable[[list["Axes"]], None], lines: int = 1, height: float = 4.4) -> "Figure":
    """A figure without pyplot, whose state all callers would share; the Agg backend draws it, without a screen.

    Args:
        panels: beside each other.
        draw: fills them, given line by line.
        lines: of panels.
        height: of a line, in inches; a panel is 4.8 wide.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=(4.8 * panels, height * lines), layout="constrained")
        FigureCanvasAgg(figure)
        draw(list(figure.subplots(lines, panels, squeeze=False).flat))
    return figure


def _signed(axes: torch.Tensor) -> torch.Tensor:
    """Axes [d, q] with signs that do not depend on the library: the largest element of each is positive."""
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * largest.sign()


def _scatter(panel: "Axes", kind: str, rows: torch.Tensor, centre: torch.Tensor, plane: torch.Tensor) -> None:
    colour, _, marker = _STYLES[kind]
    x, y = ((rows[:_POINTS].double() - centre) @ plane).T.numpy()
    panel.scatter(x, y, s=7, marker=marker, color=colour, alpha=0.45, linewidths=0, label=kind)


def _histogram(
    panel: "Axes", style: tuple[str, Any], counts: torch.Tensor, low: float, high: float, label: str
) -> None:
    """One density as steps, filled lightly."""
    colour, line = style
    density = (counts / counts.sum() * len(counts) / (high - low)).numpy()
    edges = torch.linspace(low, high, len(counts) + 1).numpy()
    panel.stairs(density, edges, color=colour, alpha=0.1, fill=True)
    panel.stairs(density, edges, color=colour, linestyle=line, lw=1.6, label=label)

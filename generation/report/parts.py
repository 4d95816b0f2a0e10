"""What sections are made of, and how numbers are written in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"
Row = tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A figure with its name and what it shows, in words."""

    name: str
    figure: "Figure"
    caption: str

    @property
    def wide(self) -> bool:
        """Whether it has several panels beside each other."""
        return bool(self.figure.get_figwidth() > 6)


@dataclass(frozen=True)
class Table:
    """A table; a ``wide`` one stands alone, ``folded`` ones are shown when they are asked for."""

    title: str
    head: Row
    rows: Sequence[Row]
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One section; ``missing`` says what would have to be made to fill it, if it is not full."""

    id: str
    title: str
    lead: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    missing: str = ""


def compared(rows: Sequence[Row]) -> Table:
    """Rows of figure, value here, and the paper's."""
    return Table("Here and in the paper", ("figure", "here", "paper"), rows)


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def number(value: float | str | None) -> str:
    """Four significant digits."""
    if value is None or isinstance(value, str):
        return value or NONE
    return count(value) if isinstance(value, int) else f"{value:.4g}"


def share(part: int, whole: int) -> str:
    """A part in percent."""
    return f"{100 * part / whole:.1f}\u00a0%" if whole else NONE


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f}\u00a0{unit}"
    return f"{seconds:.0f}\u00a0s"


def size(value: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g}\u00a0{unit}"
        value /= 1000
    return f"{value:.3g}\u00a0TB"

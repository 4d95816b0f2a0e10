"""Figures of matplotlib as SVG in a page: their colours become the page's, so that one figure is light and dark."""

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {  # colours of the pictures, and the page's names for them
    "#000000": "--ink",
    "#ffffff": "--surface",
    "#e4e4e4": "--grid",
    "#0072b2": "--blue",
    "#009e73": "--green",
    "#d55e00": "--orange",
    "#cc79a7": "--pink",
    "#8c959f": "--grey",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"\bfont: (?:\d+ )?([\d.]+px)[^;\"]*")  # as matplotlib writes it; the page has a font of its own
_SIZE = re.compile(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')


def inline_svg(figure: "Figure", name: str, text: str) -> Markup:
    """A figure as an ``svg`` element, the same bytes for the same figure, whose layout is kept from then on.

    Args:
        figure: its colours are among ``VARIABLES``.
        name: sets its ids apart from those of the page's other figures.
        text: says what it shows to who does not see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.set_layout_engine("none")  # as it is laid out now; to find that again takes as long as to draw it
    content = buffer.getvalue()
    content = content[content.index("<svg ") :]
    content = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->\s*", "", content, flags=re.DOTALL)
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    content = _FONT.sub(r"font-size: \1", content)
    content = _COLOUR.sub(lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], content)
    return Markup(_SIZE.sub(lambda size: _opening(float(size[1]), float(size[2]), text), content, count=1))


def _opening(width: float, height: float, text: str) -> str:
    return Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" xmlns:xlink="{}">').format(
        text, width, height, "http://www.w3.org/1999/xlink"
    )

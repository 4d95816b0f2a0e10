"""One HTML page about a run: figures, the modality gap, and rows to browse. It fetches nothing."""

import base64
import hashlib
import json
from pathlib import Path

from ..files import write_atomically
from ..prompts import render
from ..store import Run
from .contents import collect


def write_report(
    run: Run, output: Path | None = None, rows: int = 300, images: Path | None = None,
    pairs: tuple[Path, Path] | None = None, usd_per_million: tuple[float, float] | None = None,
) -> Path:  # fmt: skip
    """Write the report of a run, finished or not, and return its path; the same run gives the same bytes.

    ``output`` is the directory to write to (None: ``report`` in the run), ``rows`` the number of captions, and of
    rejected rows, to browse. ``images`` are vectors of unpaired images (.safetensors, .npy) or a folder of pictures,
    ``pairs`` vectors of texts and of their images, row for row. A RunError says that a file of the run cannot be read;
    an EmbeddingError, the same of the vectors.
    """
    html = page(collect(run, rows, images, pairs, usd_per_million))
    path = (output or run.path / "report") / "report.html"
    write_atomically(path, lambda file: file.write_text(html, encoding="utf-8"))
    return path


def page(facts: dict[str, object]) -> str:
    """Return the page that shows ``facts``.

    They are embedded as JSON without ``<``, and shown as text only. A content security policy lets no script run but
    the page's own, whose hash it names.
    """
    folder = Path(__file__).parent
    html, style, script = ((folder / f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    return render(html, {"digest": digest, "style": style, "script": script, "data": data}) + "\n"

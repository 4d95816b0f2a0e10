"""The command ``report``: measures a run, draws its figures and writes the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import STAND_IN
from ..diagnostics.of_run import diagnose_run
from ..diagnostics.pictures import save
from ..diagnostics.report import to_json
from ..errors import RunError
from ..files import seal
from ..progress import progress
from ..rundir import RunDir
from . import sections
from .page import render
from .parts import Section, count
from .rows import browsed, by_shard, neighbours, places, seeds_alone
from .stages import FINISHED, GENERATED, MOVED, NOT_BEGUN, TEXTS, Stage, sessions, stages
from .svg import inline_svg
from .texts import Captions, survey

MOST_ROWS = 1_000  # in the page
GAP_ROWS = 20_000  # of which the gap's means and covariances are: all of them take minutes
GAP_SAMPLE = 4_000  # for what grows with its square


def write_report(
    run_dir: Path,
    output: Path | None = None,
    rows: int = 300,
    images: Path | None = None,
    pairs: tuple[Path, Path] | None = None,
    prices: tuple[float, float] | None = None,
) -> list[Path]:
    """Writes ``report.html`` and its figures as PNG; the same run gives the same bytes.

    Args:
        run_dir: the run; it need not be finished.
        output: where to; None takes ``RUN/report``.
        rows: how many can be browsed in the page, at most.
        images: unpaired images, see ``diagnose_run``.
        pairs: texts and their images, see ``diagnose_run``.
        prices: USD a million prompt tokens and a million answer tokens; None names no cost.

    Returns:
        The files, the page first.

    Raises:
        RunError: no run, a changed shard, ``rows`` out of bounds, or a file that cannot be written.
        EmbeddingError: see ``diagnose_run``.
    """
    if not 1 <= rows <= MOST_ROWS:
        raise RunError(f"--rows {rows}: the page can hold 1 to {MOST_ROWS} rows")
    run, folder = RunDir(run_dir), output or run_dir / "report"
    known = stages(run)
    captions, shown = _read(run, known, rows)
    listed = list(_sections(run, known, captions, prices))
    gap = _gap(run, known, images, pairs)
    listed.insert(next(place for place, section in enumerate(listed) if section.id == "throughput"), gap)
    page = render(_facts(run, known, listed), shown)
    pages = [folder / "report.html"]
    for picture in (picture for section in listed for picture in section.pictures):
        pages.append(folder / f"{picture.name}.png")
        save(picture.figure, pages[-1])
    seal(pages[0], lambda target: target.write_text(page, encoding="utf-8"))
    return pages


def _read(run: RunDir, known: dict[str, Stage], rows: int) -> tuple[Captions | None, list[dict[str, Any]]]:
    """Passes over vectors and captions; figures of the captions, None for none, and the rows to browse."""
    if not known["captions"].rows or not run.sealed("captions"):
        return None, seeds_alone(run, places(run, "seeds", rows)) if run.sealed("seeds") else []
    chosen = places(run, "captions", rows)
    embedded = known[TEXTS].state == FINISHED
    total = known["captions"].rows + (known[TEXTS].rows if embedded else 0)
    with progress("report", total, 0, "row", delay_s=2.0) as bar:
        near = neighbours(run, chosen, bar.update) if embedded else {}
        wanted = by_shard([*chosen, *(place for found in near.values() for _, place in found)])
        captions, texts = survey(run, wanted, bar.update)
        return captions, browsed(run, chosen, texts, near)


def _sections(
    run: RunDir, known: dict[str, Stage], captions: Captions | None, prices: tuple[float, float] | None
) -> Iterator[Section]:
    seeds = run.manifest["stages"].get("seeds", {})
    yield sections.funnel(known, captions, seeds.get("sources", {}))
    none = "There is no caption yet."
    yield sections.lengths(captions) if captions else Section("lengths", "Length of the captions", missing=none)
    yield sections.diversity(captions) if captions else Section("diversity", "Diversity", missing=none)
    counted = sections.statistics(run.manifest["stages"])
    none = "Counted once a task has all its conversations."
    if "multiple_choice" in counted:
        yield sections.letters(counted["multiple_choice"])
    else:
        yield Section("letters", "Balance of the letters", missing=none)
    yield sections.kinds(counted) if counted else Section("questions", "Kinds of questions", missing=none)
    none = "No session has ended yet in which a server was asked."
    told = sessions(run)
    yield sections.throughput(told, known) if told else Section("throughput", "Throughput", missing=none)
    if any(known[name].requests or known[name].completion_tokens for name in GENERATED):
        yield sections.tokens(known, prices)
    else:
        yield Section("tokens", "Tokens and cost", missing="Nothing that was asked of a server is sealed yet.")


def _gap(run: RunDir, known: dict[str, Stage], images: Path | None, pairs: tuple[Path, Path] | None) -> Section:
    """The diagnostics, once all vectors that were begun are there."""
    moved = [stage for name, stage in known.items() if name.startswith(MOVED)]
    whole = known[TEXTS].state == FINISHED and all(stage.state in (FINISHED, NOT_BEGUN) for stage in moved)
    if not (whole and known[TEXTS].rows):
        return Section("gap", "The modality gap", missing="Measured once every caption has its vectors.")
    report = diagnose_run(run, images, pairs, GAP_SAMPLE, most=GAP_ROWS)
    return sections.gap(to_json(report), report.pictures)


def _facts(run: RunDir, known: dict[str, Stage], listed: list[Section]) -> dict[str, Any]:
    """What the template names."""
    record = run.manifest["stages"]
    encoder = record.get(TEXTS, {}).get("fingerprint", {})
    methods = [name.partition("/")[2] for name in known if name.startswith(f"{MOVED}/")]
    models = sorted({known[name].model for name in GENERATED} - {""})
    tiles = [
        ("seeds", count(known["seeds"].rows)),
        ("captions", count(known["captions"].rows)),
        ("conversations", count(sum(known[name].rows for name in GENERATED[1:]))),
        ("vectors", count(known[TEXTS].rows)),
        ("rejected", count(sum(known[name].lost for name in GENERATED))),
        ("answer tokens", count(sum(known[name].completion_tokens for name in GENERATED))),
    ]
    return {
        "name": run.path.resolve().name,
        "began": str(run.manifest.get("created", "")).replace("T", " ").replace("+00:00", " UTC"),
        "code_version": run.manifest.get("code_version", ""),
        "demonstration": any(record.get(name, {}).get("demonstration") for name in GENERATED),
        "rehearsal": STAND_IN in (*models, encoder.get("model")),
        "models": models,
        "encoder": encoder.get("model", ""),
        "dimension": encoder.get("dimension", ""),
        "methods": methods,
        "tiles": tiles,
        "drawn_from": known["captions"].rows or known["seeds"].rows,
        "overview": sections.overview(known),
        "missing": list(sections.missing(known)),
        "sections": listed,
        "svg": {
            picture.name: inline_svg(picture.figure, picture.name, picture.caption)
            for section in listed
            for picture in section.pictures
        },
    }

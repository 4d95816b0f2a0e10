"""The command ``diagnose``: measures a run, or the ground truth, and writes the report."""

from pathlib import Path

from ..errors import RunError
from ..rundir import RunDir
from .report import write

FEWEST_ROWS = 100  # below it nothing that is measured means anything
GROUND_TRUTH = Path("runs/ground_truth")


def diagnose(
    source: Path | int, images: Path | None, pairs: tuple[Path, Path] | None, rows: int, output: Path | None
) -> list[Path]:
    """Writes the report.

    Args:
        source: the run; or the ground truth's dimension.
        images: unpaired images, see ``diagnose_run``.
        pairs: texts and their images, see ``diagnose_run``.
        rows: of a sample, or of ground truth.
        output: where to; None takes the default.

    Returns:
        The files: Markdown, JSON, pictures.

    Raises:
        RunError: options that contradict each other; see also ``diagnose_run``.
        EmbeddingError: see ``diagnose_run``.
    """
    if rows < FEWEST_ROWS:
        raise RunError(f"--rows {rows}: at least {FEWEST_ROWS} are needed for figures that mean anything")
    if isinstance(source, int):
        if images or pairs:
            raise RunError("--ground-truth makes its own images and pairs; leave out --images and --pairs")
        from .of_ground_truth import diagnose_ground_truth

        return write(diagnose_ground_truth(rows, dimension=source), output or GROUND_TRUTH)
    from .of_run import diagnose_run

    return write(diagnose_run(RunDir(source), images, pairs, rows), output or source / "report" / "diagnostics")

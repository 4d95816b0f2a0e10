"""The figures of the papers, as ``figures.yaml`` lists them: those of rows alone, of a transfer, and of two clouds."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..validation import read_yaml


@dataclass(frozen=True)
class Figure:
    """One row of a report.

    Attributes:
        name: its symbol and definition.
        paper: the printed value; empty where there is none.
        note: what a reader must know of it.
    """

    name: str
    paper: str = ""
    note: str = ""


@cache
def figures(kind: str) -> dict[str, Figure]:
    """The figures of one kind (``cloud``, ``transfer``, ``unpaired``, ``gap`` or ``paired``) by key, in order."""
    listed = read_yaml(Path(__file__).with_name("figures.yaml"), "the list of figures")[kind]
    return {key: Figure(**facts) for key, facts in listed.items()}

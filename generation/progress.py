"""One progress bar with rate and ETA a stage: live on a terminal, a line now and then elsewhere."""

import sys
from typing import Never

from tqdm import tqdm


def progress(stage: str, total: int, done: int, unit: str) -> "tqdm[Never]":
    """A bar that counts ``unit`` from ``done`` (made by an earlier run) to ``total``, on stderr."""
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    return tqdm(
        desc=f"{stage:<28}",
        total=total,
        initial=done,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        ncols=100,
    )

"""What a rehearsal measured: for people, for machines, and for benchmarks/README.md."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..config import TASKS
from .answers import CAPTIONS
from .children import bytes_of
from .ground import Ground
from .steps import Done

FULL_ROWS = 1_200_000  # captions that the projection is for
OTHERS_MINUTES, CLIENT_SHARE, DISK_RATIO, PEAK_MB = 25.0, 0.90, 1.3, 1500.0  # aims, at FULL_ROWS on two cores
FLOAT16 = 2  # bytes
GROWS = 1.3  # times: more is said in words


@dataclass(frozen=True)
class Totals:
    """What stands below the table.

    Attributes:
        seconds: of all steps.
        others_s: of them, without the time in which the client was asking.
        client_share: of the server's capacity, over all kinds of requests.
        answered_again: answers to requests that had been answered before.
        disk: by data set, its bytes over those of its text and of its vectors once.
        peak_mb: the most of any process.
    """

    seconds: float
    others_s: float
    client_share: float
    answered_again: int
    disk: dict[str, float]
    peak_mb: float


@dataclass(frozen=True)
class Projection:
    """One stage of ``FULL_ROWS`` captions with a real server."""

    stage: str
    requests: float
    prompt_tokens: float
    answer_tokens: float
    hours: float


def totals(ground: Ground, done: list[Done]) -> Totals:
    """Of all steps of a rehearsal."""
    asked = [asked for step in done for asked in step.asked]
    asking_s = sum(one.seconds for one in asked)
    return Totals(
        seconds=sum(step.took.seconds for step in done),
        others_s=sum(step.took.seconds for step in done) - asking_s,
        client_share=sum(one.answers / one.capacity for one in asked) / max(asking_s, 1e-9),
        answered_again=ground.account.answered_again(),
        disk={path.name: bytes_of(path) / content_bytes(path) for path in ground.built},
        peak_mb=max(step.took.peak_mb for step in done),
    )


def content_bytes(built: Path) -> int:
    """What a built data set holds: captions and conversations as UTF-8, and each vector once."""
    from ..builders.builder import FOLDERS, WITH_EMBEDDINGS

    size = 0
    for path in sorted((built / FOLDERS["default"]).glob("*.parquet")):
        table = pq.read_table(path, columns=["caption", "conversations"])
        values = pc.struct_field(pc.list_flatten(table["conversations"]), "value")
        size += sum(pc.sum(pc.binary_length(column)).as_py() for column in (table["caption"], values))
    for path in (built / FOLDERS[WITH_EMBEDDINGS]).glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            dimension = file.schema_arrow.field("image_embedding").type.list_size
            size += file.metadata.num_rows * dimension * FLOAT16
    return size


def projection(manifest: dict[str, Any], tokens_per_s: float) -> list[Projection]:
    """Requests, tokens and hours of ``FULL_ROWS`` captions and their conversations, in proportion to this run's.

    Args:
        manifest: of a finished run.
        tokens_per_s: answer tokens of all servers together.
    """
    stages = manifest["stages"]
    scale = FULL_ROWS / stages[CAPTIONS]["balance"]["accepted"]
    found = []
    for stage in (CAPTIONS, *(f"instructions/{task}" for task in TASKS)):
        sums = {
            key: scale * sum(session[key] for session in stages[stage]["sessions"])
            for key in ("requests", "prompt_tokens", "completion_tokens")
        }
        hours = sums["completion_tokens"] / tokens_per_s / 3600
        found.append(Projection(stage, sums["requests"], sums["prompt_tokens"], sums["completion_tokens"], hours))
    return found


def markdown(done: list[Done], sums: Totals, projected: list[Projection], tokens_per_s: float) -> str:
    """The tables, in Markdown that reads well as text, too."""
    lines = [
        "| step | rows | rows/s | seconds | CPU s | peak MB | MB on disk |",
        "|---|---|---|---|---|---|---|",
        *map(_row, done),
        "",
        "| asked for | answers | client, answers/s | server's capacity | share |",
        "|---|---|---|---|---|",
    ]
    for one in (asked for step in done for asked in step.asked):
        rate = one.answers / one.seconds if one.seconds else 0.0
        lines.append(f"| {one.kind} | {one.answers:,} | {rate:,.0f} | {one.capacity:,.0f} | {one.share:.2f} |")
    lines += ["", "| in all | here | aim at 1.2M rows |", "|---|---|---|"]
    lines += [f"| {what} | {here} | {aim} |" for what, here, aim in _sums(sums)]
    lines += [
        "",
        f"For {FULL_ROWS:,} captions, with tokens as the stand-in's and {tokens_per_s:,.0f} answer tokens/s:",
        "",
        "| stage | requests | prompt tokens | answer tokens | hours |",
        "|---|---|---|---|---|",
    ]
    for part in projected:
        tokens = f"{part.prompt_tokens / 1e6:,.0f} M | {part.answer_tokens / 1e6:,.0f} M"
        lines.append(f"| {part.stage} | {part.requests:,.0f} | {tokens} | {part.hours:,.1f} |")
    lines.append(f"| together | | | | {sum(part.hours for part in projected):,.1f} |")
    return "\n".join(lines) + "\n"


def as_json(done: list[Done], sums: Totals, projected: list[Projection], **facts: Any) -> dict[str, Any]:
    """The same for machines, without what the commands said."""
    steps = []
    for step in done:
        took = {key: value for key, value in asdict(step.took).items() if key not in ("output", "said")}
        asked = [asdict(one) | {"share": one.share} for one in step.asked]
        steps.append({"name": step.name, "rows": step.rows, "bytes": step.bytes, **took, "asked": asked})
    return facts | {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
        "steps": steps,
        "totals": asdict(sums),
        "projection": [asdict(part) for part in projected],
    }


def growth(by_rows: dict[int, list[Done]]) -> tuple[str, list[str]]:
    """Seconds per 1,000 rows and peak memory of each step at each size, as Markdown; and in words, each step whose
    time grows faster than its rows, or whose memory grows, from the smallest to the largest size."""
    sizes = sorted(by_rows)
    names = [step.name for step in by_rows[sizes[0]]]
    heads = [f"s/1,000 at {rows:,}" for rows in sizes] + [f"peak MB at {rows:,}" for rows in sizes]
    lines = [f"| step | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    said = []
    for name in names:
        found = [next(step for step in by_rows[rows] if step.name == name) for rows in sizes]
        rates = [1000 * step.took.seconds / max(1, step.rows) for step in found]
        peaks = [step.took.peak_mb for step in found]
        lines.append(
            f"| {name} | {' | '.join([f'{rate:.3f}' for rate in rates] + [f'{peak:.0f}' for peak in peaks])} |"
        )
        if rates[-1] > GROWS * min(rates):
            said.append(f"{name}: {rates[-1]:.3f} s per 1,000 rows at {sizes[-1]:,}, {min(rates):.3f} at fewer")
        if peaks[-1] > GROWS * peaks[0]:
            per_row = 1000 * (peaks[-1] - peaks[0]) / max(1, found[-1].rows - found[0].rows)
            said.append(f"{name}: memory grows from {peaks[0]:.0f} to {peaks[-1]:.0f} MB, {per_row:.2f} kB a row")
    return "\n".join(lines) + "\n", said


def _row(step: Done) -> str:
    took = step.took
    numbers = (step.rows, step.rows / took.seconds, took.seconds, took.cpu_s, took.peak_mb, step.bytes / 1e6)
    cells = (f"{number:,.{digits}f}" for number, digits in zip(numbers, (0, 0, 1, 1, 0, 1), strict=True))
    return f"| {step.name} | {' | '.join(cells)} |"


def _sums(sums: Totals) -> list[tuple[str, str, str]]:
    return [
        ("seconds", f"{sums.seconds:,.1f}", ""),
        ("of them without asking", f"{sums.others_s:,.1f}", f"{60 * OTHERS_MINUTES:,.0f}"),
        ("client, of the server's capacity", f"{sums.client_share:.2f}", f"{CLIENT_SHARE:.2f}"),
        ("answers to what had been answered", f"{sums.answered_again:,}", "0"),
        *(
            (f"disk of {name}, of its text and vectors", f"{ratio:.2f}", f"{DISK_RATIO}")
            for name, ratio in sums.disk.items()
        ),
        ("peak memory of any process, MB", f"{sums.peak_mb:,.0f}", f"{PEAK_MB:,.0f}"),
    ]

"""The command line of the miniature: seeds, table, contact sheet."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw

from generation.logs import say, setup

from .study import METHODS, NOT_CENTRED, REAL, SHUFFLED, one_seed
from .world import ANSWERS

ORDER = (SHUFFLED, *METHODS[:3], NOT_CENTRED, *METHODS[3:], REAL)
SHOWN, CAPTION_HEIGHT = 192, 96  # pixels of a picture and of its text in the contact sheet


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table: means over the seeds, and the lowest and highest mean of a seed."""
    head = ["trained on", *ANSWERS, "mean", "lowest-highest", "distance of means", "paired cosine"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---' * (len(head) - 1)}|"]
    for name in ORDER:
        rows = [result["rows"][name] for result in results]
        means = [np.mean([row[key] for key in ANSWERS]) for row in rows]
        cells = [f"{np.mean([row[key] for row in rows]):.2f}" for key in ANSWERS]
        cells += [f"**{np.mean(means):.2f}**", f"{min(means):.2f}-{max(means):.2f}"]
        cells += [
            f"{np.mean([row[key] for row in rows]):.2f}" if key in rows[0] else "" for key in ("distance", "cosine")
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def contact_sheet(result: dict[str, Any], path: Path) -> None:
    """Draw the first twelve held-out pictures with the answers of the default method, wrong ones in red."""
    sheet = Image.new("RGB", (4 * (SHOWN + 8), 3 * (SHOWN + CAPTION_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(12):
        x, y = number % 4 * (SHOWN + 8) + 4, number // 4 * (SHOWN + CAPTION_HEIGHT)
        picture = Image.fromarray(result["pictures"][number]).resize((SHOWN, SHOWN), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        for place, (name, values) in enumerate(ANSWERS.items()):
            said, right = result["answers"][name][number], values[result["scenes"][number][place]]
            text = f"{name}: {said}" + ("" if said == right else f" ({right})")
            draw.text((x, y + SHOWN + 3 + 17 * place), text, fill="black" if said == right else "red", font_size=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    output: Annotated[Path, typer.Option(help="Encoders, runs, table.")] = Path("runs/miniature"),
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet (.png) of the first seed.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs that train the encoder.")] = 24_000,
    steps: Annotated[int, typer.Option(min=20, help="Of the encoder.")] = 1_500,
    texts: Annotated[int, typer.Option(help="Captions that train the language models.")] = 12_000,
    epochs: Annotated[int, typer.Option(help="Of the language models.")] = 3,
) -> None:
    """Train on text by each transfer method, and ask about pictures."""
    setup()
    sizes = {"pairs": pairs, "steps": steps, "texts": texts, "epochs": epochs, "album": 4_000, "pictures": 2_000}
    start = time.monotonic()
    results = [one_seed(output / f"seed-{seed}", seed, sizes) for seed in range(seeds)]
    if sheet:
        contact_sheet(results[0], sheet)
    say(table(results))
    facts: dict[str, Any] = {"seeds": seeds, **sizes, "seconds": round(time.monotonic() - start)}
    facts |= {name: [result[name] for result in results] for name in ("gap", "rows")}
    (output / "table.md").write_text(table(results) + "\n", encoding="utf-8")
    print(json.dumps(facts))


if __name__ == "__main__":
    typer.run(main)

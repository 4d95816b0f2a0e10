"""The command line of the miniature: seeds, table, contact sheet."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from generation.logs import say, setup

from .study import ORDER, SHOWN, one_seed
from .world import ANSWERS

SIDE, CAPTION_HEIGHT = 192, 96  # pixels of a picture and of its text in the contact sheet


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table: means over the seeds, and the lowest and highest mean of a seed."""
    head = ["trained on", *ANSWERS, "mean", "lowest-highest", "distance of means", "paired cosine"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---' * (len(head) - 1)}|"]
    for name in ORDER:
        rows = [result["rows"][name] for result in results]
        means = [np.mean([row[key] for key in ANSWERS]) for row in rows]
        columns = [[row[key] for row in rows if key in row] for key in (*ANSWERS, "distance", "cosine")]
        cells = [f"{np.mean(column):.2f}" if column else "" for column in columns]
        cells[len(ANSWERS) : len(ANSWERS)] = [f"**{np.mean(means):.2f}**", f"{min(means):.2f}-{max(means):.2f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def contact_sheet(result: dict[str, Any], pictures: NDArray[np.uint8], path: Path) -> None:
    """Draw the first twelve held-out pictures with the answers of the default method, wrong ones in red."""
    sheet = Image.new("RGB", (4 * (SIDE + 8), 3 * (SIDE + CAPTION_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(SHOWN):
        x, y = number % 4 * (SIDE + 8) + 4, number // 4 * (SIDE + CAPTION_HEIGHT)
        picture = Image.fromarray(pictures[number]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        for place, (name, values) in enumerate(ANSWERS.items()):
            said, right = result["answers"][name][number], values[result["scenes"][number][place]]
            text = f"{name}: {said}" + ("" if said == right else f" ({right})")
            draw.text((x, y + SIDE + 3 + 17 * place), text, fill="black" if said == right else "red", font_size=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    output: Annotated[Path, typer.Option(help="Encoders, runs, results.")] = Path("runs/miniature"),
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet (.png) of the first seed.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs that train the encoder.")] = 24_000,
    steps: Annotated[int, typer.Option(min=20, help="Of the encoder.")] = 1_500,
    texts: Annotated[int, typer.Option(help="Captions that train the language models.")] = 12_000,
    epochs: Annotated[int, typer.Option(help="Of the language models.")] = 1,
) -> None:
    """Train on text by each transfer method, and ask about pictures. The same command continues where it was left."""
    setup()
    sizes = {"pairs": pairs, "steps": steps, "texts": texts, "epochs": epochs, "album": 4_000, "pictures": 2_000}
    results = [one_seed(output / f"seed-{seed}", seed, sizes) for seed in range(seeds)]
    if sheet:
        contact_sheet(results[0], np.load(output / "seed-0" / "shown.npy"), sheet)
    say(table(results))
    kept = {name: [result[name] for result in results] for name in ("gap", "cosine", "cpu_minutes", "rows")}
    print(json.dumps({"seeds": seeds, **sizes, **kept}))


if __name__ == "__main__":
    typer.run(main)

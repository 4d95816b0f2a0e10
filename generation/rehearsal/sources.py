"""A source of seeds as the web has it, made up: captions, some twice, some dirt; and the recipe that reads it."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from ..config import CONFIGS, STAND_IN
from .scenes import an
from .words import ACTIONS, AGES, ANIMALS, COLOURS, GARMENTS, GROUPS, PEOPLE, PLACES

SOURCE, RECIPE = "captions.txt", "recipe.yaml"
LABELS = CONFIGS.parent / "seed_data" / "domains_full"
RECENT = 1_000  # lines among which one is repeated
MOST_SHARD_ROWS, SHARDS = 10_000, 12  # rows of a shard; how many there are, as long as they are small
# What lines are, of a hundred: exactly one of before, one of before and a word, dirt; all others are new captions.
REPEATED, NEARLY, DIRTY = 4, 3, 8
_PLACES = [place for place in PLACES if ". " not in place]  # a caption's first sentence is its seed: see ``answers``
DIRT = (
    "Visit www.example{0}.com for more pictures of the harbour",
    "Write to user{0}@example.org about this old wooden boat",
    "Old wooden boat in the harbour - stock photo {0}",
    "Ein alter Mann sitzt auf einer Bank und liest das Buch {0}",
    "boat, harbour, water, old, wood, blue, sky, number {0}, summer, holiday",
    "Call 555 0100 {0} for a boat trip around the bay",
)


def write_source(path: Path, captions: int, seed: int = 0) -> int:
    """Writes a text file, one line a caption, the same for the same numbers.

    Args:
        path: the file.
        captions: lines that are neither dirt nor like another one.
        seed: of all draws.

    Returns:
        How many lines there are.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for line in _lines(captions, Random(f"source {seed}")):
            file.write(line + "\n")
            count += 1
    return count


def write_recipe(folder: Path, rows: int, seed: int = 0) -> Path:
    """The recipe of a rehearsal: that of the full size, but for its sources and its encoder.

    Args:
        folder: where it goes, beside the source.
        rows: captions that are wanted; small runs have small shards, so that there are several.
        seed: of the recipe's draws.
    """
    recipe: dict[str, Any] = yaml.safe_load((CONFIGS / "unicorn_1_2m.yaml").read_text(encoding="utf-8"))
    recipe |= {"name": "rehearsal", "random_seed": seed, "embed": {"encoder": STAND_IN}}
    recipe["seeds"] = {
        "shard_rows": min(MOST_SHARD_ROWS, -(-rows // SHARDS)),
        "duplicates": recipe["seeds"]["duplicates"],
        "captions": [{"name": "made_up", "path": SOURCE, "license": "Apache-2.0", "filters": {"min_words": 5}}],
    }
    path = folder / RECIPE
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def _lines(captions: int, rng: Random) -> Iterator[str]:
    labels = [label for path in sorted(LABELS.glob("*.txt")) for label in path.read_text("utf-8").splitlines()]
    recent: deque[str] = deque(maxlen=RECENT)
    made = 0
    while made < captions:
        kind = rng.randrange(100) if recent else 100
        if kind < REPEATED:
            line = rng.choice(recent)
        elif kind < REPEATED + NEARLY:
            line = f"{rng.choice(recent).removesuffix('.')} today."
        elif kind < REPEATED + NEARLY + DIRTY:
            yield rng.choice(DIRT).format(rng.randrange(10**6))
            continue
        else:
            line, made = _caption(rng, labels), made + 1
            recent.append(line)
        yield line


def _caption(rng: Random, labels: list[str]) -> str:
    """One of some 10^13 captions of 15 to 24 words, about two things that the domains' labels name."""
    pick = rng.choice
    first, second = pick(labels), pick(labels)
    (who, _, _), (verb, doing, _) = pick(PEOPLE), pick(ACTIONS)
    things, material, where = pick(GROUPS)
    text = pick(
        (
            f"{an(pick(AGES))} {who} {verb} {pick(_PLACES)}, between {an(first)} and {an(second)} behind.",
            f"{an(first)} stands beside {an(second)} while {an(who)} in {an(pick(COLOURS))} {pick(GARMENTS)} {verb}.",
            f"some {material} {things} {where}, with {an(first)}, {an(second)} and {pick(ANIMALS)} in view.",
            f"{an(who)} is {doing} {pick(_PLACES)}, next to {an(first)} that is half hidden by {an(second)}.",
        )
    )
    return text[0].upper() + text[1:]

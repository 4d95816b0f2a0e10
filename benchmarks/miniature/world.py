"""The made world: scenes of one to three equal objects, their pictures, captions in varied wording, and questions.

Pictures hold much that no caption says, as real ones do: ground colour, gradient, stripes, noise.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # pixels
Scenes = NDArray[np.int64]  # [n, 5], an index into the values of each attribute

# The values of each attribute, as answers name them and as captions may say them.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "yellow": ("yellow", "golden"),
        "purple": ("purple", "violet"),
        "white": ("white", "pale"),
    },
    "shape": {
        "circle": ("circle", "disc", "ball"),
        "square": ("square", "block", "box"),
        "triangle": ("triangle", "wedge"),
        "cross": ("cross", "plus"),
    },
    "size": {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")},
    "place": {
        "left": ("on the left", "at the left edge"),
        "right": ("on the right", "at the right edge"),
        "top": ("at the top", "in the upper half"),
        "bottom": ("at the bottom", "in the lower half"),
    },
    "number": {"one": ("one", "a single"), "two": ("two", "a pair of"), "three": ("three", "a group of three")},
}
ANSWERS = {name: list(values) for name, values in ATTRIBUTES.items()}
WORDINGS = (  # parts are left out with the attribute that they name
    "{number}|{size}|{colour}|{shape}|{place}",
    "{place}|there is {number}|{size}|{colour}|{shape}",
    "a picture of {number}|{colour}|{shape}|, {size} in size|, {place}",
    "{colour}|{shape}|, {number} in all|, {size}|, {place}",
    "we see {size}|{colour}|{shape}|{place}|, and there is {number}",
    "the picture shows {shape}|{place}|in {colour}|, {size}|, {number} of its kind",
)
QUESTIONS = {
    "colour": ("what colour is it", "which colour do you see"),
    "shape": ("what shape is it", "which shape do you see"),
    "size": ("what size is it", "is it small or large"),
    "place": ("where is it", "in which part of the picture is it"),
    "number": ("how many are there", "what is their number"),
}
LEFT_OUT = {"size": 0.5, "place": 0.5, "colour": 0.3}  # share of the encoder's captions that do not say it

_COLOURS = np.array([[220, 40, 40], [40, 180, 60], [50, 80, 230], [235, 220, 50], [160, 50, 190], [245, 245, 245]])
_CENTRES = np.array([[8, 16], [24, 16], [16, 8], [16, 24]])  # x and y of the middle of the objects, by place


def draw_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Return random scenes; attributes are independent and their values equally likely."""
    return np.stack([rng.integers(len(values), size=count) for values in ATTRIBUTES.values()], axis=1)


def render(scenes: Scenes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture of each scene, uint8 [n, 32, 32, 3]."""
    return np.concatenate([_render(scenes[first : first + 1000], rng) for first in range(0, len(scenes), 1000)])


def _render(scenes: Scenes, rng: np.random.Generator) -> NDArray[np.uint8]:
    count, (y, x) = len(scenes), np.mgrid[:SIDE, :SIDE]
    colour, shape, size, place, number = (column.reshape(-1, 1, 1) for column in scenes.T)

    def uniform(low: float, high: float, *last: int) -> NDArray[Any]:
        return rng.uniform(low, high, (count, *(last or (1, 1))))

    grey, tint = uniform(50, 190), uniform(-25, 25, 1, 1, 3)
    gradient = uniform(-1.5, 1.5) * (x - 16) + uniform(-1.5, 1.5) * (y - 16)
    angle = uniform(0, np.pi)
    stripes = uniform(0, 22) * np.sin((x * np.cos(angle) + y * np.sin(angle)) * uniform(0.3, 1.5) + uniform(0, 6))
    picture = (grey + gradient + stripes)[..., None] + tint  # [n, 32, 32, 3]
    radius = np.where(size == 0, 3.0, 5.0) * uniform(0.9, 1.1)
    mid, along_x = _CENTRES[place[:, 0, 0]], place >= 2  # objects stand in a row along the edge
    paint = _COLOURS[colour[:, 0, 0]][:, None, None] + uniform(-20, 20, 1, 1, 3)
    for nth in range(3):
        step = (nth - (number) / 2) * 10.5
        dx = x - (mid[:, 0].reshape(-1, 1, 1) + np.where(along_x, step, 0) + uniform(-2, 2))
        dy = y - (mid[:, 1].reshape(-1, 1, 1) + np.where(along_x, 0, step) + uniform(-2, 2))
        ax, ay = np.abs(dx), np.abs(dy)
        forms = (
            ax**2 + ay**2 <= radius**2,
            np.maximum(ax, ay) <= 0.9 * radius,
            (ay <= radius) & (ax <= (dy + radius) / 1.8),
            (np.minimum(ax, ay) <= 0.35 * radius) & (np.maximum(ax, ay) <= 1.1 * radius),
        )
        inside = np.choose(shape, forms) & (nth <= number)
        picture = np.where(inside[..., None], paint, picture)
    picture = picture + rng.normal(0, 1, picture.shape) * uniform(2, 14, 1, 1, 1)
    return picture.clip(0, 255).astype(np.uint8)  # type: ignore[no-any-return]


def captions(scenes: Scenes, rng: np.random.Generator, complete: bool) -> list[str]:
    """Return a caption of each scene; those that are not complete leave out size, place or colour at random."""
    found = []
    for scene in scenes:
        said = {
            name: _pick(ATTRIBUTES[name][ANSWERS[name][value]], rng)
            for name, value in zip(ATTRIBUTES, scene, strict=True)
            if complete or rng.random() >= LEFT_OUT.get(name, 0)
        }
        parts = [part for part in _pick(WORDINGS, rng).split("|") if re.findall(r"{(\w+)}", part)[0] in said]
        found.append(" ".join(parts).format(**said).removeprefix(", "))
    return found


def conversations(scenes: Scenes, rng: np.random.Generator) -> list[list[dict[str, str]]]:
    """Return the five questions about each scene and their answers, in random order, in LLaVA's format."""
    found = []
    for scene in scenes:
        turns = []
        for place in rng.permutation(len(ATTRIBUTES)):
            name = list(ATTRIBUTES)[place]
            turns.append({"from": "human", "value": _pick(QUESTIONS[name], rng)})
            turns.append({"from": "gpt", "value": ANSWERS[name][scene[place]]})
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        found.append(turns)
    return found


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]

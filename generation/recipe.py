"""Recipes: read from YAML, and checked before any work begins."""

from pathlib import Path
from typing import Any

from .config import CONFIGS, STAND_IN, Embed, Recipe, Seeds, Transfer, caption_sources, instruction_tasks
from .errors import RecipeError
from .validation import read_yaml, validate

# Keys of Transfer that are for some methods alone.
_TRANSFER_KEYS = {
    "images": ("anchor", "realign", "experimental_bc_align", "experimental_aniso_init"),
    "strength": ("anchor",),
    "centroid_iterations": ("realign",),
    "noise_ratio": ("c3", "capdec", "close", "lafite"),
    "bake_noise": ("c3", "capdec", "close", "lafite"),
    "unit_images": ("mean_shift", "unicorn"),
    "memory_rows": ("decap",),
    "image_basis": ("experimental_column_space",),
}


def load_recipe(path: Path, server: dict[str, Any] | None = None) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file.
        server: values of the ``server`` section given on the command line; they win over the file's.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or a key or value in it is wrong. All faults are named.
    """
    if not path.exists():
        known = ", ".join(sorted(str(p) for p in CONFIGS.glob("*.yaml")))
        raise RecipeError(f"recipe {path} does not exist; those that come with the project: {known}")
    data = read_yaml(path, "recipe")
    if "directory" in data:
        raise RecipeError(f"recipe {path}: 'directory' is set by the program; remove it")
    if server:
        section = data.get("server") or {}
        if not isinstance(section, dict):
            raise RecipeError(f"recipe {path}: server must be a mapping, but holds {type(section).__name__}")
        data["server"] = {**section, **server}
    recipe: Recipe = validate(Recipe, {**data, "directory": str(path.resolve().parent)}, f"recipe {path}")
    if faults := _contradictions(recipe):
        raise RecipeError(f"recipe {path}: {'; '.join(faults)}")
    return recipe


def _contradictions(recipe: Recipe) -> list[str]:
    """What is wrong between values that are each right by themselves."""
    bounds = {"captions.min_words": (recipe.captions.min_words, "max_words", recipe.captions.max_words)}
    for name, task in instruction_tasks(recipe).items():
        bounds[f"instructions.{name}.min_items"] = (task.min_items, "max_items", task.max_items)
    faults = [f"{key} {low} > {top} {high}" for key, (low, top, high) in bounds.items() if low > high]
    shares = sum(task.fraction for task in instruction_tasks(recipe).values())
    if not recipe.instructions.overlap and shares > 1:
        faults.append(f"instructions.overlap is false, but the tasks' fractions add up to {shares:g}")
    if recipe.server.give_up_s <= recipe.server.timeout_s:
        faults.append(f"server.give_up_s {recipe.server.give_up_s} must be above timeout_s {recipe.server.timeout_s}")
    faults += _embed_faults(recipe.embed)
    faults += _seed_faults(recipe.seeds)
    faults += _transfer_faults(recipe.transfer, recipe.directory)
    return faults


def _seed_faults(seeds: Seeds) -> list[str]:
    names = [source.name for source in caption_sources(seeds)]
    faults = [f"seeds names '{name}' twice" for name in sorted({n for n in names if names.count(n) > 1})]
    faults += [f"seeds: the name '{n}' begins like a domain's" for n in names if n.startswith("domain_")]
    for source in caption_sources(seeds):
        if source.filters and source.filters.min_words > source.filters.max_words:
            low, top = source.filters.min_words, source.filters.max_words
            faults.append(f"seeds: the filters of '{source.name}' have min_words {low} > max_words {top}")
    if not names and seeds.domains is None:
        faults.append("seeds names no source; give seeds.captions, seeds.hub or seeds.domains")
    return faults


def _transfer_faults(transfer: Transfer, directory: Path) -> list[str]:
    """Keys that the method does not take, or that it needs and lacks."""
    faults = []
    for key, methods in _TRANSFER_KEYS.items():
        given = getattr(transfer, key) != getattr(Transfer(), key)
        if given and transfer.method not in methods:
            faults.append(f"transfer.{key} is for {', '.join(methods)}; method is {transfer.method}")
        if not given and transfer.method in methods and key in ("images", "image_basis"):
            faults.append(f"transfer.method {transfer.method} needs transfer.{key}, a file or folder")
        if given and key in ("images", "image_basis") and not (path := directory / getattr(transfer, key)).exists():
            faults.append(f"transfer.{key} {path}: there is no such file or folder")
    return faults


def _embed_faults(embed: Embed) -> list[str]:
    faults = []
    own = embed.encoder in ("embedded", STAND_IN)
    if own and (embed.text_head or embed.revision or embed.trust_remote_code):
        faults.append(f"embed.encoder is '{embed.encoder}', which takes no text_head, revision or trust_remote_code")
    if embed.text_head is None and embed.text_head_revision:
        faults.append("embed.text_head_revision is given, but no text_head")
    revisions = {"revision": embed.revision}
    if embed.text_head is not None:
        revisions["text_head_revision"] = embed.text_head_revision
    missing = [f"embed.{key}" for key, revision in revisions.items() if revision is None]
    if not own and embed.trust_remote_code and missing:
        faults.append(f"embed.trust_remote_code needs {' and '.join(missing)}: code that runs must be pinned")
    return faults

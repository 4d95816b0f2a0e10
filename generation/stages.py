"""The stages of a run as values: what each is called, what it reads, and what it writes."""

from dataclasses import dataclass

import pyarrow as pa

from .rows import CAPTION_SCHEMA, INSTRUCTION_SCHEMA, JUDGEMENT_SCHEMA, SEED_SCHEMA

TASKS = ("multiple_choice", "question_answering", "complex_reasoning")


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str  # its directory in the run, such as ``instructions/multiple_choice``
    command: str  # the command that makes it, for messages
    source: "Stage | None" = None  # the stage whose shards it reads, one output shard for each; None for seeds
    schema: pa.Schema | None = None  # columns of its rows; None for vectors

    @property
    def suffix(self) -> str:
        """The suffix of a shard's data file."""
        return ".safetensors" if self.schema is None else ".parquet"


SEEDS = Stage("seeds", "seeds", None, SEED_SCHEMA)
CAPTIONS = Stage("captions", "captions", SEEDS, CAPTION_SCHEMA)
INSTRUCTIONS = {task: Stage(f"instructions/{task}", "instructions", CAPTIONS, INSTRUCTION_SCHEMA) for task in TASKS}
TEXT_EMBEDDINGS = Stage("text_embeddings", "embed", CAPTIONS)
CAPTION_JUDGEMENTS = Stage("judgements/captions", "judge", CAPTIONS, JUDGEMENT_SCHEMA)
JUDGEMENTS = {task: Stage(f"judgements/{task}", "judge", INSTRUCTIONS[task], JUDGEMENT_SCHEMA) for task in TASKS}


def image_embeddings(method: str) -> Stage:
    """Return the stage of the synthetic image embeddings that ``method`` makes (``generation/transfer``)."""
    return Stage(f"image_embeddings/{method}", "transfer", TEXT_EMBEDDINGS)


# In the order of the pipeline; image embeddings, one stage a method, come last.
STAGES = (SEEDS, CAPTIONS, CAPTION_JUDGEMENTS, *INSTRUCTIONS.values(), *JUDGEMENTS.values(), TEXT_EMBEDDINGS)

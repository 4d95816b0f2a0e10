"""The stages of a run as values: what each is called, what it reads and writes; and its rows: ids, hashes, columns.

An id never changes and says where its seed is: five digits of shard, five of row ("0000100042" is row 42 of
``seeds/00001.parquet``). Every later stage keeps it. A row that was made from another row also stores that row's
``text_hash``, so that a stale row is found even where the id is the same.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Row = dict[str, Any]

MAX_SHARD_ROWS = 100_000
MAX_SHARDS = 100_000

SEED_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "seed", "source", "license")])

# How a generated row was made: the same columns in captions, instructions, judgements and rejected rows.
_PROVENANCE: list[tuple[str, pa.DataType]] = [
    ("prompt", pa.string()),  # "<prompt id>@<semantic version>"
    ("model", pa.string()),  # as the server names it
    ("sampling_seed", pa.int64()),
    ("attempts", pa.int32()),  # answers that were requested, this one included
    ("prompt_tokens", pa.int64()),  # over all attempts
    ("completion_tokens", pa.int64()),  # over all attempts, thinking excluded
    ("thinking_tokens", pa.int64()),  # over all attempts
]

CONVERSATION = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

CAPTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("instruction", pa.string()),  # human turn of the pre-training conversation, "<image>" included
        *list(SEED_SCHEMA)[1:],
        ("words", pa.int32()),  # of the caption
        ("input_hash", pa.int64()),  # text_hash of the seed
        *_PROVENANCE,
        ("original_id", pa.string()),  # imported rows only, else null
        ("conversations", CONVERSATION),  # imported rows whose conversation is not [instruction, caption], else null
    ]
)

INSTRUCTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the caption
        ("task", pa.string()),
        ("conversations", CONVERSATION),
        ("question_types", pa.list_(pa.string())),  # one a question, in the order of the turns
        ("grounded", pa.list_(pa.float32())),  # one a question: share of its words that the caption supports, 0..1
        ("dropped", pa.list_(pa.string())),  # reasons of the items that were dropped from the accepted answers
        ("input_hash", pa.int64()),  # text_hash of the caption
        *_PROVENANCE,
        ("original_id", pa.string()),  # imported rows only, else null
    ]
)

JUDGEMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # "<id of the row>/<hash of the caption or question that is judged>"
        ("verdict", pa.string()),  # "confirmed", or the reason why the item is dropped
        ("votes", pa.string()),  # the judge's answer as JSON
        ("input_hash", pa.int64()),  # text_hash of what was judged
        *_PROVENANCE,
    ]
)

REJECTED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),  # the last answer, or the server's refusal
        ("request", pa.string()),  # the JSON that was answered so, as it was sent
        ("input_hash", pa.int64()),  # text_hash of the source row's text
        *_PROVENANCE,
    ]
)

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


def row_id(shard: int, row: int) -> str:
    """Return the id of the seed in ``row`` of ``shard``, both counted from 0; a ValueError: one is too high."""
    if not (0 <= shard < MAX_SHARDS and 0 <= row < MAX_SHARD_ROWS):
        raise ValueError(f"shard {shard}, row {row}: both must lie in 0..99999")
    return f"{shard:05d}{row:05d}"


def stable_hash(*key: object) -> int:
    """Return a uniform 63-bit integer that depends on ``key`` alone: the source of every seeded choice. Unlike that of
    a random generator, it does not move when other rows are added, dropped or reordered."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def text_hash(*texts: str) -> int:
    """Return the 63-bit hash by which a row remembers the texts it was made from."""
    return stable_hash("text", *texts)


def select(key: str, ids: Iterable[str], fraction: float) -> set[str]:
    """Return the ``round(fraction * n)`` ids with the lowest stable hash of (key, id): a higher fraction only adds."""
    ordered = sorted(ids, key=lambda id: stable_hash(key, id))
    return set(ordered[: round(fraction * len(ordered))])

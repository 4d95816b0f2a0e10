"""The rows of a run: their ids and the Arrow schemas of their Parquet shards.

An id never changes and says where its seed lives: five digits of shard, five of row ("0000100042" is row 42 of
``seeds/00001.parquet``). Every later stage keeps it.
"""

import hashlib

import pyarrow as pa

MAX_SHARD_ROWS = 100_000
MAX_SHARDS = 100_000

SEED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("seed", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
    ]
)

# How a generated row came to be; the same columns in captions, instructions and rejected rows.
_PROVENANCE: list[tuple[str, pa.DataType]] = [
    ("prompt", pa.string()),  # "<prompt id>@<semantic version>"
    ("model", pa.string()),
    ("sampling_seed", pa.int64()),
    ("attempts", pa.int32()),  # answers asked for, this one included
    ("prompt_tokens", pa.int64()),  # over all attempts
    ("completion_tokens", pa.int64()),  # over all attempts
]

CAPTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("instruction", pa.string()),  # the human turn of the pre-training conversation, "<image>" included
        ("seed", pa.string()),
        ("source", pa.string()),
        *_PROVENANCE,
    ]
)

CONVERSATION = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

INSTRUCTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the caption
        ("task", pa.string()),
        ("conversations", CONVERSATION),
        ("caption_shard", pa.int32()),
        ("caption_row", pa.int32()),
        *_PROVENANCE,
    ]
)

# What rows taken from the original's files have besides. Their prompts, seeds and tokens are not known: null.
_ORIGINAL_ID = pa.field("original_id", pa.string())  # null where the row has none
IMPORTED_CAPTION_SCHEMA = CAPTION_SCHEMA.append(_ORIGINAL_ID).append(
    pa.field("conversations", CONVERSATION)  # only where it is not [instruction, caption]
)
IMPORTED_INSTRUCTION_SCHEMA = INSTRUCTION_SCHEMA.append(_ORIGINAL_ID)

JUDGEMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the conversation, a point, and the turn
        ("conversation", pa.string()),
        ("turn", pa.int32()),  # from 0
        ("follows", pa.string()),  # "yes" or "no"
        *_PROVENANCE,
    ]
)

REJECTED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),  # the last answer, or the server's refusal
        ("request", pa.string()),  # the JSON that was answered so, as it was sent
        *_PROVENANCE,
    ]
)

IMPORTED_REJECTED_SCHEMA = REJECTED_SCHEMA.append(_ORIGINAL_ID)


def row_id(shard: int, row: int) -> str:
    """The id of the seed in ``row`` of ``shard`` (both from 0).

    Raises:
        ValueError: either number does not fit in five digits.
    """
    if not (0 <= shard < MAX_SHARDS and 0 <= row < MAX_SHARD_ROWS):
        raise ValueError(f"shard {shard}, row {row}: both must lie in 0..99999")
    return f"{shard:05d}{row:05d}"


def draw(*key: object) -> int:
    """A uniform 63-bit integer that depends on ``key`` alone: the source of every seeded choice.

    Unlike a random generator's stream, a draw does not move when other rows are added, dropped or reordered.
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1

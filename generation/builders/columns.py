"""Arrow columns of the data sets, made without a Python row."""

import datasets
import numpy as np
import pyarrow as pa

from ..errors import RunError
from ..tensors import EmbeddingShard, text_hashes


def class_label(column: pa.ChunkedArray, label: datasets.ClassLabel) -> pa.ChunkedArray:
    """Names as the integers of ``label``."""
    return pa.compute.index_in(column, value_set=pa.array(label.names)).cast(pa.int64())


def pair_conversations(human: pa.ChunkedArray, gpt: pa.ChunkedArray) -> pa.Array:
    """One human and one gpt turn a row, as ``list<struct<from, value>>``."""
    rows = len(human)
    order = np.arange(2 * rows).reshape(2, rows).T.reshape(-1)  # 0, n, 1, n + 1, ...
    values = pa.concat_arrays([*human.chunks, *gpt.chunks]).take(pa.array(order))
    speakers = pa.array(["human", "gpt"]).take(pa.array(np.tile([0, 1], rows)))
    turns = pa.StructArray.from_arrays([speakers, values], ["from", "value"])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32)), turns)


def conversations_of(table: pa.Table) -> pa.Array:
    """The conversations of a caption shard: instruction and caption, or what an imported row has in their stead."""
    pairs = pair_conversations(table["instruction"], table["caption"])
    if "conversations" not in table.column_names or table["conversations"].null_count == len(table):
        return pairs
    kept = table["conversations"].combine_chunks()
    instead = kept.is_valid().to_numpy(zero_copy_only=False)
    return pa.concat_arrays([pairs, kept]).take(pa.array(np.arange(len(table)) + len(table) * instead))


def vector_column(shard: EmbeddingShard, table: pa.Table) -> pa.Array:
    """The rows' embeddings as ``fixed_size_list<halffloat>[d]``, joined by row number and proven by the text's hash;
    where the rows are those of the shard in order, a view of the mapped file.

    Raises:
        RunError: a row is not in the shard, or its vector was made from another text.
    """
    rows = table["embedding_row"].to_numpy()
    vectors, hashes = shard.embeddings.numpy(), shard.text_sha256.numpy()
    if len(rows) and rows.max() >= len(vectors):
        raise RunError(f"{shard.path} has {len(vectors)} rows; a caption refers to its row {rows.max()}")
    own = text_hashes(table["caption"].to_pylist()).numpy()
    if (differ := (hashes[rows] != own).any(1)).any():
        row = int(rows[differ.argmax()])
        raise RunError(f"{shard.path}, row {row}: the embedding was made from another text than the caption's")
    straight = len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    chosen = vectors[rows[0] : rows[0] + len(rows)] if straight else vectors[rows]
    return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1), pa.float16()), vectors.shape[1])

"""A shuffle on storage: every task writes one file, a batch of it for each shard, and a shard's task reads its batch of each file.

Promise: a file's name is its task's number, so a task that is run again writes the same file; memory holds one file's rows
or one shard's; rows keep the order of their files. Price: the rows are written and read once, as Arrow's own file format, lz4.
After: the sort shuffle of MapReduce and Spark, a file for each task and not one for each task and shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa

from cluster.patience import patiently
from cluster.storage import resolve
from pipelines.curate.piece import whole_file
from pipelines.curate.spans import U64, Ints, mix

__all__ = ["forget", "gather", "scatter", "shard_of"]

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def shard_of(keys: U64 | Ints, num_shards: int) -> Ints:
    """The shard of each key: equal keys share one, and neighbours do not."""
    found: Ints = (mix(keys.astype(np.uint64)) % np.uint64(num_shards)).astype(np.int64)
    return found


@patiently
def scatter(table: pa.Table, shard: Ints, num_shards: int, folder: str, number: int) -> None:
    """Write the rows as file `number` of the folder, those of one shard together."""
    order = np.argsort(shard, kind="stable")
    bounds = np.searchsorted(shard[order], np.arange(num_shards + 1)).tolist()
    table = table.take(pa.array(order)).combine_chunks()
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in table.schema], schema=table.schema)
    with (
        whole_file(f"{folder}/{number:06d}.arrow") as stream,
        pa.ipc.new_file(stream, table.schema, options=_OPTIONS) as writer,
    ):
        for begin, end in pairwise(bounds):
            writer.write_batch(table.slice(begin, end - begin).to_batches()[0] if end > begin else empty)


@patiently
def gather(folder: str, numbers: Iterable[int], shard: int, schema: pa.Schema) -> pa.Table:
    """The rows of a shard from the folder's files of these numbers, in their order."""
    filesystem, path = resolve(folder)
    batches = []
    for number in numbers:
        with filesystem.open_input_file(f"{path}/{number:06d}.arrow") as stream, pa.ipc.open_file(stream) as file:
            batches.append(file.get_batch(shard))
    return pa.Table.from_batches(batches, schema).combine_chunks()


def forget(folder: str) -> None:
    """Delete a shuffle that has been read."""
    filesystem, path = resolve(folder)
    filesystem.delete_dir(path)

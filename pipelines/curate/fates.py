"""What becomes of documents: rows of place and reason on storage, where the task that writes a bundle finds its own.

Promise: whoever drops documents after they were staged writes their fates here, in files whose names follow from the task; a
document without a fate is kept. Of several fates of one document the first counts, in the order of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curate.bundle import bundle_of
from pipelines.curate.shards import gather, scatter

__all__ = ["FATE", "Fates", "read_fates", "write_fates"]

FATE = pa.schema(
    {
        "place": pa.int64(),  # of the document (bundle.py)
        "reason": pa.string(),
        "duplicate_of": pa.string(),  # id of the kept document, for duplicates
        "similarity": pa.float64(),
    }
)


@dataclass(frozen=True, slots=True)
class Fates:
    """Files 0..num_files-1 of a folder, each with a batch for each bundle."""

    folder: str
    num_files: int


def write_fates(table: pa.Table, fates: Fates, number: int, num_bundles: int) -> None:
    """Write rows of `FATE` as file `number`; `num_bundles` counts those of new documents."""
    scatter(table, bundle_of(table["place"].to_numpy()), num_bundles, fates.folder, number)


def read_fates(sources: Sequence[Fates], bundle: int) -> pa.Table:
    """The fates of a bundle's documents by place, one for each."""
    table = pa.concat_tables([gather(s.folder, range(s.num_files), bundle, FATE) for s in sources] or [FATE.empty_table()])
    _, first = np.unique(table["place"].to_numpy(), return_index=True)
    return table.take(pa.array(first))

"""Large files are cut into parts that tasks read side by side: parquet between row groups, plain jsonl between lines.

Promise: the parts of a file hold its records, each once, in order and under the ordinals that they have in the whole file, so
ids are the same; where a file is cut depends on the file alone. Price: a footer for each large parquet file, and one more reading
of each large jsonl file, in tasks, since an ordinal says how many records come before. What is compressed from end to end (.gz,
.zst) must be read from its beginning and stays whole, and so do text, pages, archives and row groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.curate.records import json_lines, open_file
from pipelines.curate.sources import SourceFile
from pipelines.curate.tasks import in_tasks

__all__ = ["divided"]

_PART_BYTES = 8 << 20
_WHOLE_BYTES = 2 * _PART_BYTES  # a file of up to so many stays whole


def divided(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files in order, large ones as parts of about 8 MB. Ray must be attached."""
    large = [file for file in files if file.num_bytes > _WHOLE_BYTES]
    tables = [file for file in large if file.format == "parquet"]
    lines = {file.uri: byte_ranges(file) for file in large if file.uri.lower().endswith(".jsonl")}
    parts = (
        {file.uri: row_ranges(file, groups) for file, groups in zip(tables, in_tasks(row_groups, tables), strict=True)} if tables else {}
    )
    if lines:
        counts = iter(in_tasks(num_records, list(chain.from_iterable(lines.values()))))
        parts |= {uri: list(_numbered(ranges, [next(counts) for _ in ranges])) for uri, ranges in lines.items()}
    return list(chain.from_iterable(parts.get(file.uri) or [file] for file in files))


def byte_ranges(file: SourceFile) -> list[SourceFile]:
    """A file as ranges of its bytes; a line is in the range that it begins in."""
    begins = range(0, file.num_bytes, _PART_BYTES)
    return [replace(file, begin=begin, end=begin + _PART_BYTES, num_bytes=min(_PART_BYTES, file.num_bytes - begin)) for begin in begins]


def num_records(part: SourceFile) -> int | None:
    """The lines of a range that are not blank; None if they cannot be read: its reader will say why."""
    try:
        return sum(1 for _ in json_lines(part.uri, part.begin, part.end))
    except OSError:
        return None


def _numbered(ranges: Sequence[SourceFile], counts: Sequence[int | None]) -> Iterator[SourceFile]:
    """The ranges with the ordinals of their first records; none if one could not be counted."""
    known = [count for count in counts if count is not None]
    if len(known) == len(ranges):
        yield from (replace(part, first=first) for part, first in zip(ranges, accumulate(known[:-1], initial=0), strict=True))


def row_groups(file: SourceFile) -> list[tuple[int, int]]:
    """Rows and bytes of each row group; none if the footer cannot be read: its reader will say why."""
    try:
        with open_file(file.uri) as stream:
            footer = pq.read_metadata(stream)
    except (OSError, pa.ArrowException):
        return []
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    return [(group.num_rows, group.total_byte_size) for group in groups]


def row_ranges(file: SourceFile, groups: Sequence[tuple[int, int]]) -> list[SourceFile]:
    """A file as runs of its row groups, each of about `_PART_BYTES` of the file or one group."""
    share = file.num_bytes / max(sum(size for _, size in groups), 1)
    parts: list[SourceFile] = []
    begin = first = rows = 0
    held = 0.0
    for number, (num_rows, size) in enumerate(groups, start=1):
        held, rows = held + size * share, rows + num_rows
        if held >= _PART_BYTES or number == len(groups):
            parts.append(replace(file, begin=begin, end=number, first=first, num_bytes=round(held)))
            begin, first, held = number, rows, 0.0
    return parts

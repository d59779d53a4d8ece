"""`sterna curate`: from raw text to a corpus, step by step.

Promise: the documents kept and dropped are a function of the input and the configuration, whatever the number of tasks and
however often one is retried; documents in = kept + the sum of the dropped by reason, checked before anything is published.
Price: each text is read once, kept on storage between the steps, and read again to be written. Every step before and after
the duplicates runs document by document in Ray Data tasks of some MB; see dedup.py for the one that compares them.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.runtime import attached
from cluster.storage import digest_of, list_files, resolve
from pipelines.curate.account import balance, figures, headline, nothing_left
from pipelines.curate.config import CurateConfig
from pipelines.curate.dedup import Signatures, Verdicts, duplicates
from pipelines.curate.piece import count_rows, read_piece, refuse_if_elsewhere, write_piece
from pipelines.curate.sources import SourceFile, chunked, find_files, read_files, sampled
from pipelines.curate.steps import SUMMARY, drop_by_quality, normalise, sign, stage, timed, write
from pipelines.streaming import streaming

__all__ = ["curate"]

_WHOLE: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
_STAGED = "staged"


def curate(config: CurateConfig) -> Artifact:
    """Read, normalise, judge, sign, find the duplicates, write, account; the corpus as an artifact.

    Raises ValueError for input that is missing, empty or wholly unreadable, and when no document is left.
    """
    files = sampled(find_files(config.input), config.max_bytes, config.seed)
    inputs = {"text": digest_of([[f.uri, f.num_bytes, f.modified_ns] for f in files])}
    if (done := finished(config.output, stage="curate", inputs=inputs, config=config)) is not None:
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage="curate", inputs=inputs, config=config) as draft, attached(), streaming():
        clock = [time.monotonic()]
        staged = stage_documents(files, config, draft)
        refuse_if_nothing_left(staged, draft)
        clock.append(time.monotonic())
        signatures = signatures_of(staged, config)
        verdicts = duplicates(signatures, staged["piece"].to_pylist(), config)
        clock.append(time.monotonic())
        counted = write_corpus(staged, signatures, verdicts, draft.uri)
        clock.append(time.monotonic())
        account(draft, staged, counted, sum(f.num_bytes for f in files), clock)
        refuse_if_elsewhere(config.output, "documents", _documents_in(draft.uri), int(draft.counts["documents_in"]))
        clear_staged(draft)
    return open_artifact(config.output, made_by="curate")


def stage_documents(files: list[SourceFile], config: CurateConfig, draft: Draft) -> pa.Table:
    """Read, normalise, judge and sign every document and keep it on storage: a `SUMMARY` row for each piece, in reading order.

    An interrupted run that got this far finds the summary again.
    """
    summary = f"{draft.uri}/{_STAGED}/summary"
    if draft.resumed and _exists(summary):
        return read_piece(summary)
    staged = (
        ray.data.from_arrow(chunked(files, config.num_partitions))
        .map_batches(partial(timed, "read", partial(read_files, text_field=config.text_field)), **_WHOLE)
        .map_batches(partial(timed, "normalise", normalise), **_WHOLE)
        .map_batches(partial(timed, "quality", partial(drop_by_quality, profile=config.profile)), **_WHOLE)
        .map_batches(partial(timed, "minhash", partial(sign, config=config)), **_WHOLE)
        .map_batches(partial(stage, folder=f"{draft.uri}/{_STAGED}", num_bands=config.bands), **_WHOLE)
    )
    rows = [table.cast(SUMMARY) for table in staged.iter_batches(**_WHOLE) if table.num_rows]
    table = pa.concat_tables([SUMMARY.empty_table(), *rows]).sort_by("first").combine_chunks()
    refuse_if_elsewhere(config.output, "documents", count_rows(table["piece"].to_pylist()), sum(table["documents_in"].to_pylist()))
    write_piece(table, summary)
    return table


def refuse_if_nothing_left(staged: pa.Table, draft: Draft) -> None:
    """ValueError, and no trace of the attempt, when no document passed."""
    if not any(staged["row"].to_pylist()):
        reasons, unreadable = (list(chain.from_iterable(staged[name].to_pylist())) for name in ("reasons", "unreadable"))
        draft.disposable = [_STAGED]
        raise ValueError(nothing_left(reasons, unreadable))


def signatures_of(staged: pa.Table, config: CurateConfig) -> Signatures:
    """The pieces' summaries as one table of the documents that are left."""
    number = pa.array(np.arange(staged.num_rows))
    lengths = staged["row"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    flat = {
        name: staged[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in ("row", "id", "num_chars", "has_words")
    }
    return Signatures(
        piece=np.repeat(number.to_numpy(), lengths),
        row=flat["row"],
        id=flat["id"].astype("S32"),
        num_chars=flat["num_chars"],
        digest=np.frombuffer(b"".join(staged["digest"].to_pylist()), "V16"),
        bands=np.frombuffer(b"".join(staged["bands"].to_pylist()), np.uint64).reshape(-1, config.bands),
        has_words=flat["has_words"].astype(bool),
    )


def write_corpus(staged: pa.Table, signatures: Signatures, verdicts: Verdicts, folder: str) -> list[dict[str, Any]]:
    """Write kept/ and dropped/; a row of counts for each piece, reason and kind."""
    piece = signatures.piece[verdicts.document]
    fates = []
    for number, uri in enumerate(staged["piece"].to_pylist()):
        mine = np.flatnonzero(piece == number)
        fate = {
            "piece": uri,
            "number": number,
            "row": signatures.row[verdicts.document[mine]].tolist(),
            "reason": ["duplicate.exact" if exact else "duplicate.near" for exact in verdicts.exact[mine]],
            "duplicate_of": [kept.decode() for kept in signatures.id[verdicts.kept[mine]]],
            "similarity": verdicts.similarity[mine].tolist(),
        }
        fates.append(pa.Table.from_pylist([fate], _FATE))
    return ray.data.from_arrow(fates).map_batches(partial(write, folder=folder), **_WHOLE).take_all()


_FATE = pa.schema(
    {
        "piece": pa.string(),
        "number": pa.int64(),
        "row": pa.list_(pa.int64()),
        "reason": pa.list_(pa.string()),
        "duplicate_of": pa.list_(pa.string()),
        "similarity": pa.list_(pa.float64()),
    }
)


def account(draft: Draft, staged: pa.Table, counted: list[dict[str, Any]], bytes_in: int, clock: list[float]) -> None:
    """Counts that add up, figures and metrics."""
    draft.counts = balance(sum(staged["documents_in"].to_pylist()), counted)
    kept_bytes = sum(row["num_bytes"] for row in counted if not row["reason"])
    seconds = dict(zip(("documents", "duplicates", "write"), np.diff(clock).round(3).tolist(), strict=True))
    inside: dict[str, float] = {}
    for name, value in (pair for pairs in staged["seconds"].to_pylist() for pair in pairs):
        inside[name] = inside.get(name, 0.0) + value
    total = clock[-1] - clock[0]
    draft.metrics = {
        "seconds": seconds,
        "task_seconds": {name: round(value, 3) for name, value in inside.items()},
        "bytes_in": bytes_in,
        "bytes_kept": kept_bytes,
        "documents_per_second": round(draft.counts["documents_in"] / total, 1),
        "megabytes_per_second": round(bytes_in / total / 1e6, 2),
    }
    draft.figures = figures(counted)
    draft.headline = headline(draft.counts, kept_bytes)


def clear_staged(draft: Draft) -> None:
    """Delete the pieces: they are working state, not part of the corpus.

    The summary goes first: who finds it may trust that every piece it names is there.
    """
    filesystem, path = resolve(f"{draft.uri}/{_STAGED}")
    filesystem.delete_file(f"{path}/summary")
    filesystem.delete_dir(path)


def _documents_in(folder: str) -> int:
    places = (f"{folder}/kept", f"{folder}/dropped")
    return count_rows(f"{place}/{name}" for place in places for name in list_files(*resolve(place)) if name.endswith(".parquet"))


def _exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).is_file)

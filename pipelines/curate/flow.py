"""`sterna curate`: from raw text to a corpus, step by step.

Promise: the documents kept and dropped are a function of the input and the configuration, whatever the number of tasks and
however often one is retried; documents in = kept + the sum of the dropped by reason, checked before anything is published.
Price: each text is read once, kept on storage between the steps, and read again to be written. Every step before and after
the duplicates runs document by document in Ray Data tasks of some MB; see dedup.py for the one that compares them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
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
from pipelines.curate import decontaminate
from pipelines.curate.account import balance, figures, headline, nothing_left
from pipelines.curate.against import earlier, pieces_of
from pipelines.curate.bundle import Bundle, Piece, bundled
from pipelines.curate.chosen import Marks, choice_inputs, choose_documents, told
from pipelines.curate.config import CurateConfig
from pipelines.curate.dedup import Comparison, duplicates
from pipelines.curate.divide import divided
from pipelines.curate.fates import Fates
from pipelines.curate.judges import Judges, judge_figures, judge_inputs, judging_steps, train_judges
from pipelines.curate.paragraphs import Cuts, find_repeated
from pipelines.curate.piece import count_rows, read_piece, refuse_if_elsewhere, write_piece
from pipelines.curate.reading import read_files
from pipelines.curate.records import Fields
from pipelines.curate.signature import SIGNATURE_FORM
from pipelines.curate.sources import SourceFile, chunked, find_files, outside, sampled
from pipelines.curate.steps import SUMMARY, normalise, sign, stage, timed
from pipelines.curate.tasks import in_tasks
from pipelines.curate.write import PLACES, write_bundle
from pipelines.streaming import streaming

__all__ = ["curate"]

_WHOLE: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
_STAGED = "staged"


def curate(config: CurateConfig) -> Artifact:
    """Read, normalise, judge, sign, find the duplicates, write, account; the corpus as an artifact.

    Raises ValueError for input that is missing, empty or wholly unreadable, and when no document is left.
    """
    files = sampled(outside(find_files(config.input), config.output), config.max_bytes, config.seed)
    old = earlier(config)
    inputs = {"text": digest_of([[f.uri, f.num_bytes, f.modified_ns] for f in files]), **judge_inputs(config)}
    inputs |= decontaminate.evaluation_inputs(config) | choice_inputs(config)
    inputs |= {"against": digest_of([corpus.digest for corpus in old])} if old else {}
    if (done := finished(config.output, stage="curate", inputs=inputs, config=config)) is not None:
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage="curate", inputs=inputs, config=config) as draft, attached(), streaming():
        clock = [time.monotonic()]
        judges, learnt = train_judges(config)
        draft.metrics |= {"judges": learnt} if learnt else {}
        staged = stage_documents(files, judges, config, draft)
        refuse_if_nothing_left(staged, draft)
        clock.append(time.monotonic())
        bundles = bundled(_pieces(staged), [pieces_of(corpus) for corpus in old], config.task_bytes)
        compared = duplicates(bundles, config, f"{draft.uri}/{_STAGED}")
        fates = [compared.fates]
        clock.append(time.monotonic())
        chosen = choose_documents(bundles, fates, config, f"{draft.uri}/{_STAGED}") if config.marks else None
        fates += [] if chosen is None else [chosen.fates]
        clock.append(time.monotonic())
        cuts = find_repeated(bundles, fates, config, f"{draft.uri}/{_STAGED}") if config.paragraphs else None
        counted = write_corpus(bundles, fates, cuts, None if chosen is None else chosen.marks, config, draft.uri)
        clock.append(time.monotonic())
        account(draft, staged, counted, compared, sum(f.num_bytes for f in files), clock, config)
        hits = list(chain.from_iterable(staged["hits"].to_pylist()))
        for metrics, drawn in (decontaminate.told(config, hits), told(config, chosen)):
            draft.metrics |= metrics
            draft.figures |= drawn
        refuse_if_elsewhere(config.output, "documents", _documents_in(draft.uri), int(draft.counts["documents_in"]))
        clear_staged(draft)
    return open_artifact(config.output, made_by="curate")


def stage_documents(files: list[SourceFile], judges: Judges, config: CurateConfig, draft: Draft) -> pa.Table:
    """Read, normalise, judge and sign every document and keep it on storage: a `SUMMARY` row for each piece, in reading order.

    An interrupted run that got this far finds the summary again.
    """
    summary = f"{draft.uri}/{_STAGED}/summary"
    if draft.resumed and _exists(summary):
        return read_piece(summary)
    fields = Fields(config.text_field, config.id_field, config.date_field)
    steps = [("read", partial(read_files, fields=fields)), ("normalise", normalise), *judging_steps(config, ray.put(judges))]
    chunks = chunked(divided(files), config.num_partitions)
    steps += decontaminate.steps(config, chunks, fields)
    staged = ray.data.from_arrow(chunks)
    for name, step in [*steps, ("minhash", partial(sign, config=config))]:
        staged = staged.map_batches(partial(timed, name, step), **_WHOLE)
    staged = staged.map_batches(partial(stage, folder=f"{draft.uri}/{_STAGED}", config=config), **_WHOLE)
    rows = [table.cast(SUMMARY) for table in staged.iter_batches(**_WHOLE) if table.num_rows]
    table = pa.concat_tables([SUMMARY.empty_table(), *rows]).sort_by("first").combine_chunks()
    refuse_if_elsewhere(config.output, "documents", count_rows(table["piece"].to_pylist()), sum(table["documents_in"].to_pylist()))
    write_piece(table, summary)
    return table


def refuse_if_nothing_left(staged: pa.Table, draft: Draft) -> None:
    """ValueError, and no trace of the attempt, when no document passed."""
    if not sum(staged["num_documents"].to_pylist()):
        reasons: Counter[str] = Counter()
        for reason, number in chain.from_iterable(staged["reasons"].to_pylist()):
            reasons[reason] += number
        draft.disposable = [_STAGED]
        raise ValueError(nothing_left(reasons, list(chain.from_iterable(staged["unreadable"].to_pylist()))))


def _pieces(staged: pa.Table) -> list[Piece]:
    names = ("piece", "signatures", "num_documents", "num_chars")
    return [Piece(*values) for values in zip(*(staged[name].to_pylist() for name in names), strict=True)]


def write_corpus(
    bundles: Sequence[Bundle], fates: Sequence[Fates], cuts: Cuts | None, marks: Marks | None, config: CurateConfig, folder: str
) -> list[dict[str, Any]]:
    """Write kept/, dropped/ and signatures/ of the new documents; a row of counts for each piece, reason and kind."""
    new = [bundle for bundle in bundles if not bundle.settled]
    return list(chain.from_iterable(in_tasks(write_bundle, new, fates, cuts, marks, config, folder)))


def account(
    draft: Draft,
    staged: pa.Table,
    counted: list[dict[str, Any]],
    compared: Comparison,
    bytes_in: int,
    clock: list[float],
    config: CurateConfig,
) -> None:
    """Counts that add up, figures and metrics."""
    draft.counts = balance(sum(staged["documents_in"].to_pylist()), counted)
    kept_bytes = sum(row["num_bytes"] for row in counted if not row["reason"])
    seconds = dict(zip(("documents", "duplicates", "selection", "write"), np.diff(clock).round(3).tolist(), strict=True))
    inside: dict[str, float] = {}
    for name, value in chain.from_iterable(staged["seconds"].to_pylist()):
        inside[name] = inside.get(name, 0.0) + value
    total = clock[-1] - clock[0]
    draft.metrics |= {
        "seconds": seconds,
        "task_seconds": {name: round(value, 3) for name, value in inside.items()},
        "bytes_in": bytes_in,
        "bytes_kept": kept_bytes,
        "documents_per_second": round(draft.counts["documents_in"] / total, 1),
        "megabytes_per_second": round(bytes_in / total / 1e6, 2),
        "candidates": compared.num_candidates,
        "edges": compared.num_edges,
        "rounds": compared.rounds,
        "compare_seconds": compared.seconds,
        "signature_form": SIGNATURE_FORM,
        **({"paragraphs_cut": sum(row["paragraphs_cut"] for row in counted)} if config.paragraphs else {}),
    }
    draft.figures = figures(counted, draft.metrics, compared.similarities, config.threshold)
    draft.figures |= judge_figures(draft.metrics.get("judges", {}))
    draft.headline = headline(draft.counts, kept_bytes, len(config.against))


def clear_staged(draft: Draft) -> None:
    """Delete the pieces, which are working state and not part of the corpus, and what killed tasks left half written.

    The summary goes first: who finds it may trust that every piece it names is there.
    """
    for place in PLACES:
        filesystem, path = resolve(f"{draft.uri}/{place}")
        for name in list_files(filesystem, path):
            if not name.endswith(".parquet"):
                filesystem.delete_file(f"{path}/{name}")
    filesystem, path = resolve(f"{draft.uri}/{_STAGED}")
    filesystem.delete_file(f"{path}/summary")
    filesystem.delete_dir(path)


def _documents_in(folder: str) -> int:
    places = (f"{folder}/kept", f"{folder}/dropped")
    return count_rows(f"{place}/{name}" for place in places for name in list_files(*resolve(place)) if name.endswith(".parquet"))


def _exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).is_file)

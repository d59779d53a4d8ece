"""`sterna tokenize`: from a corpus to sequences of tokens of one length, with segment ids.

Promise: every document is either held out, as text, or in the shards exactly once, each with its end-of-text token; decoding
its segments in order gives its text back; the shards are a function of the corpus and the configuration alone. Attention and
loss need never cross documents: a token's segment id says whose it is (0: padding). Price: the corpus is read twice, a task
holds one shard; training the tokenizer takes some seconds. Documents are ordered by a seeded hash of their ids and cut into
shards by ranges of it, so no sort and no count of tokens comes first; or, where the corpus has an order (a curriculum), by it: then
`index.npy` says in which order training takes the sequences, which is the documents' to within `bucket_sequences`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import xxhash

from cluster import figure
from cluster.artifact import Artifact, Draft, finished, open_artifact, publish
from cluster.console import say
from cluster.runtime import attached
from cluster.storage import digest_of, resolve
from pipelines.config import TokenizeConfig
from pipelines.curate.piece import read_piece, refuse_if_elsewhere, write_piece
from pipelines.pack import fill, mean_places, pack, split
from pipelines.streaming import streaming
from pipelines.vocabulary import Vocabulary, copy_tokenizer, open_tokenizer, save_tokenizer, train_tokenizer

__all__ = ["tokenize"]

_WHOLE: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
_CHARS_PER_TOKEN = 3.0  # about; only decides how many shards there are
_LENGTH_BINS = 32  # powers of two
_ORDER_BUCKETS, _LEAST_BUCKET = 64, 8  # an ordered shard is packed in so many buckets, if each gets so many sequences
HELD_OUT = pa.schema({"id": pa.string(), "source": pa.string(), "kind": pa.string(), "text": pa.large_string()})


def tokenize(config: TokenizeConfig) -> Artifact:
    """Hold documents out, get a tokenizer, tokenise and pack, account; the tokens as an artifact.

    Raises ValueError for a folder that is not a corpus, a tokenizer that cannot be used, and when nothing is left to train on.
    """
    corpus = open_artifact(config.corpus, made_by="curate")
    given = None if config.tokenizer is None else open_tokenizer(Path(config.tokenizer))
    inputs = {"corpus": corpus.digest, **({} if given is None else {"tokenizer": digest_of(given.serialized)})}
    if (done := finished(config.output, stage="tokenize", inputs=inputs, config=config)) is not None:
        say(f"{config.output}: already done")
        return done
    with publish(config.output, stage="tokenize", inputs=inputs, config=config) as draft, attached(), streaming():
        clock = [time.monotonic()]
        files = [f"{corpus.uri}/{name}" for name in sorted(corpus.manifest.files) if name.startswith("kept/")]
        index = index_documents(files, config)
        sample = set_aside(files, index, config, draft)
        clock.append(time.monotonic())
        vocabulary = get_tokenizer(sample, config, draft)
        clock.append(time.monotonic())
        shards = write_shards(files, index, vocabulary, config, draft)
        ordered = write_index(index, shards, draft)
        clock.append(time.monotonic())
        account(draft, config, index, shards, vocabulary, clock)
        draft.metrics["ordered"] = ordered
        if "://" not in draft.uri:
            refuse_if_elsewhere(config.output, "sequences", _sequences_in(draft.dir), draft.metrics["num_sequences"])
    return open_artifact(config.output, made_by="tokenize")


def index_documents(files: list[str], config: TokenizeConfig) -> pa.Table:
    """One row for each document: file (number), row, num_chars, order, held_out, sample (whether the tokenizer learns from it).

    `order` is null where the corpus has none.
    """
    columns = [read_piece(file, ["id", "num_chars", "order"]) for file in files]
    ids = [document for table in columns for document in table["id"].to_pylist()]
    sizes = np.concatenate([table["num_chars"].to_numpy() for table in columns])
    held_out = _chosen_by_hash(ids, config.held_out)
    if held_out.all():
        raise ValueError(f"{config.corpus}: its {len(ids)} documents are all held out; lower --held-out or curate more text")
    rank = np.argsort([xxhash.xxh3_64_intdigest(f"sample {i}".encode(), config.seed) for i in ids])
    rank = rank[~held_out[rank]]
    sample = np.zeros(len(ids), bool)
    sample[rank[np.cumsum(sizes[rank]) - sizes[rank] < config.sample_bytes]] = True
    return pa.table(
        {
            "file": np.repeat(np.arange(len(files)), [len(t) for t in columns]),
            "row": np.concatenate([np.arange(len(t)) for t in columns]),
            "num_chars": sizes,
            "order": pa.concat_tables(columns)["order"],
            "held_out": held_out,
            "sample": sample & (config.tokenizer is None),
        }
    )


def set_aside(files: list[str], index: pa.Table, config: TokenizeConfig, draft: Draft) -> list[str]:
    """Write the held-out documents, and return the texts that the tokenizer learns from."""
    wanted = _by_file(files, index.filter(pc.or_(index["held_out"], index["sample"])))
    sample: list[str] = []
    with pq.ParquetWriter(draft.dir / "held_out.parquet", HELD_OUT, compression="zstd") as writer:
        if wanted:
            for batch in ray.data.from_arrow(wanted).map_batches(_fetch, **_WHOLE).iter_batches(**_WHOLE):
                writer.write_table(batch.filter(batch["held_out"]).select(HELD_OUT.names).cast(HELD_OUT))
                sample.extend(batch.filter(batch["sample"])["text"].to_pylist())
    return sample


def get_tokenizer(sample: list[str], config: TokenizeConfig, draft: Draft) -> Vocabulary:
    """Train on the sample, or copy the one that is given, into tokenizer/; an interrupted run finds its own again."""
    folder = draft.dir / "tokenizer"
    if config.tokenizer is not None:
        copy_tokenizer(Path(config.tokenizer), folder)
    elif not (draft.resumed and (folder / "tokenizer_config.json").exists()):
        train = ray.remote(num_cpus=1)(train_tokenizer)  # in a process of its own: its threads and the driver's forks do not mix
        save_tokenizer(ray.get(train.remote(sample, config.vocab_size)), folder)
    return open_tokenizer(folder)


def write_shards(files: list[str], index: pa.Table, vocabulary: Vocabulary, config: TokenizeConfig, draft: Draft) -> list[dict[str, Any]]:
    """Tokenise the documents that are not held out and pack them into shards; one row of figures for each shard."""
    trained = index.filter(pc.invert(index["held_out"]))
    num_tokens = pc.sum(trained["num_chars"]).as_py() / _CHARS_PER_TOKEN
    num_shards = max(1, round(num_tokens / config.length / config.shard_sequences))
    if is_ordered(index):
        trained = trained.append_column("shard", _shards_in_order(trained, num_shards))
    shared = ray.put(vocabulary)
    encoded = ray.data.from_arrow(_by_file(files, trained)).map_batches(
        partial(_encode, vocabulary=shared, config=config, num_shards=num_shards), **_WHOLE
    )
    together = encoded.repartition(1) if num_shards == 1 else encoded.repartition(num_shards, keys=["shard"])
    write = partial(_write_shards, folder=f"{draft.uri}/shards", config=config, pad=vocabulary.pad, ordered=is_ordered(index))
    return sorted(together.map_batches(write, **_WHOLE).take_all(), key=lambda row: row["shard"])


def is_ordered(index: pa.Table) -> bool:
    """Whether the corpus says in which order its documents are to be trained on."""
    return bool(index["order"].null_count == 0)


def write_index(index: pa.Table, shards: list[dict[str, Any]], draft: Draft) -> bool:
    """Where the corpus has an order, write that of the sequences: each at the mean place of its tokens' documents."""
    if not is_ordered(index):
        return False
    order = np.argsort(np.concatenate([row["places"] for row in shards]), kind="stable")
    np.save(draft.dir / "index.npy", order)
    return True


def account(
    draft: Draft, config: TokenizeConfig, index: pa.Table, shards: list[dict[str, Any]], vocabulary: Vocabulary, clock: list[float]
) -> None:
    """Counts that add up, metrics, the figure of lengths and the headline."""
    held_out = pc.sum(index["held_out"]).as_py()
    total = {name: sum(row[name] for row in shards) for name in ("documents", "sequences", "tokens", "num_bytes")}
    assert index.num_rows == total["documents"] + held_out, (
        f"{index.num_rows} documents in, {total['documents']} in shards, {held_out} held out"
    )
    draft.counts = {"documents_in": index.num_rows, "documents_trained": total["documents"], "documents_held_out": held_out}
    places = total["sequences"] * config.length
    draft.metrics = {
        "vocab_size": vocabulary.size,
        "sequence_length": config.length,
        "num_sequences": total["sequences"],
        "num_tokens": total["tokens"],
        "bytes_per_token": round(total["num_bytes"] / total["tokens"], 4),
        "padding_share": round(1 - total["tokens"] / places, 6),
        "num_shards": len(shards),
        "seconds": dict(zip(("set_aside", "tokenizer", "shards"), np.diff(clock).round(3).tolist(), strict=True)),
        "megabytes_per_second": round(total["num_bytes"] / (clock[-1] - clock[-2]) / 1e6, 2),
    }
    lengths = np.sum([row["lengths"] for row in shards], axis=0)
    labels = [f"≤ {1 << power:,}" for power in range(len(lengths))]
    shown = slice(int(np.argmax(lengths > 0)), len(lengths) - int(np.argmax(lengths[::-1] > 0)))
    bars = dict(zip(labels[shown], lengths[shown].tolist(), strict=True))
    draft.figures = {"lengths": figure.bars("Documents by length in tokens", "documents", {"documents": bars}, ordered=True)}
    draft.headline = (
        f"{total['tokens'] / 1e6:.2f} M tokens in {total['sequences']:,} sequences of {config.length}, "
        f"{draft.metrics['bytes_per_token']:.1f} bytes a token"
    )


def _shards_in_order(trained: pa.Table, num_shards: int) -> pa.Array:
    """For each document the shard that its place in the order falls into, by characters."""
    along = np.argsort(trained["order"].to_numpy())
    sizes = trained["num_chars"].to_numpy()[along]
    before = np.cumsum(sizes) - sizes
    shard = np.empty(len(along), np.int64)
    shard[along] = before * num_shards // max(1, int(sizes.sum()))
    return pa.array(shard)


def _chosen_by_hash(ids: list[str], share: float) -> np.ndarray:
    """About `share` of the ids, always the same; at least one of several, if any are wanted."""
    keys = np.array([xxhash.xxh3_64_intdigest(f"held out {i}".encode()) for i in ids], np.uint64)
    chosen = keys < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if share > 0 and len(ids) > 1 and not chosen.any():
        chosen[np.argmin(keys)] = True
    return chosen


def _by_file(files: list[str], rows: pa.Table) -> list[pa.Table]:
    """The index's rows, a table for each file that has some, with its URI."""
    bounds = np.searchsorted(rows["file"].to_numpy(), np.arange(len(files) + 1)).tolist()
    tables = (rows.slice(begin, end - begin) for begin, end in pairwise(bounds))
    return [t.append_column("uri", pa.array([file] * len(t))) for file, t in zip(files, tables, strict=True) if len(t)]


def _fetch(wanted: pa.Table) -> pa.Table:
    """The wanted documents of a file, with what they are wanted for."""
    rows = read_piece(wanted["uri"][0].as_py(), HELD_OUT.names).take(wanted["row"])
    return rows.append_column("held_out", wanted["held_out"]).append_column("sample", wanted["sample"])


def _encode(wanted: pa.Table, vocabulary: Any, config: TokenizeConfig, num_shards: int) -> pa.Table:
    """The tokens of a file's documents, with the shard and the place in the order that each belongs to."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are the parallelism
    known: Vocabulary = ray.get(vocabulary)
    documents = read_piece(wanted["uri"][0].as_py(), ["id", "source", "text"]).take(wanted["row"])
    texts = documents["text"].to_pylist()
    tokens = [np.array([*ids, known.end], _token_type(known.size)) for ids in known.encode(texts)]
    if "shard" in wanted.column_names:
        order, shard = wanted["order"].to_pylist(), wanted["shard"]
    else:
        order = [xxhash.xxh3_64_intdigest(i.encode(), config.seed) for i in documents["id"].to_pylist()]
        shard = pa.array([key * num_shards >> 64 for key in order], pa.int64())
    offsets = np.cumsum([0, *map(len, tokens)])
    return pa.table(
        {
            "shard": shard,
            "order": pa.array(order, pa.uint64()),
            "id": documents["id"],
            "source": documents["source"],
            "num_bytes": pc.cast(pc.binary_length(documents["text"]), pa.int64()),
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(tokens))),
        }
    )


def _write_shards(block: pa.Table, folder: str, config: TokenizeConfig, pad: int, ordered: bool) -> Iterator[pa.Table]:
    """Write the block's shards (whole ones); one row of figures for each."""
    for shard in sorted(set(block["shard"].to_pylist())):
        documents = block.filter(pc.equal(block["shard"], shard)).sort_by([("order", "ascending"), ("id", "ascending")])
        yield pa.Table.from_pylist([_write_shard(documents.combine_chunks(), shard, folder, config, pad, ordered)])


def _write_shard(documents: pa.Table, shard: int, folder: str, config: TokenizeConfig, pad: int, ordered: bool) -> dict[str, Any]:
    column = documents["tokens"].combine_chunks()
    num_tokens = column.value_lengths().to_numpy().astype(np.int64)
    pieces = split(num_tokens, config.length)
    in_order = max(_LEAST_BUCKET, int(num_tokens.sum()) // config.length // _ORDER_BUCKETS) if ordered else config.bucket_sequences
    packed = pack(pieces.length, config.length, min(config.bucket_sequences, in_order))
    sequences, segments = fill(column.flatten().to_numpy(), pieces.length, packed, config.length, pad)
    rows = documents.select(["id", "source"]).take(pieces.document)
    for name, values in (("num_tokens", pieces.length), ("part", pieces.part), ("segment", packed.segment), ("sequence", packed.sequence)):
        rows = rows.add_column(0, name, pa.array(values))
    name = f"{folder}/{shard:05d}"
    _save(sequences, f"{name}.tokens.npy")
    _save(segments, f"{name}.segments.npy")
    write_piece(rows.sort_by([("sequence", "ascending"), ("segment", "ascending")]), f"{name}.documents.parquet", compression="zstd")
    return {
        "shard": shard,
        "documents": documents.num_rows,
        "sequences": packed.num_sequences,
        "tokens": int(num_tokens.sum()),
        "num_bytes": pc.sum(documents["num_bytes"]).as_py(),
        "lengths": np.bincount(np.ceil(np.log2(num_tokens)).astype(np.int64), minlength=_LENGTH_BINS).tolist(),
        "places": mean_places(packed, pieces.length, documents["order"].to_numpy()[pieces.document]).tolist() if ordered else [],
    }


def _sequences_in(folder: Path) -> int:
    return sum(len(np.load(file, mmap_mode="r")) for file in folder.glob("shards/*.tokens.npy"))


def _token_type(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _save(values: np.ndarray, uri: str) -> None:
    """An .npy file that appears whole."""
    filesystem, path = resolve(uri)
    local = "://" not in uri
    if local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = f"{path}.{os.getpid()}" if local else path
    with filesystem.open_output_stream(scratch) as stream:
        np.save(stream, values)
    if local:
        Path(scratch).rename(path)

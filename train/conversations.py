"""Conversations -> packed sequences whose only targets are the assistant's tokens.

Promise: the prompt is tokenised apart from the answer, exactly as a server tokenises it before it generates, so training
sees the boundary that inference has; every conversation that cannot be used is counted with its reason.
Price: two template renderings per answer. Source: the tokenizer's own chat template (transformers `apply_chat_template`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.artifact import open_artifact
from cluster.storage import resolve
from train.corpus import Sequences, pack
from train.instructions import Message, pairs_from_code, parse_conversation

__all__ = ["Conversations", "encode", "from_corpus", "from_jsonl", "split"]

_CHARS_PER_PAIR = 4_000  # of code read for each pair wanted: documented functions are about that far apart


@dataclass(slots=True)
class Conversations:
    """Conversations and, by reason, how many inputs gave none."""

    found: list[list[Message]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens; `supervised` marks the assistant's."""

    tokens: list[int]
    supervised: list[bool]


def from_jsonl(uri: str) -> Conversations:
    """Every conversation of a jsonl file, bad lines counted by reason.

    Raises ValueError when the file is missing, or when none of its lines is a conversation.
    """
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type != arrow_fs.FileType.File:
        raise ValueError(f"{uri}: no such file; give a jsonl file with `messages`, or a corpus folder from `sterna curate`")
    result = Conversations()
    with filesystem.open_input_stream(path, compression="detect") as stream:
        for line in stream.readall().decode("utf-8", errors="replace").split("\n"):  # JSON may hold other separators
            if not line.strip():
                continue
            try:
                result.found.append(parse_conversation(line))
            except ValueError as reason:
                result.dropped[str(reason)] += 1
    if not result.found:
        raise ValueError(f"{uri}: no line is a conversation ({_told(result.dropped)}); each needs `messages` with an assistant's answer")
    return result


def _told(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items()) or "the file is empty"


def from_corpus(uri: str, max_pairs: int) -> Conversations:
    """About `max_pairs` pairs from the Python documents of a corpus, documents taken in the order of their ids (which are hashes)."""
    open_artifact(uri, made_by="curate")
    result, chars = Conversations(), 0
    chosen: set[str] = set()
    for id_, num_chars in sorted(_python_documents(uri, ["id", "num_chars"])):
        if chars > max_pairs * _CHARS_PER_PAIR:
            break
        chosen.add(id_)
        chars += num_chars
    for id_, text in _python_documents(uri, ["id", "text"]):
        if id_ in chosen:
            result.found += pairs_from_code(text)
    if not result.found:
        raise ValueError(f"{uri}: holds no Python function with a docstring to make pairs from; give --data a jsonl file with `messages`")
    return result


def split(conversations: Sequence[list[Message]], max_pairs: int, held_out: float) -> tuple[list[list[Message]], list[list[Message]]]:
    """(training, held-out) conversations: duplicates removed, at most `max_pairs`, both by hash of their text.

    Raises ValueError when fewer than two different conversations are there.
    """
    by_hash = {xxhash.xxh3_64_intdigest(repr(c).encode()): c for c in conversations}
    kept = sorted(by_hash.items())[:max_pairs]
    if len(kept) < 2:
        raise ValueError(f"data: {len(kept)} different conversation; at least 2 are needed, one of them to be held out")
    bound = max(1, min(len(kept) - 1, round(held_out * len(kept))))
    ranked = sorted(kept, key=lambda pair: xxhash.xxh3_64_intdigest(repr(pair[1]).encode(), seed=1))
    return [c for _, c in ranked[bound:]], [c for _, c in ranked[:bound]]


def encode(conversations: Iterable[list[Message]], tokenizer: Any, length: int) -> tuple[Sequences | None, Counter[str]]:
    """(packed sequences of `length` tokens or None if nothing fits, reasons of what was set aside)."""
    encoded, dropped = [], Counter[str]()
    for conversation in conversations:
        one = _encode(conversation, tokenizer)
        if one is None:
            dropped["template"] += 1
        elif len(one.tokens) > length:
            dropped["too_long"] += 1
        else:
            encoded.append(one)
    if not encoded:
        return None, dropped
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return pack([e.tokens for e in encoded], [e.supervised for e in encoded], length, padding), dropped


def _encode(conversation: list[Message], tokenizer: Any) -> Encoded | None:
    tokens: list[int] = []
    supervised: list[bool] = []
    pieces = _pieces(conversation, tokenizer)
    if pieces is None:
        return None
    for text, is_answer in pieces:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens += ids
        supervised += [is_answer] * len(ids)
    return Encoded(tokens, supervised)


def _pieces(conversation: list[Message], tokenizer: Any) -> list[tuple[str, bool]] | None:
    """The rendered conversation as (text, whether the assistant says it); None if the template rewrites earlier turns."""
    pieces, done = [], ""
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(conversation[:index], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(conversation[: index + 1], tokenize=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            return None
        pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
        done = whole
    return pieces


def _python_documents(uri: str, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    filesystem, root = resolve(uri)
    files = filesystem.get_file_info(arrow_fs.FileSelector(f"{root}/kept"))
    for path in sorted(info.path for info in files if info.path.endswith(".parquet")):
        with filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(columns=[*columns, "format"], batch_size=256):
                rows = batch.to_pydict()
                yield from (row[:-1] for row in zip(*(rows[c] for c in [*columns, "format"]), strict=True) if row[-1] == "py")

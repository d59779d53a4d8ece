"""Conversations, or pairs of them -> sequences whose only targets are the assistant's tokens.

Promise: the prompt is tokenised apart from the answer, exactly as a server tokenises it before it generates, so training
sees the boundary that inference has; every conversation that cannot be used is counted with its reason.
Price: two template renderings per answer. Source: the tokenizer's own chat template (transformers `apply_chat_template`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
import xxhash
from jinja2 import TemplateError
from pyarrow import fs as arrow_fs

from cluster.artifact import open_artifact
from cluster.storage import resolve
from train.corpus import Sequences, pack
from train.files import read_whole
from train.instructions import Message, pairs_from_code

__all__ = ["Found", "encode", "encode_pairs", "from_corpus", "from_jsonl", "split", "told"]

T = TypeVar("T")

_CHARS_PER_PAIR = 4_000  # of code read for each pair wanted: documented functions are about that far apart


@dataclass(slots=True)
class Found(Generic[T]):
    """Conversations, or pairs of them, and, by reason, how many inputs gave none."""

    found: list[T] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens; `supervised` marks the assistant's."""

    tokens: list[int]
    supervised: list[bool]


def from_jsonl(uri: str, parse: Callable[[str], T], wanted: str) -> Found[T]:
    """What `parse` makes of each line of a jsonl file; the lines it refuses are counted by its reason.

    Raises ValueError, saying what is `wanted`, when the file is missing or none of its lines is of use.
    """
    raw = read_whole(uri, wanted=f"a jsonl file with {wanted}")
    result: Found[T] = Found()
    for line in raw.decode("utf-8", errors="replace").split("\n"):  # JSON may hold other separators
        if not line.strip():
            continue
        try:
            result.found.append(parse(line))
        except RecursionError:  # brackets by the thousand
            result.dropped["not_json"] += 1
        except ValueError as reason:
            result.dropped[str(reason)] += 1
    if not result.found:
        raise ValueError(f"{uri}: no line can be used ({told(result.dropped)}); each needs {wanted}")
    return result


def told(dropped: Counter[str]) -> str:
    """The reasons in words, with their numbers."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items()) or "the file is empty"


def from_corpus(uri: str, max_pairs: int) -> Found[list[Message]]:
    """About `max_pairs` pairs from the Python documents of a corpus, documents taken in the order of their ids (which are hashes)."""
    open_artifact(uri, made_by="curate")
    result: Found[list[Message]] = Found()
    chars = 0
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


def split(conversations: Sequence[T], max_pairs: int, held_out: float) -> tuple[list[T], list[T]]:
    """(training, held-out) conversations, or pairs: duplicates removed, at most `max_pairs`, both by hash of their text.

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
        if reason := _unfit(one, length):
            dropped[reason] += 1
        else:
            encoded.append(one)
    if not encoded:
        return None, dropped
    return pack([e.tokens for e in encoded], [e.supervised for e in encoded], length, _padding(tokenizer)), dropped


def encode_pairs(
    pairs: Iterable[tuple[list[Message], list[Message]]], tokenizer: Any, length: int
) -> tuple[Sequences | None, Counter[str]]:
    """(rows chosen, rejected, chosen, rejected, … or None if no pair fits, reasons of what was set aside)."""
    rows, dropped = [], Counter[str]()
    for pair in pairs:
        both = [_encode(conversation, tokenizer) for conversation in pair]
        if reason := next(filter(None, (_unfit(one, length) for one in both)), None):
            dropped[reason] += 1
        else:
            rows += both
    if not rows:
        return None, dropped
    return _one_a_row([e.tokens for e in rows], [e.supervised for e in rows], length, _padding(tokenizer)), dropped


def _unfit(one: Encoded | None, length: int) -> str | None:
    """Why a conversation cannot be used, if it cannot."""
    if one is None:
        return "template"
    return "too_long" if len(one.tokens) > length else None


def _padding(tokenizer: Any) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


def _one_a_row(documents: Sequence[list[int]], supervised: Sequence[list[bool]], length: int, padding: int) -> Sequences:
    """Each document in a sequence of its own, as wide as the longest, at most `length`."""
    width = max(map(len, documents))
    assert width <= length
    tokens = np.full((len(documents), width), padding, dtype=np.uint32)
    segments = np.zeros((len(documents), width), dtype=np.uint16)
    masks = np.zeros((len(documents), width), dtype=bool)
    for row, (document, mask) in enumerate(zip(documents, supervised, strict=True)):
        tokens[row, : len(document)], segments[row, : len(document)], masks[row, : len(document)] = document, 1, mask
    return Sequences([tokens], [segments], [masks])


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
    """The rendered conversation as (text, whether the assistant says it); None if the template refuses it or rewrites earlier turns."""
    pieces, done = [], ""
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        try:
            prompt = tokenizer.apply_chat_template(conversation[:index], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(conversation[: index + 1], tokenize=False)
        except TemplateError:  # many templates refuse roles that they have no place for
            return None
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

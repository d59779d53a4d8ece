"""The prompts that a compressed model is judged on: from a jsonl file, or the beginnings of held-out documents.

Promise: prompts are distinct (repeated ones would feign certainty), drawn by seed, and each fits the model's context with its
completion. Price: a pass over the file. Lines that cannot be used are counted, not fatal, unless none is left.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.artifact import open_artifact
from cluster.storage import resolve
from train.compress.config import CompressConfig

__all__ = ["Probes", "prompts_digest", "read_probes"]

_TEXT_TOKENS = 512
"""Held-out text per document for perplexity."""


class Tokenizer(Protocol):
    """What is needed of the engine's tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Probes:
    """What to judge on, as tokens."""

    prompts: list[list[int]]
    """Distinct prompts to complete greedily."""
    texts: list[list[int]]
    """Held-out texts of at least two tokens, for perplexity."""
    skipped: int
    """Lines or documents that could not be used: unreadable, without a prompt, repeated, too long or too short."""


def prompts_digest(config: CompressConfig) -> str:
    """The identity of the prompts' source; ValueError when it is missing or not what it should be."""
    if config.tokens:
        return open_artifact(config.tokens, made_by="tokenize").digest
    filesystem, place = resolve(config.prompts)
    if filesystem.get_file_info(place).type != arrow_fs.FileType.File:
        raise ValueError(f"{config.prompts}: no such file of prompts; give a jsonl file with `prompt` or `messages` per line")
    with filesystem.open_input_stream(place, compression=None) as stream:
        return xxhash.xxh3_128_hexdigest(stream.read())


def read_probes(config: CompressConfig, tokenizer: Tokenizer, context: int) -> Probes:
    """`config.num_prompts` prompts and texts, each prompt leaving room for its completion in `context` tokens.

    Raises ValueError when no usable prompt is found.
    """
    room = context - config.completion_tokens
    if room < 1:
        raise ValueError(f"completion_tokens: {config.completion_tokens} leaves no room for a prompt in this model's {context} tokens")
    candidates = list(_from_documents(config, tokenizer, room) if config.tokens else _from_file(config.prompts, tokenizer))
    distinct = {tuple(prompt): text for prompt, text in candidates if 0 < len(prompt) <= room}
    source = config.tokens or config.prompts
    if not distinct:
        raise ValueError(
            f"{source}: none of its {len(candidates)} entries is a usable prompt (at most {room} tokens here); give other prompts"
        )
    order = np.random.default_rng(config.seed).permutation(len(distinct))[: config.num_prompts]
    drawn = [list(distinct.items())[index] for index in sorted(order)]
    texts = [text[: min(_TEXT_TOKENS, context)] for _, text in drawn if len(text) > 1]
    if not texts:
        raise ValueError(f"{source}: every prompt is a single token, nothing to measure perplexity on; give longer prompts")
    return Probes([list(prompt) for prompt, _ in drawn], texts, len(candidates) - len(distinct))


def _from_documents(config: CompressConfig, tokenizer: Tokenizer, room: int) -> Iterator[tuple[list[int], list[int]]]:
    folder = open_artifact(config.tokens, made_by="tokenize").local()
    length = min(config.prompt_tokens, room)
    for text in pq.read_table(folder / "held_out.parquet", columns=["text"])["text"].to_pylist():
        tokens = tokenizer.encode(text)
        yield (tokens[:length] if len(tokens) >= length else []), tokens


def _from_file(path: str, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    filesystem, place = resolve(path)
    with io.BufferedReader(filesystem.open_input_stream(place)) as lines:  # decompressed by the name's ending
        for line in lines:
            if line.strip():
                tokens = _tokens_of(line, tokenizer)
                yield tokens, tokens


def _tokens_of(line: bytes, tokenizer: Tokenizer) -> list[int]:
    """The prompt of one line, empty when there is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return []
    if not isinstance(row, dict):
        return []
    if isinstance(row.get("prompt"), str):
        return tokenizer.encode(row["prompt"])
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages  # instruction data ends with the answer
        return tokenizer.encode_chat(asked) if asked else []
    return []

"""The prompts that models are judged on: from a jsonl file, or the beginnings of held-out documents, in disjoint parts.

Promise: prompts are distinct (repeated ones would feign certainty), drawn by seed, no part shares one with another, and each fits
the model's context with its completion. The first part is the same whatever other parts are drawn, unless there are too few for all:
then each part has its share. Price: a pass over the file. Lines that cannot be used are counted, not fatal, unless too few are left.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import xxhash
from pyarrow import fs as arrow_fs

from cluster.artifact import open_artifact
from cluster.storage import one_line, resolve

__all__ = ["Probes", "Source", "Tokenizer", "prompts_digest", "read_probes", "share_out"]

_TEXT_TOKENS = 512
"""Held-out text per document for perplexity."""


class Tokenizer(Protocol):
    """What is needed of the engine's tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]: ...


class Source(Protocol):
    """What is needed of the settings: where prompts come from, and their lengths in tokens."""

    @property
    def prompts(self) -> str: ...

    @property
    def tokens(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Probes:
    """One part of the prompts, as tokens."""

    prompts: list[list[int]]
    """Distinct prompts to complete greedily."""
    texts: list[list[int]]
    """The texts they come from, where they have at least two tokens: for perplexity and calibration."""


def prompts_digest(config: Source) -> str:
    """The identity of the prompts' source; ValueError when it is missing or not what it should be."""
    if config.tokens:
        return open_artifact(config.tokens, made_by="tokenize").digest
    filesystem, place = resolve(config.prompts)
    if filesystem.get_file_info(place).type != arrow_fs.FileType.File:
        raise ValueError(f"{config.prompts}: no such file of prompts; give a jsonl file with `prompt` or `messages` per line")
    with filesystem.open_input_stream(place, compression=None) as stream:
        return xxhash.xxh3_128_hexdigest(stream.read())


def read_probes(config: Source, tokenizer: Tokenizer, context: int, wanted: Mapping[str, int]) -> tuple[dict[str, Probes], int]:
    """`wanted` prompts for each part by name, each leaving room for its completion in `context` tokens; and how many entries are of no use.

    Of no use: unreadable, without a prompt, repeated, too long or too short. Raises ValueError when there are fewer prompts than parts.
    """
    room = context - config.completion_tokens
    if room < 1:
        raise ValueError(f"completion_tokens: {config.completion_tokens} leaves no room for a prompt in this model's {context} tokens")
    refused: list[str] = []
    candidates = list(_from_documents(config, tokenizer, room) if config.tokens else _from_file(config.prompts, tokenizer, refused))
    distinct = list({tuple(prompt): text for prompt, text in candidates if 0 < len(prompt) <= room}.items())
    source = config.tokens or config.prompts
    if not distinct:
        why = f"; {refused[0]}" if refused else ""
        raise ValueError(
            f"{source}: none of its {len(candidates)} entries is a usable prompt (at most {room} tokens here{why}); give other prompts"
        )
    if len(distinct) <= len(wanted):  # from a single held-out prompt nothing is known of how prompts differ, nor of any other
        needed = f"{', '.join(wanted)} each need their own, and {next(iter(wanted))} two"
        raise ValueError(f"{source}: {len(distinct)} usable prompts, but {needed}; give some hundred")
    order = np.random.default_rng(config.seed).permutation(len(distinct))
    parts, at = {}, 0
    for name, size in share_out(wanted, len(distinct)).items():
        drawn = [distinct[index] for index in sorted(order[at : at + size])]
        texts = [text[: min(_TEXT_TOKENS, context)] for _, text in drawn if len(text) > 1]
        if not texts:
            raise ValueError(f"{source}: every prompt is a single token, nothing to measure perplexity on; give longer prompts")
        parts[name] = Probes([list(prompt) for prompt, _ in drawn], texts)
        at += size
    return parts, len(candidates) - len(distinct)


def share_out(wanted: Mapping[str, int], available: int) -> dict[str, int]:
    """What each part gets: all it wants, or its share of what there is, and at least 1; the first one gets what rounding leaves.

    >>> share_out({"held_out": 64, "search": 64}, 200), share_out({"held_out": 64, "search": 64}, 9)
    ({'held_out': 64, 'search': 64}, {'held_out': 5, 'search': 4})
    """
    total, spare = sum(wanted.values()), available - len(wanted)
    if total <= available:
        return dict(wanted)
    shares = {name: 1 + (size - 1) * spare // max(total - len(wanted), 1) for name, size in wanted.items()}
    first = next(iter(shares))
    return shares | {first: available - sum(size for name, size in shares.items() if name != first)}


def _from_documents(config: Source, tokenizer: Tokenizer, room: int) -> Iterator[tuple[list[int], list[int]]]:
    folder = open_artifact(config.tokens, made_by="tokenize").local()
    length = min(config.prompt_tokens, room)
    for text in pq.read_table(folder / "held_out.parquet", columns=["text"])["text"].to_pylist():
        tokens = tokenizer.encode(text)
        yield (tokens[:length] if len(tokens) >= length else []), tokens


def _from_file(path: str, tokenizer: Tokenizer, refused: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    """The prompt of every line, empty where it has none; why not is added to `refused`."""
    filesystem, place = resolve(path)
    try:
        with io.BufferedReader(filesystem.open_input_stream(place)) as lines:  # decompressed by the name's ending
            for number, line in enumerate(lines, 1):
                if line.strip():
                    tokens: list[int] = []
                    try:
                        tokens = _tokens_of(line, tokenizer)
                    except (ValueError, RecursionError) as error:
                        refused.append(f"line {number}: {error}")
                    yield tokens, tokens
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); give a jsonl file, as it is or packed as its name says") from None


def _tokens_of(line: bytes, tokenizer: Tokenizer) -> list[int]:
    """The prompt of one line; ValueError (RecursionError where brackets never end) when there is none."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # JSON may name half of a character, which no tokenizer takes
    except ValueError:
        raise ValueError("is not JSON in UTF-8") from None
    if not isinstance(row, dict):
        raise ValueError("is no object with `prompt` or `messages`")
    if isinstance(row.get("prompt"), str):
        return tokenizer.encode(row["prompt"])
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise ValueError("has neither `prompt`, a text, nor `messages`, a list of role and content")
    asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages  # instruction data ends with the answer
    return tokenizer.encode_chat(asked) if asked else []

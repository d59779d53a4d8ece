"""Preference data: two answers to one prompt, the better one known.

Promise: a pair becomes two rows with the same prompt, whose answers alone are targets; every pair that cannot be used is counted with
its reason; what the model before tuning thinks of each row travels with it. Price: no packing: rows are padded to the longest of
their batch. Form: jsonl with `chosen` and `rejected`, each a conversation, or each a text beside a `prompt`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.corpus import IGNORED, Batch, Sequences
from train.instructions import Message, parse_messages

__all__ = ["Pair", "Pairs", "parse_pair", "trimmed"]

Pair = tuple[list[Message], list[Message]]
"""A conversation that ends in the chosen answer, and the same with the rejected one."""


def parse_pair(line: str) -> Pair:
    """The pair on one line of jsonl.

    Raises ValueError with a short reason: not_json, no_pair, bad_message, no_answer, other_prompt, same_answer.

    >>> parse_pair('{"prompt": "2+2?", "chosen": "4", "rejected": "5"}')[1][-1]
    {'role': 'assistant', 'content': '5'}
    """
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("not_json") from None
    if not isinstance(data, dict) or not all(data.get(side) for side in ("chosen", "rejected")):
        raise ValueError("no_pair")
    chosen, rejected = (_conversation(data.get("prompt"), data[side]) for side in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("other_prompt")
    if chosen == rejected:
        raise ValueError("same_answer")
    return chosen, rejected


def _conversation(prompt: Any, answer: Any) -> list[Message]:
    """Of a prompt (a text, messages or nothing) and an answer (a text, or messages)."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not isinstance(before, list) or not isinstance(after, list):
        raise ValueError("bad_message")
    messages = parse_messages([*before, *after])
    if messages[-1]["role"] != "assistant":
        raise ValueError("no_answer")
    return messages


@dataclass(frozen=True, slots=True)
class Pairs:
    """A `Source` of preferences: element i is rows 2i (chosen) and 2i + 1 (rejected)."""

    rows: Sequences
    reference: NDArray[np.float32]
    """Σ log p of each row's answer under the model before tuning."""
    index: None = None
    mixture: None = None

    @classmethod
    def open(cls, folder: Path) -> Pairs:
        """What `save` wrote."""
        return cls(Sequences.open(folder), np.load(folder / "reference.npy"))

    def save(self, folder: Path) -> None:
        """Write rows and reference into `folder`."""
        self.rows.save(folder)
        np.save(folder / "reference.npy", self.reference)

    def __len__(self) -> int:
        return len(self.rows) // 2

    @property
    def sequence_length(self) -> int:
        return self.rows.sequence_length

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The pairs at `indices`, two rows each."""
        both = np.stack((2 * indices, 2 * indices + 1), axis=1).reshape(-1)
        return replace(trimmed(self.rows.batch(both)), reference=torch.from_numpy(self.reference[both]))

    def num_labels(self, indices: NDArray[np.int64]) -> int:
        """Pairs: what their loss is the mean over."""
        return len(indices)


def trimmed(batch: Batch) -> Batch:
    """Without the columns that are padding in every row (those after the last label, whose hidden states nothing reads)."""
    used = (batch.labels != IGNORED).any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return Batch(batch.input_ids[:, :width], batch.labels[:, :width], batch.position_ids[:, :width])

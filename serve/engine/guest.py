"""Every causal architecture that the lean decoder does not know, recurrent ones included, through transformers' own module.

Promise: the tokens of transformers' `generate`, in company, in chunks, with drafts, after preemption or a move, by the same scheduler
as everyone's. What a module can do is found out by trying when it is loaded (`Abilities`), not by its name. Price: transformers' own
speed; keys and values are copied once per step where sequences ride together; no prefix is shared, and memory lies outside the blocks
(the blocks only count). State that is not KV cannot be cropped: it is copied before a draft is verified, and after a rejection the
accepted tokens are computed again with the next. A recurrent module that cannot go on with several tokens at once reads a prompt
whole, in the step of its last token, and runs without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.attention import FEW
from serve.engine.batch import Batch, Chunk
from serve.engine.config import EngineConfig
from serve.engine.guest_module import Abilities, GuestModule, load_module
from serve.engine.guest_state import copied, cropped, joined, parted, picked, stacked
from serve.engine.score import Piece
from serve.engine.sequence import Sequence

__all__ = ["GuestRunner", "load_guest"]


def load_guest(
    folder: Path, data: dict[str, Any], config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> tuple[GuestRunner, EngineConfig]:
    """The runner for a Hugging Face folder of any causal architecture, and the settings without what it cannot do.

    ValueError, in one line, if transformers cannot run it here, or for LoRA adapters.
    """
    if config.adapters:
        raise ValueError(f"adapters: {folder} runs through transformers' module, which takes none here; merge the adapter into the model")
    model = load_module(folder, data, dtype, device, config.max_length)
    runner = GuestRunner(model, _num_blocks(config, model), config.block_size)
    draft = config.draft if runner.can_draft else "off"
    return runner, replace(config, prefix_cache=False, preempt="recompute", draft=draft)


def _num_blocks(config: EngineConfig, model: GuestModule) -> int:
    """As configured; by default what max_sequences of the longest length need, at most 1 GiB where keys and values are stored."""
    if config.num_blocks is not None:
        return config.num_blocks
    longest = -(-min(config.max_length or model.shape.max_length, model.shape.max_length) // config.block_size)
    each = model.bytes_per_token * config.block_size
    wanted = longest * config.max_sequences
    if config.kv_bytes is not None and each:
        return max(1, config.kv_bytes // each)
    return max(longest, min((1 << 30) // each, wanted)) if each else wanted


@dataclass(slots=True)
class GuestBlocks:
    """Stands where a KV cache would: the blocks count tokens and hold nothing."""

    num_blocks: int
    block_size: int
    bytes_per_block: int = 0
    kv_kind: str = "guest"


@dataclass(slots=True, eq=False)
class _State:
    """A sequence's memory after its first `length` known tokens."""

    memory: Any = None
    length: int = 0
    saved: tuple[Any, int] | None = None
    """Memory and length before the last draft, where a memory cannot be cropped."""


@dataclass(slots=True, eq=False)
class _Job:
    """Tokens for one state, and how many of the last of them are asked for their logits."""

    state: _State
    inputs: list[int]
    num_rows: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class GuestRunner:
    """A transformers module with the face of `Runner`."""

    reads_in_parts = False

    def __init__(self, model: GuestModule, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.cache = GuestBlocks(num_blocks, block_size, model.bytes_per_token * block_size)
        self.adapters = AdapterSet()
        self._states: dict[int, _State] = {}  # by the sequence's arrival

    @property
    def can_draft(self) -> bool:
        """Whether several tokens can be verified in one pass."""
        return self.model.abilities.extends

    def forget(self, sequence: Sequence) -> None:
        """Drop what is remembered of a sequence that gives up its blocks."""
        self._states.pop(sequence.arrival, None)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab]: for each sampling chunk in turn, after its last known token and after each drafted one."""
        jobs = {id(chunk): self._job(chunk) for chunk in batch.chunks if self._is_due(chunk)}
        for group in _groups(list(jobs.values()), self.model):
            self._advance(group)
        wanted = [jobs[id(chunk)].logits for chunk in batch.sampling]
        return torch.cat(wanted) if wanted else torch.empty(0, self.model.shape.vocab_size)

    @torch.inference_mode()
    def logits(self, tokens: Series[int]) -> Tensor:
        """Logits [T, vocab] after every token of a text, in one pass."""
        return self.model(torch.tensor([list(tokens)]), [0])[0][0]

    @torch.inference_mode()
    def hidden(self, tokens: Series[int]) -> Tensor:
        """The last hidden states [T, hidden] of a text, after the final norm."""
        return self.model.states(torch.tensor([list(tokens)]))[0]

    def scratch(self, num_tokens: int) -> None:
        """Nothing: each text is read whole."""

    @torch.inference_mode()
    def read(self, cache: None, pieces: Series[Piece], *, states: bool, adapter: str) -> Tensor:
        """As `score.Reader.read`. Shorter texts are padded behind, where nobody looks, whatever the module remembers."""
        assert not adapter, "the engine loads none for a guest"
        if len(pieces) > 1 and not self.model.abilities.batches:
            return torch.cat([self.read(cache, [piece], states=states, adapter=adapter) for piece in pieces])
        longest = max(len(piece.tokens) for piece in pieces)
        tokens = torch.tensor([[*piece.tokens] + [piece.tokens[-1]] * (longest - len(piece.tokens)) for piece in pieces])
        firsts = [len(piece.tokens) - piece.num_rows - longest for piece in pieces]  # from the end
        rows = self.model.states(tokens) if states else self.model(tokens, [0] * len(pieces), keep=-min(firsts))[0]
        wanted = [rows[i, rows.shape[1] + first :][: piece.num_rows] for i, (first, piece) in enumerate(zip(firsts, pieces, strict=True))]
        return torch.cat(wanted)

    def _is_due(self, chunk: Chunk) -> bool:
        """A prompt that can only be read whole waits for its last chunk."""
        if chunk.start == 0:
            self._states[chunk.sequence.arrival] = _State()
        return chunk.samples or self.model.abilities.extends

    def _job(self, chunk: Chunk) -> _Job:
        state = self._states[chunk.sequence.arrival]
        if state.length > chunk.start:  # a draft was rejected
            self._take_back(state, chunk.start)
        state.saved = None
        known = chunk.sequence.tokens[state.length : chunk.end - len(chunk.draft)]
        if chunk.draft and not self.model.abilities.crops:
            state.saved = (copied(state.memory), state.length)
        return _Job(state, [*known, *chunk.draft], len(chunk.draft) + 1 if chunk.samples else 1)

    def _take_back(self, state: _State, length: int) -> None:
        if self.model.abilities.crops:
            state.memory, state.length = cropped(state.memory, 0, length), length
        else:
            assert state.saved is not None, "only a draft is ever taken back"
            state.memory, state.length = state.saved

    def _advance(self, jobs: list[_Job]) -> None:
        if len(jobs) == 1:
            self._alone(jobs[0])
        elif self.model.abilities.pads:
            self._padded(jobs)
        else:
            self._abreast(jobs)
        for job in jobs:
            job.state.length += len(job.inputs)

    def _alone(self, job: _Job) -> None:
        whole = self.model.abilities.extends or not job.state.length
        logits = []
        start = job.state.length
        for tokens in [job.inputs] if whole else [[token] for token in job.inputs]:
            rows, job.state.memory = self.model(torch.tensor([tokens]), [start], job.state.memory, keep=min(job.num_rows, len(tokens)))
            logits.append(rows[0])
            start += len(tokens)
        job.logits = torch.cat(logits)[-job.num_rows :]

    def _abreast(self, jobs: list[_Job]) -> None:
        """States of equal length, as many new tokens each."""
        starts, memory = [job.state.length for job in jobs], stacked([job.state.memory for job in jobs])
        rows, memory = self.model(torch.tensor([job.inputs for job in jobs]), starts, memory)
        for i, job in enumerate(jobs):
            job.state.memory, job.logits = picked(memory, i), rows[i, -job.num_rows :]

    def _padded(self, jobs: list[_Job]) -> None:
        """Keys and values of any lengths: padded in front to the longest, new tokens padded behind (nobody sees what follows)."""
        longest, most = max(job.state.length for job in jobs), max(len(job.inputs) for job in jobs)
        tokens = torch.tensor([job.inputs + job.inputs[-1:] * (most - len(job.inputs)) for job in jobs])
        starts = [job.state.length for job in jobs]
        mask = (torch.arange(longest + most) >= longest - torch.tensor(starts)[:, None]).long()
        rows, memory = self.model(tokens, starts, joined([job.state.memory for job in jobs]), mask=mask)
        for i, job in enumerate(jobs):
            first, count = longest - job.state.length, len(job.inputs)
            job.state.memory = parted(memory, i, first, longest + count)
            job.logits = rows[i, count - job.num_rows : count]


def _groups(jobs: list[_Job], model: GuestModule) -> list[list[_Job]]:
    """Jobs that go through the module together: few new tokens each, and of lengths that fit."""
    riding = [job for job in jobs if _rides(job, model.abilities)]
    groups = [[job] for job in jobs if job not in riding]
    together: list[list[_Job]] = []
    for job in sorted(riding, key=lambda job: (len(job.inputs), job.state.length), reverse=True):
        home = next((group for group in together if _fits(job, group[0], model)), None)
        if home is None:
            together.append([job])
        else:
            home.append(job)
    return groups + together


def _rides(job: _Job, abilities: Abilities) -> bool:
    return (abilities.batches or abilities.pads) and job.state.length > 0 and len(job.inputs) <= (FEW if abilities.extends else 1)


def _fits(job: _Job, other: _Job, model: GuestModule) -> bool:
    """Where padding works, lengths within a factor of two (so padding at most doubles the work); else equal ones, if KV is held at all."""
    low, high = sorted((job.state.length, other.state.length))
    if model.abilities.pads:
        return high <= 2 * low + 32
    return len(job.inputs) == len(other.inputs) and (low == high or model.bytes_per_token == 0)

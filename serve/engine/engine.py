"""The engine: continuous batching over paged KV with drafting, one rule for everything.

A sequence *knows* its prompt, what it has emitted and maybe a draft; it has *computed* the KV of a prefix of them. Each step lets
computed catch up with known, under a token budget. Prefill, chunked prefill, decoding, prefix hits, verification of drafts,
recompute after preemption and resuming elsewhere are that rule.

Promise: a request's tokens depend on the request and the model, never on its company, on drafts, preemption or a move (exactly, up
to the number type's rounding). Price: `step` costs the model's pass plus some 50 microseconds. One thread at a time may call an Engine,
and no fork of the process that loaded it (OpenMP would wait for threads that are not there).
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Series
from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.batch import Batch
from serve.engine.blocks import BlockPool, root_hash
from serve.engine.choices import choose, completion, expand
from serve.engine.config import EngineConfig
from serve.engine.draft import Drafter
from serve.engine.drafters import Drafters
from serve.engine.families import read_shape, refusal
from serve.engine.grammar import Grammars
from serve.engine.guest import GuestRunner, load_guest
from serve.engine.guided import guided
from serve.engine.kernels import device_of, dtype_of, make_runner, runs_native, swap_blocks
from serve.engine.kv_blocks import KvBlocks
from serve.engine.lora import places
from serve.engine.native.runner import NativeRunner
from serve.engine.pace import PromptPace
from serve.engine.parts import parts_of
from serve.engine.policy import policy_named
from serve.engine.request import Completion, Emission, Request, Run, Sampling
from serve.engine.rules import rules
from serve.engine.runner import Runner
from serve.engine.sample import Question, verify
from serve.engine.schedule import Scheduler
from serve.engine.score import Pooled, Score, as_pairs, as_tokens, check_lengths, embedding, finished, logits, score
from serve.engine.sequence import Sequence
from serve.engine.shape import Shape
from serve.engine.snapshot import Snapshot
from serve.engine.step_cost import StepCost
from serve.engine.text import TextStream, Tokenizer
from serve.engine.transfer import KvTransfer
from serve.engine.weights import Weights, read_config

__all__ = ["Engine"]


class Engine:
    """A model being served to any number of requests."""

    def __init__(
        self, runner: Runner | NativeRunner | GuestRunner, tokenizer: Tokenizer, config: EngineConfig, model_id: str, max_length: int
    ) -> None:
        self.config, self.tokenizer, self.model_id, self.max_length = config, tokenizer, model_id, max_length
        self.runner, self.shape, self.adapters = runner, runner.model.shape, runner.adapters
        self.scheduler = Scheduler(
            BlockPool(runner.cache.num_blocks),
            block_size=config.block_size,
            max_sequences=config.max_sequences,
            max_tokens_per_step=config.max_tokens_per_step,
            prefix_cache=config.prefix_cache,
            forget=runner.forget if isinstance(runner, GuestRunner) else None,
            policy=policy_named(config.policy),
            swap_blocks=swap_blocks(config, runner.cache.bytes_per_block),
            window=self.shape.window,
        )
        self._transfer = KvTransfer(self.scheduler, None if isinstance(runner, GuestRunner) else runner.cache)
        self._live: dict[str, Sequence] = {}
        self._ended: dict[str, Emission] = {}  # to be told at the next step
        self._step_cost = StepCost()
        self._pace = PromptPace(config.max_step_s, config.block_size)
        self._drafters = Drafters(config.draft, config.draft_order, config.draft_max, config.draft_shared)
        self.grammars = Grammars(tokenizer, self.shape.vocab_size)
        self._num_arrived = 0

    @classmethod
    def load(cls, path: str | Path, config: EngineConfig = EngineConfig()) -> Engine:  # noqa: B008 (frozen)
        """The engine for a Hugging Face model folder. ValueError for a folder it cannot run, in one line."""
        folder = Path(path)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        data = read_config(folder)
        tokenizer = Tokenizer(folder)
        device, dtype = device_of(config), dtype_of(config, data)
        if refusal(data) is not None:
            runner, config = load_guest(folder, data, config, dtype, device)
            return cls(runner, tokenizer, config, folder.resolve().name, _max_length(config, runner.model.shape.max_length, folder))
        shape = read_shape(data, str(folder))
        max_length = _max_length(config, shape.max_length, folder)
        native = runs_native(config, dtype, device)
        weights = Weights(folder, data, dtype, device, native=native)
        adapters = AdapterSet(places(shape, parts_of(shape, weights)), dtype, device, native=native)
        for name, where in config.adapter_folders.items():
            adapters.load(name, where)
        runner = make_runner(config, shape, weights, adapters, dtype, device, max_length)
        return cls(runner, tokenizer, config, _model_id(weights, shape, max_length), max_length)

    # ---- requests ------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request. ValueError if it can never run: too long, unknown tokens, an id whose end has not been told yet."""
        self._check(request)
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        sampling = request.sampling
        stops = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.shape.eos_token_ids))
        guide = self.grammars.guide(sampling, stops)
        sequence = Sequence(
            request=request,
            arrival=self._num_arrived,
            limit=min(len(request.prompt) + sampling.max_tokens, self.max_length),
            stop_ids=stops,
            text=TextStream(self.tokenizer.reader(sampling.skip_special_tokens), request.prompt, sampling.stop),
            rules=rules(sampling, request.prompt, stops, self.shape.vocab_size, guide),
            drafter=guided(self._drafter(request), guide, self.tokenizer.encode_plain, self.config.draft_max),
            root=root_hash(self.model_id, self.runner.cache.kv_kind, request.tenant, self.adapters.digest(request.adapter)),
            arrived_s=time.perf_counter(),
        )
        self._num_arrived += 1
        if sequence.finish_reason:  # what was emitted elsewhere was all of it
            self._ended[request.id] = sequence.emission([], "")
            return
        self._live[request.id] = sequence
        self.scheduler.add(sequence)

    def cancel(self, request_id: str) -> bool:
        """End a request now and free what it holds; the next step reports it as cancelled, and then its id is free for another.

        False if there is no such live request.
        """
        sequence = self._live.pop(request_id, None)
        if sequence is None:
            return False
        self.scheduler.drop(sequence)
        sequence.finish_reason = "cancelled"
        self._ended[request_id] = sequence.emission([], sequence.text.finish())
        return True

    def snapshot(self, request_id: str) -> Snapshot:
        """A live request as data that can go on in another engine. ValueError if there is no such request."""
        sequence = self._live.get(request_id)
        if sequence is None:
            raise ValueError(f"snapshot: no live request {request_id!r}; it has finished or was never added")
        return Snapshot(origin=replace(sequence.request, emitted=()), emitted=sequence.emitted, num_computed=sequence.computed)

    # ---- moves: see transfer.py, and call between steps ------------------------------------------------------------

    def kv_chain(self, request_id: str) -> tuple[bytes, ...]:
        """Hashes of a request's full computed blocks, first to last; none if it waits, or its model keeps no blocks."""
        return self._transfer.chain(self._live.get(request_id))

    def kv_out(self, request_id: str, first: int = 0, last: int | None = None) -> KvBlocks:
        """The bytes of blocks [first, last) of its chain, as far as there are such; see `kv_blocks.slices` for how many at once."""
        return self._transfer.out(self._live.get(request_id), first, last)

    def kv_missing(self, hashes: Series[bytes], ticket: str | None = None) -> tuple[int, ...]:
        """Indices of the blocks that are not here and would have to come; with a ticket, those that are here are pinned."""
        return self._transfer.missing(hashes, ticket, time.perf_counter())

    def kv_in(self, ticket: str, blocks: KvBlocks) -> int:
        """Put blocks in for a request that will be added, pinned; how many, from the first, are here now. Never more than there is room."""
        return self._transfer.take_in(ticket, blocks, time.perf_counter())

    @property
    def kv_block_bytes(self) -> int:
        """What a block of `kv_out` weighs; 0 for a model whose state is not in blocks."""
        return 0 if isinstance(self.runner, GuestRunner) else self.runner.cache.bytes_per_block

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens that a second computes, as the latest steps did; a guess before the first."""
        return self._pace.tokens_per_s

    def kv_release(self, ticket: str) -> None:
        """Unpin: the request it was for has told its first tokens (so it holds them itself), or will not come."""
        self.scheduler.pins.release(ticket)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._live or self._ended)

    def _drafter(self, request: Request) -> Drafter | None:
        """What drafts for a request."""
        return self._drafters.of(request.tenant)

    def _check(self, request: Request) -> None:
        if request.id in self._live:
            raise ValueError(f"request: id {request.id!r} is in use by a live request; choose another")
        if request.id in self._ended:
            raise ValueError(f"request: id {request.id!r} has ended, and no step has told so yet; step first, or choose another id")
        if request.adapter:
            self.adapters.check(request.adapter)
        length, limit = len(request.prompt), self.max_length
        if length >= limit:
            raise ValueError(f"prompt: {length} tokens leave no room in the context of {limit} tokens; shorten it to {limit - 1} or fewer")
        bad = next((t for t in (*request.prompt, *request.emitted) if not 0 <= t < self.shape.vocab_size), None)
        if bad is not None:
            raise ValueError(
                f"prompt: token {bad} is outside the vocabulary of {self.shape.vocab_size}; encode it with this model's tokenizer"
            )
        most = min(length + request.sampling.max_tokens, limit)
        known = length + len(request.emitted)
        if most == limit < length + request.sampling.max_tokens and known >= limit:
            raise ValueError(
                f"emitted: with the prompt these are {known} tokens, and the context has {limit}; resume it where max_length is greater"
            )
        if self.scheduler.blocks_needed(most) > self.scheduler.pool.total:
            room = self.scheduler.pool.total * self.config.block_size
            raise ValueError(
                f"max_tokens: prompt and output may reach {most} tokens, but the KV blocks hold {room}; ask for less or raise kv_bytes"
            )

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load a LoRA adapter (a peft folder) that requests can name from now on. ValueError for one that cannot run here."""
        self.adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. ValueError while a live request uses it."""
        users = sum(sequence.request.adapter == name for sequence in self._live.values())
        if users:
            raise ValueError(f"adapter: {name!r} is in use by {users} live requests; wait for them, or cancel them")
        self.adapters.unload(name)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def step(self) -> list[Emission]:
        """Let every sequence that can run advance; what is new.

        If the model's pass raises (out of memory, say), nothing of the step counts: nothing is told or lost, who ran computes again
        from what the prefix cache has, and any request can be cancelled.
        """
        began = time.perf_counter()
        num_running = len(self.scheduler.running)
        resting = not self._drafters.awake(num_running)
        batch = self.scheduler.plan(self._verify_cost(), began, self._pace.limit, self._drafters.every)
        emissions: list[Emission] = []
        if batch.chunks or batch.copies_in:  # or copies of cancelled requests to be dropped
            emissions = self.scheduler.commit(batch, self._compute(batch))
        if batch.chunks:
            self._measure(batch, emissions, num_running, resting, time.perf_counter() - began)
        for emission in emissions:
            if emission.finish_reason:
                sequence = self._live.pop(emission.request_id)
                self._drafters.learn(sequence.request.tenant, sequence.emitted)
        emissions[:0] = self._ended.values()
        self._ended.clear()
        return emissions

    def _compute(self, batch: Batch) -> list[Run]:
        """The model's pass, and what is drawn from it."""
        try:
            logits = self.runner.run(batch)
            return verify([Question.of(chunk) for chunk in batch.sampling], logits)
        except BaseException:  # Ctrl-C, too
            self.scheduler.abandon(batch)
            raise

    def _measure(self, batch: Batch, emissions: list[Emission], num_running: int, resting: bool, seconds: float) -> None:
        """Note how long a step took, for the pace of prompts and the worth of drafts."""
        self._pace.observe(batch.num_prompt_tokens, seconds)
        if all(chunk.end - chunk.start <= 1 + self.config.draft_max for chunk in batch.chunks):
            self._drafters.worth.observe(num_running, sum(len(emission.tokens) for emission in emissions), seconds)
            if not resting or batch.num_tokens > len(batch.chunks):
                self._step_cost.observe(batch.num_tokens, seconds, len(batch.chunks))
                self._drafters.thrift.price(len(batch.sampling) / seconds)

    def _verify_cost(self) -> float:
        """What one more drafted token costs: its share of a step, for each sequence that waits for it; infinite with drafts off."""
        return math.inf if self.config.draft == "off" else self._step_cost.verify_cost(len(self.scheduler.running))

    def generate(
        self,
        prompts: Series[str | Series[int]],
        sampling: Sampling | Series[Sampling] = Sampling(),  # noqa: B008 (frozen)
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete all prompts (texts or token ids), in their order; with n above 1 a completion has `others`.

        `progress` is called with the number of tokens of each step. ValueError while other requests are under way.
        """
        if self.has_work:
            raise ValueError("generate: other requests are under way; step until they have ended, or add these beside them with `add`")
        if isinstance(prompts, str):
            raise ValueError("prompts: one text is given; write a list of texts")
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(prompts):
            raise ValueError(f"sampling: {len(samplings)} for {len(prompts)} prompts; give one for each, or one for all")
        gathered: list[dict[str, list[Emission]]] = []
        try:
            for i, (prompt, how) in enumerate(zip(prompts, samplings, strict=True)):
                tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
                requests = expand(f"generate-{i}", tuple(tokens), how)
                gathered.append({request.id: [] for request in requests})
                for request in requests:
                    self.add(request)
            of = {name: emissions for each in gathered for name, emissions in each.items()}
            while self.has_work:
                news = self.step()
                for emission in news:
                    of[emission.request_id].append(emission)
                if progress is not None:
                    progress(sum(len(emission.tokens) for emission in news))
        finally:
            self._forget_all()
        return [choose(how, [completion(e) for e in each.values()]) for how, each in zip(samplings, gathered, strict=True)]

    def _forget_all(self) -> None:
        for request_id in list(self._live):
            self.cancel(request_id)
        self._ended.clear()

    def logits(self, tokens: Series[int]) -> Tensor:
        """Logits [T, vocab] of a text, teacher-forced (row i: what follows tokens[:i+1]), by the same weights and kernels."""
        (given,) = as_tokens([tokens], self.tokenizer.encode, self.shape.vocab_size)
        check_lengths([len(given)], self.max_length)
        return logits(self.runner, given, self.config.max_tokens_per_step)

    def embed(self, texts: Series[str | Series[int]], *, progress: Callable[[int], None] | None = None, **how: Unpack[Pooled]) -> Tensor:
        """Embeddings [n, hidden] of texts (or token ids): the mean of their final hidden states, or the last token's.

        Of length 1 unless `normalize` is off. Live requests go on undisturbed. `progress` is called with the tokens of each pass.
        """
        return finished(self.embedding(texts, **how), progress)

    def embedding(self, texts: Series[str | Series[int]], **how: Unpack[Pooled]) -> Generator[int, None, Tensor]:
        """The same, yielding the tokens of each pass when it is done, so that live requests can take a step before the next."""
        given = as_tokens(texts, self.tokenizer.encode, self.shape.vocab_size)
        self._check_reading([len(tokens) for tokens in given], how.get("adapter", ""))
        return embedding(self.runner, given, self.config.max_tokens_per_step, **how)

    def score(
        self,
        texts: Series[str | Series[int]],
        continuations: Series[str | Series[int]] | None = None,
        *,
        adapter: str = "",
        num_top: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[Score]:
        """How likely each continuation is after its text (encoded apart from it); without any, each text after its first token."""
        prompts, rests = as_pairs(texts, continuations, self.tokenizer, self.shape.vocab_size)
        self._check_reading([len(prompt) + len(rest) for prompt, rest in zip(prompts, rests, strict=True)], adapter)
        most = self.config.max_tokens_per_step
        return score(self.runner, prompts, rests, max_tokens=most, adapter=adapter, num_top=num_top, progress=progress)

    def _check_reading(self, lengths: Series[int], adapter: str) -> None:
        check_lengths(lengths, self.max_length)
        if adapter:
            self.adapters.check(adapter)

    def stats(self) -> dict[str, float]:
        """Counts: sequences and blocks now; steps, tokens and seconds waited since the engine was loaded; what the policy knows."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        now = {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "total_blocks": pool.total,
            "free_blocks": pool.num_free,
            "cached_blocks": pool.num_cached,
            "held_blocks": pool.num_held,
            "pinned_blocks": scheduler.pins.num_blocks,
            "swapped_blocks": scheduler.host.num_blocks,
        }
        return now | asdict(scheduler.counters) | scheduler.policy.stats()

    def check(self) -> None:
        """Assert what always holds between steps: blocks are conserved, readers are holders, and an idle engine holds nothing."""
        self.scheduler.check()
        line = [*self.scheduler.running, *self.scheduler.waiting]
        assert {id(s) for s in line} == {id(s) for s in self._live.values()}, "the engine and its scheduler know different requests"
        held = self.scheduler.pool.num_held - self.scheduler.pins.num_blocks
        assert line or not (held or self.scheduler.host.num_blocks), "an idle engine holds blocks"


def _model_id(weights: Weights, shape: Shape, max_length: int) -> str:
    """All that KV depends on besides its kind, tokens and adapter: LongRoPE's angles are chosen by the longest text."""
    return weights.digest() + (f"-{max_length}" if any(rope.kind == "longrope" for rope in shape.ropes) else "")


def _max_length(config: EngineConfig, most: int, folder: Path) -> int:
    """Longest sequence: the model's own limit, or less where the config asks."""
    if config.max_length is not None and config.max_length > most:
        raise ValueError(f"max_length: {config.max_length} is beyond the {most} tokens of {folder}; lower it")
    return config.max_length or most

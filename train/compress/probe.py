"""The fast judge: a plan's traces on the original's completions, from one model in memory whose weights are swapped and put back.

Promise: the traces that `divergence.judge` gives of the same weights (within 1e-5, tested), and the model left as it was.
Price per plan: one batched teacher-forced pass from the first changed layer on: what lies below is remembered (`keep_bytes` at
most), and the output layer runs on the completions' positions only. Once, where that spares anything: a pass of the original.
Source: divergence.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.compress.divergence import Reference, Trace

__all__ = ["Batch", "Probe", "layer_of", "layers_of"]


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder's layers, first to last: the list of modules as long as the model's config says it is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    found = next(lists, None)
    if found is None:
        raise ValueError(f"{type(model).__name__}: no list of {depth} layers in it; this architecture cannot be compressed yet")
    return list(found)


def layer_of(model: Any, name: str) -> int:
    """Which layer the parameter or module `name` is in; 0 for the embeddings, the depth for what comes after the last layer."""
    layers = layers_of(model)
    inside = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}
    module = model.get_submodule(name)
    if id(module) in inside:
        return inside[id(module)]
    tied = module.weight is model.get_input_embeddings().weight
    return len(layers) if module is model.get_output_embeddings() and not tied else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions of about one length, padded on the right: a causal model does not look there."""

    tokens: Tensor
    """[B, T]: each prompt with its completion."""
    places: Tensor
    """[P]: where in the flat [B * T] the completions' tokens are chosen, row after row."""
    sizes: tuple[int, ...]
    """[B]: tokens of each completion; P in all."""
    chosen: Tensor
    """[P]: the completions' tokens."""
    top_ids: Tensor
    """[P, k]: the original's likeliest tokens, likeliest first."""
    top_logprobs: Tensor
    """[P, k] float64."""
    rest: Tensor
    """[P] float64: the probability of all other tokens."""


class Probe:
    """Judges plans on a reference. Not for two threads at once: the weights in `model` are exchanged in turn."""

    def __init__(self, model: Any, reference: Reference, *, batch_tokens: int = 2048, keep_bytes: int = 1 << 30) -> None:
        """`model`: a transformers causal language model in float32 (float64 in tests), the one that `reference` was made by."""
        self.model, self.reference = model.eval().requires_grad_(False), reference
        self.layers, self.passes = layers_of(model), 0.0
        self._order = sorted(range(len(reference.prompts)), key=lambda i: len(reference.prompts[i]) + len(reference.completions[i]))
        self.batches = [_batch(reference, rows) for rows in _filled(reference, self._order, batch_tokens)]
        width = model.config.get_text_config().hidden_size * next(model.parameters()).element_size()
        held = width * sum(batch.tokens.numel() for batch in self.batches)
        self._stride = max(1, -(-held * len(self.layers) // keep_bytes))
        self._inputs: list[dict[int, Tensor]] = []

    def traces(self, plan: Mapping[str, Tensor]) -> list[Trace]:
        """Every completion's trace, in the reference's order, with the weights of the modules in `plan` (name -> [N, K]) exchanged."""
        first = min((layer_of(self.model, name) for name in plan), default=len(self.layers))
        found: dict[int, Trace] = {}
        rows = iter(self._order)
        known = self._remembered() if first >= self._stride else [{} for _ in self.batches]
        with exchanged(self.model, plan), torch.inference_mode():
            for batch, inputs in zip(self.batches, known, strict=True):
                for trace in _traces(batch, self.logits(batch, first, inputs)):
                    found[next(rows)] = trace
        self.passes += 1 - first / (len(self.layers) + 1)
        return [found[index] for index in range(len(found))]

    def _remembered(self) -> list[dict[int, Tensor]]:
        """What enters every `stride`-th layer of the original, by batch."""
        if not self._inputs:
            with torch.inference_mode():
                self._inputs = [self._entering(batch) for batch in self.batches]
        return self._inputs

    def _entering(self, batch: Batch) -> dict[int, Tensor]:
        inputs: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for index in range(self._stride, len(self.layers), self._stride):
                hooks.enter_context(_watched(self.layers[index], index, inputs))
            self.logits(batch)
        return inputs

    def logits(self, batch: Batch, first: int = 0, inputs: Mapping[int, Tensor] = MappingProxyType({})) -> Tensor:
        """[P, vocabulary] at the completions' places, the layers below `first` skipped as far as `inputs` (layer -> what enters) allows."""
        start = max((index for index in inputs if index <= first), default=0)
        with ExitStack() as stack:
            stack.enter_context(_only(self.model.get_output_embeddings(), batch.places))
            for index in range(start):
                stack.enter_context(_replaced(self.layers[index], inputs[start] if index == start - 1 else None))
            return self.model(input_ids=batch.tokens, use_cache=False).logits[0]


@contextmanager
def exchanged(model: Any, plan: Mapping[str, Tensor]) -> Iterator[None]:
    """The weights of `plan` in the model's modules while the context lasts; a tied weight is exchanged wherever it is used."""
    before = {name: model.get_submodule(name).weight.data for name in plan}
    try:
        for name, weight in plan.items():
            assert weight.shape == before[name].shape, name
            model.get_submodule(name).weight.data = weight.to(before[name].dtype)
        yield
    finally:
        for name, weight in before.items():
            model.get_submodule(name).weight.data = weight


@contextmanager
def _watched(layer: nn.Module, index: int, inputs: dict[int, Tensor]) -> Iterator[None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[index] = args[0] if args else kwargs["hidden_states"]

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(layer: nn.Module, output: Tensor | None) -> Iterator[None]:
    """The layer gives `output` (None: what it is given) without computing."""

    def given(*args: Any, **kwargs: Any) -> Any:
        return (args[0] if args else kwargs["hidden_states"]) if output is None else output

    layer.forward = given
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _only(head: nn.Module, places: Tensor) -> Iterator[None]:
    """The output layer reads these places of its input [B, T, K] only, as [1, P, K]."""
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, 1)[places][None],))
    try:
        yield
    finally:
        handle.remove()


def _filled(reference: Reference, order: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of one batch after another, in `order` (shortest first), each of at most `batch_tokens` with its padding."""
    rows: list[int] = []
    for index in order:
        length = len(reference.prompts[index]) + len(reference.completions[index])
        if rows and length * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


def _batch(reference: Reference, rows: Sequence[int]) -> Batch:
    texts = [[*reference.prompts[i], *reference.completions[i]] for i in rows]
    length = max(map(len, texts))
    starts = [len(reference.prompts[i]) - 1 for i in rows]
    sizes = tuple(len(reference.completions[i]) for i in rows)
    places = [row * length + start + np.arange(size) for row, (start, size) in enumerate(zip(starts, sizes, strict=True))]
    logprobs = torch.from_numpy(np.concatenate([reference.top_logprobs[i] for i in rows])).to(torch.float64)
    rest = (1 - logprobs.exp().sum(dim=1)).clamp(min=1e-12)
    return Batch(
        tokens=torch.tensor([text + [0] * (length - len(text)) for text in texts]),
        places=torch.from_numpy(np.concatenate(places)),
        sizes=sizes,
        chosen=torch.tensor([token for i in rows for token in reference.completions[i]]),
        top_ids=torch.from_numpy(np.concatenate([reference.top_ids[i] for i in rows]).astype(np.int64)),
        top_logprobs=logprobs,
        rest=rest,
    )


def _traces(batch: Batch, logits: Tensor) -> Iterator[Trace]:
    """What `divergence.judge` would say of these logits [P, vocabulary]; only the top tokens are looked at in float64."""
    likeliest, normaliser = logits.argmax(dim=1), torch.logsumexp(logits, dim=1, keepdim=True).to(torch.float64)
    mine = logits.gather(1, batch.top_ids).to(torch.float64) - normaliser
    losses = (normaliser - logits.gather(1, batch.chosen[:, None])).flatten()
    kl = (batch.top_logprobs.exp() * (batch.top_logprobs - mine)).sum(dim=1)
    if mine.shape[1] < logits.shape[1]:
        rest = (1 - mine.exp().sum(dim=1)).clamp(min=1e-12)
        kl += batch.rest * (batch.rest.log() - rest.log())
    margins = mine[:, 0] - mine[:, 1] if mine.shape[1] > 1 else torch.full((len(mine),), torch.inf)
    every = (each.numpy() for each in (likeliest, losses, margins, kl.clamp(min=0)))
    ends = np.cumsum(batch.sizes)[:-1]
    return (Trace(*parts) for parts in zip(*(np.split(each, ends) for each in every), strict=True))

"""Cheap scores: what each option would do to the tokens, from backward passes of the original and no pass of any candidate.

Promise: for a matrix W that becomes W + D, the second-order estimate of the mean KL(original ‖ changed) per token of the completions,
    KL ≈ ½ Σ_s E[ ⟨G_s, D⟩² ] / Σ_s N_s,    G_s = Σ_t ∂ log p(ŷ_t | y_<t) / ∂W over the tokens t of completion s,
with ŷ_t drawn from the original's own distribution at each place. Such a score has mean 0 whatever came before, so the cross terms
between places vanish and the square of the sum is the Fisher information's quadratic form. Nothing is factored: unlike in K-FAC,
inputs and gradients may depend on each other. From S completions and D draws the relative standard error is near √(2 / (S D)).
Price: a forward pass, `draws` backward passes, and as many products of inputs with gradients (a forward pass's worth each); every
further option costs S·D inner products, and is asked for once per batch and draw, so that only one matrix' options need be in memory.
Source: the Fisher information as the curvature of KL (Amari, 1998); as a measure of what a change of weights does: Optimal Brain
Surgeon (1993).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.compress.probe import Batch, Probe

__all__ = ["Score", "scores"]
_HELD = 1 << 26
"""Numbers of gradients that are held at a time."""


@dataclass(frozen=True, slots=True)
class Score:
    """A predicted harm."""

    kl: float
    """Nats per token of the completions."""
    error: float
    """Standard error of `kl`, from the spread between completions and draws."""


def scores(
    probe: Probe,
    options: Mapping[str, Mapping[str, Tensor]],
    *,
    draws: int = 2,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> dict[tuple[str, str], Score]:
    """(module, option) -> its score, of the changed weights `options` (module -> option -> [N, K]); calls `done` after each batch.

    `options` may be a mapping that makes its tensors when it is asked for them.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in options}
    for batch in probe.batches:
        for name, gradients in _gradients(probe, batch, list(options), draws, generator):
            before = probe.model.get_submodule(name).weight.flatten()
            changes = torch.stack([weight.flatten() for weight in options[name].values()]).sub_(before).T
            found[name] += [gradient.flatten(1) @ changes for gradient in gradients]
        done()
    total = draws * sum(map(len, probe.reference.completions))
    return {
        (name, option): _score(column, total)
        for name, each in options.items()
        for option, column in zip(each, torch.cat(found[name]).to(torch.float64).T, strict=True)
    }


def _score(products: Tensor, total: int) -> Score:
    """From ⟨G, D⟩ of every sample, which together are about `total` drawn tokens."""
    values = products.square() / (2 * total)
    return Score(float(values.sum()), float(values.std() * len(values) ** 0.5) if len(values) > 1 else float("inf"))


def _gradients(
    probe: Probe, batch: Batch, names: list[str], draws: int, generator: torch.Generator
) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """(name, its gradients [some, N, K], a few completions at a time) of each module, draw after draw."""
    embedding, head = probe.model.get_input_embeddings(), probe.model.get_output_embeddings()
    modules = {name: probe.model.get_submodule(name) for name in names}
    with _taped({embedding, head, *modules.values()}) as tape:
        logits = probe.logits(batch)
    logprobs = torch.log_softmax(logits, dim=1)
    outputs = {module: output for module, (_, output) in tape.items()}
    for draw in range(draws):
        drawn = torch.multinomial(logprobs.detach().exp(), 1, generator=generator)
        chosen = logprobs.gather(1, drawn).sum()
        slopes = dict(zip(outputs, torch.autograd.grad(chosen, list(outputs.values()), retain_graph=draw + 1 < draws), strict=True))
        for name, module in modules.items():
            if module in (embedding, head):
                yield name, _at_the_ends(batch, tape, slopes, module, embedding, head)
            else:
                yield name, _within(slopes[module], tape[module][0])


def _within(slope: Tensor, read: Tensor) -> Iterator[Tensor]:
    """The gradients of a layer inside the model from its output's slope [B, T, N] and its input [B, T, K], some rows at a time."""
    size = slope.shape[-1] * read.shape[-1]
    for out, into in zip(*(each.split(max(1, _HELD // size)) for each in (slope, read)), strict=True):
        yield torch.bmm(out.transpose(1, 2), into)


def _at_the_ends(
    batch: Batch, tape: Mapping[Any, Any], slopes: Mapping[Any, Tensor], module: Any, embedding: Any, head: Any
) -> Iterator[Tensor]:
    """[1, vocabulary, K] per completion, of the output layer, of the embedding, or of both in one where they are tied."""
    at_head = zip(slopes[head][0].split(batch.sizes), tape[head][0][0].split(batch.sizes), strict=True)
    for tokens, looked_up, (out, into) in zip(batch.tokens, slopes[embedding], at_head, strict=True):
        gradient = out.T @ into if module.weight is head.weight else torch.zeros_like(module.weight)
        if module.weight is embedding.weight:
            gradient.index_add_(0, tokens, looked_up)
        yield gradient[None]


@contextmanager
def _taped(modules: set[Any]) -> Iterator[dict[Any, tuple[Tensor, Tensor]]]:
    """Module -> (its input, its output) of the pass that is made in the context; gradients begin at outputs without any."""
    tape: dict[Any, tuple[Tensor, Tensor]] = {}

    def keep(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        tape[module] = (args[0].detach(), output if output.requires_grad else output.requires_grad_())

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        yield tape

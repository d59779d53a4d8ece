"""Packed sequences for models that do not tell segments apart: one document per sequence, sorted into a few lengths.

Promise: the loss of a packed batch is the sum of its documents' losses, whatever the architecture. Attention told of positions that
restart makes a block-diagonal mask; a recurrent state, or ALiBi's distances, run on over the border, so there every document becomes a
sequence of its own. Price: padding, at most as many positions again as the documents have, and a pass per length class; every batch
takes as many passes as any other, so that workers that gather shards as they go stay in step. Which of both a model is, is tried, not
looked up, so it holds for any causal model: two passes over some tokens when training starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from train.corpus import IGNORED

__all__ = ["apart", "honours_segments", "positions_taken"]

_CLASSES = (8, 4, 2, 1)
"""Parts of the full length up to which a document belongs to a class."""
_TRIED = 6  # tokens of each of the two documents tried: more than a short convolution reaches
_FAR = {torch.float64: 1e-6, torch.float32: 1e-4}
"""How far a document's hidden states may move, in their standard deviations, when the one before it changes; in shorter types 0.03."""


@torch.no_grad()
def honours_segments(decoder: nn.Module, vocab_size: int) -> bool:
    """Whether `decoder` (below the output layer) keeps packed documents apart when positions restart."""
    device = next(decoder.parameters()).device
    tokens = torch.arange(2 * _TRIED, device=device)[None] % vocab_size
    other = tokens.clone()
    other[:, :_TRIED] = (other[:, :_TRIED] + vocab_size // 2) % vocab_size
    positions = torch.arange(_TRIED, device=device).repeat(2)[None]
    training = decoder.training
    decoder.eval()
    first, second = (_hidden(decoder, ids, positions)[:, _TRIED:].float() for ids in (tokens, other))
    decoder.train(training)
    far = _FAR.get(next(decoder.parameters()).dtype, 0.03)
    return float((first - second).abs().max()) <= far * float(first.std())


def positions_taken(decoder: nn.Module, position_ids: Tensor) -> dict[str, Tensor]:
    """`position_ids` as a keyword, where the decoder knows of positions."""
    parameters = inspect.signature(decoder.forward).parameters
    takes = "position_ids" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {"position_ids": position_ids} if takes else {}


def apart(input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A batch [B, L] as one batch per length class, each of whose sequences is one document, padded behind.

    Documents without labels are left out. A class without documents is one token without a label.

    >>> tokens, positions = torch.tensor([[5, 6, 7, 8, 9, 0, 0, 0]]), torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0]])
    >>> labels = torch.tensor([[6, 7, -100, 9, -100, -100, -100, -100]])
    >>> [part[0].tolist() for part in apart(tokens, labels, positions)]
    [[[0]], [[8, 9]], [[5, 6, 7]], [[0]]]
    """
    full = input_ids.shape[1]
    tokens, targets = input_ids.reshape(-1), labels.reshape(-1)
    starts = (position_ids.reshape(-1) == 0).nonzero()[:, 0].tolist()
    spans = [
        (start, end)
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True)
        if end - start > 1 and bool((targets[start:end] != IGNORED).any())
    ]
    least = 0
    for part in _CLASSES:
        most = -(-full // part)
        mine = [(start, end) for start, end in spans if least < end - start <= most]
        yield _padded(tokens, targets, mine)
        least = most


def _padded(tokens: Tensor, targets: Tensor, spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    longest = max((end - start for start, end in spans), default=1)
    shape = (max(1, len(spans)), longest)
    input_ids, labels = tokens.new_zeros(shape), targets.new_full(shape, IGNORED)
    for row, (start, end) in enumerate(spans):
        input_ids[row, : end - start], labels[row, : end - start] = tokens[start:end], targets[start:end]
    return input_ids, labels, torch.arange(longest, device=tokens.device).expand(shape)


def _hidden(decoder: nn.Module, tokens: Tensor, positions: Tensor) -> Any:
    return decoder(input_ids=tokens, use_cache=False, **positions_taken(decoder, positions)).last_hidden_state

"""What a foreign model remembers of a sequence, handled without knowing its kind: copied, cropped, stacked, picked apart.

Promise: a memory is a tree (transformers' caches and their layers, lists, dicts) whose tensors of two or more dimensions have the batch
first; every function returns a new tree and leaves the given ones as they were. Price: `copied` copies recurrent states (constant
size) and shares keys and values, which transformers' dynamic layers replace and never write into; `stacked` and `joined` copy all.
Source: the layout of transformers.cache_utils (KV [batch, heads, length, head_dim]; convolution and recurrent states batch first).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["copied", "cropped", "is_plain_kv", "joined", "mapped", "parted", "picked", "stacked"]

_KV = ("keys", "values")


def mapped(change: Callable[..., Tensor], tree: Any, *others: Any, keep: Series[str] = ()) -> Any:
    """The tree with `change` applied to its batched tensors (and those of `others` at the same place), but for attributes in `keep`."""
    if isinstance(tree, Tensor):
        return change(tree, *others) if tree.ndim > 1 else tree
    if isinstance(tree, dict):
        return {key: value if key in keep else mapped(change, value, *(o[key] for o in others), keep=keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(change, *parts, keep=keep) for parts in zip(tree, *others, strict=True))
    if _is_state(tree):
        new = copy.copy(tree)
        vars(new).update(mapped(change, vars(tree), *map(vars, others), keep=keep))
        return new
    return tree


def _is_state(value: Any) -> bool:
    """One of transformers' caches or cache layers: an object that is neither a module nor a config."""
    kind = type(value)
    return (
        kind.__module__.startswith("transformers.")
        and ("Cache" in kind.__name__ or "Layer" in kind.__name__)
        and hasattr(value, "__dict__")
    )


def copied(memory: Any) -> Any:
    """A memory that stays as it is while the model goes on with the given one."""
    return mapped(torch.clone, memory, keep=_KV)


def stacked(memories: Series[Any]) -> Any:
    """Memories of one sequence each, of equal lengths where they hold KV, as one of a batch."""
    return mapped(lambda *rows: torch.cat(rows), *memories)


def picked(memory: Any, row: int) -> Any:
    """One sequence's memory out of a batch's; it shares the batch's storage, of which no other sequence writes to its part."""
    return mapped(lambda batch: batch[row : row + 1], memory)


# ---- caches of keys and values alone ---------------------------------------------------------------------------------


def is_plain_kv(memory: Any) -> bool:
    """Whether the memory is keys and values of every position and nothing else, so that it can be cropped and padded."""
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer

    return (
        type(memory) is DynamicCache and bool(memory.layers) and all(type(layer) in (DynamicLayer, DummyLayer) for layer in memory.layers)
    )


def cropped(memory: Any, start: int, end: int) -> Any:
    """The positions [start, end) of a plain KV memory."""
    return mapped(lambda kv: kv[..., start:end, :], memory)


def joined(memories: Series[Any]) -> Any:
    """Plain KV memories of any lengths as one of a batch: the shorter begin with zeros, which a mask has to hide."""

    def join(*rows: Tensor) -> Tensor:
        longest = max(row.shape[-2] for row in rows)
        return torch.cat([pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows])

    return mapped(join, *memories)


def parted(memory: Any, row: int, start: int, end: int) -> Any:
    """One sequence's positions [start, end) out of a batch's plain KV memory."""
    return mapped(lambda batch: batch[row : row + 1, ..., start:end, :], memory)

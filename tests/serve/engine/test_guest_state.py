"""Memories as trees: what comes out of a batch is what went in, and nothing given is changed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from serve.engine.guest_state import copied, cropped, is_plain_kv, joined, parted, picked, stacked

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def make_kv(length: int, seed: int = 0) -> DynamicCache:
    """Two layers of two heads."""
    cache, generator = DynamicCache(), torch.Generator().manual_seed(seed)
    for layer in range(2):
        cache.update(*torch.randn(2, 1, 2, length, 4, generator=generator), layer)
    return cache


def make_hybrid(length: int, seed: int = 0) -> DynamicCache:
    """A recurrent layer, then one of attention."""
    cache, generator = DynamicCache(), torch.Generator().manual_seed(seed)
    cache.layers = [LinearAttentionLayer(), DynamicLayer()]
    cache.update_conv_state(torch.randn(1, 6, 3, generator=generator), 0)
    cache.update_recurrent_state(torch.randn(1, 6, 5, generator=generator), 0)
    cache.update(*torch.randn(2, 1, 2, length, 4, generator=generator), 1)
    return cache


def kv(cache: DynamicCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def states(cache: DynamicCache) -> list[Tensor]:
    layer: Any = cache.layers[0]
    return [layer.conv_states[0], layer.recurrent_states[0], cache.layers[1].keys, cache.layers[1].values]


def equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@given(lengths=LENGTHS, count=st.integers(1, 3))
def test_sequences_of_any_length_come_out_of_a_batch_as_they_went_in(lengths: list[int], count: int) -> None:
    caches = [make_kv(length, seed) for seed, length in enumerate(lengths)]
    before = [[tensor.clone() for tensor in kv(cache)] for cache in caches]
    batch, longest = joined(caches), max(lengths)
    new = [torch.randn(len(lengths), 2, count, 4) for _ in range(4)]
    for layer in range(2):
        batch.update(new[2 * layer], new[2 * layer + 1], layer)
    for i, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        out = parted(batch, i, longest - length, longest + count)
        assert out.get_seq_length() == length + count
        assert equal(kv(cropped(out, 0, length)), before[i])
        assert equal([tensor[:, :, length:] for tensor in kv(out)], [tensor[i : i + 1] for tensor in new])
        assert equal(kv(cache), before[i]), "what was given is as it was"
    assert is_plain_kv(batch)


def test_a_copy_stays_while_the_model_goes_on() -> None:
    cache = make_hybrid(3)
    kept, before = copied(cache), [tensor.clone() for tensor in states(cache)]
    assert kept.layers[1].keys.data_ptr() == cache.layers[1].keys.data_ptr(), "KV is shared: nobody writes into it"
    cache.update_conv_state(torch.ones(1, 6, 1), 0)
    cache.update_recurrent_state(torch.ones(1, 6, 5), 0)
    cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 1)
    assert not equal(states(cache)[:2], before[:2])
    assert equal(states(kept), before)
    assert kept.has_previous_state(0)
    assert not is_plain_kv(kept)


def test_stacked_states_go_on_by_themselves() -> None:
    caches = [make_hybrid(4, seed) for seed in range(3)]
    batch = stacked(caches)
    assert [tensor.shape[0] for tensor in states(batch)] == [3] * 4
    rows = [picked(batch, i) for i in range(3)]
    assert all(equal(states(row), states(cache)) for row, cache in zip(rows, caches, strict=True))
    rows[1].update_recurrent_state(torch.zeros(1, 6, 5), 0)
    assert equal(states(rows[0]), states(caches[0])), "a neighbour's state has changed"
    assert equal(states(rows[2]), states(caches[2]))


def test_lists_and_dicts_are_trees_too() -> None:
    """RWKV keeps a list of tensors, xLSTM a dict of tuples; what is no batch (a counter, a name) is kept."""
    memories = [
        {"states": [torch.full((1, 3), float(i))], 0: (torch.full((1, 2, 2), float(i)),), "at": torch.tensor([7])} for i in range(2)
    ]
    batch = stacked(memories)
    assert batch["states"][0].tolist() == [[0.0] * 3, [1.0] * 3]
    assert batch["at"].tolist() == [7]
    assert torch.equal(picked(batch, 1)[0][0], memories[1][0][0])

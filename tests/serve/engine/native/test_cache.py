"""Native attention is the definition, whatever the mixture of spans, and the same to the bit in any company and on any threads."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.attention import Scores, Span, plain_attention
from serve.engine.native.cache import NativeCache, fits
from serve.engine.native.library import refusal

pytestmark = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")

PLAIN = Scores()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Texts:
    """Random queries, keys and values of some sequences, and shuffled blocks to keep them in."""

    def __init__(self, seed: int, lengths: list[int], kv_heads: int, group: int, dim: int, block_size: int = 16) -> None:
        self.kv_heads, self.heads, self.dim, self.size = kv_heads, kv_heads * group, dim, block_size
        generator = torch.Generator().manual_seed(seed)
        self.q = [torch.randn(n, self.heads, dim, generator=generator).bfloat16() for n in lengths]
        self.kv = [torch.randn(2, kv_heads, n, dim, generator=generator).bfloat16() for n in lengths]
        counts = [-(-n // block_size) for n in lengths]
        order = list(range(sum(counts)))
        random.Random(seed).shuffle(order)
        self.blocks = [[order.pop() for _ in range(count)] for count in counts]

    def cache(self, quantised: bool = False) -> NativeCache:
        return NativeCache(1, self.kv_heads, self.dim, sum(map(len, self.blocks)), self.size, quantised)

    def step(
        self, cache: NativeCache, spans: list[tuple[int, int, int]], window: int | None = None, scores: Scores = PLAIN
    ) -> torch.Tensor:
        """(text, start, length) each."""
        attend = cache.attend([Span(start, length, self.blocks[i]) for i, start, length in spans], [window], scores)
        q = torch.cat([self.q[i][start : start + length] for i, start, length in spans])
        kv = torch.cat([self.kv[i][:, :, start : start + length] for i, start, length in spans], 2)
        return attend(0, q, kv)

    def expected(self, i: int, window: int | None) -> torch.Tensor:
        keys, values = self.kv[i].double().transpose(1, 2)
        return plain_attention(self.q[i].double(), keys, values, 0, window).flatten(1)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 3), (3, 2), (1, 7)]),
    dim=st.sampled_from([16, 64, 80, 128]),
    window=st.sampled_from([None, 5, 100]),
    num_threads=st.integers(1, 3),
)
def test_any_mixture_of_spans_is_the_definition_and_its_own_affair(
    seed: int, lengths: list[int], heads: tuple[int, int], dim: int, window: int | None, num_threads: int
) -> None:
    torch.set_num_threads(1)
    texts = Texts(seed, lengths, *heads, dim)
    alone = texts.cache()
    whole = [texts.step(alone, [(i, 0, n)], window) for i, n in enumerate(lengths)]
    for i, out in enumerate(whole):
        torch.testing.assert_close(out.double(), texts.expected(i, window), rtol=2**-8, atol=1e-3)
    torch.set_num_threads(num_threads)
    rng, together, done = random.Random(seed), texts.cache(), [0] * len(lengths)
    parts: list[list[torch.Tensor]] = [[] for _ in lengths]
    while any(at < n for at, n in zip(done, lengths, strict=True)):
        spans = [
            (i, at, min(rng.choice([1, 1, 2, 5, 70, 300]), n - at)) for i, (at, n) in enumerate(zip(done, lengths, strict=True)) if at < n
        ]
        rng.shuffle(spans)
        out = texts.step(together, spans, window).split([length for _, _, length in spans])
        for (i, start, length), rows in zip(spans, out, strict=True):
            parts[i].append(rows)
            done[i] = start + length
    assert all(torch.equal(torch.cat(rows), out) for rows, out in zip(parts, whole, strict=True))
    assert torch.equal(together.data, alone.data)


def test_few_sequences_with_many_keys_are_spread_over_threads_without_a_trace() -> None:
    texts = Texts(1, [1500], 2, 3, 64)
    torch.set_num_threads(1)
    cache = texts.cache()
    texts.step(cache, [(0, 0, 1490)])
    one = texts.step(cache, [(0, 1490, 10)])
    for num_threads in (2, 3, 4):
        torch.set_num_threads(num_threads)
        assert torch.equal(texts.step(cache, [(0, 1490, 10)]), one)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("block_size", [16, 48])
def test_what_blocks_held_before_does_not_matter(block_size: int, quantised: bool) -> None:
    """Not even NaN, which all bits set are: one broken request must not spoil those that get its blocks."""
    lengths = [1, 37, 130, 200]
    texts = Texts(3, lengths, 2, 3, 64, block_size)

    def computed(byte: int) -> torch.Tensor:
        cache, done, rng = texts.cache(quantised), [0] * 4, random.Random(1)
        cache.data.fill_(byte)
        rows = []
        while done != lengths:
            left = [(i, at, n - at) for i, (at, n) in enumerate(zip(done, lengths, strict=True)) if at < n]
            spans = [(i, at, min(rng.choice([1, 2, 7, 30, 60]), n)) for i, at, n in left]
            rows.append(texts.step(cache, spans, window=50))
            for i, _, n in spans:
                done[i] += n
        return torch.cat(rows)

    assert torch.equal(computed(0xFF), computed(0))


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("soft_cap", [None, 20.0])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so(odd: float, soft_cap: float | None, quantised: bool) -> None:
    texts = Texts(6, [40], 1, 2, 32)
    texts.kv[0][:, :, 20, 5] = odd
    out = texts.step(texts.cache(quantised), [(0, 0, 40)], None, Scores(soft_cap=soft_cap))
    assert not out[20:, 5].isfinite().any()


def test_blocks_behind_the_window_are_not_touched() -> None:
    """Not even where they are gone: -1 is no block."""
    texts = Texts(2, [200], 2, 2, 32)
    cache = texts.cache()
    texts.step(cache, [(0, 0, 190)], 20)
    expected = texts.step(cache, [(0, 190, 10)], 20)
    texts.blocks[0][: (190 - 20 + 1) // 16] = [-1] * ((190 - 20 + 1) // 16)
    assert torch.equal(texts.step(cache, [(0, 190, 10)], 20), expected)


def test_soft_cap_and_scale() -> None:
    texts = Texts(3, [40], 2, 2, 32)
    out = texts.step(texts.cache(), [(0, 0, 40)], None, Scores(scale=0.7, soft_cap=3.0)).view(40, 4, 32)
    keys, values = texts.kv[0].double().transpose(1, 2)
    scores = torch.einsum("qhd,khd->hqk", texts.q[0].double(), keys.repeat_interleave(2, 1)) * 0.7
    weights = ((scores / 3.0).tanh() * 3.0).masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(2, 1))
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("block_size", [16, 32])
def test_int8_kv_is_close_and_its_own_affair(block_size: int) -> None:
    texts = Texts(4, [150, 90], 2, 3, 64, block_size)
    cache = texts.cache(quantised=True)
    whole = [texts.step(cache, [(i, 0, n)]) for i, n in enumerate([150, 90])]
    for i, out in enumerate(whole):
        assert (out.double() - texts.expected(i, None)).abs().max() < 0.03
    assert cache.bytes_per_block < 0.54 * texts.cache().bytes_per_block
    other = texts.cache(quantised=True)
    texts.step(other, [(1, 0, 80), (0, 0, 149)])
    both = texts.step(other, [(0, 149, 1), (1, 80, 10)])
    assert torch.equal(both, torch.cat([whole[0][149:], whole[1][80:]]))


@pytest.mark.parametrize("quantised", [False, True])
def test_copied_blocks_are_the_same_blocks_elsewhere(quantised: bool) -> None:
    texts = Texts(5, [100], 2, 2, 16)
    cache = texts.cache(quantised)
    texts.step(cache, [(0, 0, 99)])
    copy = cache.copy_out(texts.blocks[0])
    assert copy.dtype == torch.uint8
    assert copy.shape == (7, cache.bytes_per_block)
    expected = texts.step(cache, [(0, 99, 1)])
    moved = texts.cache(quantised)
    texts.blocks[0] = [3, 1, 4, 0, 5, 2, 6]
    moved.copy_in(texts.blocks[0], copy)
    assert torch.equal(texts.step(moved, [(0, 99, 1)]), expected)


def test_shapes_that_do_not_fit_are_known_beforehand() -> None:
    assert fits(9, 3, 64, 16)
    assert fits(9, 3, 64, 32)
    assert not fits(9, 3, 64, 8), "a block holds whole tiles"
    assert not fits(9, 3, 40, 16)
    assert not fits(71, 1, 64, 16)

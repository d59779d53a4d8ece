"""Attention over paged KV equals the definition, for any mix of spans."""

from __future__ import annotations

import random

import pytest
import torch

from serve.engine.attention import FEW, KvCache, Scores, Span, StepAttention, order, plain_attention

SIZE, KV_HEADS, HEADS, DIM = 4, 2, 6, 8


def random_kv(length: int, seed: int) -> torch.Tensor:
    """[2, kv_heads, length, dim]."""
    return torch.randn(2, KV_HEADS, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(9, 1)],
        [(7, 3)],
        [(0, 20)],
        [(11, 30)],
        [(5, 1), (9, 1), (3, 1)],
        [(5, 2), (40, 1), (3, 4)],
        [(0, 1), (0, FEW), (0, FEW + 1), (21, 25), (8, 3), (60, 2), (2, 1)],
    ],
)
def test_step_attention_is_the_definition(spans: list[tuple[int, int]], window: int | None) -> None:
    shuffled = list(range(60))
    random.Random(0).shuffle(shuffled)
    cache = KvCache(1, KV_HEADS, DIM, 60, SIZE, torch.float64, torch.device("cpu"))
    placed = []
    for start, length in spans:
        blocks = [shuffled.pop() for _ in range(-(-(start + length) // SIZE))]
        placed.append(Span(start, length, blocks))
    placed.sort(key=order)
    history = [random_kv(span.end, i) for i, span in enumerate(placed)]
    for span, kv in zip(placed, history, strict=True):  # what earlier steps computed
        slots = torch.tensor([span.blocks[p // SIZE] * SIZE + p % SIZE for p in range(span.start)], dtype=torch.long)
        cache.write(0, slots, kv[:, :, : span.start])
    new = torch.cat([kv[:, :, span.start :] for span, kv in zip(placed, history, strict=True)], dim=2)
    q = torch.randn(new.shape[2], HEADS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    out = StepAttention(cache, placed, [window])(0, q, new)
    row = 0
    for span, kv in zip(placed, history, strict=True):
        keys, values = kv.transpose(1, 2)
        expected = plain_attention(q[row : row + span.length], keys, values, span.start, window)
        torch.testing.assert_close(out[row : row + span.length].view(-1, HEADS, DIM), expected, rtol=0, atol=1e-12)
        row += span.length


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("start", [0, 1, 6])
def test_both_sides_of_the_boundary_agree(start: int, window: int | None, soft_cap: float | None) -> None:
    """A chunk of FEW queries rides with others, a longer one has a call to itself; its rows are the same to rounding."""
    kv, company = random_kv(start + FEW + 2, 1), random_kv(9, 2)
    q = torch.randn(FEW + 2, HEADS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def rows(length: int) -> torch.Tensor:
        cache = KvCache(1, KV_HEADS, DIM, 20, SIZE, torch.float64, torch.device("cpu"))
        cache.write(0, torch.arange(start), kv[:, :, :start])
        cache.write(0, torch.arange(40, 48), company[:, :, :8])
        spans = sorted([Span(start, length, range(10)), Span(8, 1, range(10, 13))], key=order)
        new = {start: (q[:length], kv[:, :, start : start + length]), 8: (q[:1], company[:, :, 8:])}
        step = StepAttention(cache, spans, [window], Scores(soft_cap=soft_cap))
        assert len(step._groups) == (1 if length <= FEW else 2)
        out = step(0, torch.cat([new[s.start][0] for s in spans]), torch.cat([new[s.start][1] for s in spans], 2))
        return out[:length] if spans[0].start == start else out[1:]

    few, more, most = (rows(length) for length in (FEW, FEW + 1, FEW + 2))
    torch.testing.assert_close(more[:FEW], few, rtol=0, atol=1e-12)
    torch.testing.assert_close(most[: FEW + 1], more, rtol=0, atol=1e-12)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_what_blocks_held_before_does_not_matter(window: int | None, quantised: bool) -> None:
    """Not even NaN: one broken request must not spoil those that get its blocks."""

    def computed(stale: float) -> torch.Tensor:
        cache = KvCache(1, KV_HEADS, DIM, 30, SIZE, torch.float64, torch.device("cpu"), quantised)
        for store in cache.scales if cache.scales is not None else cache.layers:
            store[:, :, :-1] = stale
        blocks, done, rows = [list(range(i, 30, 3)) for i in range(3)], [0, 0, 0], []
        for lengths in ([1, 6, 18], [1, 1, 1], [2, 9, 1], [1, 1, 3], [17, 1, 1]):
            spans = sorted((Span(at, n, held) for at, n, held in zip(done, lengths, blocks, strict=True)), key=order)
            kv = torch.cat([random_kv(span.length, span.start) for span in spans], 2)
            rows.append(StepAttention(cache, spans, [window])(0, kv.transpose(0, 2)[..., [0, 1, 0, 1, 0, 1], :].flatten(1, 2), kv))
            done = [at + n for at, n in zip(done, lengths, strict=True)]
            for held, at in zip(blocks, done, strict=True):  # given back, and by now somebody else's
                behind = 0 if window is None else max(0, at + 1 - window) // SIZE
                held[:behind] = [29] * behind
        return torch.cat(rows)

    assert torch.equal(computed(float("nan")), computed(0.0))


def test_padding_only_joins_sequences_of_similar_length() -> None:
    from serve.engine.attention import _grouped

    spans = sorted([Span(1000, 1, range(63)), Span(30, 1, range(2)), Span(900, 1, range(57)), Span(0, 40, range(3))], key=order)
    groups = [[span.start for span in group] for group in _grouped(spans, 16)]
    assert groups == [[1000, 900], [30], [0]]


@pytest.mark.parametrize("quantised", [False, True])
def test_copied_blocks_are_the_same_blocks_elsewhere(quantised: bool) -> None:
    def make() -> KvCache:
        return KvCache(3, KV_HEADS, DIM, 9, SIZE, torch.bfloat16, torch.device("cpu"), quantised)

    cache, moved = make(), make()
    for layer in range(3):
        cache.write(layer, torch.arange(8, 20), random_kv(12, layer).bfloat16())  # blocks 2, 3, 4
    copy = cache.copy_out([4, 2, 3])
    assert copy.dtype == torch.uint8
    assert copy.shape == (3, cache.bytes_per_block)
    moved.copy_in([7, 0, 5], copy)
    for layer in range(3):
        before, after = (c.read(layer, torch.tensor(t), 1) for c, t in ((cache, [2, 3, 4]), (moved, [0, 5, 7])))
        assert torch.equal(before, after)
        assert before.abs().sum() > 0


def test_int8_blocks_hold_half_the_bytes_and_nearly_the_values() -> None:
    cache = KvCache(1, KV_HEADS, 64, 5, SIZE, torch.float32, torch.device("cpu"), quantised=True)
    kv = torch.randn(2, KV_HEADS, 8, 64, generator=torch.Generator().manual_seed(0))
    kv[0, 0, 3] = 0.0
    cache.write(0, torch.arange(4, 12), kv)
    read = cache.read(0, torch.tensor([1, 2]), 1)[:, :, 0]
    assert (read - kv).abs().max() <= kv.abs().max() / 127 / 2 * 1.001
    assert torch.equal(read[0, 0, 3], kv[0, 0, 3])
    wide = KvCache(1, KV_HEADS, 64, 5, SIZE, torch.bfloat16, torch.device("cpu"))
    assert cache.bytes_per_block == wide.bytes_per_block * 68 / 128

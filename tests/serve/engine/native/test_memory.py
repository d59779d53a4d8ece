"""Memory for weights never overlaps, is aligned and clear, and goes when its tensors go."""

from __future__ import annotations

import gc
import itertools
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.native import memory
from serve.engine.native.memory import CHUNK, aligned_bytes, own_bytes


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 4096, 5000, 1 << 20, (1 << 20) + 1, CHUNK // 2, CHUNK]), min_size=1, max_size=8))
def test_pieces_are_aligned_clear_and_apart(sizes: list[int]) -> None:
    pieces = [aligned_bytes(size) for size in sizes]
    assert [len(piece) for piece in pieces] == sizes
    spans = sorted((piece.data_ptr(), piece.data_ptr() + len(piece)) for piece in pieces)
    assert all(start % 4096 == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for piece in pieces:
        assert not piece[:100].any()
        assert not piece[-100:].any()
        piece[:100] = 255


def test_a_mapping_goes_with_its_last_tensor() -> None:
    first, second = aligned_bytes(CHUNK // 2), aligned_bytes(CHUNK)
    mapping = weakref.ref(second.untyped_storage())
    del second
    gc.collect()
    assert mapping() is None
    assert first.untyped_storage().nbytes() > 0
    assert len(memory._room) < CHUNK


def test_what_has_its_own_mapping_leaves_nothing_behind() -> None:
    weights = aligned_bytes(5000)
    scratch = own_bytes(5000)
    assert (len(scratch), scratch.data_ptr() % (2 << 20)) == (5000, 0)
    assert not scratch.any()
    mapping = weakref.ref(scratch.untyped_storage())
    del scratch
    gc.collect()
    assert mapping() is None
    assert len(weights) == 5000

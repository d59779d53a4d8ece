"""Blocks that travel: what does not fit together is refused, the bytes go out of band, and slices cover a range."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.kv_blocks import NOTHING, SLICE_BYTES, KvBlocks, slices


def make_blocks(num_blocks: int = 3, block_bytes: int = 1000) -> KvBlocks:
    data = np.random.default_rng(0).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    return KvBlocks("kind", block_bytes, b"parent", tuple(bytes([i]) * 16 for i in range(num_blocks)), data)


def test_the_bytes_go_out_of_band() -> None:
    blocks, buffers = make_blocks(), []
    body = pickle.dumps(blocks, protocol=5, buffer_callback=buffers.append)
    assert len(body) < 1000
    assert sum(buffer.raw().nbytes for buffer in buffers) == blocks.num_bytes == 3000
    carried = pickle.loads(body, buffers=[bytes(buffer) for buffer in buffers])
    assert (carried.kv_kind, carried.block_bytes, carried.parent, carried.hashes) == ("kind", 1000, b"parent", blocks.hashes)
    assert np.array_equal(carried.data, blocks.data)
    assert not carried.data.flags.writeable, "as from Ray's object store"


@pytest.mark.parametrize(
    "data",
    [np.zeros((2, 4), np.uint8), np.zeros((3, 5), np.uint8), np.zeros((3, 4), np.int8), np.zeros((4, 3), np.uint8).T],
    ids=["a row too few", "rows too long", "another type", "not in one piece"],
)
def test_what_does_not_fit_together_is_refused(data: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"data: .* give a row for each hash"):
        KvBlocks("kind", 4, b"", (b"a", b"b", b"c"), data)


def test_nothing_weighs_nothing() -> None:
    assert (NOTHING.num_bytes, NOTHING.hashes) == (0, ())


@given(first=st.integers(0, 50), count=st.integers(0, 200), block_bytes=st.integers(0, 2 * SLICE_BYTES))
def test_slices_cover_a_range_in_order_and_none_is_long(first: int, count: int, block_bytes: int) -> None:
    ranges = list(slices(first, first + count, block_bytes))
    assert [i for start, end in ranges for i in range(start, end)] == list(range(first, first + count))
    assert all(end > start and ((end - start) * block_bytes <= SLICE_BYTES or end - start == 1) for start, end in ranges)

"""Host copies: within their capacity, each back in or dropped exactly once, told to the batch in order."""

from __future__ import annotations

import pytest

from serve.engine.swap import HostCopies, HostCopy


def test_a_copy_goes_out_and_comes_back() -> None:
    host = HostCopies(capacity=5)
    copy = host.make([7, 3, 4], first=0, computed=11)
    assert copy == HostCopy(key=0, first=0, num_blocks=3, computed=11)
    assert host.take() == ([(0, [7, 3, 4])], [])
    assert host.num_blocks == 3
    host.use(copy, [1, 2])
    assert host.take() == ([], [(0, [1, 2])])
    assert host.num_blocks == 0
    host.check([])


def test_what_does_not_fit_is_not_copied() -> None:
    host = HostCopies(capacity=5)
    assert host.make([1, 2, 3], 0, 12) is not None
    assert host.make([4, 5, 6], 0, 12) is None
    assert host.make([], 0, 0) is None
    assert host.make([4, 5], 0, 8) is not None
    assert HostCopies(capacity=0).make([1], 0, 4) is None


def test_a_copy_is_used_once_and_every_key_is_new() -> None:
    host = HostCopies(capacity=9)
    first = host.make([1], 0, 4)
    assert first is not None
    host.use(first)
    with pytest.raises(KeyError):
        host.use(first)
    second = host.make([1], 0, 4)
    assert second is not None
    assert second.key != first.key
    assert host.take() == ([(0, [1]), (1, [1])], [(0, [])])


def test_a_copy_that_nobody_owns_is_noticed() -> None:
    host = HostCopies(capacity=9)
    copy = host.make([1], 0, 4)
    assert copy is not None
    host.check([copy])
    with pytest.raises(AssertionError, match="owned by nobody"):
        host.check([])
